"""IntegreSQL's REST interface (its version 1.1.0), so that its clients work unchanged: ``pg-harness serve --integresql``.

It knows no token: whoever may connect may ask. On Linux the kernel tells whose the other end of a connection on loopback is, and
only our own user's and root's are answered.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from harness.control.integresql import ClientTemplates, TemplateGone, TemplateLocked, UnknownTemplate
from harness.dsn import Dsn
from harness.errors import ConfigError, HarnessError, MigrationError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

    from harness.control.server import Waits

logger = logging.getLogger("pg_harness.control")

PREFIX = "/api/v1/"

LONGEST_HASH = 200
"""Characters of a template's hash."""

_HASH = r"(?P<hash_>[^/]{1,200})"

_CONNECTIONS = Path("/proc/net/tcp")
"""The kernel's list of connections over IPv4, with the user of each end (proc(5))."""


class IntegresqlApi:
    """Those requests, as a WSGI application.

    Args:
        waits: see :data:`harness.control.server.Waits`.
    """

    def __init__(self, templates: ClientTemplates, *, waits: Waits) -> None:
        self._templates = templates
        self._waits = waits
        test = rf"templates/{_HASH}/tests/(?P<number>\d{{1,9}})"
        self._routes: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = [
            ("POST", re.compile(r"templates"), self._initialise),
            ("PUT", re.compile(rf"templates/{_HASH}"), lambda environ, hash_: templates.finalise(hash_)),
            ("DELETE", re.compile(rf"templates/{_HASH}"), lambda environ, hash_: templates.discard(hash_)),
            ("GET", re.compile(rf"templates/{_HASH}/tests"), self._take),
            ("POST", re.compile(rf"{test}/(unlock|recreate)"), self._give_back),
            ("DELETE", re.compile(test), self._give_back),
            ("DELETE", re.compile(r"admin/templates"), lambda environ: templates.discard_all()),
        ]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request; errors are ``{"message": …}``, as IntegreSQL's."""
        try:
            status, body = self._answer(environ)
        except HarnessError as error:
            status, body = _status_of(error), {"message": error.full_text}
        except Exception:
            logger.exception("IntegreSQL's interface could not answer %s", environ.get("PATH_INFO", ""))
            status, body = HTTPStatus.INTERNAL_SERVER_ERROR, {"message": "a bug in pg-harness"}
        payload = b"" if body is None else json.dumps(body).encode()
        headers = [("Cache-Control", "no-store")]
        if status is not HTTPStatus.NO_CONTENT:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(payload)))]
        start_response(f"{status.value} {status.phrase}", headers)
        return [payload] if payload else []

    def _answer(self, environ: WSGIEnvironment) -> tuple[HTTPStatus, Any]:
        if not _ours(environ):
            return HTTPStatus.FORBIDDEN, {"message": "only the user who serves this, and root, may ask"}
        path = environ.get("PATH_INFO", "").removeprefix(PREFIX)
        for method, form, act in self._routes:
            found = form.fullmatch(path)
            if found is not None and method == environ["REQUEST_METHOD"]:
                with self._waits():
                    body = act(environ, **found.groupdict())
                return (HTTPStatus.NO_CONTENT if body is None else HTTPStatus.OK), body
        return HTTPStatus.NOT_FOUND, {"message": "Not Found"}

    def _initialise(self, environ: WSGIEnvironment) -> Any:
        hash_ = _hash_of(environ)
        return {"database": _database(hash_, self._templates.initialise(hash_))}

    def _take(self, environ: WSGIEnvironment, hash_: str) -> Any:
        gone = environ.get("waitress.client_disconnected", lambda: False)
        number, dsn = self._templates.take(hash_, still=lambda: not gone())
        return {"id": number, "database": _database(hash_, dsn)}

    def _give_back(self, environ: WSGIEnvironment, hash_: str, number: str) -> None:
        # "recreate" too: whoever gets it next gets it pristine.
        self._templates.give_back(hash_, int(number))


def _hash_of(environ: WSGIEnvironment) -> str:
    """The hash, from a JSON body or a form."""
    length = environ.get("CONTENT_LENGTH") or "0"
    raw = environ["wsgi.input"].read(int(length)) if length.isdigit() else b""
    kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/x-www-form-urlencoded":
            found: Any = parse_qs(raw.decode()).get("hash", [None])[-1]
        else:
            body = json.loads(raw)
            found = body.get("hash") if isinstance(body, dict) else None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the body cannot be read: {error}") from None
    if not isinstance(found, str) or not 0 < len(found) <= LONGEST_HASH or "/" in found:
        raise ConfigError(f"hash must be 1 to {LONGEST_HASH} characters, and no slash")
    return found


def _database(hash_: str, dsn: Dsn) -> dict[str, Any]:
    return {
        "templateHash": hash_,
        "config": {
            "host": dsn.host,
            "port": dsn.port,
            "username": dsn.user,
            "password": dsn.password,
            "database": dsn.database,
        },
    }


def _status_of(error: HarnessError) -> HTTPStatus:
    match error:
        case ConfigError():
            return HTTPStatus.BAD_REQUEST
        case TemplateLocked():
            return HTTPStatus.LOCKED
        case UnknownTemplate():
            return HTTPStatus.NOT_FOUND
        case TemplateGone() | MigrationError():
            return HTTPStatus.GONE
    return HTTPStatus.SERVICE_UNAVAILABLE


def _ours(environ: WSGIEnvironment) -> bool:
    """Whether the other end is our user's, or root's; True where the kernel does not tell."""
    port, server = environ.get("REMOTE_PORT"), environ.get("SERVER_PORT")
    if not port or not server or not hasattr(os, "geteuid"):
        return True
    try:
        lines = _CONNECTIONS.read_text().splitlines()[1:]
    except OSError:
        return True
    wanted = (f":{int(port):04X}", f":{int(server):04X}")
    for line in lines:
        words = line.split()
        if words[1].endswith(wanted[0]) and words[2].endswith(wanted[1]):
            return int(words[7]) in (0, os.geteuid())
    return False
