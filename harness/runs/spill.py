"""Data that has outgrown memory: noticed once a template's size is known, remembered for the next start."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness.config import project
from harness.config.settings import Settings
from harness.config.state_file import replace_file
from harness.databases.template import Template
from harness.errors import HarnessError, MigrationError, ServerLost
from harness.servers import defaults
from harness.servers.handle import Server

logger = logging.getLogger("pg_harness.runs")

MB = 1024 * 1024

FULL = "No space left on device"
"""What a server says of a full file system; ours speak English (``lc_messages = C``)."""

BESIDE = 288 * MB
"""Bytes for WAL (``max_wal_size`` is soft) and the system's own databases, besides templates and clones."""


def need(templates: Sequence[Template], workers: int) -> int:
    """Bytes that these templates take with a clone for each worker, a baseline, and a spare for a re-clone."""
    return BESIDE + sum(t.size for t in templates) * (workers + 3)


def room(settings: Settings) -> int:
    """Bytes that data in memory may take here, at most."""
    return defaults.memory_budget(settings.memory_limit)


def full(error: HarnessError, server: Server) -> str:
    """What the server said of a full file system; empty where it was something else.

    A server that cannot write its WAL ends: then only its log says why.
    """
    if FULL in error.full_text:
        return FULL
    if not isinstance(error, ServerLost | MigrationError):
        return ""
    try:
        return next((line for line in server.logs() if FULL in line), "")
    except HarnessError:
        return ""


def must_move(
    settings: Settings,
    environ: Mapping[str, str],
    server: Server,
    templates: Sequence[Template],
) -> bool:
    """Whether the data has outgrown the memory that it may take; noted, and told."""
    if not _may_move(settings, server):
        return False
    needed, there = need(templates, os.cpu_count() or 1), room(settings)
    if needed <= there:
        return False
    remember(settings, environ, needed)
    logger.info(
        "templates and clones need about %d MB, and %d MB of memory may be used: "
        'moving to disk, and migrating once more. storage = "disk" avoids this',
        needed >> 20,
        there >> 20,
    )
    return True


def ran_out(
    error: HarnessError,
    settings: Settings,
    environ: Mapping[str, str],
    server: Server,
) -> bool:
    """Whether a migration failed because its data did not fit into memory, where disk may do; noted, and told."""
    if not _may_move(settings, server) or not full(error, server):
        return False
    # How much is needed is unknown: more than there is.
    remember(settings, environ, 2 * room(settings))
    logger.info(
        "the data does not fit into memory: moving to disk, and migrating once more. "
        'storage = "disk" avoids this'
    )
    return True


def _may_move(settings: Settings, server: Server) -> bool:
    return settings.storage == "auto" and server.info.storage == "memory"


def explain(error: HarnessError, server: Server) -> None:
    """Add to an error that a full file system has caused where the data lies, and what to do."""
    if not (said := full(error, server)):
        return
    where = {"memory": "in memory", "disk": f"on disk ({server.info.handle})"}.get(server.info.storage)
    if where is None:
        where = "on a server that is not ours"
    if said != FULL:
        error.add_note(f"The server's log says: {said}")
    remedy = ""
    if server.info.storage == "memory":
        remedy = ' Set storage = "disk" (PGHARNESS_STORAGE), or more memory_limit.'
    error.add_note(f"The server's data is {where}, and there is no room left.{remedy}")


def settings_for(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """The same settings, with ``storage = "disk"`` where this checkout's data was too large for memory before."""
    if settings.storage != "auto":
        return settings
    try:
        noted = int(_note(settings, environ).read_text())
    except (OSError, ValueError):
        return settings
    # The noted need, against today's room: another machine day may have more of it.
    return replace(settings, storage="disk") if noted > room(settings) else settings


def remember(settings: Settings, environ: Mapping[str, str], needed: int) -> None:
    """Note how much is needed; where it cannot be noted, the next start finds out again."""
    path = _note(settings, environ)
    try:
        replace_file(path, str(needed))
    except OSError:
        return


def _note(settings: Settings, environ: Mapping[str, str]) -> Path:
    return project.state_dir(environ) / project.project_id(settings.root) / "needed-bytes"
