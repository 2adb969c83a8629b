"""Server settings for throwaway data, and how much memory such data may take."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

MB = 1024 * 1024

MEMORY_AT_LEAST = 512 * MB
"""Below this budget (bytes) data goes to disk: a server with a few templates and clones needs it."""

_THROWAWAY: Mapping[str, str] = {
    # A crash of the machine may lose this data: that is what throwaway means.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    # Resets read the WAL; `minimal` leaves out rows of tables that the same transaction made.
    "wal_level": "replica",
    # Stock servers have 0: 12 of SQLAlchemy's own tests fail for the lack of it.
    "max_prepared_transactions": "64",
    "superuser_reserved_connections": "10",
    "shared_buffers": "128MB",
    # A client machine that vanished must not keep its sign of life for two hours.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    "jit": "off",
    "checkpoint_timeout": "15min",
    "autovacuum_max_workers": "2",
    "log_line_prefix": "%m [%p] %q%u@%d %a ",
    "log_checkpoints": "off",
    "log_autovacuum_min_duration": "-1",
    "log_lock_waits": "on",
    "logging_collector": "off",
    "log_destination": "stderr",
    "password_encryption": "scram-sha-256",
}

_STORAGE: Mapping[str, Mapping[str, str]] = {
    # max_wal_size is soft: what a small tmpfs must hold is this, wal_keep_size and a burst.
    "memory": {"max_wal_size": "192MB", "min_wal_size": "32MB", "wal_keep_size": "64MB"},
    "disk": {"max_wal_size": "1GB", "min_wal_size": "80MB", "wal_keep_size": "128MB"},
}


def throwaway(*, max_connections: int, user: Mapping[str, str]) -> dict[str, str]:
    """The settings that every server of ours is started with; the user's win."""
    return {**_THROWAWAY, "max_connections": str(max_connections), **user}


def complete(settings: Mapping[str, str], *, storage: str, server_id: str) -> dict[str, str]:
    """``settings``, with what depends on the storage where nobody said otherwise, and the server's identity."""
    return {**_STORAGE[storage], **settings, "harness.server_id": server_id}


def render(settings: Mapping[str, str]) -> str:
    """One ``name=value`` a line, as the start scripts read them."""
    # A line end would begin another setting: no value of PostgreSQL's has one.
    return "".join(f"{name}={value}\n".replace("\r", " ") for name, value in _one_line(settings).items())


def _one_line(settings: Mapping[str, str]) -> dict[str, str]:
    return {name: " ".join(value.splitlines()) for name, value in settings.items()}


def memory_budget(limit: int | None) -> int:
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
    folder = Path("/dev/shm")
    if sys.platform != "linux" or not os.access(folder, os.W_OK):
        return None
    return folder if os.path.ismount(folder) else None


def tail(text: str, lines: int = 25) -> str:
    """The last lines of a log, for errors."""
    return "\n".join(text.splitlines()[-lines:])
