"""Which parts of the plugin take part in a run, and in which order.

Each process imports those that it has a use for: an import takes a millisecond or two, and with ``-n 4`` five
processes begin at once.
"""

from __future__ import annotations

import sys

import pytest

from harness.pytest_plugin import fixtures
from harness.pytest_plugin.failures import Failures
from harness.pytest_plugin.freshness import Refresher, Stop
from harness.pytest_plugin.guard import Guard
from harness.pytest_plugin.leaks import Garbage
from harness.pytest_plugin.report import Summarizer
from harness.pytest_plugin.serial import Serial
from harness.pytest_plugin.state import Role, State


def register(config: pytest.Config, state: State) -> None:
    """Register the parts.

    Late: of several wrappers that run first, the one that was registered last runs first, and of fixtures of
    the same name in two plugins the later one is taken.
    """
    manager = config.pluginmanager
    manager.register(fixtures, "pg_harness_fixtures")
    manager.register(Guard(state), "pg_harness_guard")
    if state.role is not Role.WORKER:
        from harness.pytest_plugin.header import Header

        manager.register(Header(state), "pg_harness_header")
    if state.role is Role.IDLE:
        return
    refresher = Refresher(state)
    manager.register(Summarizer(state), "pg_harness_summary")
    manager.register(Failures(state, refresher), "pg_harness_failures")
    manager.register(refresher, "pg_harness_freshness")
    manager.register(Stop(refresher), "pg_harness_stop")
    manager.register(Garbage(state), "pg_harness_garbage")
    manager.register(Serial(state), "pg_harness_serial")
    if "pytest_django.plugin" in sys.modules:
        from harness.pytest_plugin import django

        if django.wanted(manager, state):
            manager.register(django, "pg_harness_django")
            manager.register(django.NoFlush(state, refresher.resets_next), "pg_harness_no_flush")
    if state.role is Role.HOST:
        from harness.pytest_plugin.xdist import Controller

        manager.register(Controller(state), "pg_harness_controller")
