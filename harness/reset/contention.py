"""What one reset has met of others, and what it does otherwise because of them."""

from __future__ import annotations

from collections.abc import Mapping

from harness.errors import ServerRefused
from harness.postgres import sqlstate
from harness.reset.changes import RecloneNeeded
from harness.reset.connections import Connections
from harness.reset.outcome import Outcome
from harness.reset.sessions import Sessions
from harness.reset.sql import batch
from harness.reset.sql.relations import Relation

MOST_VIOLATIONS = 3
"""How often a reset begins again over a constraint that is violated, before it is taken for the baseline's own."""


class Contention:
    """Of one reset, from its first attempt to its last.

    Args:
        sessions: of the application.
        connections: the reset's own.

    Attributes:
        contended: OIDs of tables that were written while a reset looked: they are locked before the next look.
        locked: whether they are locked now, in an open transaction of the restorer.
        lockless: no lock is to be had, and nobody who holds one has written anything: it goes without.
        may_truncate: nobody was found in the way of a TRUNCATE so far.
    """

    def __init__(self, sessions: Sessions, connections: Connections) -> None:
        self.sessions = sessions
        self.contended: set[int] = set()
        self.locked = False
        self.lockless = False
        self.may_truncate = True
        self._violations = 0
        self._connections = connections

    def came_between(self, error: ServerRefused, done: Outcome) -> bool:
        """Whether a row that violates a constraint may be somebody's who wrote where nothing was locked: begin again."""
        unlocked = self.lockless or bool(done.xids)
        self._violations += 1
        self.lockless = False
        return (
            unlocked
            and error.sqlstate.startswith(sqlstate.INTEGRITY_CONSTRAINT_VIOLATION)
            and self._violations < MOST_VIOLATIONS
        )

    def lock(self, relations: Mapping[int, Relation]) -> bool:
        """Somebody wrote between the look and the locks: this time the locks come first, and then the look.

        Args:
            relations: OID → relation of the baseline.

        Returns:
            False where they were not to be had, and whoever holds them was waited for: try again.
        """
        self.unlock()
        if self.lockless:
            return True
        tables = ", ".join("only " + relations[oid].sql for oid in sorted(self.contended))
        try:
            batch.run(self._connections.lease, ["begin", f"lock table {tables} in share row exclusive mode"])
        except ServerRefused as error:
            batch.rollback(self._connections.lease)
            if error.sqlstate not in (sqlstate.LOCK_NOT_AVAILABLE, sqlstate.DEADLOCK_DETECTED):
                raise RecloneNeeded(f"the tables cannot be locked: {error}") from error
            self.lockless = self.sessions.lock_holders(sorted(self.contended), lockless=False)
            return False
        self.locked = True
        return True

    def give_up(self) -> None:
        """Rows are not put back after all: no table needs to be locked."""
        self.unlock()
        self.contended.clear()

    def unlock(self) -> None:
        """Let the tables go, where they are locked."""
        if self.locked:
            self.locked = False
            batch.rollback(self._connections.lease)
