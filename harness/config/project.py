"""Which checkout is this, what its user decided, where its state and caches lie; and file locks between processes.

The door to ``filelock``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from harness.config import own_folder
from harness.config.settings import Settings
from harness.errors import ConfigError, PoolTimeout

logger = logging.getLogger("pg_harness.config")


@dataclass(frozen=True)
class Project:
    """One checkout of the user's: made once at the edge by :meth:`of`, and passed on.

    Attributes:
        settings: what the user decided for it, its root among them.
        environ: the environment as it was then, for programs that are started on the user's behalf.
        id: ten hex digits, see :func:`project_id`.
        state: where hints, locks and data directories of servers lie, of all the user's checkouts.
        cache: where what can be made again lies, of all the user's checkouts.
    """

    settings: Settings
    environ: Mapping[str, str] = field(repr=False)
    id: str
    state: Path
    cache: Path

    @classmethod
    def of(cls, settings: Settings, environ: Mapping[str, str]) -> Self:
        """The project that these settings are of.

        Args:
            environ: usually ``os.environ``; what is set there later is not seen.

        Raises:
            ConfigError: the folder for state or for caches is somebody else's, or others may write to it.
        """
        state, cache = state_dir(environ), cache_dir(environ)
        for folder, variable in ((state, "PGHARNESS_STATE_DIR"), (cache, "PGHARNESS_CACHE_DIR")):
            if why := own_folder.distrust(folder, links=True):
                raise not_ours(folder, variable, why)
        return cls(settings, dict(environ), project_id(settings.root), state, cache)

    @property
    def folder(self) -> Path:
        """Where this checkout's own part of the state lies."""
        return self.state / self.id

    def having(self, **changes: Any) -> Self:
        """The same project with some settings changed, by name."""
        return replace(self, settings=replace(self.settings, **changes))


def machine_id() -> str:
    """What tells this machine from another one that uses the same Docker daemon.

    ``/etc/machine-id`` (systemd's, machine-id(5)); where there is none, the first network card's address.
    """
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        # A container image built from another machine's disk may share it: the host's name is added.
        if text:
            return f"{text}:{os.uname().nodename}" if hasattr(os, "uname") else text
    card = f"{uuid.getnode():012x}:{sys.platform}"
    # Containers have none, and of many their address makes the card's: those of two machines may have the same. A Mac's is
    # burnt in, and its name changes with the network that it is in.
    return f"{card}:{os.uname().nodename}" if sys.platform == "linux" else card


def project_id(root: Path) -> str:
    """Ten hex digits for the checkout at ``root`` on this machine."""
    return checkout_id(machine_id(), os.path.realpath(root))


def checkout_id(machine: str, root: str) -> str:
    """Ten hex digits that name a checkout: two machines on one Docker daemon must not collide.

    Args:
        machine: this machine's id, see :func:`machine_id`.
        root: the real path of the project's root, without symbolic links.
    """
    text = f"project:{machine}:{root}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:10]


def state_dir(environ: Mapping[str, str]) -> Path:
    """Where hints, locks and data directories of servers lie: ``PGHARNESS_STATE_DIR``, else the XDG state folder."""
    if configured := environ.get("PGHARNESS_STATE_DIR"):
        return Path(configured).absolute()
    base = environ.get("XDG_STATE_HOME") or os.path.join(_home(environ), ".local", "state")
    return Path(base) / "pg-harness"


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Where what can be made again lies: ``PGHARNESS_CACHE_DIR``, else the XDG cache folder."""
    if configured := environ.get("PGHARNESS_CACHE_DIR"):
        return Path(configured).absolute()
    base = environ.get("XDG_CACHE_HOME") or os.path.join(_home(environ), ".cache")
    return Path(base) / "pg-harness"


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Make a folder of ours with its parents; one that is there stays as it is.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        own_folder.make(folder, mode)
    except OSError as error:
        raise unwritable(folder, error) from error


def not_ours(folder: Path, variable: str, why: str) -> ConfigError:
    """What to raise where a folder of ours may hold what somebody else has put there."""
    me = " or ".join(map(own_folder.user_name, own_folder.ourselves()))
    return ConfigError(
        f"{folder} is not used: {why}, and we run as {me}. What lies there decides which programs are started. "
        f"If it is yours, `chown` it to yourself and `chmod go-w` it once you have looked at what is there; "
        f"else set {variable} to a folder of your own",
        key=variable,
        origin="the environment",
        value=str(folder),
    )


def unwritable(path: Path, error: OSError) -> ConfigError:
    """What to raise where something of ours cannot be written: a home that is read-only, a full disk."""
    return ConfigError(
        f"{path} cannot be written: {error.strerror or error}. State lies in PGHARNESS_STATE_DIR (else in "
        f"XDG_STATE_HOME, else in ~/.local/state), what can be made again in PGHARNESS_CACHE_DIR (else in "
        f"XDG_CACHE_HOME, else in ~/.cache): set both to folders that you may write to",
        key="PGHARNESS_STATE_DIR",
        origin="the environment",
        value=str(path),
    )


def _home(environ: Mapping[str, str]) -> str:
    return environ.get("HOME") or os.path.expanduser("~")


_SILENT = 2.0
"""Seconds of waiting that nobody is told of."""


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
    lock = FileLock(str(path))
    try:
        try:
            lock.acquire(timeout=min(_SILENT, timeout))
        except Timeout:
            logger.info("waiting for another process that is busy with %s", waiting_for)
            lock.acquire(timeout=max(0, timeout - _SILENT))
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
