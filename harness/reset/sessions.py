"""Sessions of the application that are in a reset's way: waited for, then named and ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from harness.listing import counted, together
from harness.postgres import activity, ending
from harness.postgres.session import Session, ident
from harness.reset.changes import RecloneNeeded
from harness.reset.connections import Connections
from harness.reset.tracker import Tracker
from harness.reset.wal.reader import WalWindow

ADVISORY_PATIENCE = 0.2
"""Seconds to wait for advisory locks: a lock of a transaction goes by itself, a session's own never does."""

END_PATIENCE = 5.0
"""Seconds that a terminated session has to go away."""


class Sessions:
    """The application's sessions, as far as one reset meets them: its patience with them, and whom it ended.

    Args:
        connections: the reset's own sessions, which are never in its way.
        tracker: knows the database, and the advisory locks that stay.
        timeout: seconds that the reset waits, in all.

    Attributes:
        ended: whom it ended, one line each.
        idle: pids of those that were idle in a transaction.
    """

    def __init__(self, connections: Connections, tracker: Tracker, timeout: float) -> None:
        self._connections = connections
        self._tracker = tracker
        self._deadline = time.monotonic() + timeout
        self._statements_ended = False
        self._stuck = set[int]()
        self.ended: list[str] = []
        self.idle: tuple[int, ...] = ()

    @property
    def _reader(self) -> Session:
        return self._connections.wal.session

    def hindered(self, window: WalWindow, *, before: Callable[[], None] = lambda: None) -> bool:
        """Whether something had to be cleared before the window can be judged: then look again.

        Args:
            before: called before anything is waited for.
        """
        busy = () if self._statements_ended else window.busy
        locks = set(window.advisory) - self._tracker.advisory
        if not (locks or window.unfinished or busy):
            return False
        before()
        if locks:
            self._wait(self._advisory, patience=ADVISORY_PATIENCE)
        if window.unfinished:
            self._wait_for_ids(window.unfinished)
        if busy:
            # Once: what begins later than the reset is no part of the test before.
            self._statements_ended = True
            self._wait(lambda: activity.still_running(self._reader, busy))
        return True

    def writers(self) -> bool:
        """Wait for transactions that have an id and have written nothing so far; True: look again."""
        found = self._present()
        self.idle = found.idle or self.idle
        if found.prepared:
            self._roll_back_prepared()
        if found.writers:
            self._wait(self._writers)
        return found.prepared or bool(found.writers)

    def old_snapshots(self, xid: int) -> bool:
        """After the COMMIT of ``xid``: wait for sessions that still see what was before it."""

        def still() -> list[int]:
            return activity.busy(self._reader, self._tracker.database, self._connections.ours, xid)

        prepared = ending.prepared(self._reader, self._tracker.database)
        if prepared:
            self._roll_back_prepared()
        if not still():
            return bool(prepared)
        self._wait(still)
        return True

    def holders(self, relations: Sequence[int]) -> list[int]:
        """Pids of those whose locks are in the way of writing to these relations."""
        return activity.holders(self._reader, self._tracker.database, relations, self._connections.ours)

    def inside(self, pids: Sequence[int], *, prepared: bool) -> None:
        """Wait until these sessions are in no transaction and in no statement any more; roll back what is prepared."""
        if prepared:
            self._roll_back_prepared()

        def still() -> list[int]:
            found = activity.active(self._reader, self._tracker.database, self._connections.ours)
            return [pid for pid in found if pid in pids]

        self._wait(still)

    def lock_holders(self, relations: Sequence[int], *, lockless: bool) -> bool:
        """A lock was not to be had: wait for who holds it, or end them.

        Args:
            lockless: it was a lock that cannot be done without.

        Returns:
            True where nobody needs to be waited for: all who hold it are idle and have written nothing, as after
            an UPDATE that found no row. They stay, and the rows are put back without the lock.
        """

        def still() -> list[int]:
            return self.holders(relations)

        # Theirs have no session that could be named.
        self._roll_back_prepared()
        over = time.monotonic() - self._deadline
        pids = still()
        if pids and not lockless and activity.harmless(self._reader, pids):
            return True
        if over < 0:
            ending.cancel_autovacuum(self._reader, pids)
            time.sleep(0.005)
        elif over < END_PATIENCE:
            self.end(pids)
        else:
            raise RecloneNeeded("a lock is not to be had, and no session of the application holds it")
        return False

    def disturbed(self) -> None:
        """An attempt was disturbed: past the deadline, whoever is busy in this database is ended."""
        over = time.monotonic() - self._deadline
        if over >= END_PATIENCE:
            raise RecloneNeeded("somebody who is no session of the application goes on writing")
        if over >= 0:
            self.end(activity.active(self._reader, self._tracker.database, self._connections.ours))

    def end_all(self) -> None:
        """End every session of the application in this database."""
        found = activity.describe(self._reader, self._tracker.database, self._connections.ours)
        self.end([session.pid for session in found])

    def _advisory(self) -> list[int]:
        found = activity.advisory(self._reader, self._tracker.database, self._connections.ours)
        return sorted({pid for pid, _ in set(found) - self._tracker.advisory})

    def _writers(self) -> list[int]:
        return list(self._present().writers)

    def _present(self) -> activity.Present:
        return activity.present(self._reader, self._tracker.database, self._connections.ours)

    def _wait_for_ids(self, ids: Sequence[int]) -> None:
        """Until these transactions have ended; at the deadline whoever writes in this database is ended."""
        pause = 0.001
        given_up = 0.0
        while activity.in_progress(self._reader, ids):
            now = time.monotonic()
            if ending.prepared(self._reader, self._tracker.database):
                self._roll_back_prepared()
            elif now >= self._deadline and not given_up:
                self.end(self._writers())
                given_up = now + END_PATIENCE
            elif given_up and now >= given_up:
                raise RecloneNeeded(
                    f"transaction {ids[0]} does not end, and no session of this database has it"
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    def _wait(self, still: Callable[[], list[int]], *, patience: float | None = None) -> None:
        deadline = self._deadline
        if patience is not None:
            deadline = min(deadline, time.monotonic() + patience)
        pause = 0.001
        ended = False
        while pids := still():
            if time.monotonic() >= deadline:
                if ended:
                    raise RecloneNeeded(_stay(len(pids)))
                self.end(pids)
                ended, deadline = True, time.monotonic() + END_PATIENCE
            else:
                # Never long: each round asks the server, which knows.
                time.sleep(pause)
                pause = min(2 * pause, 0.05)

    def _roll_back_prepared(self) -> None:
        """Prepared transactions belong to no session: they are rolled back, from the same database."""
        for gid in ending.prepared(self._reader, self._tracker.database):
            ending.roll_back(self._connections.lease, gid)
            self.ended.append(f"prepared transaction {ident(gid)}")

    def end(self, pids: Sequence[int]) -> None:
        """End these, and name them.

        Raises:
            RecloneNeeded: some do not go, as a process that was stopped in the middle of a statement.
        """
        found = activity.describe(self._reader, self._tracker.database, self._connections.ours, pids)
        new = [session for session in found if session.pid not in self._stuck]
        self.ended.extend(session.text for session in new)
        # Once is enough: each wait takes seconds, and nothing that a session may do lets it stay that long.
        self._stuck.update(ending.end(self._reader, [session.pid for session in new]))
        if left := [session.text for session in found if session.pid in self._stuck]:
            raise RecloneNeeded(f"{_stay(len(left))}: {'; '.join(together(left)[:3])}")


def _stay(number: int) -> str:
    return f"{counted(number, 'session')} {'does' if number == 1 else 'do'} not end"
