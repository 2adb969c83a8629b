"""A session that comes back: reconnects after a crash of the server, and never to another server."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from harness.dsn import Dsn
from harness.errors import ServerLost, ServerRefused
from harness.postgres import sqlstate
from harness.postgres.session import Session, greet

RECOVERY = 30.0
"""Seconds that a server may take to recover from a crash: it says so to whoever asks."""

GRACE = 2.0
"""Seconds that it may say nothing meanwhile. Afterwards it is gone, and nobody waits for it again."""

PAUSE = 0.02
"""Seconds between two attempts."""

_Answer = TypeVar("_Answer")


class Link:
    """The admin's way to one database of one server.

    One backend killed with SIGKILL ends all sessions of a server, and the server goes on: the next use
    of the link logs in again. ``epoch`` counts these: what was held in a session before is gone.

    Attributes:
        dsn: the admin's address.
        server_id: what the server must call itself; empty for servers that we did not start.
        epoch: how many times the connection was lost.
    """

    def __init__(self, dsn: Dsn, server_id: str, *, session: Session | None = None) -> None:
        self.dsn = dsn
        self.server_id = server_id
        self.epoch = 0
        self._grace = GRACE
        self._session = session
        if session is not None and server_id:
            _commit_durably(session)

    @property
    def session(self) -> Session:
        """A session that was open when last heard of.

        Raises:
            ServerLost: the server is gone, or another one answers at its address.
        """
        if self._session is None or self._session.closed:
            if self._session is not None:
                # Counted once, however many attempts it takes to come back.
                self.epoch += 1
                # Broken, which is not closed: its socket is still there.
                self._session.close()
                self._session = None
            self._session = connect_verified(self.dsn, self.server_id)
        return self._session

    def surely(self, ask: Callable[[], _Answer]) -> _Answer:
        """What ``ask`` returns; asked once more where the session turned out to be lost: a crash, or somebody ended it.

        Args:
            ask: takes :attr:`session` anew each time, and may be called twice.

        Raises:
            ServerLost: the server is gone.
        """
        try:
            return ask()
        except ServerLost:
            self._come_back()
        except ServerRefused as error:
            if error.sqlstate != sqlstate.CANNOT_CONNECT_NOW:
                raise
            self._come_back()
        return ask()

    def _come_back(self) -> None:
        began = time.monotonic()
        while True:
            waited = time.monotonic() - began
            try:
                self.session.value("select 1")
            except ServerRefused as error:
                if error.sqlstate != sqlstate.CANNOT_CONNECT_NOW or waited > RECOVERY:
                    raise
            except ServerLost:
                if waited > self._grace:
                    self._grace = 0.0
                    raise
            else:
                self._grace = GRACE
                return
            time.sleep(PAUSE)

    def another(self) -> Link:
        """A second link, for another thread."""
        return Link(self.dsn, self.server_id)

    def close(self) -> None:
        """Log out; a later use logs in again."""
        if self._session is not None:
            self._session.close()

    def __repr__(self) -> str:
        return f"<Link {self.dsn.masked} epoch {self.epoch}>"


def connect_verified(dsn: Dsn, server_id: str) -> Session:
    """Log in, and log out again at once where it is not the server that was meant.

    Raises:
        ServerLost: nobody answers, or a server with another id.
        ServerRefused: for instance a wrong password, which also tells that it is another's server.
    """
    if not server_id:
        return Session.connect(dsn)
    session = greet(dsn, server_id)
    if session is None:
        raise ServerLost(f"another PostgreSQL server answers at {dsn.masked}")
    try:
        _commit_durably(session)
    except (ServerLost, ServerRefused):
        session.close()
        raise
    return session


def _commit_durably(session: Session) -> None:
    # Our servers run with synchronous_commit = off: a backend killed with SIGKILL then takes the last 200 ms of
    # commits with it, and the rename that made a lease was undone.
    session.execute("set synchronous_commit = on")
