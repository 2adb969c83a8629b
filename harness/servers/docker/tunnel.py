"""Tunnels to servers whose daemon is reached by ssh: a port of this machine's loopback that leads to one of that machine's.

::

    ssh -L 127.0.0.1:PORT:127.0.0.1:PUBLISHED HOST docker wait CONTAINER

It is nobody's child and ends with its container, so that it serves all processes of a run and those that come later. One that
has died is opened again, on the same port, by whoever looks for the server next.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config import processes
from harness.config.project import file_lock
from harness.config.state_file import StateFile, Unreadable
from harness.errors import BackendUnavailable, ServerStartError
from harness.servers.docker import over_ssh
from harness.servers.port import ServerInfo, free_port

if TYPE_CHECKING:
    from harness.servers.docker.daemon import Daemon

logger = logging.getLogger("pg_harness.servers.docker")

FORGOTTEN = 24 * 3600.0
"""Seconds after which what is noted of a server that no hint names is nobody's."""

PATIENCE = 20.0
"""Seconds that a tunnel may take until it is open."""

_PORTS = 5
"""How many ports are tried, where others take them just then."""

_GRACE = 3.0
"""Seconds in which an ssh whose port answers, and that does not listen there itself, ends if the port is another's: else its
``ssh`` is a script that has called the true one."""


class _Taken(Exception):
    """Another program has taken the port meanwhile."""


@dataclass(frozen=True)
class Tunnel:
    """What is noted of a tunnel.

    Attributes:
        port: on this machine's loopback.
        there: the port on that machine's.
        url: ``ssh://…`` of the daemon.
        container: whose server it leads to.
        pid: of its ssh.
    """

    port: int
    there: int
    url: str
    container: str
    pid: int

    @property
    def forward(self) -> str:
        """What ssh is told."""
        return f"127.0.0.1:{self.port}:127.0.0.1:{self.there}"

    def is_open(self) -> bool:
        """Whether its ssh runs and somebody takes calls at its port."""
        return processes.running(self.pid) and self.is_it() and _answers(self.port)

    def is_it(self) -> bool:
        """Whether the process of its number is its ssh, and not another one that has the number now."""
        try:
            words = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            # Not on every system; then ps knows.
            said = subprocess.run(
                ["ps", "-o", "args=", "-p", str(self.pid)], capture_output=True, check=False, timeout=10
            )
            words = said.stdout.split()
        return self.forward.encode() in words

    def end(self) -> None:
        """End its ssh."""
        with processes.Process.of(self.pid, self.is_it) as process:
            process.send(signal.SIGTERM)


def _note(folder: Path, container: str) -> StateFile:
    return StateFile(folder / f"{container[:24]}.tunnel", 1)


def noted(folder: Path, container: str) -> Tunnel | None:
    """What is noted of the tunnel to a container."""
    try:
        return _note(folder, container).read_as(Tunnel)
    except (FileNotFoundError, Unreadable):
        return None


def to(daemon: Daemon, container: str, there: int, *, wanted: int = 0, named: bool = False) -> int:
    """The port of this machine that leads to a published port of that one; the tunnel is opened where none is.

    Args:
        container: the whole id.
        wanted: the port of a new one, where that is free; 0: any.
        named: nothing but that port will do.

    Raises:
        BackendUnavailable: ssh does not open it.
        ServerStartError: the port that is named is in use.
    """
    if (before := noted(daemon.folder, container)) is not None and before.there == there and before.is_open():
        return before.port
    lock = _note(daemon.folder, container).path.with_suffix(".lock")
    with file_lock(lock, timeout=2 * PATIENCE, waiting_for=f"opening the tunnel to {container[:12]}"):
        before = noted(daemon.folder, container)
        if before is not None:
            if before.there == there and before.is_open():
                return before.port
            before.end()
            wanted = before.port
            logger.info("docker: the tunnel to %s had ended: opening it again", container[:12])
        if wanted and _answers(wanted):
            if named and before is None:
                raise _in_use(wanted)
            wanted = 0
        tunnel = Tunnel(wanted, there, daemon.ssh, container, 0)
        tunnel = _open_one(tunnel, daemon.environ, named=named and before is None)
        _note(daemon.folder, container).note(tunnel)
        return tunnel.port


def _in_use(port: int) -> ServerStartError:
    return ServerStartError(f"port {port} (setting port) is in use on 127.0.0.1: name another, or none")


