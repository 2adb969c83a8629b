"""The WSGI application of the control interface: routes, tokens, JSON, and errors as problems (RFC 9457)."""

from __future__ import annotations

import hmac
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from harness.control import openapi
from harness.control.leases import AllLeased, LeaseTable, UnknownLease
from harness.databases.changed import for_json
from harness.databases.lease import TEMPLATE, UnknownMark
from harness.databases.replicas import NoReplica
from harness.errors import (
    BackendError,
    ConfigError,
    HarnessError,
    LeaseClosed,
    LeaseError,
    LeaseLost,
    PoolTimeout,
    closest,
)

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

    from harness.control.server import Waits

logger = logging.getLogger("pg_harness.control")

LONGEST_WAIT = 3600.0
"""Seconds that a client may wait for a lease."""

LONGEST_LAG = 600.0
"""Seconds that a client may wait for a standby: nobody else has the lease meanwhile."""

LONGEST_WORD = 200
"""Characters of a worker's name, or a mark's."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

Scope = int | None
"""What a token is good for: one lease, by its number; None: the whole run."""


class Refused(Exception):
    """A request that is answered with a problem.

    Attributes:
        status: of HTTP.
        detail: for people.
        more: further members of the problem.
        headers: of the answer, besides the usual ones.
    """

    def __init__(
        self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.more = more
        self.headers = dict(headers or {})


@dataclass(frozen=True)
class Request:
    """One request, read.

    Attributes:
        query: parameter → its value; a repeated one counts once.
        body: members of the JSON object; empty where there was none.
        still: whether the client is still connected.
    """

    query: Mapping[str, str]
    body: Mapping[str, Any]
    still: Callable[[], bool] = field(default=lambda: True, repr=False)


@dataclass(frozen=True)
class Answer:
    """What is answered: a status, and JSON or nothing."""

    status: HTTPStatus
    body: Any = None


class ControlApi:
    """The control interface of one run, as a WSGI application.

    Args:
        table: the leases.
        tokens: bearer token → what it is good for.
        waits: see :data:`harness.control.server.Waits`.
        stop: what ends the run; None: the end of its command.
    """

    def __init__(
        self,
        table: LeaseTable,
        tokens: Mapping[str, Scope],
        *,
        waits: Waits = nullcontext,
        stop: Callable[[], None] | None = None,
    ) -> None:
        self._table = table
        self._stop = stop
        self._waits = waits
        self._tokens = {token.encode(): scope for token, scope in tokens.items()}
        self._routes: list[tuple[str, re.Pattern[str], Callable[..., Answer]]] = [
            ("POST", re.compile(r"/v1/reset/(?P<id>[^/]+)"), self._reset),
            ("POST", re.compile(r"/v1/lease"), self._lease),
            ("POST", re.compile(r"/v1/release/(?P<id>[^/]+)"), self._release),
            ("POST", re.compile(r"/v1/mark/(?P<id>[^/]+)"), self._mark),
            ("DELETE", re.compile(r"/v1/mark/(?P<id>[^/]+)/(?P<mark>.+)"), self._unmark),
            ("GET", re.compile(r"/v1/changes/(?P<id>[^/]+)"), self._changes),
            ("GET", re.compile(r"/v1/env/(?P<id>[^/]+)"), self._env),
            ("POST", re.compile(r"/v1/wait-for-replica/(?P<id>[^/]+)"), self._wait_for_replica),
            ("GET", re.compile(r"/v1/status"), self._status),
            ("POST", re.compile(r"/v1/stop"), self._end),
        ]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request; whatever goes wrong is a problem, never a traceback."""
        try:
            answer = self._answer(environ)
            kind, headers = "application/json", dict[str, str]()
        except Refused as refused:
            answer, headers = _problem(refused.status, refused.detail, refused.more), refused.headers
            kind = "application/problem+json"
        except HarnessError as error:
            status, more = _status_of(error)
            answer, headers = _problem(status, error.full_text, more), {}
            kind = "application/problem+json"
        except Exception:
            logger.exception("the control interface could not answer %s", environ.get("PATH_INFO", ""))
            answer = _problem(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                "a bug in pg-harness: PGHARNESS_LOG=debug makes the run say more on stderr",
                {},
            )
            kind, headers = "application/problem+json", {}
        return _send(answer, kind, headers, start_response)

    def _answer(self, environ: WSGIEnvironment) -> Answer:
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        if path in ("/healthz", "/openapi.json"):
            if method not in ("GET", "HEAD"):
                raise _wrong_method(method, path, ["GET"])
            return Answer(HTTPStatus.OK, {"status": "ok"} if path == "/healthz" else openapi.document())
        scope = self._scope(environ)
        known = [(verb, act, found) for verb, form, act in self._routes if (found := form.fullmatch(path))]
        if not known:
            raise Refused(
                HTTPStatus.NOT_FOUND, f"there is no {path!r} here; GET /openapi.json describes what there is"
            )
        for verb, act, found in known:
            if verb == method:
                return act(_read(environ), scope, **found.groupdict())
        raise _wrong_method(method, path, [verb for verb, _, _ in known])

    def _scope(self, environ: WSGIEnvironment) -> Scope:
        said = environ.get("HTTP_AUTHORIZATION", "")
        kind, _, token = said.partition(" ")
        challenge = {"WWW-Authenticate": "Bearer"}
        if kind.lower() != "bearer" or not token.strip():
            raise Refused(
                HTTPStatus.UNAUTHORIZED,
                "a bearer token is missing: send `Authorization: Bearer $PGHARNESS_CONTROL_TOKEN`",
                challenge,
            )
        given = token.strip().encode("latin-1", "replace")
        for right, scope in self._tokens.items():
            if hmac.compare_digest(right, given):
                return scope
        raise Refused(
            HTTPStatus.UNAUTHORIZED,
            f"this token is not of the run {self._table.run}: PGHARNESS_CONTROL_URL and PGHARNESS_CONTROL_TOKEN "
            "must be those of one and the same run",
            challenge,
        )

    # --- one method for each route ---------------------------------------------------------------------

    def _reset(self, request: Request, scope: Scope, id: str) -> Answer:
        number = _number(id, scope)
        report = self._table.reset(number, request.query.get("to"))
        return Answer(
            HTTPStatus.OK,
            {
                "id": number,
                "strategy": report.strategy,
                "milliseconds": round(report.milliseconds, 3),
                "tables": list(report.tables),
                "rows": report.rows,
                "ended": list(report.ended),
                "reason": report.reason,
            },
        )

    def _lease(self, request: Request, scope: Scope) -> Answer:
        if scope is not None:
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"this token is good for lease {scope} only, which is yours already: with `run --copies` each copy has one",
            )
        asked = _lease_request(request.body)
        with self._waits():
            number, variables = self._table.take(**asked, still=request.still)
        return Answer(HTTPStatus.OK, {"id": number, "url": variables["DATABASE_URL"], "env": variables})

    def _release(self, request: Request, scope: Scope, id: str) -> Answer:
        self._table.release(_number(id, scope))
        return Answer(HTTPStatus.NO_CONTENT)

    def _mark(self, request: Request, scope: Scope, id: str) -> Answer:
        number = _number(id, scope)
        name = request.query.get("name", "")
        if len(name) > LONGEST_WORD or _CONTROL.search(name) or name == TEMPLATE:
            raise _unprocessable(
                f"a mark's name is up to {LONGEST_WORD} characters, none of them a control character, and not {TEMPLATE!r}"
            )
        return Answer(HTTPStatus.OK, {"id": number, "mark": self._table.mark(number, name)})

    def _unmark(self, request: Request, scope: Scope, id: str, mark: str) -> Answer:
        # WSGI has undone the percent signs, and says bytes as Latin-1 (PEP 3333).
        self._table.unmark(_number(id, scope), mark.encode("latin-1").decode(errors="replace"))
        return Answer(HTTPStatus.NO_CONTENT)

    def _changes(self, request: Request, scope: Scope, id: str) -> Answer:
        number = _number(id, scope)
        found = self._table.changes(number)
        return Answer(
            HTTPStatus.OK,
            {
                "id": number,
                "changed": bool(found),
                "databases": {
                    name: str(changes).splitlines() if changes else [] for name, changes in found.items()
                },
                "details": {name: for_json(changes) for name, changes in found.items()},
            },
        )

    def _env(self, request: Request, scope: Scope, id: str) -> Answer:
        number = _number(id, scope)
        return Answer(
            HTTPStatus.OK,
            {
                "id": number,
                "urls": self._table.urls(number),
                "replicas": self._table.replicas(number),
                "env": self._table.variables(number),
            },
        )

    def _wait_for_replica(self, request: Request, scope: Scope, id: str) -> Answer:
        number = _number(id, scope)
        timeout = _seconds(request.query.get("timeout", "10"), LONGEST_LAG)
        with self._waits():
            self._table.wait_for_replica(number, timeout)
        return Answer(HTTPStatus.NO_CONTENT)

    def _status(self, request: Request, scope: Scope) -> Answer:
        return Answer(HTTPStatus.OK, self._table.status())

    def _end(self, request: Request, scope: Scope) -> Answer:
        if self._stop is None or scope is not None:
            raise Refused(
                HTTPStatus.FORBIDDEN,
                "this run ends with the command that it was started for; what `pg-harness serve` serves can be stopped",
            )
        self._stop()
        return Answer(HTTPStatus.NO_CONTENT)


