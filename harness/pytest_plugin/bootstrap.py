"""Before any conftest is imported: find out what this process is, lease, export, and register the plugin's parts."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from harness.config import drivers, logs
from harness.config.project import Project
from harness.errors import HarnessError, out_of_files
from harness.pytest_plugin import django, fixtures
from harness.pytest_plugin.failures import Failures
from harness.pytest_plugin.freshness import Refresher, Stop
from harness.pytest_plugin.guard import Guard
from harness.pytest_plugin.leaks import Garbage
from harness.pytest_plugin.report import Summarizer
from harness.pytest_plugin.serial import Serial
from harness.pytest_plugin.state import STATE, Place, Role, State, complain
from harness.runs.runfile import VARIABLE, RunFile

if TYPE_CHECKING:
    from harness.runs.run import Run

Had = TypeVar("Had")


def begin(config: pytest.Config, start: tuple[Path, str]) -> State:
    """Lease and export, before pytest loads conftests: they see the right variables.

    Raises:
        pytest.UsageError: nothing could be leased.
    """
    began = time.monotonic()
    parts: dict[str, object] = {}
    try:
        if _is_xdist_worker():
            state = _join()
        else:
            # Here: a worker has its controller's settings and no workers, and imports none of it.
            from harness.pytest_plugin import host

            state = host.begin(config.known_args_namespace, start)
            parts = host.parts(state)
    except HarnessError as error:
        raise pytest.UsageError(f"pg-harness: {error.full_text}") from None
    except OSError as error:
        if (full := out_of_files(error)) is None:
            raise
        raise pytest.UsageError(f"pg-harness: {full.message}") from None
    except KeyboardInterrupt:
        # Outside of a session pytest would show a traceback; 2 is what it calls an interrupted run.
        print("\npg-harness: interrupted", file=sys.stderr)
        raise SystemExit(int(pytest.ExitCode.INTERRUPTED)) from None
    state.seconds = time.monotonic() - began
    config.stash[STATE] = state
    if (verbosity := logs.Verbosity.of(os.environ)).stated:
        # Asked for in so many words: the reports of failed tests have these records too, and the workers' as well.
        config.add_cleanup(logs.set_level(verbosity.level))
    # Run also where pytest gives up before pytest_configure, for instance over an unknown option.
    config.add_cleanup(state.end)
    _register(config, state, parts)
    return state


def explain(state: State, error: BaseException) -> None:
    """Say which setting gives the right form of a URL, where an engine that a conftest makes fails over it."""
    if told := drivers.remedy_of(error, state.settings):
        complain(told)


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


def _join() -> State:
    # Here: a controller that only collects opens no run.
    from harness.runs.run import Run

    worker = os.environ["PYTEST_XDIST_WORKER"]
    named = os.environ.get(VARIABLE)
    if not named:
        raise HarnessError(
            f"worker {worker} was started without {VARIABLE}: was the plugin switched off in the controller? "
            f"`-p no:pg_harness` must hold for all processes (put it into addopts)."
        )
    run = RunFile.read(Path(named))
    project = Project.of(run.settings, os.environ)

    def leased(project: Project, run: RunFile, lease: Callable[[Run], Had]) -> Had:
        if not project.settings.hosts:
            return lease(Run.join(run, project, worker=worker))
        # Here: runs without hosts import nothing of it.
        from harness.runs import joining

        join = partial(Run.join, run, project, worker=worker)
        return joining.surely(join, lease, len(project.settings.hosts))

    state = leased(project, run, lambda found: State.leased(project, Role.WORKER, found, worker))
    if run.versions:
        # Here: most runs are of one version.
        from harness.pytest_plugin.versions import Several

        def join(version: str) -> Place:
            other = RunFile.read(Path(run.versions[version]))
            theirs = replace(project, settings=other.settings)
            return leased(theirs, other, lambda found: Place.leased(theirs, found, worker))

        state.several = Several(
            run.settings.pg_versions, str(run.settings.pg_version), join, dict(run.missing)
        )
    if run.settings.hosts:
        state.leaves = (run.note_of(Path(named), worker), run.pid)
    return state


def _register(config: pytest.Config, state: State, parts: dict[str, object]) -> None:
    """Register what takes part in this process.

    Late: of several wrappers that run first, the one that was registered last runs first, and of fixtures of
    the same name in two plugins the later one is taken.

    Args:
        parts: those that a worker has not.
    """
    manager = config.pluginmanager
    manager.register(fixtures, "pg_harness_fixtures")
    if config.known_args_namespace.pg_harness_each_version:
        # Here: most runs are of one version. Before the rest: serial tests are put last after that.
        from harness.pytest_plugin.multiplied import Multiplied

        manager.register(Multiplied(state.settings.pg_versions), "pg_harness_multiplied")
    manager.register(Guard(state), "pg_harness_guard")
    if state.role is not Role.IDLE:
        refresher = Refresher(state)
        manager.register(Summarizer(state), "pg_harness_summary")
        manager.register(Failures(state, refresher), "pg_harness_failures")
        manager.register(refresher, "pg_harness_freshness")
        manager.register(Stop(refresher), "pg_harness_stop")
        if state.leaves is not None:
            # Here: workers whose server is on no host of several have nowhere to go.
            from harness.pytest_plugin.moving import Mover

            manager.register(Mover(state, refresher, *state.leaves), "pg_harness_mover")
        manager.register(Garbage(state), "pg_harness_garbage")
        manager.register(Serial(state), "pg_harness_serial")
        if django.wanted(manager, state):
            manager.register(django, "pg_harness_django")
            manager.register(django.NoFlush(state, refresher.resets_next), "pg_harness_no_flush")
        if state.several is not None:
            from harness.pytest_plugin.versions import Switch

            state.several.skips = config.known_args_namespace.pg_harness_skip_missing_versions
            manager.register(Switch(state, state.several, refresher), "pg_harness_versions")
    for name, part in parts.items():
        manager.register(part, name)
