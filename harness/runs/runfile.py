"""What a run's controller tells its workers: one file, readable by its owner only.

A worker joins with it in milliseconds: no settings are read again, no fingerprint is computed, no backend is
imported. And all workers have the same settings, whatever happens to the project's files meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.config import processes
from harness.config.settings import Settings
from harness.config.state_file import StateFile, Unreadable
from harness.databases.spec import Owner
from harness.databases.template import Template
from harness.errors import ConfigError
from harness.servers.port import ServerInfo

VARIABLE = "PGHARNESS_RUN_FILE"
_FORMAT = 3


@dataclass(frozen=True)
class Joined:
    """A server that workers share on one of several hosts, as they need to know it.

    Attributes:
        server: where it is, with the admin's password.
        owner: the application's role there.
        templates: database name → template there.
    """

    server: ServerInfo = field(repr=False)
    owner: Owner
    templates: Mapping[str, Template]


@dataclass(frozen=True)
class RunFile:
    """One run, as its workers need to know it.

    Attributes:
        run: sixteen hex digits.
        pid: the controller's process.
        settings: of the run, with options and with what the controller has found out.
        server: where the server is, with the admin's password; None where every worker starts its own.
        owner: the application's role; None as well.
        templates: database name → template.
        workers: how many there are.
        versions: of a session on several versions, version → the run file of that one; of this one too.
        missing: version → why it is not to be had.
        places: worker → word of the Docker host that its databases, or its own server, should be on.
        hosts: word → the server there, where workers share one on each host.
    """

    run: str
    pid: int
    settings: Settings = field(repr=False)
    server: ServerInfo | None = field(repr=False)
    owner: Owner | None
    templates: Mapping[str, Template]
    workers: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    hosts: Mapping[str, Joined] = field(default_factory=dict, repr=False)

    @staticmethod
    def note_of(path: Path, worker: str) -> Path:
        """Where a worker notes why it leaves, beside the run file at ``path``; removed as that is, where the controller was killed."""
        return path.with_name(f"{path.stem}.{worker}.json")

    def write(self, folder: Path) -> Path:
        """Write it in one act; return its path.

        Raises:
            ConfigError: the folder cannot be written to.
        """
        path = self.path(folder)
        try:
            _forget_the_dead(folder)
            StateFile(path, _FORMAT).write(self)
        except OSError as error:
            raise ConfigError(
                f"cannot write the run file {path}: {error.strerror}. "
                f"Set PGHARNESS_STATE_DIR to a folder that can be written to.",
                origin=str(path),
            ) from error
        return path

    def path(self, folder: Path) -> Path:
        """Where it is written to."""
        return folder / f"{self.run}.json"

    @classmethod
    def read(cls, path: Path) -> RunFile:
        """Read what a controller wrote.

        Raises:
            ConfigError: it is gone (the controller has ended) or no such file.
        """
        try:
            return StateFile(path, _FORMAT).read_as(cls)
        except FileNotFoundError:
            raise ConfigError(
                f"the run file {path} is gone: the pytest that wrote it has ended", origin=str(path)
            ) from None
        except Unreadable as why:
            raise ConfigError(f"the run file {path} {why}", origin=str(path)) from None


def _forget_the_dead(folder: Path) -> None:
    """Remove what killed controllers left: the files hold passwords."""
    for path in folder.glob("*.json"):
        try:
            alive = processes.alive(int(StateFile(path).read()["pid"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if not alive:
            path.unlink(missing_ok=True)