def _number(word: str, scope: Scope) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", word):
        raise Refused(
            HTTPStatus.NOT_FOUND,
            f"a database of this run has a number, as in DATABASE_URL_1: {word[:40]!r} is none",
        )
    number = int(word)
    if scope is not None and number != scope:
        raise Refused(HTTPStatus.FORBIDDEN, f"this token is good for lease {scope} only (PGHARNESS_LEASE)")
    return number


def _read(environ: WSGIEnvironment) -> Request:
    length = environ.get("CONTENT_LENGTH") or "0"
    raw = environ["wsgi.input"].read(int(length)) if length.isdigit() else b""
    gone = environ.get("waitress.client_disconnected")
    return Request(
        {name: values[-1] for name, values in parse_qs(environ.get("QUERY_STRING", "")).items()},
        _object(raw),
        (lambda: not gone()) if gone is not None else (lambda: True),
    )


def _object(raw: bytes) -> dict[str, Any]:
    if not raw.strip():
        return {}
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"the body must be a JSON object, not {body!r:.40}")
    return body


def _lease_request(body: Mapping[str, Any]) -> dict[str, Any]:
    known = ("worker", "pid", "wait")
    for name in body:
        if name not in known:
            near = closest(name, known)
            hint = f"; did you mean {near!r}?" if near else f"; there are {', '.join(known)}"
            raise _unprocessable(f"there is no {name[:40]!r}{hint}")
    worker, pid, wait = body.get("worker"), body.get("pid"), body.get("wait")
    asked: dict[str, Any] = {}
    if worker is not None:
        text = str(worker) if isinstance(worker, int) and not isinstance(worker, bool) else worker
        if isinstance(worker, float) and worker.is_integer():
            text = str(int(worker))
        if not isinstance(text, str) or not 0 < len(text) <= LONGEST_WORD or _CONTROL.search(text):
            raise _unprocessable(
                f'worker must be 1 to {LONGEST_WORD} characters, none of them a control character, for instance "3"'
            )
        asked["worker"] = text
    if pid is not None:
        # 7.0 is an integer, as JSON Schema has it.
        pid = int(pid) if isinstance(pid, float) and pid.is_integer() else pid
        if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 1 << 31:
            raise _unprocessable(f"pid must be the number of a process (it is {pid!r:.40})")
        asked["pid"] = pid
    if wait is not None:
        if not isinstance(wait, int | float) or isinstance(wait, bool) or not 0 <= wait <= LONGEST_WAIT:
            raise _unprocessable(f"wait must be 0 to {LONGEST_WAIT:g} seconds (it is {wait!r:.40})")
        asked["wait"] = float(wait)
    return asked


