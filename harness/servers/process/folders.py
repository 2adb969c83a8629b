"""Where data in memory lies: a folder of ours below one that every user of the machine may write to."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.config import own_folder
from harness.config.project import unwritable
from harness.servers.process.user import ServerUser

logger = logging.getLogger("pg_harness.servers.process")


def owners(user: ServerUser) -> frozenset[int]:
    """The users whose a folder of servers may be: we, and for root the one as whom servers run."""
    return own_folder.ourselves() | ({user.uid} if user.uid is not None else set())


def believed(folder: Path, user: ServerUser) -> bool:
    """Whether a folder of servers is there, and only its owner can have put something into it."""
    return folder.is_dir() and not own_folder.distrust(folder, owners(user))


def in_memory(shared: Path, user: ServerUser) -> Iterator[Path]:
    """Our folders below ``shared``, the one with the usual name first; somebody else's under our name is passed over."""
    usual = _usual(shared)
    others = sorted(shared.glob(f"{usual.name}-*"))
    yield from (folder for folder in (usual, *others) if believed(folder, user))


def make_in_memory(shared: Path, user: ServerUser) -> Path:
    """Our folder below ``shared``, made where it is missing; under another name where the usual one is taken.

    Raises:
        ConfigError: it cannot be made (a full or read-only file system, no right).
    """
    usual = _usual(shared)
    try:
        for folder in in_memory(shared, user):
            return folder
        if why := own_folder.distrust(usual, owners(user)):
            folder = Path(tempfile.mkdtemp(prefix=f"{usual.name}-", dir=shared))
            logger.warning("%s is not used: %s. Servers' data lies in %s instead", usual, why, folder)
        else:
            folder = usual
            # Whoever takes the name before us makes this fail, and nothing of ours comes into his folder.
            os.mkdir(folder, 0o700)
        # The server's user passes through, and its watcher removes what is in it.
        os.chmod(folder, 0o700 if user.uid is None else 0o711)
        user.give(folder)
        return folder
    except OSError as error:
        raise unwritable(usual, error) from error


def _usual(shared: Path) -> Path:
    return shared / f"pg-harness-{os.geteuid() if hasattr(os, 'geteuid') else 'user'}"
