"""The handshake with a server: is it the right one, is it alive, is it ready, is anybody else there?

Every way to a server goes through :func:`greet`: an address is never believed before the server has told its id.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from harness.dsn import Dsn
from harness.errors import PoolTimeout, ServerLost, ServerRefused, ServerStartError
from harness.postgres import locks, sqlstate
from harness.postgres.session import Session, asks_for_scram, greet, lock_key
from harness.servers.port import ServerInfo, ServerRequest

CRASH_PATIENCE = 15.0
"""Seconds to wait for a server that recovers after a crash of one of its backends."""

_WATCHER_PATIENCE = 0.5
"""Seconds in which the dead-man's switch has let go of the lock again (it holds it for microseconds)."""


def life_key(server: ServerInfo | ServerRequest) -> int:
    """The advisory lock on the maintenance database that is a server's sign of life."""
    return lock_key("server", server.server_id)


def listens(info: ServerInfo) -> bool:
    """Whether the server's own process listens on its port, so far as that has to be known before a log-in.

    A container's port is the daemon's as long as that runs.
    """
    if asks_for_scram() or not info.ours or info.backend != "process":
        return True
    # Here: a libpq of today needs nothing of it.
    from harness.servers.process.record import listening_in

    return listening_in(Path(info.handle) / "data", info.dsn.port)


def attach(info: ServerInfo, patience: float = 0) -> tuple[Session | None, str]:
    """Log in, compare the id and take the sign of life; or say why not.

    A server that is not ours has no id and no sign of life: that it lets us in is all that there is to ask.

    Args:
        patience: seconds to wait for a server that does not answer at all.

    Raises:
        PoolTimeout: it is the right server, and somebody keeps its sign of life from everybody.
        ServerRefused: it is the right server, and it has no connection left.
        ServerLost, ServerRefused: it is not ours, and does not answer, or does not let us in.
    """
    if not info.ours:
        return Session.connect(info.dsn), ""
    began = time.monotonic()
    while True:
        session = None
        try:
            if not listens(info):
                raise ServerLost(f"{info.description} does not listen on its port {info.dsn.port}")
            session = greet(info.dsn, info.server_id)
            if session is None:
                return None, f"another server answers at {info.dsn.host}:{info.dsn.port}"
            # A wait: where the server is ending itself, until it is gone, which is said then.
            locks.hold_shared(session, ("server", info.server_id))
            return session, ""
        except PoolTimeout:
            if session is not None:
                session.close()
            raise
        except (ServerLost, ServerRefused) as error:
            if session is not None:
                session.close()
            code = error.sqlstate if isinstance(error, ServerRefused) else ""
            wait = CRASH_PATIENCE if code == sqlstate.CANNOT_CONNECT_NOW else 0 if code else patience
            if time.monotonic() - began < wait:
                time.sleep(0.05)
                continue
            if code == sqlstate.TOO_MANY_CONNECTIONS:
                # It is the right server and full: starting a second one beside it would hide the leak.
                raise
            return None, error.message


WATCHER = "pg-harness watcher"
"""What ``pg_stat_activity`` shows for the dead-man's switch."""


def watched(session: Session) -> bool:
    """Whether the dead-man's switch looks at the server just now. Between two looks it logs in anew: False is no proof."""
    # Of the superuser alone (its OID is always 10): a test may call its sessions as it likes.
    return bool(
        session.value(
            "select exists (select from pg_stat_get_activity(null) where application_name = %s and usesysid = 10)",
            (WATCHER,),
        )
    )


def claim_alone(info: ServerInfo, session: Session) -> bool:
    """Take the sign of life exclusively, for an end of the server; False where anybody else holds it.

    Whoever comes after that waits for the lock, is told of the shutdown, and never works on a dying server.
    """
    began = time.monotonic()
    while True:
        if session.value("SELECT pg_try_advisory_lock(%s)", (life_key(info),)):
            return True
        if time.monotonic() - began > _WATCHER_PATIENCE:
            return False
        time.sleep(0.05)


_SOON = (sqlstate.CANNOT_CONNECT_NOW, sqlstate.INVALID_PASSWORD, sqlstate.INVALID_CATALOG_NAME)
"""Refusals that pass: starting up, the password is about to be set, ``postgres`` is about to exist."""


def wait(
    dsn: Dsn,
    server_id: str,
    *,
    timeout: float,
    died: Callable[[], str | None],
    tail: Callable[[], str],
    nap: Callable[[float], None] = time.sleep,
    listens: Callable[[], bool] = lambda: True,
) -> None:
    """Return once the server at ``dsn`` answers with our ``harness.server_id``.

    Args:
        timeout: seconds.
        died: says why the server will never answer; None while it may.
        tail: the last lines of its log so far.
        nap: pauses for so many seconds, or until the server's log says that it is ready.
        listens: whether it is its own process that listens there; asked where libpq cannot insist on SCRAM.

    Raises:
        ServerStartError: it died, another server answers there, or time is up.
    """
    deadline = time.monotonic() + timeout
    pause = 0.005
    last = "nobody answered"
    while True:
        reason = died()
        if reason is not None:
            raise ServerStartError(reason, log_tail=tail())
        try:
            if not (asks_for_scram() or listens()):
                raise ServerLost("it does not listen on its port")
            session = greet(dsn, server_id, timeout=2)
        except ServerLost as error:
            last = str(error)
        except ServerRefused as error:
            last = str(error)
            if error.sqlstate not in _SOON:
                raise ServerStartError(
                    f"the server started and then refused us: {error}", log_tail=tail()
                ) from None
            # It says that it is starting up: it will not be long.
            pause = min(pause, 0.01)
        else:
            if session is not None:
                session.close()
                return
            last = "another PostgreSQL server answers at this address"
        if time.monotonic() > deadline:
            raise ServerStartError(
                f"the server did not become ready within {timeout:.0f} s (start_timeout); last answer: {last}",
                log_tail=tail(),
            )
        nap(pause)
        pause = min(pause * 1.5, 0.05)
