"""Standbys of a local server: postmasters on copies of its data, in its own folder, run by its user."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import resources
from pathlib import Path

from harness.config import processes
from harness.config.processes import Process
from harness.errors import BackendError
from harness.servers import defaults
from harness.servers.port import COPY_LIMIT, free_port
from harness.servers.process import cluster
from harness.servers.process.record import ADDRESS, END, Record, listening_in, open_log, postmaster_in
from harness.servers.process.user import ServerUser, make_folder, put

SCRIPT = "standby.sh"

LABEL = "label"

PREFIX = "standby-"
"""What the folder of one is called, in its server's own; its number follows."""


class ProcessStandbys:
    """Those of one server.

    Args:
        folder: the server's own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._user = ServerUser.find()

    def primary(self) -> Mapping[str, str]:
        """Over loopback, with the password file of its dead-man's switch."""
        record = self._record()
        reach = {"host": ADDRESS, "port": str(record.port), "passfile": str(self._folder / "pgpass")}
        if (major := re.match(r"\d+", record.version)) and int(major[0]) >= 16:
            # Whoever gets the port of a primary that has ended would be told the password.
            reach["require_auth"] = "scram-sha-256"
        return reach

    def copy(self, number: int) -> None:
        """Copy the data directory, but for what is of the running server alone."""
        self.end(number)
        folder = make_folder(self._of(number), self._user)
        # Of the former copy.
        (folder / LABEL).unlink(missing_ok=True)
        self._run("copy", self._folder / "data", folder, timeout=COPY_LIMIT, whole=True)

    def launch(self, number: int, settings: Mapping[str, str], label: str | None) -> None:
        """Start its postmaster, with what ends it together with the server's."""
        record, folder = self._record(), self._of(number)
        own = {"listen_addresses": ADDRESS, "port": str(record.standbys[number - 1])}
        try:
            for name, content in (("own", defaults.render({**settings, **own})), (LABEL, label)):
                if content is not None:
                    put(folder / name, content.encode(), mode=0o600, user=self._user)
        except OSError as error:
            raise BackendError(
                f"the standby's files cannot be written in {folder}: {error.strerror}"
            ) from error
        words = [Path(record.binaries), self._folder / "data", folder, self._folder / "settings"]
        # A server that somebody starts inside a run (`up`, pytest) is not the run's, nor is its standby.
        self._run("launch", *words, folder / "own", folder / LABEL, timeout=30)

    def running(self, number: int) -> bool:
        """By PostgreSQL's own pid file."""
        return postmaster_in(self._of(number) / "data") > 0

    def listens(self, number: int) -> bool:
        """By the same."""
        return listening_in(self._of(number) / "data", self._record().standbys[number - 1])

    def end(self, number: int) -> None:
        """Kill its postmaster: its data is replaced, or removed."""
        end(self._of(number))

    def log(self, number: int) -> str:
        """From its own file."""
        try:
            with open_log(self._of(number)) as file:
                return defaults.tail(file.read())
        except OSError:
            return ""

    def ports(self) -> tuple[int, ...]:
        """By the server's record."""
        return self._record().standbys

    def move(self, number: int) -> int:
        """Note another port that is free just now."""
        record, port = self._record(), free_port(ADDRESS)
        ports = [*record.standbys]
        ports[number - 1] = port
        try:
            replace(record, standbys=tuple(ports)).write(self._folder)
        except OSError as error:
            raise BackendError(f"{self._folder} cannot be written: {error.strerror}") from error
        return port

    def _of(self, number: int) -> Path:
        return self._folder / f"{PREFIX}{number}"

    def _record(self) -> Record:
        record = Record.read(self._folder)
        if record is None or not record.whole:
            raise BackendError(f"the server in {self._folder} is gone")
        return record

    def _run(self, verb: str, *words: str | Path, timeout: float, whole: bool = False) -> None:
        script = self._folder / SCRIPT
        try:
            # A copy: the package may lie where the server's user may not enter.
            put(script, resources.files("harness.servers").joinpath("scripts", SCRIPT).read_bytes())
            environ = {**cluster.BASE_ENVIRONMENT, **processes.STAYS}
            done = self._user.run(
                ["/bin/sh", script, verb, *words], timeout=timeout, env=environ, whole=whole
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise BackendError(f"standby.sh {verb} cannot be run in {self._folder}: {error}") from error
        if done.returncode:
            raise BackendError(
                f"the standby in {self._folder} cannot be made: {defaults.tail(done.stderr, 3) or done.returncode}"
            )


def of(folder: Path, beyond: int = 0) -> Sequence[Path]:
    """The folders of a server's standbys that are there, of those with numbers beyond that one."""
    return sorted(
        found for found in folder.glob(f"{PREFIX}[0-9]") if int(found.name.removeprefix(PREFIX)) > beyond
    )


def wait(standby: Path, *, patience: float) -> None:
    """Until the postmaster of a standby's folder has ended, as its script sees to; where it does not in time, it is killed."""
    deadline = time.monotonic() + patience
    while postmaster_in(standby / "data"):
        if time.monotonic() > deadline:
            end(standby)
            return
        time.sleep(0.02)


def end(standby: Path) -> None:
    """Kill the postmaster of a standby's folder, if it runs."""
    data = standby / "data"
    with Process.of(postmaster_in(data), lambda: postmaster_in(data) > 0) as postmaster:
        for number in END:
            postmaster.send(number)
            if postmaster.ended(5):
                break
    with suppress(OSError):
        (data / "postmaster.pid").unlink(missing_ok=True)
