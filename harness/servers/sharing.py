"""Files that share their blocks: whether a file system can, and whether a server's clones are made so."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from harness.errors import ServerLost

if TYPE_CHECKING:
    from harness.postgres.session import Session
    from harness.servers.port import ServerInfo

SINCE = 18
"""The major version of PostgreSQL from which on CREATE DATABASE can share blocks (``file_copy_method``)."""

_FICLONE = 0x40049409
"""``ioctl_ficlone(2)``; Python names it since 3.14 only."""


def can(folder: Path) -> bool:
    """Whether files of this folder can share blocks, found out with two that have no name: nothing is left, whatever happens.

    XFS depends on how it was made, overlays on what is below: a file system's name tells nothing.
    """
    if sys.platform != "linux":
        return False
    import fcntl

    # Without O_TMPFILE (NFS, FUSE) there is no answer: then it is a copy, as everywhere.
    with suppress(OSError), _unnamed(folder) as original, _unnamed(folder) as copy:
        original.write(b"x" * 8192)
        original.flush()
        fcntl.ioctl(copy.fileno(), _FICLONE, original.fileno())
        return True
    return False


def _unnamed(folder: Path) -> BinaryIO:
    return os.fdopen(os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600), "wb")


def clones(version: str) -> bool:
    """Whether PostgreSQL of this version, as ``postgres --version`` says it, knows ``file_copy_method``."""
    found = re.match(r"\d+", version)
    return found is not None and int(found[0]) >= SINCE


def told(session: Session, info: ServerInfo) -> str:
    """What a header adds where clones take no copy; empty where they do."""
    # What lies below a container's files, only its daemon knows.
    if info.backend != "process" or info.storage != "disk" or session.server_version // 10000 < SINCE:
        return ""
    try:
        if session.value("select current_setting('file_copy_method', true)") != "clone":
            return ""
    except ServerLost:
        # A session that was lost meanwhile is no reason not to run: whoever needs one logs in again.
        return ""
    # Somebody may have set it himself, where the file system cannot.
    return ", clones share blocks" if can(Path(info.handle)) else ""
