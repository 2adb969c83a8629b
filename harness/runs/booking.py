"""Connections that runs have booked: each run's sign of life says how many, so that what the dead had is free at once."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.postgres import databases, names
from harness.postgres.session import Session

if TYPE_CHECKING:
    from harness.runs.session import ServerSession

WAITING = 2
"""Connections of a run that has booked none yet: its sign of life, and the session that it asks with."""


@dataclass(frozen=True)
class Booking:
    """What one run takes of a server.

    Attributes:
        run: sixteen hex digits.
        pid: of the process that opened the run.
        workers: how many it has; 0: nothing is booked, what it has leased is its own.
        connections: of all its workers, and of its own.
    """

    run: str
    pid: int
    workers: int = 0
    connections: int = WAITING

    @property
    def shown(self) -> str:
        """What ``pg_stat_activity`` shows of the sign of life: at most 63 bytes are kept."""
        return f"pg-harness run {self.run} {self.pid} {self.workers} {self.connections}"

    def __str__(self) -> str:
        many = "" if self.workers == 1 else "s"
        return f"run {self.run[:8]} (pid {self.pid}, {self.workers} worker{many}) has {self.connections}"


_SHOWN = re.compile(r"pg-harness run ([0-9a-f]{16}) (\d{1,10}) (\d{1,6}) (\d{1,6})")

# Only of the admin's own sessions: an application may call itself whatever it likes.
_LIVING = """
select application_name from pg_stat_activity
 where datname = current_database() and usename = current_user and starts_with(application_name, 'pg-harness run ')
"""


def living(session: Session) -> list[Booking]:
    """What runs that are alive have booked on this server. One round trip, in the maintenance database."""
    found = (_SHOWN.fullmatch(shown) for shown in session.column(_LIVING))
    return [Booking(m[1], int(m[2]), int(m[3]), int(m[4])) for m in found if m is not None]


def workers_of_others(server: ServerSession) -> int:
    """How many workers the other runs on a server have: booked, or by their databases, whichever are more."""
    session = server.link.session
    booked = {found.run: found.workers for found in living(session)}
    leased = Counter(
        found.owner
        for found in databases.list_ours(session, server.project.id)
        if found.kind is names.Kind.LEASE and not found.sandbox
    )
    each = max(1, len(server.settings.databases))
    runs = {*booked, *leased} - {server.run}
    return sum(max(booked.get(run, 0), -(-leased[run] // each)) for run in runs)
