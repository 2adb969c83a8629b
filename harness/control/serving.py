"""A run's control interface as a whole: the table of its leases, the server, tokens, and the variables that lead there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from harness.config import environment
from harness.config.run_variables import LEASE, RUN, TOKEN, URL
from harness.control.leases import LeaseTable
from harness.control.server import ControlServer, Waits, new_token

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from harness.control.integresql import ClientTemplates
    from harness.databases.lease import Lease
    from harness.runs.run import Run


class Serving:
    """The control interface of a run, while it is served. A context manager.

    Args:
        leases: in the order of their numbers.
        at: where to listen; default: any free port of loopback.
        token: default: a random one.
        integresql: the most test databases that each template of IntegreSQL's interface has; 0: it is not served.
        stop: called when a client asks for the end; None: only the end of the command ends it.
        each: a token for each lease, besides the one that is good for all.

    Raises:
        As :class:`harness.control.server.ControlServer`.
    """

    def __init__(
        self,
        harness: Run,
        leases: Sequence[Lease],
        *,
        at: int | Path = 0,
        token: str = "",
        integresql: int = 0,
        stop: Callable[[], None] | None = None,
        each: bool = False,
    ) -> None:
        self.table = LeaseTable(harness, leases)
        self._harness, self._leases = harness, list(leases)
        self._token = token or new_token()
        self._stop = stop
        self._most = integresql
        self._templates: ClientTemplates | None = None
        self._each = {number: new_token() for number in range(1, len(leases) + 1)} if each else {}
        self.server = ControlServer(self._application, at=at)

    def _application(self, waits: Waits) -> WSGIApplication:
        # When the first client connects.
        from harness.control.api import ControlApi

        scopes = {token: number for number, token in self._each.items()}
        api = ControlApi(self.table, {self._token: None, **scopes}, waits=waits, stop=self._stop)
        return self._beside(api, waits) if self._most else api

    def _beside(self, api: WSGIApplication, waits: Waits) -> WSGIApplication:
        from harness.control.integresql import ClientTemplates
        from harness.control.integresql_api import PREFIX, IntegresqlApi

        self._templates = ClientTemplates(self._harness.session, most=self._most)
        theirs = IntegresqlApi(self._templates, waits=waits)

        def choose(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            chosen = theirs if environ.get("PATH_INFO", "").startswith(PREFIX) else api
            return chosen(environ, start_response)

        return choose

    def environment(self, number: int | None = None) -> dict[str, str]:
        """All variables of a command: the first worker's, everybody's with a number, and what leads here.

        Args:
            number: of the one lease that the command has, as in a run of its own; None: it has the whole run.
        """
        leases = self._leases if number is None else [self._leases[number - 1]]
        each = {str(worker): self._harness.variables(lease) for worker, lease in enumerate(leases, 1)}
        tables = (database.env for database in self._harness.settings.databases)
        return {**each["1"], **environment.numbered(tables, each), **self.variables(number)}

    def variables(self, number: int | None = None) -> dict[str, str]:
        """What leads a program here.

        Args:
            number: with the token of one lease; None: with that of the run.
        """
        found = {URL: self.server.url, RUN: self.table.run}
        if number is None:
            return {**found, TOKEN: self._token}
        return {**found, TOKEN: self._each[number], LEASE: str(number)}

    def close(self) -> None:
        """Answer nobody any more. Twice is once."""
        self.table.close()
        if self._templates is not None:
            self._templates.close()
        self.server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Serving {self.server.url} {self.table!r}>"
