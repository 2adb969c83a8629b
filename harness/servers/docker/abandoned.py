"""Whether a container of ours is nobody's any more: by its maker, by its age, by its server's sign of life.

Locks between processes are of one machine, and of one folder for state. Another client of the same daemon may be at work with
what has this checkout's labels: two machines that were copied from one disk, two homes that share a checkout.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from harness.config import processes
from harness.errors import ServerLost, ServerRefused
from harness.postgres.session import Session, greet
from harness.servers.docker import spec
from harness.servers.docker.daemon import Daemon
from harness.servers.handshake import claim_alone
from harness.servers.port import CUT_OFF, ServerInfo

IDLE = ("created", "exited", "dead")
"""States of a container that was not started yet, or has ended."""

_LOG_IN = 2.0
"""Seconds that its server may take to let us in."""


def half_made(daemon: Daemon, container: Any) -> bool:
    """Whether nobody goes on with a container that does not run: its maker is dead, or it has been so for long."""
    pid, _, space = container.labels.get(spec.MAKER, "").partition(" ")
    if space == spec.process_space() and pid.isdecimal() and not processes.alive(int(pid)):
        return True
    # Its maker lives, or is another machine's: it may be about to start it, or to keep what it has baked.
    return idle(daemon, container) > CUT_OFF


def idle(daemon: Daemon, container: Any) -> float:
    """Seconds since it was made, or has ended."""
    ended = container.attrs.get("State", {}).get("FinishedAt") or ""
    began = container.attrs.get("Created") or ""
    # By the daemon's clock: what was made just now is not an hour old.
    return daemon.now() - max(seconds(ended), seconds(began))


def claim(info: ServerInfo) -> Session | None:
    """A session that has a running server's sign of life to itself, as long as it is open; None where anybody else may use it.

    That we cannot log in is no proof: it may be starting, or its baker has just taken the passwords out of it.
    """
    try:
        session = greet(info.dsn, info.server_id, timeout=_LOG_IN)
    except (ServerLost, ServerRefused):
        return None
    if session is None:
        return None
    try:
        if claim_alone(info, session):
            return session
    except (ServerLost, ServerRefused):
        pass
    session.close()
    return None


def seconds(text: str) -> float:
    """Seconds since 1970 of Docker's times; 0 for none, which may be in the year 1."""
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp())
    except ValueError:
        return 0.0
