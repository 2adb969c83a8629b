"""What is told of a run: in pytest's header the server, the template and what each test starts from; at the end, what came up."""

from __future__ import annotations

from typing import Any

import pytest

from harness.config import versions
from harness.config.settings import Settings
from harness.databases import freshness
from harness.databases.spec import sources as sources_of
from harness.postgres import names
from harness.pytest_plugin.state import Role, State
from harness.servers import sharing

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
            lines.append(f"pg-harness psql {names.short(name)} shows what {test} left")
        if (resets := summary.resets()) and not self._state.quiet:
            lines.insert(0, resets)
        if not lines:
            return
        terminalreporter.section("pg-harness", sep="-")
        for line in lines:
            terminalreporter.write_line(line)


class Header:
    """Tells once per run; xdist's workers have none."""

    def __init__(self, state: State) -> None:
        self._state = state

    def pytest_report_header(self) -> list[str]:
        """pytest shows it unless ``-q`` is given."""
        state = self._state
        if state.role is Role.IDLE:
            return ["pg-harness: nothing is started in this kind of run"]
        first = versions.told(state.settings) if state.several is None else ""
        return [
            f"pg-harness: {server_line(state)}",
            *([f"pg-harness: {first}; --pg-harness-each-version runs on all of them"] if first else []),
            f"pg-harness: {template_line(state)}; {freshness.of(state.settings).says}",
            *reset_lines(state),
            f"pg-harness: root {state.settings.root} ({state.settings.root_origin}){given(state.settings)}",
        ]


def server_line(state: State) -> str:
    """Version, backend, storage, warm or started."""
    if state.lease is None:
        return f"PostgreSQL {state.run.description} and none for this process"
    harness, _ = state.running
    server = harness.server
    version = server.session.server_version
    how = f"started in {server.seconds:.1f} s" if server.started else f"warm, ready in {state.seconds:.2f} s"
    info = server.info
    where = {"memory": ", in memory", "disk": ", on disk"}.get(info.storage, "")
    shared = sharing.told(server.session, info)
    return f"PostgreSQL {version // 10000}.{version % 10000}, {info.backend}{where}{shared}, {how}"


def reset_lines(state: State) -> list[str]:
    """How resets are made, where there will be any: by pages, or row-wise and why."""
    if not freshness.of(state.settings).watches:
        return []
    told = state.run.reset_told
    return [f"pg-harness: reset: {told}"] if told else []


def template_line(state: State) -> str:
    """Each template: found or built."""
    texts = []
    for database in state.settings.databases:
        sources = ", ".join(source.text for source in sources_of(state.settings, database))
        name = "" if database.name == "default" else f"{database.name}: "
        if not sources:
            texts.append(f"{name}an empty database (no migrations are configured, none were found)")
            continue
        texts.append(f"{name}{sources}, {state.run.made(database.name)}")
    return "; ".join(texts)


def given(settings: Settings) -> str:
    """The settings that somebody has set outside of the file, with their origin."""
    here = str(settings.file) if settings.file else ""
    values = {"pg_version": ", ".join(settings.pg_versions)}
    named = [
        f"{key} = {values.get(key) or getattr(settings, key)} ({origin})"
        for key, origin in sorted(settings.origins.items())
        if hasattr(settings, key) and key != "server_url" and not (here and origin.startswith(here))
    ]
    return "; " + ", ".join(named) if named else ""
