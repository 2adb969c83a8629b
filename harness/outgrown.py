"""Data that has outgrown memory: noticed once a template's size is known, remembered for the next start."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness import project
from harness.backends import defaults
from harness.errors import HarnessError, MigrationError, ServerLost
from harness.server import Server
from harness.settings import Settings
from harness.template import Template

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
    if FULL in error.message:
        return FULL
    if not isinstance(error, ServerLost | MigrationError):
        return ""
    try:
        return next((line for line in server.logs() if FULL in line), "")
    except HarnessError:
        return ""


def explain(error: HarnessError, server: Server) -> None:
    """Add to an error that a full file system has caused where the data lies, and what to do."""
    if not (said := full(error, server)):
        return
    where = {"memory": "in memory", "disk": f"on disk ({server.info.handle})"}.get(server.info.storage)
    if where is None:
        where = "on a server that is not ours"
    if said != FULL:
        error.message += f"\nThe server's log says: {said}"
    error.message += f"\nThe server's data is {where}, and there is no room left."
    if server.info.storage == "memory":
        error.message += ' Set storage = "disk" (PGHARNESS_STORAGE), or more memory_limit.'


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
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_text(str(needed))
        os.replace(aside, path)
    except OSError:
        return


def _note(settings: Settings, environ: Mapping[str, str]) -> Path:
    return project.state_dir(environ) / project.project_id(settings.root) / "needed-bytes"
