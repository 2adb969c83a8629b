"""Memory for several servers: reckoned and told before they are started."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from harness.config.settings import Settings
from harness.errors import BackendError
from harness.servers.port import Backend

logger = logging.getLogger("pg_harness.servers")

MB = 1024 * 1024

PROCESSES = 48 * MB
"""What the postmaster, its helpers and a few sessions of one idle server take beyond shared buffers."""

WRITES = 288 * MB
"""What a server's WAL (max_wal_size is soft) and a test's own rows may take beside the baked data."""

_UNITS = {"b": 1, "kb": 1024, "mb": MB, "gb": 1024 * MB, "tb": 1024 * 1024 * MB, "": 8192}


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
        # Baked data, one clone at work and one while a reset replaces it.
        return cls(backend.free_memory(), buffers + PROCESSES, 2 * baked + WRITES, settings.storage)

    def storage(self, count: int) -> str:
        """``"memory"`` where ``count`` servers fit into half of what is free, else ``"disk"``."""
        if self.wanted != "auto":
            return self.wanted
        return "memory" if count * (self.work + self.data) <= self.free // 2 else "disk"

    def tmpfs(self, count: int) -> int:
        """How much one server's data in memory may grow to."""
        return max(self.data, self.free // 2 // max(1, count))

    def check(self, count: int) -> None:
        """Say how much ``count`` servers take, or refuse before the first is started.

        Raises:
            BackendError: they do not fit.
        """
        storage = self.storage(count)
        each = self.work + (self.data if storage == "memory" else 0)
        where = "data in memory" if storage == "memory" else "data on disk"
        told = f"{count} × {each // MB} MB = {count * each // MB} MB ({where}), {self.free // MB} MB are free"
        if count * each <= self.free:
            logger.info("memory: %s", told)
            return
        fitting = self.free // each
        raise BackendError(
            f"{count} servers do not fit into memory: {told}.\n"
            f"What to do:\n"
            f"  - use at most {fitting} workers\n"
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
