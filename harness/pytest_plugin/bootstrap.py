"""Before any conftest is imported: find out what this process is, lease, export, and say on stderr what is being done."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.config import environment, logs
from harness.config.project import Project
from harness.config.settings import Settings
from harness.databases import freshness
from harness.dsn import Dsn
from harness.errors import HarnessError
from harness.pytest_plugin import guard, registration
from harness.pytest_plugin.state import STATE, Role, State
from harness.runs.runfile import VARIABLE, RunFile

if TYPE_CHECKING:
    from harness.runs.harness import Harness

NOT_STARTED = "not_started"
"""The database's name in the URL of a run that starts nothing."""

_LOOKING_ONLY = ("help", "version", "collectonly", "showfixtures", "show_fixtures_per_test", "markers",
                 "setupplan", "cacheshow")  # fmt: skip


def begin(config: pytest.Config, start: tuple[Path, str]) -> State:
    """Lease and export, before pytest loads conftests: they see the right variables.

    Raises:
        pytest.UsageError: nothing could be leased.
    """
    try:
        state = _begin(config, start)
    except HarnessError as error:
        raise pytest.UsageError(f"pg-harness: {error.full_text}") from None
    except KeyboardInterrupt:
        # Outside of a session pytest would show a traceback; 2 is what it calls an interrupted run.
        print("\npg-harness: interrupted", file=sys.stderr)
        raise SystemExit(int(pytest.ExitCode.INTERRUPTED)) from None
    config.stash[STATE] = state
    if (verbosity := logs.Verbosity.of(os.environ)).stated:
        # Asked for in so many words: the reports of failed tests have these records too, and the workers' as well.
        config.add_cleanup(logs.set_level(verbosity.level))
    # Run also where pytest gives up before pytest_configure, for instance over an unknown option.
    config.add_cleanup(state.end)
    registration.register(config, state)
    return state


def stop_if_changed(state: State) -> None:
    """When conftests are loaded.

    Raises:
        pytest.UsageError: one of them, or another plugin, has changed what we exported.
    """
    guard.stop_if_changed(state, "while the conftests were loaded")


def _begin(config: pytest.Config, start: tuple[Path, str]) -> State:
    options = config.known_args_namespace
    began = time.monotonic()
    if _is_xdist_worker():
        state = _join(config)
    else:
        # Children of an earlier run may have inherited its file: it says nothing about ours.
        environ = {name: value for name, value in os.environ.items() if name != VARIABLE}
        project = Project.of(_settings(options, start), environ)
        if any(getattr(options, name, False) for name in _LOOKING_ONLY):
            return _closed(project, Role.IDLE)
        state = _host(project, options)
    state.seconds = time.monotonic() - began
    return state


def _settings(options: Any, start: tuple[Path, str]) -> Settings:
    # Here: a worker has its controller's, and imports none of it.
    from harness.config.load import load
    from harness.migrations import registry as sources
    from harness.servers import registry as backends

    explicit = options.pg_harness_config
    settings = load(
        os.environ,
        start=start[0],
        start_origin=start[1],
        explicit=Path(explicit) if explicit else None,
        overrides=given_as_options(options),
        override_origin="a pytest option",
    )
    sources.check_settings(settings)
    backends.check_settings(settings)
    freshness.check_settings(settings)
    return settings


