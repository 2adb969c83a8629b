"""Which life of a server it is; and what a crash of it takes from a database.

A crash leaves the postmaster's start as it was. It takes the last commits with it (``synchronous_commit = off``), writes
other log at the same positions, sets the counters of ``pg_stat_database`` to zero, and empties unlogged tables.

Crash recovery throws PostgreSQL's cumulative statistics away, and notes when: that time tells one crash from the next to
every role. A clean stop writes the statistics out and a start reads them again, so it is the same after a clean restart, and
in a copy of the data directory, which keep unlogged tables as well (xlog.c, StartupXLOG: pgstat_discard_stats comes with the
recovery that resets unlogged relations). Whoever calls ``pg_stat_reset_shared`` makes it look like a crash: a copy too many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from harness.postgres.session import Session

STARTED = "extract(epoch from pg_postmaster_start_time())::text"
"""SQL: the postmaster's start, seconds since 1970 as text."""

CRASHED = "(select coalesce(extract(epoch from stats_reset)::text, 'never') from pg_stat_get_archiver())"
"""SQL: the last crash, likewise; of a server that never crashed, when its data directory was made."""

LIFE = f"{STARTED} || ' ' || {CRASHED}"
"""SQL: this life of the server, as text: no clock of ours is needed to tell what was made in an earlier one."""

UNKNOWN = "unknown"
"""What stands for a life that is not known: it is not believed."""


@dataclass(frozen=True)
class Incarnation:
    """One life of a server.

    Attributes:
        started: see :data:`STARTED`; empty where it was never asked.
        crashed: see :data:`CRASHED`.
    """

    started: str = ""
    crashed: str = ""

    @classmethod
    def of(cls, session: Session) -> Self:
        """The one that the server is in now."""
        started, crashed = session.row(f"select {STARTED}, {CRASHED}") or ("", "")
        return cls(started, crashed)

    def other(self, now: Incarnation) -> str:
        """Why what was noted in this life does not hold now; empty where it does, or where nobody knows."""
        if not self.started:
            return ""
        if self.crashed != now.crashed:
            return "the server crashed since the pristine state was noted"
        if self.started != now.started:
            return "the server was restarted since the pristine state was noted"
        return ""


def label(inside: Session) -> str:
    """What the label of a copy has to say of this (``unlogged``): the last crash, where the next one would empty something; else nothing.

    Args:
        inside: a session in a database that nobody else writes to.
    """
    return str(
        inside.value(
            f"select case when exists (select from pg_class where relpersistence = 'u' and (relkind = 'S' "
            # An empty table loses nothing.
            f"or (relkind in ('r', 'm') and pg_relation_size(oid) > 0))) then {CRASHED} else '' end"
        )
    )


def emptied(session: Session, labelled: str) -> bool:
    """Whether a crash has emptied what was labelled so. One round trip; none where there is nothing to lose."""
    return labelled != "" and labelled != session.value(f"select {CRASHED}")
