"""The console of a pgbouncer: commands instead of statements, over the same protocol."""

from __future__ import annotations

import select
import time
from typing import Self

import psycopg

from harness.dsn import Dsn
from harness.errors import ServerRefused
from harness.postgres.session import Session, translated

DATABASE = "pgbouncer"
"""What a client connects to in order to give commands (pgbouncer(1))."""


class Console:
    """One connection to the console. Not safe for use by several threads at once."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @classmethod
    def connect(cls, dsn: Dsn) -> Self:
        """Log in.

        Raises:
            ServerLost: nobody answers. ServerRefused: it is another's, or it is going down.
        """
        # No settings: it refuses parameters that it does not know.
        return cls(Session.connect(dsn.with_database(DATABASE), limited=False))

    def run(self, command: str) -> None:
        """Give one command, and wait until it is done.

        Raises:
            ServerLost: it is gone. ServerRefused: it says no.
        """
        with translated(command):
            try:
                self._session.connection.ask(command.encode())
            except psycopg.Error as error:
                # What it refuses has the class of a broken connection (08P01).
                if error.sqlstate:
                    raise ServerRefused(str(error), sqlstate=error.sqlstate, statement=command) from error
                raise

    def begin(self, command: str) -> None:
        """Give one command, and do not wait."""
        with translated(command):
            pgconn = self._session.connection.pgconn
            pgconn.send_query(command.encode())
            pgconn.flush()

    def done(self, patience: float) -> bool:
        """Whether what :meth:`begin` has begun is done within so many seconds."""
        deadline = time.monotonic() + patience
        with translated("wait for the pooler"):
            pgconn = self._session.connection.pgconn
            while True:
                if not pgconn.is_busy():
                    if pgconn.get_result() is None:
                        return True
                    continue
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([pgconn.socket], [], [], left)[0]:
                    return False
                pgconn.consume_input()

    def close(self) -> None:
        """Log out."""
        self._session.close()