def _is_xdist_worker() -> bool:
    """Whether this very pytest is what xdist has started in this process.

    The variable alone does not tell: a pytest that a test starts inherits it. xdist's worker prepares its
    config in a module that execnet calls ``__channelexec__`` (xdist/remote.py), and binds it to ``config``
    only after this hook.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return False
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "__channelexec__":
            return "config" not in frame.f_globals
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _closed(
    project: Project,
    role: Role,
    *,
    quiet: bool = False,
    harness: Harness | None = None,
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
    undo = environment.patch(os.environ, exported)
    return State(
        project, role, "main", harness, None, exported, undo, quiet, hold=hold, closed=dsns,
        telling=teller or nullcontext(),
    )  # fmt: skip


def _host(project: Project, options: Any) -> State:
    from harness.runs.harness import open_run

    quiet = getattr(options, "verbose", 0) < 0
    teller = Teller(logs.Verbosity.of(os.environ, getattr(options, "verbose", 0)))
    # xdist's controller runs no test: nothing will be reset there.
    controls = distributes(options)
    with teller:
        harness = open_run(
            project,
            rebuild=options.pg_harness_rebuild,
            progress=teller.progress,
            worker="" if controls else "main",
        )
        if controls and harness.shared is None:
            # Its workers start a server each, and it needs none for itself. Migrations that fail were told here,
            # once, all the same: they ran when the base was baked.
            return _closed(project, Role.HOST, quiet=quiet, harness=harness, teller=teller)
        try:
            if not controls:
                _keep_spares(harness)
            lease = harness.lease("main", watch=False if controls else None)
        except BaseException:
            harness.close()
            raise
    state = _exporting(
        State(project, Role.HOST, "main", harness, lease, {}, lambda: None, quiet, telling=teller)
    )
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


def _join(config: pytest.Config) -> State:
    from harness.runs.harness import Harness

    worker = os.environ["PYTEST_XDIST_WORKER"]
    named = os.environ.get(VARIABLE)
    if not named:
        raise HarnessError(
            f"worker {worker} was started without {VARIABLE}: was the plugin switched off in the controller? "
            f"`-p no:pg_harness` must hold for all processes (put it into addopts)."
        )
    run = RunFile.read(Path(named))
    project = Project.of(run.settings, os.environ)
    harness = Harness.join(run, project, worker=worker)
    try:
        _keep_spares(harness)
        lease = harness.lease(worker)
    except BaseException:
        harness.close()
        raise
    return _exporting(State(project, Role.WORKER, worker, harness, lease, {}, lambda: None, quiet=True))


def _keep_spares(harness: Harness) -> None:
    """Where each test gets a new clone, the next one is made, and the last one dropped, while a test runs."""
    if spares := freshness.of(harness.settings).spares:
        harness.keep_spares(spares)


def _exporting(state: State) -> State:
    harness, lease = state.running
    try:
        state.exported = harness.variables(lease)
    except BaseException:
        harness.close()
        raise
    state.undo = environment.patch(os.environ, state.exported)
    return state


def given_as_options(options: Any) -> dict[str, Any]:
    """The settings that were given as options of pytest."""
    given = {
        "backend": options.pg_harness_backend,
        "fresh": options.pg_harness_fresh,
        "keep_failed": options.pg_harness_keep_failed,
        "server_url": options.pg_harness_server_url,
    }
    return {key: value for key, value in given.items() if value is not None}


_REDRAW = 0.1
"""Seconds between two drawings of the progress line."""


class Teller(logging.Handler):
    """The plugin's one handler: writes the log to stderr, inside of its block only.

    A context manager, entered wherever the plugin works for itself. Between, while tests run, the level of our loggers
    is the user's: what they log at INFO would else be in the report of each test that fails.
    """

    def __init__(self, verbosity: logs.Verbosity) -> None:
        super().__init__()
        self._verbosity = verbosity
        self._stream = sys.stderr
        self._terminal = self._stream.isatty()
        self._width = 0
        self._drawn = 0.0
        self._undo: Callable[[], None] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """One line about what is being done."""
        try:
            self._wipe()
            print(f"pg-harness: {self._verbosity.line(record)}", file=self._stream, flush=True)
        except Exception:  # noqa: BLE001 — as every handler: a record that cannot be shown ends no run
            self.handleError(record)

    def progress(self, done: int, total: int | None, what: str) -> None:
        """Redraw the progress line: steps done, of how many, which one."""
        now = time.monotonic()
        hidden = self._verbosity.level > logging.INFO or not self._terminal
        if hidden or now - self._drawn < _REDRAW:
            return
        self._drawn = now
        text = f"pg-harness: {done}{f'/{total}' if total else ''} {what}"[:100]
        self._wipe()
        print(text, end="", file=self._stream, flush=True)
        self._width = len(text)

    def _wipe(self) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=self._stream, flush=True)
            self._width = 0

    def __enter__(self) -> Teller:
        if self._undo is None:
            self._undo = logs.show(self, self._verbosity.level)
        return self

    def __exit__(self, *_: object) -> None:
        self._wipe()
        if self._undo is not None:
            self._undo()
            self._undo = None
