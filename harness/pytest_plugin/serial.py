"""``serial_only``: a test that runs while no other test of the run is running, in any worker."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from harness.errors import PoolTimeout
from harness.pytest_plugin.state import Role, State

if TYPE_CHECKING:
    from harness.pytest_plugin.turns import Turns

_TIMED_OUT = pytest.StashKey[str]()


def is_serial(item: pytest.Item) -> bool:
    """By the nearest of its two markers: ``parallel_safe`` on a test beats ``serial_only`` on its module."""
    for marker in item.iter_markers():
        if marker.name in ("serial_only", "parallel_safe"):
            return marker.name == "serial_only"
    return False


class Serial:
    """Orders serial tests last, and has them wait for their turn."""

    def __init__(self, state: State) -> None:
        self._state = state
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
        turns = self._turns = self._turns or self._open()
        if item not in self._serial:
            turns.enter(item.nodeid)
            try:
                return (yield)
            finally:
                turns.leave()
        waiting = turns.alone(item.nodeid, timeout=self._state.settings.serial_timeout)
        try:
            waiting.__enter__()
        except PoolTimeout as error:
            item.stash[_TIMED_OUT] = str(error)
            return (yield)
        try:
            return (yield)
        finally:
            waiting.__exit__(None, None, None)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """A test that did not get its turn fails, and does not run."""
        if message := item.stash.get(_TIMED_OUT, ""):
            pytest.fail(message, pytrace=False)

    def _open(self) -> Turns:
        from harness.pytest_plugin.turns import Turns

        harness, lease = self._state.running
        return Turns(harness.link.dsn, harness.run, lease.worker)

    def pytest_unconfigure(self) -> None:
        """Let go, unless this is a copy of the process."""
        if self._turns is not None and not self._state.in_fork:
            self._turns.close()
