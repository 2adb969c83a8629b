"""Run the statements of a migration: one by one, with a deadline, and with everything the server says of an error."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from harness.dsn import Dsn
from harness.errors import HarnessError, ServerLost
from harness.postgres.session import Session, is_lost

MIGRATION_NAME = "pg-harness migration"
"""``application_name`` of sessions that migrate: so that people see in pg_stat_activity what runs."""

_CANCEL_GRACE = 5.0
"""Seconds that a cancelled statement may take to end before its connection is cut."""


class StatementFailed(HarnessError):
    """The server refused a statement of a script.

    Attributes:
        primary: the server's message.
        sqlstate: five characters.
        detail, hint, context: the server's further lines, or empty.
        position: character of the statement, from 1, that the server points to; None where it points to none.
        inner_query: the text that ``inner_position`` points into, where the error lies inside a function.
    """

    exit_code = 123

    def __init__(
        self,
        primary: str,
        *,
        sqlstate: str = "",
        detail: str = "",
        hint: str = "",
        context: str = "",
        position: int | None = None,
        inner_query: str = "",
        inner_position: int | None = None,
    ) -> None:
        super().__init__(f"{primary} [{sqlstate}]" if sqlstate else primary)
        self.primary = primary
        self.sqlstate = sqlstate
        self.detail = detail
        self.hint = hint
        self.context = context
        self.position = position
        self.inner_query = inner_query
        self.inner_position = inner_position


class StatementTimeout(HarnessError):
    """The deadline passed while a statement ran; it was cancelled.

    Attributes:
        seconds: how long the whole script was allowed to take.
    """

    exit_code = 123

    def __init__(self, message: str, *, seconds: float = 0) -> None:
        super().__init__(message)
        self.seconds = seconds


class ScriptRunner:
    """One session that runs statements of other people, until a deadline."""

    def __init__(self, session: Session, seconds: float) -> None:
        self._session = session
        self._seconds = seconds
        self._expired = threading.Event()
        self._done = threading.Event()
        # A server-side statement_timeout would be undone by any SET in the script.
        self._watcher = threading.Thread(target=self._enforce, name="pg-harness-deadline", daemon=True)
        self._watcher.start()

    def run(self, statement: str | bytes) -> None:
        """Run one statement.

        Raises:
            StatementFailed: the server refused it. StatementTimeout: the deadline passed. ServerLost.
        """
        text = statement.encode() if isinstance(statement, str) else statement
        with self._translated() as connection:
            connection.execute(text)

    def copy_in(self, statement: bytes, blocks: Iterable[bytes]) -> None:
        """Run one ``COPY … FROM stdin`` with its data.

        Raises:
            StatementFailed: the server refused the statement or a row. StatementTimeout. ServerLost.
        """
        with self._translated() as connection, connection.cursor() as cursor, cursor.copy(statement) as copy:
            for block in blocks:
                copy.write(block)

    def end_transaction(self) -> bool:
        """Roll back what a script left open; True if there was an open transaction."""
        if self._session.connection.info.transaction_status == TransactionStatus.IDLE:
            return False
        self.run("ROLLBACK")
        return True

    def close(self) -> None:
        """End the session and the deadline."""
        self._done.set()
        self._session.close()
        self._watcher.join(2 * _CANCEL_GRACE)

    @contextmanager
    def _translated(self) -> Iterator[psycopg.Connection[Any]]:
        if self._expired.is_set():
            raise self._timeout()
        try:
            yield self._session.connection
        except psycopg.Error as error:
            if self._expired.is_set():
                raise self._timeout() from error
            raise _failure(error) from error

    def _enforce(self) -> None:
        if self._done.wait(self._seconds):
            return
        self._expired.set()
        cut_at = time.monotonic() + _CANCEL_GRACE
        # Again and again: a cancel that arrives between two statements has no effect.
        while time.monotonic() < cut_at:
            # The session may end under us: then nothing is left to cancel.
            with contextlib.suppress(Exception):
                self._session.connection.cancel_safe(timeout=1)
            if self._done.wait(0.5):
                return
        # A statement that ignores cancels, or a server that vanished, must not hang us for ever.
        _cut(self._session.connection)

    def _timeout(self) -> StatementTimeout:
        return StatementTimeout(
            f"it was cancelled: the {self._seconds:g} s that migrations may take were over",
            seconds=self._seconds,
        )


@contextmanager
def open_script(
    dsn: Dsn,
    *,
    timeout: float,
    notice: Callable[[str], None] | None = None,
) -> Iterator[ScriptRunner]:
    """A session for a script; closed at the end, whatever happened.

    Args:
        dsn: the database, and the role that runs the script.
        timeout: seconds that everything inside the block may take.
        notice: gets each NOTICE or WARNING as one line.

    Raises:
        ServerLost, ServerRefused: from connecting.
    """
    session = Session.connect(dsn, application_name=MIGRATION_NAME, limited=False)
    if notice is not None:
        session.connection.add_notice_handler(
            lambda diagnostic: notice(f"{diagnostic.severity}: {diagnostic.message_primary}")
        )
    runner = ScriptRunner(session, timeout)
    try:
        yield runner
    finally:
        runner.close()


def _cut(connection: psycopg.Connection[Any]) -> None:
    # Closed meanwhile: what was wanted.
    with contextlib.suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


def _failure(error: psycopg.Error) -> HarnessError:
    diagnostic = error.diag
    code = error.sqlstate or ""
    if is_lost(error, code):
        return ServerLost(f"the PostgreSQL server went away during the migration: {str(error).strip()}")
    return StatementFailed(
        (diagnostic.message_primary or str(error)).strip(),
        sqlstate=code,
        detail=diagnostic.message_detail or "",
        hint=diagnostic.message_hint or "",
        context=diagnostic.context or "",
        position=_number(diagnostic.statement_position),
        inner_query=diagnostic.internal_query or "",
        inner_position=_number(diagnostic.internal_position),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text else None
