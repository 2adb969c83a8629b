"""Lines in pytest's header: which server, which template, what each test starts from, and why."""

from __future__ import annotations

from harness.config.settings import Settings
from harness.databases import freshness
from harness.databases.spec import sources as sources_of
from harness.pytest_plugin.state import Role, State


class Header:
    """Tells once per run; xdist's workers have none."""

    def __init__(self, state: State) -> None:
        self._state = state

    def pytest_report_header(self) -> list[str]:
        """pytest shows it unless ``-q`` is given."""
        state = self._state
        if state.role is Role.IDLE:
            return ["pg-harness: nothing is started in this kind of run"]
        return [
            f"pg-harness: {server_line(state)}",
            f"pg-harness: {template_line(state)}; {freshness.of(state.settings).says}",
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
    return f"PostgreSQL {version // 10000}.{version % 10000}, {info.backend}{where}, {how}"


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
    named = [
        f"{key} = {getattr(settings, key)} ({origin})"
        for key, origin in sorted(settings.origins.items())
        if hasattr(settings, key) and key != "server_url" and not (here and origin.startswith(here))
    ]
    return "; " + ", ".join(named) if named else ""
