"""The description of the control interface (OpenAPI 3.1), which ``GET /openapi.json`` answers. A test holds the answers against it."""

from __future__ import annotations

from typing import Any

from harness import __version__

_STRING = {"type": "string"}
_NO_CONTROL = r"^[^\u0000-\u001F\u007F-\u009F]*$"
_STRINGS = {"type": "array", "items": _STRING}
_NUMBER = {"type": "number"}
_COUNT = {"type": "integer", "minimum": 0}
_ID = {"type": "integer", "minimum": 1, "description": "The n of DATABASE_URL_n."}
_TEXTS = {"type": "object", "additionalProperties": _STRING}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_HOLDER = {
    "id": _ID,
    "worker": _STRING,
    "pid": {"type": ["integer", "null"]},
    "seconds": _NUMBER,
}

_SCHEMAS: dict[str, Any] = {
    "Reset": _object(
        id=_ID,
        strategy={
            "enum": ["nothing", "rewind", "restore", "clone"],
            "description": "nothing: nothing had changed. rewind, restore: pages or rows were put back, sessions go on. "
            "clone: a fresh clone under the same name, which ends all sessions.",
        },
        milliseconds=_NUMBER,
        tables=_STRINGS,
        rows=_COUNT,
        ended={**_STRINGS, "description": "Sessions that did not let go within reset_timeout."},
        reason={**_STRING, "description": "Why it was a clone; empty otherwise."},
    ),
    "LeaseRequest": {
        "type": "object",
        "properties": {
            "worker": {
                "type": ["string", "integer", "null"],
                "description": "Who asks: the same once more gets the same lease. Without it, somebody new each time.",
                "minLength": 1,
                "maxLength": 200,
                "pattern": _NO_CONTROL,
            },
            "pid": {
                "type": ["integer", "null"],
                "maximum": 2147483647,
                "minimum": 1,
                "description": "The process that holds it, on this machine: the lease is free when that has gone.",
            },
            "wait": {
                "type": ["number", "null"],
                "minimum": 0,
                "maximum": 3600,
                "default": 60,
                "description": "Seconds.",
            },
        },
        "additionalProperties": False,
    },
    "Lease": _object(
        id=_ID,
        url={**_STRING, "format": "uri", "description": "The same as env.DATABASE_URL."},
        env={**_TEXTS, "description": "All variables of this lease: put them into your environment."},
    ),
    "Mark": _object(id=_ID, mark=_STRING),
    "Changes": _object(
        id=_ID,
        changed={"type": "boolean"},
        databases={
            "type": "object",
            "additionalProperties": _STRINGS,
            "description": "Database → lines for people.",
        },
        details={
            "type": "object",
            "additionalProperties": _object(
                tables={
                    "type": "object",
                    "additionalProperties": _object(
                        inserted=_COUNT,
                        updated=_COUNT,
                        deleted=_COUNT,
                        rewritten={"type": "boolean"},
                        unlogged={
                            "type": "boolean",
                            "description": "It writes no log, so it may have changed.",
                        },
                    ),
                },
                sequences=_STRINGS,
                schema={**_STRINGS, "description": "What differs in the schema, one line each."},
                other={"type": "boolean", "description": "System catalogs were written beyond that."},
            ),
            "description": "Database → the same for programs: tables and sequences by their names.",
        },
    ),
    "Environment": _object(
        id=_ID,
        urls={**_TEXTS, "description": "Database → URL."},
        replicas={
            "type": "object",
            "additionalProperties": _STRINGS,
            "description": "Database → its URL on each streaming standby; none without the setting `replicas`.",
        },
        env=_TEXTS,
    ),
    "Status": _object(
        run=_STRING,
        workers=_COUNT,
        server=_STRING,
        waiting=_COUNT,
        leases={
            "type": "array",
            "items": _object(
                **_HOLDER,
                state={
                    "enum": ["free", "numbered", "leased"],
                    "description": "numbered: used by its number, so it is not handed out by /v1/lease.",
                },
                databases=_TEXTS,
                resets={"type": "object", "additionalProperties": _COUNT},
                marks=_STRINGS,
            ),
        },
    ),
    "Health": _object(status={"const": "ok"}),
    "Problem": {
        "type": "object",
        "properties": {
            "type": _STRING,
            "title": _STRING,
            "status": {"type": "integer"},
            "detail": {**_STRING, "description": "What is wrong and what to do, for people."},
            "error": {**_STRING, "description": "The class of pg-harness's error."},
            "holders": {"type": "array", "items": _object(**_HOLDER)},
        },
        "required": ["type", "title", "status", "detail"],
        "additionalProperties": False,
    },
}

