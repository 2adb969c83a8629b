"""Memory: what is free, where a server's data lies, how many servers fit, and what is done with data that outgrows it."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.project import Project
from harness.config.settings import Settings
from harness.config.state_file import replace_file
from harness.errors import BackendError, HarnessError, MigrationError, ServerLost
from harness.listing import counted
from harness.servers.port import Backend

if TYPE_CHECKING:
    from harness.servers.handle import Server

logger = logging.getLogger("pg_harness.servers")

MB = 1024 * 1024

AT_LEAST = 512 * MB
"""Below this (bytes) data goes to disk: a server with a few templates and clones needs it."""

PROCESSES = 48 * MB
"""What the postmaster, its helpers and a few sessions of one idle server take beyond shared buffers."""

WRITES = 288 * MB
"""What a server's WAL (max_wal_size is soft), its own databases and a test's rows may take beside templates and clones."""

CROWD = 64
"""Where templates are so small that this many workers have room, nobody is counted."""

_FULL = re.compile(r"No space left on device|could not extend file .*: wrote only \d+ of \d+ bytes")
"""What a server says of a full file system; ours speak English (``lc_messages = C``).

A file whose last block fits in part is told by the second form alone (``mdextend`` in md.c).
"""

_CHECKPOINT = "checkpoint request failed"

_UNITS = {"b": 1, "kb": 1024, "mb": MB, "gb": 1024 * MB, "tb": 1024 * 1024 * MB, "": 8192}


# --- what is free ----------------------------------------------------------------------------------------


def budget(limit: int | None) -> int:
    """Bytes that data in memory may take on this machine.

    ``MemAvailable`` (proc(5)) is of the whole machine: in a container limited to 200 MB it said 22.7 GB,
    and the writer to a tmpfs was killed at 198 MB. So it is cut by what the control group leaves.

    Args:
        limit: the user's ``memory_limit`` in bytes; None: a quarter of what is free.
    """
    free = free_memory()
    return free // 4 if limit is None else min(limit, max(0, free))


def free_memory() -> int:
    """Bytes of memory that are free on this machine, cut by what the control groups leave; 0: unknown."""
    return min([_available(), *_cgroup_rooms()])


def _available() -> int:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _cgroup_rooms() -> list[int]:
    """Bytes left in each control group above us (cgroups(7), versions 1 and 2)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    rooms: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, usage = Path("/sys/fs/cgroup"), "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            top, limit, usage = (
                Path("/sys/fs/cgroup/memory"),
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        else:
            continue
        # Inside a container the path is the host's and missing here: then the top is our own group.
        folder = top / path.lstrip("/")
        for group in [folder, *folder.parents]:
            if top in (group, *group.parents):
                rooms.extend(_room(group / limit, group / usage))
    return rooms


def _room(limit: Path, usage: Path) -> list[int]:
    try:
        most, used = limit.read_text().strip(), int(usage.read_text())
    except (OSError, ValueError):
        return []
    return [] if most == "max" else [max(0, int(most) - used)]


def shared_memory() -> Path | None:
    """A folder in memory that every user may write to; None where there is none (macOS, Windows)."""
    folder = Path("/dev/shm")  # noqa: S108 - what lies there is believed by its owner only (config/own_folder.py)
    if sys.platform != "linux" or not os.access(folder, os.W_OK):
        return None
    return folder if os.path.ismount(folder) else None


# --- where data lies -------------------------------------------------------------------------------------


def storage(wanted: str, room: int, *, throwaway: bool) -> str:
    """``"memory"`` or ``"disk"``, for one server.

    Args:
        wanted: the setting; ``"auto"`` puts into memory what is thrown away anyway, where it has room.
        room: bytes that data in memory may take.
        throwaway: whether nobody expects the data to be there after a reboot.
    """
    if wanted != "auto":
        return wanted
    return "memory" if throwaway and room >= AT_LEAST else "disk"


def allowed(settings: Settings) -> int:
    """Bytes that data in memory may take here, at most."""
    return budget(settings.memory_limit)


# --- several servers, reckoned and told before they are started ------------------------------------------


