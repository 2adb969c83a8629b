"""Snapshots of local servers: data directories in the cache, renamed into place when they are whole.

What a server's switch keeps at its end (:meth:`ProcessSnapshots.keep_later`) lies one folder deeper, which is the server's
user's: the cache itself is root's where root starts the servers.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config import own_folder
from harness.config.state_file import StateFile
from harness.errors import BackendError, ServerStartError
from harness.postgres import roles
from harness.postgres.session import Session
from harness.servers.port import STOP_PATIENCE, Origin, ServerInfo, Snapshot, SnapshotStore, private
from harness.servers.process import cluster
from harness.servers.process.record import Record, log_tail
from harness.servers.process.user import ServerUser, is_old, make_folder, put, remove_cut_off, renamed_last

if TYPE_CHECKING:
    from harness.servers.process.backend import ProcessBackend

_PREFIX = "base-"
_FACTS = "base.json"

ENDED = "ended"
"""The folder for what servers have left, below the cache."""

KEEP = "keep"
"""A folder in a server's own: what ``watch.sh`` puts beside the data that it keeps, and in ``target`` where to."""

_HALF = ".half"
"""The end of a name that ``watch.sh`` is still copying to."""


class ProcessSnapshots(SnapshotStore):
    """Keeps data directories.

    Args:
        backend: whose servers are kept, and started from what was kept.
    """

    from_disk = False

    def __init__(self, backend: ProcessBackend) -> None:
        self._backend = backend
        self._user = ServerUser.find()
        self.folder = self._user.reachable(backend.cache, "caches")

    def origin(self) -> Origin:
        """Version and place of the binaries, the C library, and how directories are initialised here."""
        found = self._backend.binaries()
        parts = [
            "process",
            cluster.LAYOUT,
            found.version,
            os.path.realpath(found.folder),
            platform.machine(),
            # Sort order is the C library's: an index that another version wrote may be wrong here.
            _c_library(),
            str(self._user.uid),
        ]
        return Origin(found.major, "\n".join(parts))

    def find(self, key: str) -> Snapshot | None:
        """The directory of that key, if it was finished."""
        return next((found for place in self._places if (found := _read(place / f"{_PREFIX}{key}"))), None)

    @property
    def _places(self) -> tuple[Path, Path]:
        return self.folder, self.folder / ENDED

    def keep(self, info: ServerInfo, key: str, facts: Mapping[str, str]) -> Snapshot:
        """End the postmaster with a checkpoint, copy its directory, rename the copy last."""
        folder = Path(info.handle)
        record = Record.read(folder)
        if record is None:
            raise ServerStartError(f"the server that was baked is gone: {folder}")
        try:
            with Session.connect(info.dsn) as session:
                roles.forget_verifiers(session)
        except BackendError as error:
            raise ServerStartError(
                f"the server that was baked has ended before its time: {error.message}",
                log_tail=log_tail(folder),
            ) from error
        self._end_cleanly(folder, record)
        target = make_folder(self.folder, ServerUser(), 0o755) / f"{_PREFIX}{key}"
        try:
            with renamed_last(target) as aside:
                self._user.give(aside)
                cluster.copy(folder / "data", aside / "data", self._user)
                self._sync(record, aside / "data")
                self._user.write_secret(aside / "password", record.password)
                size = own_folder.size(aside / "data")
                content = {**facts, "key": key, "size": size, "created": time.time(), "uid": os.getuid()}
                StateFile(aside / _FACTS).write(content)
                if target.exists():
                    _remove(target)
        except OSError as error:
            raise ServerStartError(
                f"the migrated data directory cannot be kept in {self.folder}: {error.strerror}"
            ) from error
        finally:
            self._backend.stop(info)
        found = _read(target)
        if found is None:
            raise ServerStartError(f"the baked directory {target} was removed while it was made")
        return found

    def keep_later(self, info: ServerInfo, key: str, facts: Mapping[str, str]) -> bool:
        """Put what belongs beside the data into the server's folder, for ``watch.sh``, which looks for it last."""
        folder = Path(info.handle)
        record = Record.read(folder)
        if record is None or not record.watched(folder):
            return False
        target = make_folder(self.folder / ENDED, self._user, 0o711) / f"{_PREFIX}{key}"
        try:
            aside = make_folder(folder / KEEP, self._user)
            self._user.write_secret(aside / "password", record.password)
            content = {
                **facts,
                "key": key,
                "size": own_folder.size(folder / "data"),
                "created": time.time(),
                "uid": os.getuid(),
            }
            StateFile(aside / _FACTS).write(content)
            self._user.give(aside / _FACTS)
            # Last: without it there is nothing to be done.
            put(aside / "target", f"{target}\n".encode())
        except OSError as error:
            raise BackendError(f"{folder / KEEP} cannot be written: {error.strerror}") from error
        return True

    def _end_cleanly(self, folder: Path, record: Record) -> None:
        # The watcher first: once the server has ended, it removes the folder.
        record.kill_watcher(folder)
        why = ""
        if not record.running(folder):
            why = "has ended before its time"
        elif not record.interrupt(folder, patience=STOP_PATIENCE):
            why = f"did not stop within {STOP_PATIENCE:.0f} s"
        elif (folder / "data" / "postmaster.pid").exists():
            why = "crashed on its way out"
        if why:
            raise ServerStartError(f"the server that was baked {why}", log_tail=log_tail(folder))
        (folder / "data" / "postmaster.opts").unlink(missing_ok=True)

    def _sync(self, record: Record, data: Path) -> None:
        # A power cut soon after must not leave a finished name on unwritten files.
        command: list[str | Path] = [Path(record.binaries) / "initdb", "--sync-only", "-D", data]
        try:
            self._user.run(command, timeout=300, env=cluster.BASE_ENVIRONMENT)
        except subprocess.SubprocessError as error:
            raise ServerStartError(f"the baked directory {data} cannot be synced: {error}") from error

    def touch(self, snapshot: Snapshot) -> None:
        """Set the time of its facts."""
        try:
            os.utime(Path(snapshot.ref) / _FACTS)
        except OSError:
            return

    def list(self) -> Sequence[Snapshot]:
        """All finished directories that this user's runs have made."""
        paths = (path for place in self._places for path in sorted(place.glob(f"{_PREFIX}*")))
        found = [_read(path) for path in paths]
        return [snapshot for snapshot in found if snapshot is not None]

    def remove(self, snapshot: Snapshot) -> bool:
        """Rename it away, then remove it: a copy that is being made now fails, and is made again."""
        return _remove(Path(snapshot.ref))

    def leftovers(self) -> Sequence[str]:
        """Half-written and half-removed folders of the cache, and servers that were cut off before they ran."""
        gone = [path for place in self._places for path in remove_cut_off(place)]
        for path in (self.folder / ENDED).glob(f"*{_HALF}"):
            # Its switch was killed: a copy takes seconds.
            if is_old(path):
                shutil.rmtree(path, ignore_errors=True)
                gone.append(str(path))
        for info in self._backend.list(None):
            # Those that run end by their switch; the others may be starting just now.
            own = private(info.purpose)
            if own and is_old(Path(info.handle)) and self._backend.find(info.project, info.purpose) is None:
                self._backend.stop(info)
                gone.append(info.handle)
        return gone


def _read(path: Path) -> Snapshot | None:
    try:
        content = StateFile(path / _FACTS).read()
        used = (path / _FACTS).stat().st_mtime
        if path.name != f"{_PREFIX}{content['key']}" or not (path / "data" / "PG_VERSION").is_file():
            return None
        facts = {name: value for name, value in content.items() if isinstance(value, str)}
        created = float(content["created"])
        return Snapshot(str(path), content["key"], "process", int(content["size"]), created, used, facts)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove(path: Path) -> bool:
    away = path.with_name(f"{path.name}.{hashlib.sha256(os.urandom(8)).hexdigest()[:8]}")
    try:
        path.rename(away)
    except OSError:
        return not path.exists()
    shutil.rmtree(away, ignore_errors=True)
    return True


def _c_library() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or platform.platform()
    except (ValueError, AttributeError, OSError):
        return platform.platform()