_SAYS = {
    "401": "The token is missing, wrong, or of another run.",
    "403": "The token is good for another lease only.",
    "404": "There is no such lease or mark: the detail says which there are. Never another one in its stead.",
    "409": "It cannot be done in the state that the database is in.",
    "413": "The body is longer than 64 KiB. Answered as text, before the request is read.",
    "422": "The body or a parameter is not right.",
    "503": "No lease came back in time (`holders` tells who has them), the run is over, or the server is gone.",
}


def _refusals(*codes: str) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        code: {"description": _SAYS[code], **({} if code == "413" else {"content": content})}
        for code in ("401", *codes)
    }


def _answer(schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"200": {"description": "Done.", "content": content}}


def _operation(
    name: str, summary: str, answers: dict[str, Any], *parameters: Any, **more: Any
) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        **({"parameters": list(parameters)} if parameters else {}),
        **more,
        "responses": answers,
    }


_AT_ID = {"name": "id", "in": "path", "required": True, "schema": _ID}
_AT_MARK = {"name": "mark", "in": "path", "required": True, "schema": {**_STRING, "minLength": 1}}
_TO = {
    "name": "to",
    "in": "query",
    "schema": _STRING,
    "description": "A mark, which releases those above it; `template`: what the migrations left, which releases all. "
    "Default: the top mark, else the migrations' state.",
}
_NAME = {
    "name": "name",
    "in": "query",
    "schema": {**_STRING, "maxLength": 200, "pattern": _NO_CONTROL, "not": {"const": "template"}},
    "description": "What it is called; default: a number.",
}
_DONE = {"204": {"description": "Done."}}
_BODY = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/LeaseRequest"}}}}

_PATHS: dict[str, Any] = {
    "/v1/reset/{id}": {
        "post": _operation(
            "reset",
            "Bring the databases of a lease back; sessions that hold no transaction go on.",
            {**_answer("Reset"), **_refusals("403", "404", "409", "413", "503")},
            _AT_ID,
            _TO,
        )
    },
    "/v1/lease": {
        "post": _operation(
            "lease",
            "Take a lease: pristine databases that nobody else has until it is released.",
            {**_answer("Lease"), **_refusals("403", "409", "413", "422", "503")},
            requestBody=_BODY,
        )
    },
    "/v1/release/{id}": {
        "post": _operation(
            "release", "Give a lease back.", {**_DONE, **_refusals("403", "404", "413")}, _AT_ID
        )
    },
    "/v1/mark/{id}": {
        "post": _operation(
            "mark",
            "Make the present state the one that a reset comes back to, for instance after a file's beforeAll. Marks stack.",
            {**_answer("Mark"), **_refusals("403", "404", "409", "413", "422", "503")},
            _AT_ID,
            _NAME,
        )
    },
    "/v1/mark/{id}/{mark}": {
        "delete": _operation(
            "unmark",
            "Forget a mark and those above it; the databases stay as they are.",
            {**_DONE, **_refusals("403", "404", "409", "413", "503")},
            _AT_ID,
            _AT_MARK,
        )
    },
    "/v1/changes/{id}": {
        "get": _operation(
            "changes",
            "What changed since the state that a reset comes back to. Resets nothing.",
            {**_answer("Changes"), **_refusals("403", "404", "409", "413", "503")},
            _AT_ID,
        )
    },
    "/v1/env/{id}": {
        "get": _operation(
            "env",
            "The addresses and the environment of a lease, with passwords.",
            {**_answer("Environment"), **_refusals("403", "404", "413")},
            _AT_ID,
        )
    },
    "/v1/wait-for-replica/{id}": {
        "post": _operation(
            "waitForReplica",
            "Wait until the standbys show what was committed by now.",
            {**_DONE, **_refusals("403", "404", "409", "413", "422", "503")},
            _AT_ID,
            {
                "name": "timeout",
                "in": "query",
                "schema": {"type": "number", "minimum": 0, "maximum": 600, "default": 10},
                "description": "Seconds; 409 where it takes longer, 404 where there is no standby.",
            },
        )
    },
    "/v1/status": {
        "get": _operation(
            "status", "Who holds which lease; no password.", {**_answer("Status"), **_refusals("413")}
        )
    },
    "/v1/stop": {
        "post": _operation(
            "stop",
            "End what `pg-harness serve` serves; its databases go.",
            {**_DONE, **_refusals("403", "413")},
        )
    },
    "/healthz": {
        "get": _operation("health", "Whether it answers. Needs no token.", _answer("Health"), security=[])
    },
}


def document() -> dict[str, Any]:
    """The description, as JSON has it."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pg-harness control interface",
            "version": __version__,
            "description": "Resets and leases of a living run, on loopback. Address and token are in "
            "PGHARNESS_CONTROL_URL and PGHARNESS_CONTROL_TOKEN.",
        },
        "security": [{"token": []}],
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _SCHEMAS,
        },
        "paths": _PATHS,
    }
