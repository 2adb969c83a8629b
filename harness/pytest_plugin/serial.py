"""``serial_only``: a test that runs while no other test of the run is running, in any worker."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from harness.errors import PoolTimeout, ServerLost, ServerRefused
from harness.postgres import sqlstate
from harness.postgres.session import lock_key
from harness.pytest_plugin.state import Role, State

if TYPE_CHECKING:
    from harness.runs.run import Run

BESIDE = 3600.0
"""Seconds that a test waits for a serial one: however long that may take, one that hangs must not hold up the run for ever."""

_TIMED_OUT = pytest.StashKey[str]()


def is_serial(item: pytest.Item) -> bool:
    """By the nearest of its two markers: ``parallel_safe`` on a test beats ``serial_only`` on its module."""
    for marker in item.iter_markers():
        if marker.name in ("serial_only", "parallel_safe"):
            return marker.name == "serial_only"
    return False


class Turns:
    """One worker's place in the queue of its run: an advisory lock on the maintenance database, held during a test.

    Shared, or exclusive by a test that runs alone. PostgreSQL's queue for it is fair: who asks for a shared lock while
    somebody waits for the exclusive one lines up behind, so that no kind of test starves. SIGKILL frees the lock.
    """

    def __init__(self, harness: Run, worker: str) -> None:
        self._worker = worker
        self._key = lock_key("turn", harness.run)
        # Not the run's own session: another thread's statement would wait with it.
        self._link = harness.link.another()

    def take(self, test: str, *, alone_within: float | None) -> None:
        """Wait until the test may run.

        Args:
            alone_within: seconds to wait for all others; None: it may run beside others, and waits for a serial one for
                :data:`BESIDE` seconds.

        Raises:
            PoolTimeout: others did not let go; the text lists who holds: worker, test, seconds.
        """
        lock, within, missed = "pg_advisory_lock_shared", BESIDE, "a serial_only test of the run did not end"
        if alone_within is not None:
            lock, within, missed = (
                "pg_advisory_lock",
                alone_within,
                "serial_only: other tests of the run did not end",
            )
        # The comment is what `_holders` of another worker reads; escaped, for it must end with the line.
        statement = (
            f"set local lock_timeout = {max(1, int(within * 1000))}; set local statement_timeout = 0; "
            f"select {lock}({self._key}) -- {self._worker}: {ascii(test)[1:-1]}"
        )
        try:
            self._link.surely(lambda: self._link.session.script(statement))
        except ServerRefused as error:
            if error.sqlstate != sqlstate.LOCK_NOT_AVAILABLE:
                raise
            raise PoolTimeout(
                f"{missed} within {within:g} s{' (setting serial_timeout)' if alone_within is not None else ''}:\n"
                f"{self._holders()}"
            ) from error

    def leave(self) -> None:
        """The test has ended."""
        try:
            self._link.session.execute("select pg_advisory_unlock_all()")
        except ServerLost:
            # The lock went with the session.
            return

    def close(self) -> None:
        """Log out."""
        self._link.close()

    def _holders(self) -> str:
        holders = self._link.session.rows(
            """
            select substr(a.query, strpos(a.query, '-- ') + 3),
                   extract(epoch from clock_timestamp() - a.state_change)::float8
              from pg_locks l join pg_stat_activity a using (pid)
             where l.locktype = 'advisory' and l.granted and l.objsubid = 1
               and l.classid = ((%s::int8 >> 32) & 4294967295)::oid
               and l.objid = (%s::int8 & 4294967295)::oid
             order by 1
            """,
            (self._key, self._key),
        )
        lines = [f"  {test}, for {seconds:.0f} s" for test, seconds in holders]
        return "\n".join(lines) or "  (the holders have just let go)"


class Serial:
    """Orders serial tests last, and has them wait for their turn."""

    def __init__(self, state: State) -> None:
        self._state = state
        # Of several versions' servers, one: all take their turns there.
        self._home = state.place
        self._serial: set[pytest.Item] = set()
        self._turns: Turns | None = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None]:
        """After everybody else (random orders too): one drain under ``load`` and ``worksteal``."""
        result = yield
        self._serial = {item for item in items if is_serial(item)}
        if self._serial:
            items.sort(key=self._serial.__contains__)
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, bool, bool]:
        """Outside of every timer and of every rerun: waiting for a turn is nobody's test time."""
        # Every worker has collected the same tests: without a serial one, nobody takes turns.
        if not self._serial or self._state.role is not Role.WORKER or self._state.in_fork:
            return (yield)
        if self._turns is None and self._home is not None:
            self._turns = Turns(self._home.harness, self._home.lease.worker)
        assert self._turns is not None  # a worker has a lease
        alone_within = self._state.settings.serial_timeout if item in self._serial else None
        try:
            self._turns.take(item.nodeid, alone_within=alone_within)
        except PoolTimeout as error:
            item.stash[_TIMED_OUT] = str(error)
            return (yield)
        try:
            return (yield)
        finally:
            # A copy of the process that the test has forked, and that came here, has its parent's session.
            if not self._state.in_fork:
                self._turns.leave()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """A test that did not get its turn fails, and does not run."""
        if message := item.stash.get(_TIMED_OUT, ""):
            pytest.fail(message, pytrace=False)

    def pytest_unconfigure(self) -> None:
        """Let go, unless this is a copy of the process."""
        if self._turns is not None and not self._state.in_fork:
            self._turns.close()