def _seconds(said: str, most: float) -> float:
    # float() takes more than JSON's numbers: blanks, underscores, "inf".
    try:
        found = float(said) if re.fullmatch(r"[0-9.eE+-]+", said) else -1.0
    except ValueError:
        found = -1.0
    if not 0 <= found <= most:
        raise _unprocessable(f"timeout must be 0 to {most:g} seconds (it is {said[:40]!r})")
    return found


def _unprocessable(detail: str) -> Refused:
    return Refused(HTTPStatus.UNPROCESSABLE_ENTITY, detail)


def _wrong_method(method: str, path: str, allowed: list[str]) -> Refused:
    return Refused(
        HTTPStatus.METHOD_NOT_ALLOWED,
        f"{path} takes {' or '.join(allowed)}, not {method}",
        {"Allow": ", ".join(allowed)},
    )


def _status_of(error: HarnessError) -> tuple[HTTPStatus, dict[str, Any]]:
    more: dict[str, Any] = {"error": type(error).__name__}
    match error:
        case UnknownLease() | UnknownMark() | NoReplica():
            return HTTPStatus.NOT_FOUND, more
        case AllLeased():
            return HTTPStatus.SERVICE_UNAVAILABLE, {**more, "holders": list(error.holders)}
        case ConfigError():
            return HTTPStatus.UNPROCESSABLE_ENTITY, more
        case LeaseLost() | LeaseClosed() | BackendError() | PoolTimeout():
            return HTTPStatus.SERVICE_UNAVAILABLE, more
        case LeaseError():
            return HTTPStatus.CONFLICT, more
    return HTTPStatus.INTERNAL_SERVER_ERROR, more


def _problem(status: HTTPStatus, detail: str, more: Mapping[str, Any]) -> Answer:
    return Answer(
        status,
        {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail, **more},
    )


def _send(
    answer: Answer, kind: str, headers: Mapping[str, str], start_response: StartResponse
) -> Iterable[bytes]:
    payload = b"" if answer.body is None else json.dumps(answer.body).encode()
    # An environment holds passwords.
    sent = [("Cache-Control", "no-store"), *headers.items()]
    if answer.status is not HTTPStatus.NO_CONTENT:
        sent += [("Content-Type", kind), ("Content-Length", str(len(payload)))]
    start_response(f"{answer.status.value} {answer.status.phrase}", sent)
    return [payload] if payload else []
