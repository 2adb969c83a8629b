"""The lease of this very process, inside a run: for Python programs that ``pg-harness run`` or a pytest test has started."""

from __future__ import annotations

import os
from collections.abc import Mapping

from harness.config.environment import DEFAULT, DIRECT_URL
from harness.config.run_variables import URL
from harness.control.client import ControlClient
from harness.databases.address import Address, Addressed
from harness.databases.changed import LeaseChanges, from_json
from harness.databases.replicas import Replica, replicas
from harness.dsn import Dsn
from harness.errors import ConfigError, LeaseError
from harness.reset.report import ResetReport


class CurrentMark:
    """A state of all databases of the lease to come back to. Made by :meth:`CurrentLease.mark`.

    Attributes:
        name: as it was given; else a number.
    """

    def __init__(self, name: str, client: ControlClient, number: int) -> None:
        self.name = name
        self._client = client
        self._number = number

    @property
    def released(self) -> bool:
        """Whether it cannot be gone back to any more."""
        return self.name not in _marks(self._client, self._number)

    def release(self) -> None:
        """Forget this mark and those above it; the databases stay as they are until the next reset. Twice is once."""
        if not self.released:
            self._client.unmark(self._number, self.name)

    def __repr__(self) -> str:
        return f"<CurrentMark {self.name}>"


class CurrentLease(Address):
    """The databases that ``DATABASE_URL`` of this process leads to, held by the run that it belongs to.

    What it has in common with :class:`harness.Lease` is called the same and gives the same; its run releases it.

    Attributes:
        run: sixteen hex digits that name the run.
        number: as in ``DATABASE_URL_1``.
    """

    def __init__(self, client: ControlClient, number: int) -> None:
        self._client = client
        self._dsns: dict[str, Dsn] | None = None
        self.run = client.run
        self.number = number

    @property
    def dsn(self) -> Dsn:
        """Address of the database ``default``."""
        return self.dsns["default"]

    @property
    def pooled(self) -> bool:
        """Whether a pooler is in front (setting ``pooler``)."""
        return self.direct.dsn != self.dsn

    @property
    def direct(self) -> Addressed:
        """The database ``default`` at the server itself, as :attr:`harness.Lease.direct`."""
        url = self._client.environment(self.number)["env"].get(DIRECT_URL)
        return Addressed(DEFAULT, self.dsn if url is None else Dsn.parse(url, origin="the run"))

    @property
    def dsns(self) -> dict[str, Dsn]:
        """Database name → address, ``default`` first."""
        if self._dsns is None:
            urls = self._client.environment(self.number)["urls"]
            # They stay the same as long as the run goes on.
            self._dsns = {name: Dsn.parse(url, origin="the run") for name, url in urls.items()}
        return dict(self._dsns)

    @property
    def databases(self) -> Mapping[str, Addressed]:
        """Database name → database, ``default`` first."""
        return {name: Addressed(name, dsn) for name, dsn in self.dsns.items()}

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The database ``default`` on each of the server's standbys, as :attr:`harness.Lease.replicas`."""
        urls = self._client.environment(self.number)["replicas"][DEFAULT]
        return replicas(DEFAULT, [Dsn.parse(url, origin="the run") for url in urls])

    @property
    def replica(self) -> Replica | None:
        """The first of :attr:`replicas`; None: there is none."""
        return next(iter(self.replicas), None)

    def wait_for_replica(self, timeout: float = 10.0) -> None:
        """Wait until each standby shows what was committed by now.

        Args:
            timeout: seconds.

        Raises:
            ReplicaBehind: it takes longer. ConfigError: there is no standby.
        """
        self._client.wait_for_replica(self.number, timeout)

    def __getitem__(self, name: str) -> Addressed:
        """One of its databases, by its name.

        Raises:
            ConfigError: the settings have no such database.
        """
        found = self.databases
        if name not in found:
            raise ConfigError(
                f"this lease has no database {name!r}; it has {', '.join(map(repr, found))} "
                "(see [tool.pg-harness.databases])",
                key=name,
            )
        return found[name]

    def reset(self, *, to: CurrentMark | str | None = None) -> ResetReport:
        """Bring all its databases back to the top mark, else to what the migrations left. Connections are kept.

        Args:
            to: a mark, or its name; marks above it are released. ``"template"``: what the migrations left, and all marks
                are released.

        Raises:
            LeaseLost: the run is over. ConfigError: there is no such mark. LeaseError: it cannot be done.
        """
        told = self._client.reset(self.number, to.name if isinstance(to, CurrentMark) else to)
        return ResetReport(
            told["strategy"],
            tuple(told["tables"]),
            told["rows"],
            told["milliseconds"],
            told["reason"],
            tuple(told["ended"]),
        )

    def mark(self, name: str = "") -> CurrentMark:
        """Make the present state the one that :meth:`reset` comes back to; marks stack.

        Args:
            name: for ``reset(to=name)``; empty: a number.

        Raises:
            LeaseError: it cannot be held, or there is a mark of that name. ConfigError: it is no name for a mark.
        """
        return CurrentMark(self._client.mark(self.number, name or None), self._client, self.number)

    @property
    def marks(self) -> Mapping[str, CurrentMark]:
        """Name → mark, of those that can be gone back to; the lowest first."""
        names = _marks(self._client, self.number)
        return {name: CurrentMark(name, self._client, self.number) for name in names}

    def changes(self) -> LeaseChanges:
        """What changed since the databases were pristine, or marked. Resets nothing.

        Raises:
            LeaseError: it cannot be told.
        """
        told = self._client.changes(self.number)["details"]
        return LeaseChanges({name: from_json(found) for name, found in told.items()})

    def __repr__(self) -> str:
        return f"<CurrentLease {self.number} of the run {self.run}>"


def _marks(client: ControlClient, number: int) -> list[str]:
    return next(list(lease["marks"]) for lease in client.status()["leases"] if lease["id"] == number)


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
