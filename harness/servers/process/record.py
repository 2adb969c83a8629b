"""What is known of one local server: a file in its folder, and the operating system's own word."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO

from harness.config import own_folder
from harness.config.processes import Process, running
from harness.config.state_file import StateFile, Unreadable
from harness.servers import defaults

NAME = "server.json"

ADDRESS = "127.0.0.1"
"""Where local servers listen: never beyond this machine."""

END = (signal.SIGQUIT, signal.SIGKILL)
"""How a postmaster is ended whose data is about to be removed: at once, and without a checkpoint."""

LAUNCHED = "launched"
"""The file in which ``launch.sh`` notes the two numbers before it tells us: we may not live to write them down."""

_FOLDER = re.compile(r"([0-9a-f]{10})-(.+)-([0-9a-f]{8})")
"""What a server's folder is called: checkout, purpose, the beginning of its id."""


def folder_name(project: str, purpose: str, server_id: str) -> str:
    """What the folder of a server is called."""
    return f"{project}-{purpose}-{server_id[:8]}"


def launched(folder: Path) -> tuple[int, int] | None:
    """The postmaster's and its watcher's number as ``launch.sh`` noted them; None where it did not.

    Whoever uses one asks first whether the process of that number is the one: the server's own user can write them.
    """
    try:
        descriptor = os.open(folder / LAUNCHED, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            pid, watcher = (int(number) for number in file.read(100).split())
    except (OSError, ValueError):
        return None
    return pid, watcher


@dataclass(frozen=True, repr=False)
class Record:
    """One server's folder.

    Attributes:
        pid: of the postmaster; 0: not started yet.
        watcher: of the dead-man's switch; 0: none.
        port: on 127.0.0.1.
        binaries: folder of the programs it was started with.
        version: of those programs.
        made_with, standbys: as in :class:`harness.servers.port.ServerInfo`.
    """

    project: str
    purpose: str
    server_id: str
    root: str
    password: str
    storage: str
    binaries: str
    version: str
    ttl: float | None = None
    pid: int = 0
    watcher: int = 0
    port: int = 0
    made_with: Mapping[str, str] = field(default_factory=dict, hash=False)
    standbys: tuple[int, ...] = ()

    def write(self, folder: Path) -> None:
        """Replace the file.

        Raises:
            OSError: it cannot be written, or the folder is gone.
        """
        content = asdict(self)
        if not self.standbys:
            # As earlier versions write it.
            del content["standbys"]
        # No folder is made: a server that was ended meanwhile would seem to be there again.
        StateFile(folder / NAME, folder_mode=None).write(content)

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """None for a folder that is none of ours, or whose file somebody else has put there."""
        try:
            # It says which programs are started: one that the server's own user has put there is not ours either.
            about = os.lstat(folder / NAME)
            if not stat.S_ISREG(about.st_mode) or about.st_uid not in (
                own_folder.ourselves() or {about.st_uid}
            ):
                return None
            # Of any version: its server must be found, and ended, by all of them.
            record = StateFile(folder / NAME).read_as(cls, ignore_unknown=True)
        except FileNotFoundError:
            return cls._cut_off(folder)
        except (OSError, Unreadable):
            return None
        if record.pid:
            return record
        pid, watcher = launched(folder) or (0, 0)
        return replace(record, pid=pid, watcher=watcher)

    @classmethod
    def _cut_off(cls, folder: Path) -> Record | None:
        """What the name of a folder says that has no file yet, or no more: whoever made or removed it was killed."""
        if (match := _FOLDER.fullmatch(folder.name)) is None:
            return None
        pid, watcher = launched(folder) or (0, 0)
        storage = "memory" if folder.parent.name.startswith("pg-harness-") else "disk"
        project, purpose, server_id = match.groups()
        return cls(project, purpose, server_id, "", "", storage, "", "", pid=pid, watcher=watcher)

    @property
    def whole(self) -> bool:
        """Whether there was a file; else nothing but the folder's name is known."""
        return bool(self.version)

    def running(self, folder: Path) -> bool:
        """Whether its postmaster runs: by PostgreSQL's own pid file, and not another process of that number."""
        return self.pid > 0 and postmaster_in(folder / "data") == self.pid

    def watched(self, folder: Path) -> bool:
        """Whether its dead-man's switch runs."""
        return running(self.watcher) and _runs(self.watcher, folder / "watch.sh")

    def kill_watcher(self, folder: Path) -> None:
        """End the dead-man's switch, which would remove the folder once the server has ended."""
        with Process.of(self.watcher, lambda: self.watched(folder)) as watcher:
            watcher.send(signal.SIGKILL)

    def end(self, folder: Path, *, patience: float) -> None:
        """End the postmaster at once and without a checkpoint: its data is about to be removed.

        Args:
            patience: seconds for each of the signals.
        """
        with Process.of(self.pid, lambda: self.running(folder)) as postmaster:
            for number in END:
                postmaster.send(number)
                if postmaster.ended(patience):
                    return

    def interrupt(self, folder: Path, *, patience: float) -> bool:
        """End the postmaster with a checkpoint; False where it takes longer than ``patience`` seconds."""
        with Process.of(self.pid, lambda: self.running(folder)) as postmaster:
            postmaster.send(signal.SIGINT)
            return postmaster.ended(patience)


def postmaster_in(data: Path) -> int:
    """The number of the postmaster that runs on a data directory, by its own pid file; 0: none does."""
    try:
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
    except (OSError, IndexError, ValueError):
        return 0
    if pid <= 0 or not running(pid):
        return 0
    try:
        process = os.stat(f"/proc/{pid}")
        # The server's own user writes those numbers, and must not have somebody else's process ended.
        its = process.st_uid == data.stat().st_uid and os.path.samefile(f"/proc/{pid}/cwd", data)
    except OSError:
        its = sys.platform != "linux"
    return pid if its else 0


def listening_in(data: Path, port: int) -> bool:
    """Whether the postmaster of a data directory has that port: its file names the address once it is bound."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        bound = int(lines[3]) == port and bool(lines[5].strip())
    except (OSError, IndexError, ValueError):
        return False
    return bound and postmaster_in(data) > 0


def log_tail(folder: Path) -> str:
    """The last lines of the server's log; empty where there is none."""
    try:
        with open_log(folder) as file:
            return defaults.tail(file.read())
    except OSError:
        return ""


def open_log(folder: Path) -> IO[str]:
    """The server's log, to be read; its user may have put a link there to what only we may read.

    Raises:
        OSError: there is none, or it is a link.
    """
    return open(
        folder / "log", errors="replace", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW)
    )


def _runs(pid: int, script: Path) -> bool:
    """Whether a process runs that script."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        if sys.platform == "linux":
            return False
        # macOS has no /proc.
        words = _told_by_ps(pid)
    return os.fsencode(script) in words


def _told_by_ps(pid: int) -> bytes:
    try:
        return subprocess.run(
            ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, check=False, timeout=10
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return b""