def _open_one(tunnel: Tunnel, environ: Mapping[str, str], *, named: bool) -> Tunnel:
    """Open it on its port, or on another one where that is taken just then; port 0: on any."""
    port = tunnel.port
    for _ in range(_PORTS):
        tunnel = replace(tunnel, port=port or free_port("127.0.0.1"))
        try:
            return _open(tunnel, environ)
        except _Taken:
            if port and named:
                raise _in_use(port) from None
            logger.info("docker: port %d was taken by another program: another one is tried", tunnel.port)
            port = 0
    raise BackendUnavailable(
        f"{_PORTS} ports were taken by other programs, one after the other: call it again"
    )


def _open(tunnel: Tunnel, environ: Mapping[str, str]) -> Tunnel:
    options = (
        "-oExitOnForwardFailure=yes",
        # A connection that others share would keep the port open when this one ends.
        "-oControlMaster=no",
        "-oControlPath=none",
        "-L",
        tunnel.forward,
    )
    words = over_ssh.command(tunnel.url, options, f"docker wait {tunnel.container}", timeout=PATIENCE / 2)
    with tempfile.TemporaryFile() as said, open("/dev/null", "r+b") as nothing:
        tunnel = replace(tunnel, pid=over_ssh.start(words, environ, both=nothing, stderr=said))
        deadline = time.monotonic() + PATIENCE
        while not _answers(tunnel.port):
            if not processes.running(tunnel.pid):
                said.seek(0)
                told = said.read().decode("utf-8", "replace")
                if _IN_USE.search(told):
                    raise _Taken
                raise over_ssh.explain(tunnel.url, told)
            if time.monotonic() > deadline:
                tunnel.end()
                raise BackendUnavailable(
                    f"no tunnel to {tunnel.container[:12]} was opened by {tunnel.url} within {PATIENCE:.0f} s"
                )
            time.sleep(0.02)
        # Somebody else may have taken the port meanwhile: then ssh ends by itself once it has logged in, and its port answers
        # all the same.
        until = time.monotonic() + _GRACE
        while not _listens(tunnel) and time.monotonic() < until:
            if not processes.running(tunnel.pid):
                raise _Taken
            time.sleep(0.02)
    return tunnel


_IN_USE = re.compile("address already in use|cannot listen to port", re.IGNORECASE)


def _listens(tunnel: Tunnel) -> bool:
    """Whether it is the tunnel's ssh that takes calls at its port; where that cannot be told, whether it runs."""
    # Local address, remote address, state (0A: it listens) and, as the tenth word, the socket's number.
    try:
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        files = [os.readlink(path) for path in Path(f"/proc/{tunnel.pid}/fd").iterdir()]
    except OSError:
        return processes.running(tunnel.pid)
    words = [line.split() for line in lines]
    here = f"0100007F:{tunnel.port:04X}"
    return any(each[1] == here and each[3] == "0A" and f"socket:[{each[9]}]" in files for each in words)


def _answers(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as caller:
        caller.settimeout(2)
        return caller.connect_ex(("127.0.0.1", port)) == 0


# --- their end ---------------------------------------------------------------------------------------------


def forget(folder: Path, container: str, server_id: str) -> None:
    """Remove what is noted of a server that has ended: its certificate and its tunnel, which is ended too."""
    if (tunnel := noted(folder, container)) is not None:
        tunnel.end()
    note = _note(folder, container).path
    for path in (note, note.with_suffix(".lock"), folder / f"{server_id}.crt"):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def lost(folder: Path, info: ServerInfo) -> str:
    """What an error of a server is told of its tunnel, where that has ended; else empty."""
    tunnel = noted(folder, info.handle)
    if tunnel is None or tunnel.is_open():
        return ""
    return (
        f"the ssh tunnel to it (127.0.0.1:{tunnel.port} to {tunnel.url}) has ended: the next command opens it again, "
        "on the same port"
    )


def sweep(state: Path) -> list[str]:
    """Remove what is noted of servers that ended by themselves, long ago; return the paths.

    Args:
        state: the folder of all the user's checkouts.
    """
    named = ""
    for hint in state.glob("*/*.json"):
        with suppress(OSError, ValueError):
            info = json.loads(hint.read_text("utf-8"))
            named += (
                f"{info.get('server_id', '')} {info.get('handle', '')}\n" if isinstance(info, dict) else ""
            )
    gone = []
    for path in sorted((state / "remote").glob("*")):
        with suppress(OSError):
            if path.stem in named or time.time() - path.stat().st_mtime < FORGOTTEN:
                continue
            tunnel = noted(path.parent, path.stem) if path.suffix == ".tunnel" else None
            if tunnel is not None and processes.running(tunnel.pid) and tunnel.is_it():
                # It ends with its container, which runs.
                os.utime(path)
                continue
            path.unlink(missing_ok=True)
            gone.append(str(path))
    return gone
