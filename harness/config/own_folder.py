"""Folders of ours: made for their owner alone, and believed only where nobody else can have put anything into them.

A name in a place that all users share (``/dev/shm``, ``/tmp``) belongs to whoever takes it first. What lies in a folder
under our name decides which programs run and who may log in, so its owner is asked before its content.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def ourselves() -> frozenset[int]:
    """The user as whom we run; empty on systems without numbers for users, where nothing is asked."""
    return frozenset({os.geteuid()}) if hasattr(os, "geteuid") else frozenset()


def distrust(folder: Path, owners: Collection[int] | None = None, *, links: bool = False) -> str:
    """Why what lies in a folder must not be believed; empty where it may, and where there is no such folder.

    Args:
        owners: numbers of the users whose it may be; None: :func:`ourselves`.
        links: one of the owners may have put a symbolic link there (a home whose caches lie on another disk).
    """
    owners = ourselves() if owners is None else owners
    try:
        about = os.lstat(folder)
        if links and stat.S_ISLNK(about.st_mode) and about.st_uid in owners:
            about = os.stat(folder)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return f"it cannot be looked at ({error.strerror})"
    if not owners:
        return ""
    if stat.S_ISLNK(about.st_mode):
        return f"it is a symbolic link of {user_name(about.st_uid)}'s"
    if not stat.S_ISDIR(about.st_mode):
        return "it is no folder"
    if about.st_uid not in owners:
        return f"it belongs to {user_name(about.st_uid)}"
    if about.st_mode & OTHERS_WRITE:
        return f"others may write to it (mode {stat.S_IMODE(about.st_mode):04o})"
    return ""


def make(folder: Path, mode: int = 0o700) -> None:
    """Make a folder with exactly this mode, whatever the umask is, and the missing ones above it; one that is there stays.

    Raises:
        OSError: it cannot be made.
    """
    try:
        new = _new(folder, mode)
    except FileNotFoundError:
        if folder.parent == folder:
            raise
        make(folder.parent, mode)
        # Not `make` again: in some places (/proc) a folder is missing for ever.
        new = _new(folder, mode)
    if new:
        # mkdir(2) takes the umask off: with 0 others could write, with 0777 we could not.
        os.chmod(folder, mode)


def _new(folder: Path, mode: int) -> bool:
    """Make it; False where it is there, or somebody else was quicker."""
    try:
        os.mkdir(folder, mode)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return False
    return True


def size(folder: Path) -> int:
    """Bytes of the files below a folder, of which some may go meanwhile."""
    sizes: list[int] = []
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                sizes.append(os.lstat(os.path.join(place, name)).st_size)
    return sum(sizes)


def user_name(uid: int) -> str:
    """A user, for people."""
    try:
        # Here: Windows has no such module.
        import pwd

        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except (ImportError, KeyError):
        return f"uid {uid}"
