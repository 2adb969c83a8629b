"""Where the last server was seen: a file that saves a search, and is never the truth."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.config.project import Project
from harness.config.state_file import StateFile, Unreadable
from harness.servers.port import ServerInfo

_FORMAT = 1

_LONG = 3600.0
"""Seconds, beyond its TTL, after which a server that nobody has used has ended, whether or not its host answers."""


@dataclass(frozen=True)
class Hint:
    """One file per checkout and purpose, readable by its owner only: it holds the password.

    Attributes:
        path: ``<state folder>/<project>/<purpose>.json``.
    """

    path: Path

    @classmethod
    def of(cls, project: Project, purpose: str) -> Hint:
        """The hint of this checkout for one purpose."""
        return cls(project.folder / f"{purpose}.json")

    @property
    def purpose(self) -> str:
        """Of the server: ``"run"``, ``"up"`` …"""
        return self.path.stem

    @property
    def _file(self) -> StateFile:
        return StateFile(self.path, _FORMAT)

    def read(self) -> tuple[ServerInfo | None, str]:
        """The server, or None and why: an empty reason where there is no file."""
        try:
            info = self._file.read_as(ServerInfo)
        except FileNotFoundError:
            return None, ""
        except Unreadable as why:
            return None, f"{self.path} {why}"
        if not info.server_id or not 0 < info.dsn.port < 65536:
            return None, f"{self.path} names no server"
        return info, ""

    def write(self, info: ServerInfo) -> None:
        """Replace the file. A folder that cannot be written to costs speed, not the run."""
        content = asdict(info)
        for name in ("host", "standbys"):
            # An earlier version refuses a file with what it does not know, and would start a second server.
            if not content[name]:
                del content[name]
        # Nor does it know this; that the server is ours says it.
        del content["dsn"]["scram"]
        self._file.note(content)

    def seen(self) -> None:
        """Note that its server was used now."""
        with suppress(OSError):
            os.utime(self.path)

    def forget(self) -> None:
        """Remove the file, if it is there. One that cannot be removed names a server that does not answer."""
        with suppress(OSError):
            self._file.forget()


def root_of(hint: Path) -> str:
    """The checkout whose server a hint is of; empty where that cannot be read."""
    try:
        return str(StateFile(hint).read()["root"])
    except (FileNotFoundError, Unreadable, KeyError):
        return ""


def noted_hosts(project: Project) -> dict[str, str]:
    """Purpose → word of the Docker host, of the noted servers that are on a host that the settings have named.

    Those that have ended by themselves long ago are left out: their host may be gone for good, and would be waited for each time.
    """
    found = {}
    for path in sorted(project.folder.glob("*.json")):
        try:
            noted = StateFile(path).read()
        except (FileNotFoundError, Unreadable):
            continue
        word = noted.get("host")
        if isinstance(word, str) and word and not (path.stem != "up" and _over(path, noted.get("ttl"))):
            found[path.stem] = word
    return found


def is_over(hint: Hint, info: ServerInfo) -> bool:
    """Whether a test run's server on a Docker host has ended by itself, however silent its host is: its TTL has long passed."""
    return bool(info.host) and hint.purpose != "up" and _over(hint.path, info.ttl)


def _over(path: Path, ttl: object) -> bool:
    if not isinstance(ttl, int | float):
        return False
    try:
        return time.time() - path.stat().st_mtime > ttl + _LONG
    except OSError:
        return False
