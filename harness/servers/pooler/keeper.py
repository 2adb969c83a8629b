"""The process beside a pgbouncer: its parent, which ends it together with the server behind it.

``python -m harness.servers.pooler.keeper FOLDER``; the rest comes as JSON over standard input, because it holds a password. It says
``ready`` once pgbouncer takes calls, or why it does not, and nothing more. It holds a session on the server, and no lock: where
that session ends and no other can be had, the server has ended. Killed with SIGKILL it takes pgbouncer along (Linux).
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.state_file import decode
from harness.dsn import Dsn
from harness.errors import HarnessError
from harness.postgres.admin import Link

MODULE = "harness.servers.pooler.keeper"

NAME = "pg-harness pooler"
"""What the session says of itself: a session of ours, and no sign of life."""

START = 10.0
"""Seconds that pgbouncer may take until it takes calls."""

LOOK = 1.0
"""Seconds between two looks at whether anybody uses it, at most."""

KEEPALIVES = {
    "keepalives": "1",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
}
"""Parameters of the session, but for those that the address has: a machine that fell silent says no word of its end, and the
system would look after two hours only."""

PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Orders:
    """What the keeper is told.

    Attributes:
        command: pgbouncer's.
        uid, gid: as whom it runs; None: as ourselves.
        folder: of pgbouncer's files; removed when the server has ended.
        notes: what is noted of the pooler for others; likewise.
        port: where it will listen.
        server: the admin's address of the server behind.
        server_id: what that calls itself; empty where it is not ours.
        ttl: seconds after which it ends although the server goes on, where nobody holds ``used``; None: never.
        forgotten: whether ``notes`` go with it; else they keep the port.
        used: a file that everybody who uses the pooler holds a shared lock on (flock(2)).
    """

    command: tuple[str, ...]
    uid: int | None
    gid: int | None
    folder: Path
    notes: Path
    port: int
    server: Dsn
    server_id: str
    ttl: float | None
    used: Path
    forgotten: bool = True


def _dies_with_parent() -> None:
    # Before exec, and after the change of users, which would forget it.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _start(orders: Orders) -> subprocess.Popen[bytes]:
    identity: Mapping[str, Any] = {}
    if orders.uid is not None:
        identity = {"user": orders.uid, "group": orders.gid, "extra_groups": []}
    return subprocess.Popen(
        orders.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        preexec_fn=_dies_with_parent,  # noqa: PLW1509 -- one thread
        **identity,
    )


def _takes_calls(child: subprocess.Popen[bytes], port: int) -> str:
    """Why it does not; empty once it does."""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if (code := child.poll()) is not None:
            return f"it ended at once with code {code}"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return "" if child.poll() is None else "another program listens on its port"
        time.sleep(0.005)
    return f"nobody listens on port {port} after {START:g} s"


class Keeper:
    """Looks after one pgbouncer until it, or the server, has ended."""

    def __init__(self, orders: Orders, child: subprocess.Popen[bytes]) -> None:
        self._orders = orders
        self._child = child
        server = orders.server
        self._link = Link(server.with_options({**KEEPALIVES, **server.options}), orders.server_id)
        self._idle_since = time.monotonic()

    def keep(self) -> None:
        """Until it is over."""
        server_ended = True
        try:
            while self._there():
                descriptor = self._link.session.connection.fileno()
                if self._ended_alone(descriptor):
                    # Its files stay: whoever starts the next one goes on with them.
                    server_ended = False
                    return
                if self._unused():
                    return
        finally:
            with suppress(OSError):
                self._child.kill()
            self._child.wait()
            self._link.close()
            if server_ended:
                shutil.rmtree(self._orders.folder, ignore_errors=True)
                if self._orders.forgotten:
                    self._orders.notes.unlink(missing_ok=True)

    def _there(self) -> bool:
        """Whether the server is."""
        try:
            self._link.surely(lambda: self._link.session.value("select 1"))
        except HarnessError:
            return False
        return True

    def _ended_alone(self, descriptor: int) -> bool:
        """Wait until something happens to the session, for a while; whether pgbouncer has ended meanwhile."""
        # Elsewhere than on Linux its end is noticed at the next look.
        ended = os.pidfd_open(self._child.pid) if hasattr(os, "pidfd_open") else None
        try:
            while self._child.poll() is None:
                watched = [descriptor] if ended is None else [descriptor, ended]
                readable, _, _ = select.select(watched, [], [], self._tick)
                if descriptor in readable or self._orders.ttl is not None:
                    return self._child.poll() is not None
            return True
        finally:
            if ended is not None:
                os.close(ended)

    @property
    def _tick(self) -> float:
        return LOOK if self._orders.ttl is None else min(LOOK, self._orders.ttl / 4)

    def _unused(self) -> bool:
        """Whether nobody has used it for its time."""
        ttl = self._orders.ttl
        if ttl is None:
            return False
        try:
            descriptor = os.open(self._orders.used, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._idle_since = time.monotonic()
        finally:
            os.close(descriptor)
        return time.monotonic() - self._idle_since > ttl


def main(words: Sequence[str]) -> int:
    """Start pgbouncer, say so, and stay."""
    orders = decode(Orders, json.load(sys.stdin))
    # The group's Ctrl-C is a run's, not ours; `down` sends TERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _over)
    try:
        child = _start(orders)
    except OSError as error:
        print(f"{orders.command[0]}: {error.strerror}", flush=True)
        return 1
    try:
        why = _takes_calls(child, orders.port)
        print(why or "ready", flush=True)
        if why:
            return 1
        _silent()
        Keeper(orders, child).keep()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    return 0


def _over(*_: object) -> None:
    raise SystemExit(0)


def _silent() -> None:
    """Whoever started us may be gone: what is printed now would end us."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
