"""The end of the session: what is to be told of the run, gathered from its workers."""

from __future__ import annotations

from typing import Any

import pytest

from harness.pytest_plugin.state import Role, State

_MISSING_RIGHTS = "[42501]"
_GRANT = (
    "Remedy: GRANT EXECUTE ON FUNCTION pg_read_binary_file(text, bigint, bigint) and the roles pg_read_server_files "
    "and pg_read_all_settings to the harness's role"
)


class Summarizer:
    """Sends a worker's summary to its controller; shows that of the whole run."""

    def __init__(self, state: State) -> None:
        self._state = state

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Before xdist sends what its worker leaves."""
        lease = self._state.lease
        if lease is not None and (doubt := lease.reset_doubt):
            self._state.summary.notice(
                f"resets read the server's log with pg_walinspect, which takes longer than reading its bytes: {doubt}. "
                + (_GRANT if _MISSING_RIGHTS in doubt else "A newer pg-harness may know this server's log")
            )
        if self._state.role is Role.WORKER and hasattr(session.config, "workeroutput"):
            session.config.workeroutput["pg_harness"] = self._state.summary.sendable()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker that crashed has sent nothing."""
        if sent := getattr(node, "workeroutput", {}).get("pg_harness"):
            self._state.summary.add(node.gateway.id, sent)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Nothing to tell, nothing shown; ``-q`` leaves out what is no problem."""
        summary = self._state.summary
        lines = summary.lines()
        for name, test in summary.kept.items():
            lines.append(f"kept {name} of {test}: python -m harness psql {name}")
        if (resets := summary.resets()) and not self._state.quiet:
            lines.insert(0, resets)
        if not lines:
            return
        terminalreporter.section("pg-harness", sep="-")
        for line in lines:
            terminalreporter.write_line(line)
