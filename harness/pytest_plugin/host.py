"""A process that xdist has not started: reads the settings, opens the run, and says on stderr what is being done."""

from __future__ import annotations

import os
import socket
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import environment, logs, versions
from harness.config.load import load
from harness.config.project import Project
from harness.config.teller import Teller
from harness.databases import freshness
from harness.dsn import Dsn
from harness.errors import BackendUnavailable, HarnessError
from harness.migrations import registry as sources
from harness.migrations.port import unseen
from harness.pytest_plugin.report import Header
from harness.pytest_plugin.state import Place, Role, State, let_go
from harness.pytest_plugin.xdist import Controller
from harness.runs.runfile import VARIABLE
from harness.servers import registry as backends

if TYPE_CHECKING:
    from harness.runs.run import Run

NOT_STARTED = "not_started"
"""The database's name in the URL of a run that starts nothing."""

_LOOKING_ONLY = ("help", "version", "collectonly", "showfixtures", "show_fixtures_per_test", "markers",
                 "setupplan", "cacheshow")  # fmt: skip


def begin(options: Any, start: tuple[Path, str]) -> State:
    """Have a server and a lease, unless this run only looks.

    Args:
        start: where the search for settings begins, and what to call that place.

    Raises:
        HarnessError: nothing could be leased.
    """
    settings = load(
        os.environ,
        start=start[0],
        start_origin=start[1],
        explicit=Path(options.pg_harness_config) if options.pg_harness_config else None,
        overrides=given_as_options(options),
        override_origin="a pytest option",
    )
    sources.check_settings(settings)
    backends.check_settings(settings)
    freshness.check_settings(settings)
    # Children of an earlier run may have inherited its file: it says nothing about ours.
    project = Project.of(settings, {name: value for name, value in os.environ.items() if name != VARIABLE})
    if options.pg_harness_each_version:
        return _open_each(project, options)
    return _looking(project, options) or _open(project, options)


def _looking(project: Project, options: Any) -> State | None:
    """The state of a run that only looks; None: it does more."""
    if any(getattr(options, name, False) for name in _LOOKING_ONLY):
        return _closed(project, Role.IDLE)
    return None


def _open_each(project: Project, options: Any) -> State:
    """Have a server for each version; those that are not to be had are noted, as long as there is one that is.

    Raises:
        HarnessError: there is none.
    """
    # Here: most runs are of one version.
    from harness.pytest_plugin.versions import Several

    wanted = versions.each(project.settings, "--pg-harness-each-version")
    if looking := _looking(project, options):
        return looking
    state: State | None = None
    opened: dict[str, Run] = {}
    missing: dict[str, HarnessError] = {}
    try:
        for version in wanted:
            try:
                if state is None:
                    state = _open(versions.at(project, version), options)
                else:
                    with state.telling:
                        opened[version] = _run(versions.at(project, version), options, state.telling)
            except HarnessError as error:
                missing[version] = error
    except BaseException:
        for run in opened.values():
            let_go(run, opened=True)
        if state is not None:
            state.end()
        raise
    if state is None:
        raise BackendUnavailable(
            f"none of PostgreSQL {', '.join(wanted)} is to be had here",
            checked=[f"{version}: {error.message.splitlines()[0]}" for version, error in missing.items()],
            remedies=getattr(missing[wanted[0]], "remedies", ()),
        )
    state.others = opened
    home = str(state.settings.pg_version)
    texts = {version: error.full_text for version, error in missing.items()}
    state.several = Several(
        wanted,
        home,
        lambda version: Place.leased(opened[version].placement.project, opened[version], "main"),
        texts,
    )
    return state


def _run(project: Project, options: Any, telling: object) -> Run:
    # Here: a run that only looks does without.
    from harness.runs.run import Run

    # xdist's controller runs no test: nothing will be reset there.
    controls = distributes(options)
    return Run.open_project(
        project,
        rebuild=options.pg_harness_rebuild,
        progress=telling.progress if isinstance(telling, Teller) else unseen,
        workers=_told(options) or (os.cpu_count() or 1 if controls else 1),
        worker="" if controls else "main",
    )


def parts(state: State) -> dict[str, object]:
    """The parts of the plugin that no worker has, by the names to register them under."""
    header: dict[str, object] = {"pg_harness_header": Header(state)}
    if state.several is not None:
        from harness.pytest_plugin.versions import Outcomes  # as in `_open_each`

        header["pg_harness_outcomes"] = Outcomes(state.several.versions, state.several.missing)
    return header if state.role is Role.IDLE else {**header, "pg_harness_controller": Controller(state)}


def given_as_options(options: Any) -> dict[str, Any]:
    """The settings that were given as options of pytest."""
    given = {
        "backend": options.pg_harness_backend,
        "fresh": options.pg_harness_fresh,
        "keep_failed": options.pg_harness_keep_failed,
        "server_url": options.pg_harness_server_url,
        "pg_version": options.pg_harness_pg_version,
    }
    return {key: value for key, value in given.items() if value is not None}


def _closed(
    project: Project,
    role: Role,
    *,
    quiet: bool = False,
    harness: Run | None = None,
    teller: Teller | None = None,
) -> State:
    """The URL is valid, and nobody answers there."""
    settings = project.settings
    # Bound and not listening: refused at once, and no other program can take the port meanwhile.
    hold = socket.socket()
    hold.bind(("127.0.0.1", 0))
    dsn = Dsn("127.0.0.1", hold.getsockname()[1], settings.role, NOT_STARTED, NOT_STARTED)
    dsns = {database.name: dsn for database in settings.databases}
    tables = {database.name: database.env for database in settings.databases}
    exported = environment.variables(
        dsns, tables, environment.Slot("main", 1, settings.connections_per_worker)
    )
    state = State(
        project, role, harness, quiet=quiet, hold=hold, closed=dsns, telling=teller or nullcontext()
    )
    state.export(exported)
    return state


def _open(project: Project, options: Any) -> State:
    quiet = getattr(options, "verbose", 0) < 0
    teller = Teller(logs.Verbosity.of(os.environ, getattr(options, "verbose", 0)))
    # xdist's controller runs no test: nothing will be reset there.
    controls = distributes(options)
    with teller:
        harness = _run(project, options, teller)
        if controls and harness.shared is None:
            # Its workers start a server each, and it needs none for itself. Migrations that fail were told here,
            # once, all the same: they ran when the base was baked.
            return _closed(project, Role.HOST, quiet=quiet, harness=harness, teller=teller)
        state = State.leased(project, Role.HOST, harness, "main", tests=not controls)
    state.quiet, state.telling = quiet, teller
    if workers := _told(options):
        # A second processor has nothing to do until xdist's workers begin.
        state.fill(workers)
    return state


def _told(options: Any) -> int:
    """How many workers xdist will start, where that is certain; 0 where it is not, or there are none."""
    wanted = getattr(options, "numprocesses", None)
    if not isinstance(wanted, int) or not distributes(options):
        return 0
    return min(wanted, getattr(options, "maxprocesses", None) or wanted)


def distributes(options: Any) -> bool:
    """Whether xdist's workers will run the tests, as far as can be told before ``-n auto`` is a number."""
    wanted = getattr(options, "numprocesses", None)
    if wanted in ("auto", "logical") and os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS") == "0":
        return False
    # With --pdb, ``-n auto`` is none.
    return bool(wanted) and not getattr(options, "usepdb", False)
