"""A worker whose Docker host is gone: its tests are told so, and what is left of them goes on on another host.

Without this it would fail each test that it is given at once, and so be given most of them. It leaves instead; xdist starts another
worker in its place, which gets a database on a host that is there, and runs what this one had not begun.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from harness.config.state_file import StateFile, Unreadable
from harness.errors import HarnessError
from harness.postgres.session import greet
from harness.pytest_plugin.freshness import Refresher
from harness.pytest_plugin.state import State, complain

PATIENCE = 5.0
"""Seconds in which a server that is there lets the worker in."""

LEFT = 75
"""The exit code of a worker that leaves (EX_TEMPFAIL of sysexits.h)."""


class Mover:
    """In a worker: notices that its server is gone, tells it at the test, and leaves before the next one.

    Args:
        note: where to leave why, for the controller.
    """

    def __init__(self, state: State, refresher: Refresher, note: Path, controller: int) -> None:
        self._state = state
        self._refresher = refresher
        self._note = note
        self._controller = controller
        self._gone = ""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[Any]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """The driver's own words do not tell which host it was."""
        report = yield
        if report.failed and call.when in ("setup", "call") and not self._state.in_fork and self._look():
            report.sections.append(("pg-harness: the Docker host is gone", self._gone))
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        """Before every fixture; after the reset, which notices where no test has."""
        if self._gone or (self._refresher.has_problem and self._look()):
            self._leave()

    def _look(self) -> str:
        """Why the server is gone; empty where it answers."""
        if not self._gone:
            info = self._state.run.server.info
            try:
                session = greet(info.dsn, info.server_id, timeout=PATIENCE)
            except HarnessError as error:
                self._gone = _told(self._state, error.message.splitlines()[0])
            else:
                if session is None:
                    self._gone = _told(self._state, "another server answers there")
                else:
                    session.close()
        return self._gone

    def _leave(self) -> None:
        StateFile(self._note).note({"pid": self._controller, "why": self._gone})
        sys.stdout.flush()
        sys.stderr.flush()
        # Not by an error of the session: xdist would take it for the end of the whole run. What was reported is sent already.
        os._exit(LEFT)


def _told(state: State, why: str) -> str:
    info = state.run.server.info
    _, lease = state.running
    return (
        f"the server of worker {lease.worker} on the Docker host {info.host} does not answer any more: {why}.\n"
        f"What was tried:\n  - logging in again at {info.dsn.host}:{info.dsn.port} ({info.description})\n"
        f"What to do:\n"
        f"  - see whether the host is up: docker -H {info.host.removeprefix('context:')} info\n"
        f"  - run this test again; those that the worker had not begun run on another host\n"
        f"  - take the host out of hosts as long as it is down"
    )


class Follower:
    """In the controller: gives what such a worker had not begun to others.

    Args:
        note: where a worker leaves why.
    """

    def __init__(self, note: Callable[[str], Path]) -> None:
        self._note = note
        self._left: dict[str, str] = {}

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Whether it has left, or crashed."""
        file = StateFile(self._note(node.gateway.id))
        try:
            self._left[node.gateway.id] = str(file.read().get("why"))
        except (FileNotFoundError, Unreadable):
            return
        file.forget()
        complain(f"worker {node.gateway.id} leaves: {self._left[node.gateway.id].splitlines()[0]}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport, sched: Any) -> None:
        """The test before which it has left had not begun."""
        why = self._left.get(report.node.gateway.id)
        if why is None:
            return
        report.longrepr = f"pg-harness: {why}"
        try:
            sched.mark_test_pending(crashitem)
        except NotImplementedError:
            # With --dist loadscope, loadfile or loadgroup it cannot be given to another worker: it fails, with that text.
            return
        report.outcome = "rerun"  # type: ignore[assignment]  # as xdist's documentation has it

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Neither passed nor failed."""
        if str(report.outcome) == "rerun" and str(report.when) == "???":
            return "rerun", "R", "RERUN"
        return None
