"""The lease of this very process, inside a run: for Python programs that ``pg-harness run`` or a pytest test has started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from harness.config.run_variables import URL
from harness.control.client import ControlClient
from harness.errors import LeaseError
from harness.reset.report import ResetReport


class CurrentLease:
    """The databases that ``DATABASE_URL`` of this process leads to, held by the run that it belongs to.

    Attributes:
        number: as in ``DATABASE_URL_1``.
    """

    def __init__(self, client: ControlClient, number: int) -> None:
        self._client = client
        self.number = number

    @property
    def url(self) -> str:
        """The URL of the default database."""
        return str(self._client.environment(self.number)["urls"]["default"])

    def reset(self, to: str | None = None) -> ResetReport:
        """Bring all its databases back to the top mark, else to what the migrations left. Connections are kept.

        Args:
            to: a mark's name; ``"template"``: what the migrations left, and all marks are released.

        Raises:
            LeaseLost: the run is over. ConfigError: there is no such mark. LeaseError: it cannot be done.
        """
        told = self._client.reset(self.number, to)
        return ResetReport(
            told["strategy"],
            tuple(told["tables"]),
            told["rows"],
            told["milliseconds"],
            told["reason"],
            tuple(told["ended"]),
        )

    def mark(self, name: str | None = None) -> str:
        """Make the present state what :meth:`reset` comes back to; its name. Marks stack."""
        return self._client.mark(self.number, name)

    def unmark(self, name: str) -> None:
        """Forget a mark, and those above it; the databases stay as they are until the next reset."""
        self._client.unmark(self.number, name)

    def changes(self) -> Mapping[str, list[str]]:
        """Database → what changed since the state that :meth:`reset` comes back to, one line each; empty: nothing did."""
        told: dict[str, Any] = self._client.changes(self.number)
        return {name: lines for name, lines in told["databases"].items() if lines} if told["changed"] else {}

    def __repr__(self) -> str:
        return f"<CurrentLease {self.number} of the run {self._client.run}>"


def current(environ: Mapping[str, str] | None = None) -> CurrentLease:
    """The lease of this process.

    Args:
        environ: where the run's variables are; None: ``os.environ``.

    Raises:
        LeaseError: it belongs to no run. Another database is never taken in its stead. ConfigError: the variables are not right.
    """
    client = ControlClient.of(os.environ if environ is None else environ)
    if client is None:
        raise LeaseError(
            f"this process belongs to no run ({URL} is not set), so it has no databases: start it by "
            "`pg-harness run -- COMMAND`"
        )
    return CurrentLease(client, client.lease or 1)
