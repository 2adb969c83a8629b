"""File locks between processes of one machine: the door to ``filelock``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import PoolTimeout
from harness.project import make_folder, unwritable


@contextmanager
def file_lock(path: Path, *, timeout: float, waiting_for: str) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (the file stays; the kernel frees the lock when we die).

    Args:
        path: the lock file; its folder is made where it is missing.
        timeout: seconds.
        waiting_for: what the holder is doing, for the error, for instance ``"the server of this checkout"``.

    Raises:
        ConfigError: the folder cannot be written to.
        PoolTimeout: somebody else held it all that time.
    """
    from filelock import FileLock, Timeout

    make_folder(path.parent)
    lock = FileLock(str(path), timeout=timeout)
    try:
        lock.acquire()
    except Timeout:
        raise PoolTimeout(
            f"another process is still busy with {waiting_for} after {timeout:.0f} s (lock file: {path}). "
            f"Wait for it or end it: the lock goes with its process."
        ) from None
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()
