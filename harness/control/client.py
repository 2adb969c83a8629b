"""A client of the control interface: for our own verbs inside a run, and for Python programs that ``run`` has started."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

from harness.config.run_variables import LEASE, RUN, TOKEN, URL
from harness.errors import BackendError, ConfigError, HarnessError, LeaseError, LeaseLost, ReplicaBehind

PATIENCE = 120.0
"""Seconds to wait for an answer: a reset may have to wait for sessions, and then clone a large database."""


class ControlClient:
    """The control interface of the run that this process belongs to.

    Args:
        url: ``http://HOST:PORT``, or ``unix://PATH``.
        token: its bearer token.
        run: sixteen hex digits that name the run; empty where it is not known.
        lease: the one that the token is good for; None: all.

    Raises:
        ConfigError: the address is not one.
    """

    def __init__(self, url: str, token: str, *, run: str = "", lease: int | None = None) -> None:
        try:
            parts = urlsplit(url)
            right = parts.scheme == "unix" or (parts.scheme == "http" and parts.hostname and parts.port)
        except ValueError:
            right = None
        if not right:
            raise ConfigError(
                f"{URL} must be an address such as http://127.0.0.1:41234", key=URL, origin=URL, value=url
            )
        self.url = url
        self.run = run
        self.lease = lease
        self._token = token
        self._connection = (
            _OverPath(unquote(parts.path))
            if parts.scheme == "unix"
            else http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE)
        )

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Self | None:
        """That of the variables; None where they name none.

        Raises:
            ConfigError: one of them is missing or wrong.
        """
        url = environ.get(URL, "")
        if not url:
            return None
        if not (token := environ.get(TOKEN, "")):
            raise ConfigError(
                f"{URL} is set, and {TOKEN} is not: they belong together", key=TOKEN, origin=URL
            )
        lease = environ.get(LEASE, "")
        if lease and not lease.isdigit():
            raise ConfigError(
                f"{LEASE} must be a number (it is {lease!r})", key=LEASE, origin=LEASE, value=lease
            )
        return cls(url, token, run=environ.get(RUN, ""), lease=int(lease) if lease else None)

    def reset(self, number: int, to: str | None = None) -> dict[str, Any]:
        """Reset one lease; what was done.

        Raises:
            LeaseLost: nobody answers. ConfigError: there is no such lease or mark. LeaseError: it cannot be done.
        """
        return self._ask(
            "POST", f"/v1/reset/{number}" + (f"?to={quote(to, safe='')}" if to is not None else "")
        )

    def mark(self, number: int, name: str | None = None) -> str:
        """Mark the present state; the mark's name."""
        query = f"?name={quote(name, safe='')}" if name is not None else ""
        return str(self._ask("POST", f"/v1/mark/{number}{query}")["mark"])

    def unmark(self, number: int, name: str) -> None:
        """Forget a mark and those above it."""
        self._ask("DELETE", f"/v1/mark/{number}/{quote(name, safe='')}")

    def changes(self, number: int) -> dict[str, Any]:
        """What changed since the state that a reset comes back to."""
        return self._ask("GET", f"/v1/changes/{number}")

    def environment(self, number: int) -> dict[str, Any]:
        """``urls`` of the databases and ``env`` of one lease."""
        return self._ask("GET", f"/v1/env/{number}")

    def wait_for_replica(self, number: int, timeout: float) -> None:
        """Wait until the standbys of a lease's server show what was committed by now.

        Raises:
            ReplicaBehind: it takes longer. ConfigError: there is no standby, or one cannot wait for so long.
        """
        try:
            path = f"/v1/wait-for-replica/{number}?timeout={timeout:.3f}"
            self._ask("POST", path, patience=PATIENCE + timeout)
        except LeaseError as error:
            raise (ReplicaBehind(error.message) if type(error) is LeaseError else error) from None

    def stop(self) -> None:
        """End what ``serve`` serves.

        Raises:
            ConfigError: it is the run of a command.
        """
        self._ask("POST", "/v1/stop")

    def status(self) -> dict[str, Any]:
        """Who holds which lease."""
        return self._ask("GET", "/v1/status")

    def _ask(self, method: str, path: str, *, patience: float = PATIENCE) -> dict[str, Any]:
        self._connection.timeout = patience
        if self._connection.sock is not None:
            self._connection.sock.settimeout(patience)
        try:
            # A length of none, too: waitress reads no body then.
            self._connection.request(
                method, path, headers={"Authorization": f"Bearer {self._token}", "Content-Length": "0"}
            )
            answer = self._connection.getresponse()
            status, raw = answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise LeaseLost(
                f"nobody answers at {self.url} ({URL}): {error or type(error).__name__}. This command belongs to the run "
                f"{self.run or 'there'}, which is over or was killed; its databases are gone, and no others are "
                "taken in their stead. Start the run again, or unset the variables PGHARNESS_*"
            ) from error
        body = _json(raw)
        if status < 300:
            return body
        raise _error(status, str(body.get("detail") or raw[:200].decode("utf-8", "replace")), self.url)

    def close(self) -> None:
        """Close the connection; a later question opens another."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ControlClient {self.url} run {self.run}>"


class _OverPath(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _json(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _error(status: int, detail: str, url: str) -> HarnessError:
    match status:
        case 404 | 422:
            return ConfigError(detail)
        case 401 | 403:
            return ConfigError(f"{url} refuses us: {detail}", key=TOKEN, origin=TOKEN)
        case 409:
            return LeaseError(detail)
        case 503:
            return LeaseLost(detail)
    return BackendError(f"{url} answers {status}: {detail}")


def numbers(status: Mapping[str, Any]) -> Sequence[int]:
    """The numbers of a run's leases, of its :meth:`ControlClient.status`."""
    return [lease["id"] for lease in status["leases"]]
