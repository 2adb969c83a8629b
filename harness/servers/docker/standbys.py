"""Standbys of a server in a container: further postmasters in the same container, which end with it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from harness.errors import BackendError
from harness.servers import defaults
from harness.servers.docker import spec
from harness.servers.docker.daemon import Daemon, translated
from harness.servers.port import ServerInfo


class DockerStandbys:
    """Those of one server: started by its entrypoint, as the server's user, from the server's own settings."""

    def __init__(self, daemon: Daemon, info: ServerInfo) -> None:
        self._daemon = daemon
        self._info = info

    def primary(self) -> Mapping[str, str]:
        """Over the server's socket, which nobody outside of the container sees."""
        return {"host": spec.folder(self._info.storage), "port": str(spec.PORT)}

    def copy(self, number: int) -> None:
        """Copy the data directory, but for what is of the running server alone."""
        self.end(number)
        # Of the former copy: an empty one is none.
        self._put(f"standby-{number}.label", "")
        self._run("copy", number)

    def launch(self, number: int, settings: Mapping[str, str], label: str | None) -> None:
        """Start its postmaster, with what ends it together with the server's."""
        own = {"listen_addresses": "*", "port": str(spec.PORT + number)}
        self._put(f"standby-{number}.own", defaults.render({**settings, **own}))
        if label is not None:
            self._put(f"standby-{number}.label", label)
        self._run("launch", number)

    def running(self, number: int) -> bool:
        """By PostgreSQL's own pid file."""
        return self._exec("running", number)[0] == 0

    def listens(self, number: int) -> bool:
        """Its port outside is the daemon's, as long as the container runs."""
        return self.running(number)

    def end(self, number: int) -> None:
        """Kill its postmaster: its data is replaced."""
        self._run("end", number)

    def log(self, number: int) -> str:
        """From its own file: the container's log is the server's."""
        code, said = self._exec("log", number)
        return "" if code else said

    def ports(self) -> tuple[int, ...]:
        """Those that the daemon gave, for as long as the container runs."""
        return self._info.standbys

    def move(self, number: int) -> int:
        """Its port is the daemon's to give."""
        raise BackendError(f"port {spec.PORT + number} in the container {self._info.handle[:12]} is taken")

    def _put(self, name: str, content: str) -> None:
        container = self._container()
        with translated(f"put a file into the container {self._info.handle[:12]}"):
            container.put_archive("/", spec.beside(name, content.encode()))

    def _container(self) -> Any:
        with translated(f"look at the container {self._info.handle[:12]}"):
            return self._daemon.client.containers.get(self._info.handle)

    def _run(self, verb: str, number: int) -> None:
        code, said = self._exec(verb, number)
        if code:
            raise BackendError(
                f"the standby in the container {self._info.handle[:12]} cannot be made: {defaults.tail(said, 3) or code}"
            )

    def _exec(self, verb: str, number: int) -> tuple[int, str]:
        container = self._container()
        words = ["/bin/sh", f"{spec.HOME}/entrypoint.sh", "standby", verb, str(number)]
        with translated(f"run {shlex.join(words)} in the container {self._info.handle[:12]}"):
            code, said = container.exec_run(words, user="0:0")
        # Without its signs of life.
        lines = (said or b"").decode("utf-8", "replace").splitlines()
        return code, "\n".join(line for line in lines if line != ".")
