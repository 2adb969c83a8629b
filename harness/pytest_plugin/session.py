"""Checks at the beginning of the session, when all plugins and conftests have had their say."""

from __future__ import annotations

import pytest

from harness.pytest_plugin import checks
from harness.pytest_plugin.state import State


class Guard:
    """Stops a run that would use another database than the leased one."""

    def __init__(self, state: State) -> None:
        self._state = state

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Once more: pytest_configure of a conftest may have loaded a .env file."""
        checks.stop_if_not_ours(session.config, self._state)
        checks.stop_if_changed(self._state, "before the session started")