@dataclass(frozen=True)
class Room:
    """What is there, and what one server needs. All in bytes.

    Attributes:
        free: memory that servers may take.
        work: of one server, wherever its data lies.
        data: of one server, where its data lies in memory.
        wanted: the setting ``storage``.
    """

    free: int
    work: int
    data: int
    wanted: str

    @classmethod
    def of(cls, settings: Settings, backend: Backend, baked: int) -> Room:
        """Reckon it for a base of ``baked`` bytes.

        Raises:
            BackendError: the daemon does not tell its memory.
        """
        buffers = bytes_of(settings.postgres.get("shared_buffers", "128MB"))
        copies = 1 + settings.replicas
        # Baked data, one clone at work and one while a reset replaces it; the same on each standby.
        data = copies * (2 * baked + WRITES)
        return cls(backend.free_memory(), copies * (buffers + PROCESSES), data, settings.storage)

    def storage(self, count: int) -> str:
        """``"memory"`` where ``count`` servers fit into half of what is free, else ``"disk"``."""
        if self.wanted != "auto":
            return self.wanted
        return "memory" if count * (self.work + self.data) <= self.free // 2 else "disk"

    def each(self, count: int) -> int:
        """What one of ``count`` servers takes."""
        return self.work + (self.data if self.storage(count) == "memory" else 0)

    def tmpfs(self, count: int) -> int:
        """How much one server's data in memory may grow to."""
        return max(self.data, self.free // 2 // max(1, count))

    def check(self, count: int) -> None:
        """Say how much ``count`` servers take, or refuse before the first is started.

        Raises:
            BackendError: they do not fit.
        """
        storage = self.storage(count)
        each = self.each(count)
        where = "data in memory" if storage == "memory" else "data on disk"
        told = f"{count} × {each // MB} MB = {count * each // MB} MB ({where}), {self.free // MB} MB are free"
        if count * each <= self.free:
            logger.info("memory: %s", told)
            return
        fitting = self.free // each
        raise BackendError(
            f"{counted(count, 'server')} {'does' if count == 1 else 'do'} not fit into memory: {told}.\n"
            f"What to do:\n"
            f"  - use at most {counted(fitting, 'worker')}\n"
            f'  - or let them share one server: isolation = "database"\n'
            + ('  - or keep data on disk: storage = "disk"\n' if storage == "memory" else "")
            + '  - or make each smaller: [tool.pg-harness.postgres] shared_buffers = "32MB"'
        )


def bytes_of(text: str) -> int:
    """Bytes of a PostgreSQL memory setting; a bare number counts blocks of 8 kB."""
    digits = text.strip().lower()
    unit = digits.lstrip("0123456789. ")
    try:
        return int(float(digits.removesuffix(unit).strip()) * _UNITS[unit])
    except (ValueError, KeyError):
        return 128 * MB


# --- data that outgrows memory: noticed once its size is known, remembered for the next start -------------


def grown(size: int, workers: int, replicas: int = 0) -> int:
    """Bytes that templates of ``size`` bytes take with a clone for each worker, a baseline, and a spare for a re-clone; with
    standbys, on all of them together."""
    return (1 + replicas) * (WRITES + size * (workers + 3))


def told_full(text: str) -> bool:
    """Whether this is what a server or a tool says of a full file system."""
    return _FULL.search(text) is not None


def must_move(
    project: Project, server: Server, size: int, workers: int, others: Callable[[], int] = lambda: 0
) -> bool:
    """Whether the data outgrows the memory that it may take; noted, and told.

    Args:
        size: bytes of all templates.
        workers: how many will have a clone of each.
        others: asked, where it may matter, how many those of other runs on this server are.
    """
    if not _may_move(project.settings, server):
        return False
    there = allowed(project.settings)
    replicas = project.settings.replicas
    if grown(size, max(workers, CROWD), replicas) <= there:
        return False
    workers += others()
    needed = grown(size, workers, replicas)
    if needed <= there:
        return False
    remember(project, size)
    logger.info(
        "templates and clones of %s need about %d MB, and %d MB of memory may be used: "
        'moving to disk. storage = "disk" avoids this',
        counted(workers, "worker"),
        needed >> 20,
        there >> 20,
    )
    return True


def ran_out(
    error: HarnessError,
    project: Project,
    server: Server,
) -> bool:
    """Whether a migration failed because its data did not fit into memory, where disk may do; noted, and told."""
    if not _may_move(project.settings, server) or not (told_full(error.full_text) or _logged(error, server)):
        return False
    # How large it is, is unknown: larger than what there is.
    remember(project, 2 * allowed(project.settings))
    logger.info(
        "the data does not fit into memory: moving to disk, and migrating once more. "
        'storage = "disk" avoids this'
    )
    return True


def _may_move(settings: Settings, server: Server) -> bool:
    return settings.storage == "auto" and server.info.storage == "memory"


def _logged(error: HarnessError, server: Server) -> str:
    """A line that tells of a full file system where the error itself does not; empty where none does.

    Its checkpoint fails, with which every copy of a database begins; or a server that cannot write its WAL ends: then only
    its log says why. A tool may keep to itself what the server said.
    """
    if not isinstance(error, ServerLost | MigrationError) and _CHECKPOINT not in error.full_text:
        return ""
    try:
        # The last one: the log may tell of earlier ones too.
        told = next((line for line in reversed([*server.logs()]) if told_full(line)), "")
    except HarnessError:
        told = ""
    # The log lies on the same disk: its last words may be missing.
    return told or _seen_full(server)


def _seen_full(server: Server) -> str:
    """That the file system of a local server's data is full, as a line of a log; empty where it is not."""
    try:
        free = shutil.disk_usage(server.info.handle).free
    except (OSError, ValueError):
        # A container's id is no folder.
        return ""
    return f"(nothing; {server.info.handle}: No space left on device)" if free < MB else ""


def explain(error: HarnessError, server: Server) -> None:
    """Add to an error that a full file system has caused where the data lies, and what to do."""
    said = ""
    if not told_full(error.full_text) and not (said := _logged(error, server)):
        return
    where = {"memory": "in memory", "disk": f"on disk ({server.info.handle})"}.get(server.info.storage)
    if where is None:
        where = "on a server that is not ours"
    if said:
        error.add_note(f"The server's log says: {said}")
    remedy = ""
    if server.info.storage == "memory":
        remedy = ' Set storage = "disk" (PGHARNESS_STORAGE), or more memory_limit.'
    error.add_note(f"The server's data is {where}, and there is no room left.{remedy}")


def with_storage(project: Project, workers: int) -> Project:
    """The same project, with ``storage = "disk"`` where this checkout's data was too large for memory before.

    Args:
        workers: of this run.
    """
    if project.settings.storage != "auto":
        return project
    try:
        size = int(_note(project).read_text())
    except (OSError, ValueError):
        return project
    # Against today's workers and room: another day may have fewer of the former, or more of the latter.
    needed = grown(size, workers, project.settings.replicas)
    return project.having(storage="disk") if needed > allowed(project.settings) else project


def remember(project: Project, size: int) -> None:
    """Note the bytes of the templates; where they cannot be noted, the next start finds out again."""
    path = _note(project)
    try:
        replace_file(path, str(size))
    except OSError:
        return


def _note(project: Project) -> Path:
    return project.folder / "template-bytes"
