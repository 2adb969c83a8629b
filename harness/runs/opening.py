"""Opening a run: the server is found or started, and the templates are made. A worker that joins imports none of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict

from harness.config import decisions
from harness.config.load import load
from harness.config.project import Project
from harness.config.settings import Settings
from harness.databases import freshness
from harness.errors import HarnessError
from harness.migrations import registry as migrations
from harness.migrations.port import Progress, unseen
from harness.postgres import names
from harness.runs import booking, rewinding
from harness.runs.placement import Placement, SharedServer
from harness.runs.session import ServerSession
from harness.servers import acquire, memory, registry
from harness.servers.port import Backend

Purpose = Literal["run", "up"]
"""What a run is for: tests, or a developer's own databases."""


class RunOptions(TypedDict, total=False):
    """How a run is opened; every key may be left out.

    Attributes:
        purpose: ``"run"`` (the default); ``"up"`` for databases that stay, which share one server.
        run: what names this run, for instance xdist's ``testrun_uid``; default: random.
        rebuild: migrate anew although a template, or a baked snapshot, is there.
        workers: how many there will be, where that is known: memory for servers is reckoned for all of them.
        worker: where this process is one worker of the run: its name. All that is leased here is on that worker's
            server then.
        progress: takes (done, total, what) while migrations run.
    """

    purpose: Purpose
    run: str | None
    rebuild: bool
    workers: int
    worker: str
    progress: Progress


def settings_of(
    root: str | os.PathLike[str] | None, environ: Mapping[str, str], overrides: Mapping[str, Any]
) -> Settings:
    """The settings of a project, of which all words are known.

    Args:
        root: where to look for the project; None: the working directory.

    Raises:
        ConfigError: a file or a value is not right.
    """
    start = Path(root) if root is not None else Path.cwd()
    settings = load(environ, start=start, overrides=overrides)
    for room in (migrations, registry, freshness):
        room.check_settings(settings)
    return settings


def placed(project: Project, options: RunOptions) -> tuple[str, Placement]:
    """The sixteen hex digits that name the run, and where its databases are, as the settings' ``isolation`` asks for: in one
    server, or in a server for each worker. None of those is started before a worker asks for one.

    Raises:
        ConfigError, BackendUnavailable, ServerStartError, MigrationError, TemplateBusy, PoolTimeout.
    """
    up = options.get("purpose") == "up"
    run = names.SANDBOX if up else names.run_id(options.get("run"))
    if up or project.settings.isolation != "server":
        if project.settings.hosts and not up and (placement := _on_hosts(project, run, options)) is not None:
            return run, placement
        return run, shared(project, run, options)
    # Runs that share a server bake nothing.
    from harness.runs.per_worker import ServerPerWorker

    return run, ServerPerWorker(
        project,
        run=run,
        rebuild=options.get("rebuild", False),
        workers=options.get("workers", 1),
        worker=options.get("worker", ""),
        progress=options.get("progress", unseen),
    )


def _on_hosts(project: Project, run: str, options: RunOptions) -> Placement | None:
    """A shared server on each Docker host; None where there is one host, or one worker."""
    # Here: who names no hosts imports nothing of it.
    from harness.runs import per_host

    workers = options.get("workers", 1)
    if (backend := per_host.backend_of_several(project, workers)) is None:
        return None
    return per_host.ServerPerHost(
        project,
        backend,
        run=run,
        rebuild=options.get("rebuild", False),
        workers=workers,
        progress=options.get("progress", unseen),
    )


def shared(project: Project, run: str, options: RunOptions, *, server: str = "") -> SharedServer:
    """Find or start the server, and have the templates ready there.

    Args:
        server: its purpose, where a checkout has several that are shared; empty: by the run's.

    Raises:
        BackendUnavailable, ServerStartError, MigrationError, TemplateBusy, PoolTimeout.
    """
    rebuild, purpose = options.get("rebuild", False), options.get("purpose", "run")
    workers = options.get("workers", 1)
    project = memory.with_storage(project, workers)

    def base(backend: Backend) -> str | None:
        # Where a server must be started; what runs already needs nothing of it.
        from harness.runs.bake import baked_base

        return None if rebuild else baked_base(project, backend, ended=purpose == "run")

    session = ServerSession(
        project,
        acquire.ensure(
            project, purpose=server or purpose, base=base, files=partial(rewinding.files, project)
        ),
        run=run,
        workers=workers,
        progress=options.get("progress", unseen),
    )
    try:
        moving = _prepare_or_move(session, rebuild=rebuild, may_move=purpose == "run")
        if moving or (purpose == "run" and any(found.built for found in session.templates.values())):
            # Here: a run that finds its templates leaves what an earlier one has asked for.
            from harness.runs import ended

            (ended.copy_now if moving else ended.keep_later)(session)
    except BaseException:
        session.abandon()
        raise
    if not moving:
        _note(session, purpose)
        return SharedServer(session)
    session.abandon()
    # The server in memory is replaced there, or left to the runs that use it: see docs/decisions/0013.
    return shared(project.having(storage="disk"), run, options, server=server)


def _note(session: ServerSession, purpose: str) -> None:
    """What was decided for this run, for a bug report."""
    made = ", ".join(
        f"{name}: template {'built' if found.built else 'found'}" for name, found in session.templates.items()
    )
    engine = rewinding.told(session.rewinding) if session.resets else "not asked for"
    fresh = session.settings.fresh
    decisions.note(
        session.project, "run", f"{purpose} {session.run}: fresh = {fresh}, reset: {engine}; {made}"
    )


def _prepare_or_move(session: ServerSession, *, rebuild: bool, may_move: bool) -> bool:
    """Have the templates ready; True where everything has to be done again on disk."""
    project, server = session.project, session.server
    try:
        session.prepare(rebuild=rebuild)
    except HarnessError as error:
        if may_move and memory.ran_out(error, project, server):
            return True
        raise
    size = sum(template.size for template in session.templates.values())
    return may_move and memory.must_move(
        project, server, size, session.workers, lambda: booking.workers_of_others(session)
    )
