"""Connections: how many there are, how many a run may take, who holds them.

To count and to book is one act, under one lock: else each of many runs that begin at once sees room for itself.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.databases import sweep
from harness.databases.clones import RESERVED_CONNECTIONS
from harness.errors import ConfigError, PoolTimeout
from harness.postgres import databases, locks, names
from harness.postgres.databases import Database
from harness.postgres.session import Session
from harness.runs import booking
from harness.runs.booking import Booking

if TYPE_CHECKING:
    from harness.runs.session import ServerSession

logger = logging.getLogger("pg_harness.runs")

PER_WORKER_RESERVE = 2
"""Admin sessions that a worker of ours holds: one on the maintenance database, one in its lease."""

HOST_RESERVE = 6
"""The same for the process that started the run: sign of life, server, spares, sweep."""

USUAL = 20
"""What each worker gets at least where nobody has set a number, as long as that fits."""

LEAST = 5
"""Below this a worker is of no use to most applications: rather fewer workers."""

TURN = 60.0
"""Seconds, beyond ``lease_timeout``, to wait for others to count: it takes each of them milliseconds."""

LOOK = (0.1, 0.5)
"""Seconds between two looks for room, at least and at most: many that wait must not ask in step."""

TELL = 10.0
"""Seconds between two lines about the same wait."""


@dataclass(frozen=True)
class Budget:
    """The numbers of one server.

    Attributes:
        maximum: ``max_connections``.
        reserved: for superusers, by the server's own setting.
        others: what other runs have booked; what databases of runs that have not may hold at most; and what is open now in
            those of a person, and of dead runs, whose children may live on.
        workers: of this run, its controller included.
        per_worker: ``connections_per_worker``.
        ends: how many of ``others`` come back when runs end.
        holders: the runs that have booked, or wait to.
    """

    maximum: int
    reserved: int
    others: int
    workers: int
    per_worker: int
    ends: int = 0
    holders: tuple[Booking, ...] = ()

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

    @property
    def alone(self) -> Budget:
        """As it would be if the other runs had ended."""
        return replace(self, others=self.others - self.ends, ends=0, holders=())

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
    """Read the server's numbers.

    Args:
        run: whose databases do not count as another's.
        databases_each: how many databases each worker has; each has a limit of its own.
    """
    row = session.row(
        "select current_setting('max_connections')::int, current_setting('superuser_reserved_connections')::int"
    )
    maximum, reserved = row or (100, 3)
    holders = tuple(b for b in booking.living(session) if b.run != run)
    booked = {run, *(b.run for b in holders if b.workers)}
    leases = [
        d for d in databases.list_ours(session, None) if d.kind is names.Kind.LEASE and d.owner not in booked
    ]
    alive = sweep.alive_owners(session, leases)
    ends = sum(b.connections for b in holders)
    ends += sum(_allowed(d, per_worker) for d in leases if d.owner in alive)
    open_now = sum(d.sessions for d in leases if d.owner not in alive)
    return Budget(maximum, reserved, ends + open_now, workers, per_worker * databases_each, ends, holders)


def _allowed(lease: Database, per_worker: int) -> int:
    """What a worker of another run may open: a leak of his must fail there."""
    limit = lease.connection_limit
    return (limit - RESERVED_CONNECTIONS if limit > 0 else per_worker) + PER_WORKER_RESERVE


def check(server: ServerSession, workers: int, *, controller: bool = True) -> Budget:
    """Book connections for ``workers`` workers and their controller. Where nobody has set
    ``connections_per_worker``, it is made to fit: the run's databases get that limit from here on.

    Who does not fit beside other runs waits until they end, for ``lease_timeout`` at most, and says for whom.

    Args:
        controller: whether the process that started the workers has a lease of its own.

    Raises:
        ConfigError: they would not fit if nobody else was there; with the numbers and what fits.
        PoolTimeout: other runs had the connections all that time; likewise.
    """
    patience = server.settings.lease_timeout
    deadline = time.monotonic() + patience
    waiting = _Waiting()
    while True:
        with locks.exclusive(
            server.link.session,
            "connections",
            "",
            timeout=TURN + patience,
            waiting_for="counting its connections",
        ):
            found = _look(server, workers, controller)
            if (fitted := _fitted(found, server)) is not None:
                server.book(workers, fitted.needed)
                break
        # Without the lock: who waits keeps nobody else from it.
        while _fitted(found, server) is None:
            if _fitted(found.alone, server) is None:
                raise _too_much(found.alone, server, workers, controller)
            if time.monotonic() > deadline:
                raise _too_late(found, server, workers, controller)
            waiting.tell(found)
            time.sleep(random.uniform(*LOOK))
            found = _look(server, workers, controller)
    server.limit_connections(fitted.per_worker // len(server.settings.databases))
    return fitted


def _look(server: ServerSession, workers: int, controller: bool) -> Budget:
    return of(
        server.link.session,
        run=server.run,
        # The controller's lease is open for conftests, which seldom use it: it counts as one more worker.
        workers=workers + controller,
        per_worker=server.settings.connections_per_worker,
        databases_each=len(server.settings.databases),
    )


def _fitted(found: Budget, server: ServerSession) -> Budget | None:
    """What the run can have; None where that is too little."""
    settings = server.settings
    if "connections_per_worker" not in settings.origins:
        fitted = found.fitted()
        if fitted.per_worker // len(settings.databases) >= LEAST:
            return fitted
    return found if found.fits else None


class _Waiting:
    """What is told of a wait: for whom, when that changes, and every so often."""

    def __init__(self) -> None:
        self._told: Sequence[Booking] = ()
        self._at = 0.0

    def tell(self, found: Budget) -> None:
        now = time.monotonic()
        having = [b for b in found.holders if b.workers]
        if self._at and having == self._told and now - self._at < TELL:
            return
        self._told, self._at = having, now
        logger.info(
            "waiting for connections: %d are needed, %d are left: %s",
            found.needed,
            found.available,
            _who(found),
        )


def _who(found: Budget) -> str:
    having = [str(b) for b in found.holders if b.workers]
    if rest := found.others - sum(b.connections for b in found.holders if b.workers):
        having.append(f"{rest} belong to others")
    return ", ".join(having)


def _too_much(found: Budget, server: ServerSession, workers: int, controller: bool) -> ConfigError:
    settings = server.settings
    beside = f" and {found.others} are in use" if found.others else ""
    return ConfigError(
        f"{_needs(found, server, workers, controller)} The server has {found.maximum}, of which {found.reserved} are "
        f"reserved for superusers{beside}: {found.available} are left. {_remedy(found, server, controller)}, or a server "
        f"with a larger max_connections (setting max_connections; it holds from the server's next start).",
        key="connections_per_worker",
        origin=settings.origin("connections_per_worker"),
        value=str(settings.connections_per_worker),
    )


def _too_late(found: Budget, server: ServerSession, workers: int, controller: bool) -> PoolTimeout:
    return PoolTimeout(
        f"{_needs(found, server, workers, controller)} Other runs had too many of the server's {found.maximum} for "
        f"{server.settings.lease_timeout:g} s (lease_timeout): {_who(found)}; {found.available} are left. "
        f"{_remedy(found, server, controller)}, or wait until they have ended."
    )


def _needs(found: Budget, server: ServerSession, workers: int, controller: bool) -> str:
    each = len(server.settings.databases)
    several = f" × {each} databases" if each > 1 else ""
    return (
        f"{workers} worker{'' if workers == 1 else 's'}{' and their controller' if controller else ''} need "
        f"{found.needed} connections: {found.workers} × ({server.settings.connections_per_worker}{several} + "
        f"{PER_WORKER_RESERVE}) + {HOST_RESERVE}."
    )


def _remedy(found: Budget, server: ServerSession, controller: bool) -> str:
    """The largest numbers that fit, of either kind."""
    each = len(server.settings.databases)
    # What nobody has set is made to fit, down to the least.
    wanted = found.per_worker if "connections_per_worker" in server.settings.origins else LEAST * each
    most = max(0, found.available - HOST_RESERVE) // (wanted + PER_WORKER_RESERVE) - controller
    fewer = "se fewer workers" + (f" ({most} at most)" if most > 0 else "")
    fitting = found.largest // each
    return f"Set connections_per_worker = {fitting} (or less), or u{fewer}" if fitting >= 1 else f"U{fewer}"
