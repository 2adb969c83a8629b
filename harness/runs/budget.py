"""Connections: how many there are, how many a run may take, who holds them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.databases.clones import RESERVED_CONNECTIONS
from harness.errors import ConfigError
from harness.postgres import databases, names
from harness.postgres.session import Session

if TYPE_CHECKING:
    from harness.runs.session import ServerSession

PER_WORKER_RESERVE = 2
"""Admin sessions that a worker of ours holds: one on the maintenance database, one in its lease."""

HOST_RESERVE = 6
"""The same for the process that started the run: sign of life, server, spares, sweep."""

USUAL = 20
"""What each worker gets at least where nobody has set a number, as long as that fits."""

LEAST = 5
"""Below this a worker is of no use to most applications: rather fewer workers."""


@dataclass(frozen=True)
class Budget:
    """The numbers of one server.

    Attributes:
        maximum: ``max_connections``.
        reserved: for superusers, by the server's own setting.
        others: what the databases of other runs may hold at most, by their CONNECTION LIMIT.
        workers: of this run, its controller included.
        per_worker: ``connections_per_worker``.
    """

    maximum: int
    reserved: int
    others: int
    workers: int
    per_worker: int

    @property
    def needed(self) -> int:
        """What this run may take."""
        return self.workers * (self.per_worker + PER_WORKER_RESERVE) + HOST_RESERVE

    @property
    def available(self) -> int:
        """What is left for this run."""
        return self.maximum - self.reserved - self.others

    @property
    def fits(self) -> bool:
        """Whether every worker can use its budget at the same time."""
        return self.needed <= self.available

    @property
    def largest(self) -> int:
        """The largest ``connections_per_worker`` that fits; 0 where none does."""
        return self._each(self.available)

    def fitted(self) -> Budget:
        """As it is where nobody has set ``connections_per_worker``: so much for each worker as can be had.

        Of what is left, a run takes half at most, so that a second one finds room; :data:`USUAL` for each
        worker and what is below it may be more than half.
        """
        half = self._each(self.available // 2)
        return replace(self, per_worker=min(self.per_worker, self.largest, max(half, USUAL)))

    def _each(self, connections: int) -> int:
        return max(0, (connections - HOST_RESERVE) // self.workers - PER_WORKER_RESERVE)


def of(session: Session, *, run: str, workers: int, per_worker: int, databases_each: int = 1) -> Budget:
    """Read the server's numbers. One round trip for its settings, one for its databases.

    Args:
        run: whose databases do not count as another's.
        databases_each: how many databases each worker has; each has a limit of its own.
    """
    row = session.row(
        "select current_setting('max_connections')::int, current_setting('superuser_reserved_connections')::int"
    )
    maximum, reserved = row or (100, 3)
    others = 0
    for found in databases.list_ours(session, None):
        if found.kind is names.Kind.LEASE and found.owner != run:
            # A person's databases lie idle most of the time: what they hold now is what counts.
            # A run's are what its workers may open: a leak of theirs must fail there.
            theirs = (
                found.connection_limit - RESERVED_CONNECTIONS if found.connection_limit > 0 else per_worker
            )
            others += found.sessions if found.sandbox else theirs + PER_WORKER_RESERVE
    return Budget(maximum, reserved, others, workers, per_worker * databases_each)


def check(server: ServerSession, workers: int, *, controller: bool = True) -> Budget:
    """Whether ``workers`` workers and their controller fit the server. Where nobody has set
    ``connections_per_worker``, it is made to fit: the run's databases get that limit from here on.

    Args:
        controller: whether the process that started the workers has a lease of its own.

    Raises:
        ConfigError: they do not; with the numbers and the largest budget that fits.
    """
    session = server.link.session
    settings = server.settings
    # The controller's lease is open for conftests, which seldom use it: it counts as one more worker.
    found = of(
        session,
        run=server.run,
        workers=workers + controller,
        per_worker=settings.connections_per_worker,
        databases_each=len(settings.databases),
    )
    each = len(settings.databases)
    if "connections_per_worker" not in settings.origins:
        fitted = found.fitted()
        if fitted.per_worker // each >= LEAST:
            server.limit_connections(fitted.per_worker // each)
            return fitted
    if found.fits:
        return found
    fitting = found.largest // each
    several = f" × {each} databases" if each > 1 else ""
    remedy = (
        f"Set connections_per_worker = {fitting} (or less), or use fewer workers"
        if fitting >= 1
        else "Use fewer workers"
    )
    raise ConfigError(
        f"{workers} workers{' and their controller' if controller else ''} need {found.needed} connections: "
        f"{found.workers} × ({settings.connections_per_worker}{several} + {PER_WORKER_RESERVE}) + {HOST_RESERVE}. "
        f"The server has {found.maximum}, of which {found.reserved} are reserved for superusers and "
        f"{found.others} belong to other runs: {found.available} are left. {remedy}, or a server with a larger "
        f"max_connections (setting max_connections; it holds from the server's next start).",
        key="connections_per_worker",
        origin=settings.origin("connections_per_worker"),
        value=str(settings.connections_per_worker),
    )
