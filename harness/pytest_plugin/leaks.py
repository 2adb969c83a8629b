"""Connections that nobody refers to any more, but that no garbage collection has found yet.

An engine or a thread's connection in a reference cycle stays open until Python's collector comes by, which may
be hundreds of tests later. A database with a budget would refuse the next test's connection for it: a plain
server, which has 100 for everybody, seldom does.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Generator

import pytest

from harness.pytest_plugin.state import State

_LISTED = next((path for path in ("/proc/self/fd", "/dev/fd") if os.path.isdir(path)), "")
"""Where Linux and macOS list a process's files."""


class Garbage:
    """Collects garbage between tests, once this process holds many more open files than it did.

    Files, because a socket is one: so it costs a few microseconds for each test, and no question to the server.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._last = ""
        self._before = 0
        self._step = 0

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None]:
        """Before the reset: a connection that is gone hinders none."""
        __tracebackhide__ = True
        if not self._state.in_fork and self._state.lease is not None:
            self._look()
        self._last = item.nodeid
        return (yield)

    def _look(self) -> None:
        now = open_files()
        if not self._step:
            # A quarter: garbage and what a test needs together must stay below the budget.
            harness, _ = self._state.running
            self._step = max(4, harness.settings.connections_per_worker // 4)
            self._before = now
        elif now < self._before:
            self._before = now
        elif now - self._before >= self._step:
            self._collect(now)

    def _collect(self, now: int) -> None:
        with warnings.catch_warnings():
            # "Connection was deleted while still open" would be laid at the door of a test that has done nothing.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        self._before = open_files()
        if now - self._before >= self._step // 2:
            self._state.summary.notice(
                f"{now - self._before} connections (or files) that {self._last} and tests before it did not "
                f"close were left to the garbage collector",
                group="garbage",
            )


def open_files() -> int:
    """How many files and sockets this process holds; 0 where the system does not tell."""
    return len(os.listdir(_LISTED)) if _LISTED else 0
