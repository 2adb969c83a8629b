"""SQL of somebody who is not trusted with our memory or our time: run with limits, and told as PostgreSQL says it."""

from __future__ import annotations

import math
import os
import select
import socket
import struct
import sys
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import pq

from harness.dsn import Dsn
from harness.errors import ConfigError, LeaseError
from harness.postgres.session import conninfo, open_application, translated, without_secrets

NAME = "pg-harness-mcp"
"""What ``pg_stat_activity`` shows for sessions that run it."""

SAFE_INTEGER = 2**53
"""From here on a JSON reader that takes numbers for floating point ones would change them."""

TICK = 0.1
"""Seconds between two looks at whether the statement was cancelled."""

PATIENCE = 3.0
"""Seconds for which a cancelled statement may still go on, before its connection is closed under it."""


@dataclass(frozen=True)
class Limits:
    """What one call may take.

    Attributes:
        text: bytes of the SQL.
        rows: how many of each result are told.
        size: bytes of values that are told, of all results together.
        cell: characters of one value that are told.
        read: bytes that are read of what is not told, before the statement is cancelled: it has to come to its end.
        results: how many results are told.
        seconds: how long the statement may take.
    """

    text: int = 100_000
    rows: int = 100
    size: int = 200_000
    cell: int = 2_000
    read: int = 64 * 1024**2
    results: int = 50
    seconds: float = 30.0


@dataclass
class Result:
    """What one statement gave.

    Attributes:
        tag: PostgreSQL's own word for what was done, for instance ``"UPDATE 3"``.
        columns: name and type of each.
        rows: values, as far as they are told.
        left_out: how many further rows there are.
    """

    tag: str = ""
    columns: list[tuple[str, str]] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    left_out: int = 0


@dataclass
class Answer:
    """What a call gave.

    Attributes:
        results: one for each statement.
        notices: what the server said besides.
        notes: what of it was left out, and what became of a transaction that was left open; for people.
        milliseconds: how long the server took.
    """

    results: list[Result] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    milliseconds: float = 0.0


class StatementFailed(LeaseError):
    """PostgreSQL refused a statement, or it was ended.

    Attributes:
        fields: what PostgreSQL said, by the names of its documentation: sqlstate, detail, hint, position …
    """

    def __init__(self, message: str, *, fields: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.fields = fields or {}


_BYTES_RECEIVED = 128
"""Where ``tcpi_bytes_received`` lies in Linux's ``struct tcp_info``."""

_FIELDS = {
    "severity": pq.DiagnosticField.SEVERITY,
    "sqlstate": pq.DiagnosticField.SQLSTATE,
    "detail": pq.DiagnosticField.MESSAGE_DETAIL,
    "hint": pq.DiagnosticField.MESSAGE_HINT,
    "position": pq.DiagnosticField.STATEMENT_POSITION,
    "context": pq.DiagnosticField.CONTEXT,
    "schema": pq.DiagnosticField.SCHEMA_NAME,
    "table": pq.DiagnosticField.TABLE_NAME,
    "column": pq.DiagnosticField.COLUMN_NAME,
    "constraint": pq.DiagnosticField.CONSTRAINT_NAME,
}

_ROWS = (pq.ExecStatus.SINGLE_TUPLE, pq.ExecStatus.TUPLES_OK)
_FAILED = (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE, pq.ExecStatus.NONFATAL_ERROR)
_COPYING = (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH)


def check(text: str, limits: Limits) -> bytes:
    """The SQL as it is sent.

    Raises:
        ConfigError: it is too long, empty, or no SQL at all.
    """
    try:
        sent = text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the SQL is no text: it holds half of a surrogate pair at {error.start}", key="sql"
        ) from None
    if len(sent) > limits.text:
        raise ConfigError(
            f"the SQL has {len(sent):,} bytes, and {limits.text:,} are allowed in one call: nothing was run. Send it in parts, or put "
            "large data in by a program of yours (`pg-harness psql`, COPY)",
            key="sql",
        )
    if "\0" in text:
        # libpq takes it for the end of the text, and would run what stands before it.
        raise ConfigError("the SQL holds a NUL character: nothing was run", key="sql")
    if not text.strip():
        raise ConfigError("there is no SQL in it", key="sql")
    if text.lstrip().startswith("\\"):
        raise ConfigError(
            f"{text.split()[0]} is a command of psql's, and this is no psql: only SQL is run. `describe` tells tables and columns",
            key="sql",
        )
    return sent


class Statement:
    """SQL that is about to run, and can be cancelled from another thread."""

    def __init__(self, dsn: Dsn, text: str, *, read_only: bool, superuser: bool, limits: Limits) -> None:
        """
        Args:
            dsn: where, and as whom.
            read_only: one statement, in a transaction that can write nothing.
            superuser: whether the role may be one: nothing confines what that does.

        Raises:
            ConfigError: see :func:`check`.
        """
        self._dsn, self._read_only, self._superuser, self._limits = dsn, read_only, superuser, limits
        self._sent = check(text, limits)
        self._text = text
        self._cancelled = threading.Event()
        self._told = 0
        self._read = 0

    def cancel(self) -> None:
        """Have the server end it. Returns at once; :meth:`run` raises soon after."""
        self._cancelled.set()

    def run(self) -> Answer:
        """Run it and log out.

        Raises:
            StatementFailed: the server refused it, or it was cancelled. ServerLost: the server is gone. ServerRefused: it
                lets nobody in. ConfigError: the role is a superuser.
        """
        began = time.monotonic()
        answer = Answer()
        milliseconds = f"{1000 * self._limits.seconds:.0f}"
        options = f"{conninfo(self._dsn)['options']} -c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"
        connection = open_application(
            self._dsn, {"autocommit": True, "application_name": NAME, "options": options.strip()}
        )
        # No `with connection`: at its end that would commit what was left open.
        with closing(connection), translated("the SQL that was given"):
            if connection.info.parameter_status("is_superuser") == "on" and not self._superuser:
                raise ConfigError(
                    f"the application's role {self._dsn.user} is a superuser (`superuser = true`), whom nothing keeps inside one database: "
                    "no SQL is run as it without `pg-harness mcp --allow superuser`",
                    key="superuser",
                )
            connection.add_notice_handler(
                lambda said: _noticed(answer, f"{said.severity}: {said.message_primary}")
            )
            if self._read_only:
                # With a snapshot taken PostgreSQL refuses `set transaction read write`; one statement in a block of ours
                # cannot end it and go on.
                connection.execute("begin read only")
                connection.execute("select 1")
                connection.pgconn.send_query_params(self._sent, None)
            else:
                connection.pgconn.send_query(self._sent)
            connection.pgconn.set_single_row_mode()
            self._receive(connection, answer, began + self._limits.seconds + 2)
            if not self._read_only and connection.pgconn.transaction_status in (
                pq.TransactionStatus.INTRANS,
                pq.TransactionStatus.INERROR,
            ):
                answer.notes.append(
                    "a transaction was left open, and is rolled back: each call is a session of its own"
                )
        answer.milliseconds = round(1000 * (time.monotonic() - began), 1)
        return answer

    def _receive(self, connection: psycopg.Connection[Any], answer: Answer, deadline: float) -> None:
        pgconn = connection.pgconn
        current = Result()
        failed: StatementFailed | None = None
        ending = ""
        give_up = math.inf
        row_began: int | None = None
        while True:
            if pgconn.is_busy():
                if not ending:
                    ending = self._why_end(deadline)
                    if ending:
                        # The server says so by an error, which is read as any other.
                        _cancel(connection)
                        give_up = time.monotonic() + PATIENCE
                if time.monotonic() > give_up:
                    pgconn.finish()
                    raise StatementFailed(f"{ending}; the server did not end it, so its session was closed")
                received = _received(pgconn.socket)
                row_began = received if row_began is None else row_began
                if received - row_began > self._limits.read:
                    # It is cancelled between two rows only: all of this one would come.
                    pgconn.finish()
                    raise StatementFailed(
                        f"one row is larger than {self._limits.read // 1024**2} MB: the session was closed, and what was not committed in it "
                        "is rolled back. Ask for fewer columns, or for a part of the value: substr, length"
                    )
                if select.select([pgconn.socket], [], [], TICK)[0]:
                    pgconn.consume_input()
                continue
            result = pgconn.get_result()
            row_began = None
            if result is None:
                break
            if result.status in _COPYING:
                # Closed in the middle: from here on nothing but data is understood. What is sent back to us may be complete on the
                # server's side already, and committed.
                pgconn.finish()
                became = (
                    "its statement was rolled back"
                    if result.status == pq.ExecStatus.COPY_IN
                    else ("statements before it in the same call may have been committed: look")
                )
                raise StatementFailed(
                    f"COPY from or to the client is not done here; {became}. Write INSERT or SELECT, or use `pg-harness psql`"
                )
            if result.status in _FAILED:
                failed = failed or self._failed(result, ending)
            elif result.status in _ROWS:
                self._take(connection, current, result)
                if result.status == pq.ExecStatus.SINGLE_TUPLE:
                    if not ending and self._read > self._limits.read:
                        ending = (
                            f"the result is larger than {self._limits.read // 1024**2} MB: the statement was cancelled, and "
                            "what it did is rolled back. Add LIMIT, or ask for fewer columns"
                        )
                        _cancel(connection)
                        give_up = time.monotonic() + PATIENCE
                    continue
                current = self._finish(answer, current, result)
            elif result.status == pq.ExecStatus.COMMAND_OK:
                current = self._finish(answer, current, result)
        if failed is not None:
            raise failed

    def _why_end(self, deadline: float) -> str:
        if self._cancelled.is_set():
            return "the statement was cancelled"
        if time.monotonic() > deadline:
            return f"the statements took longer than {self._limits.seconds:g} s and were cancelled"
        return ""

    def _take(self, connection: psycopg.Connection[Any], current: Result, result: Any) -> None:
        if not current.columns:
            types = connection.adapters.types
            for column in range(result.nfields):
                name = (result.fname(column) or b"").decode(errors="replace")
                current.columns.append((name, _type(types, result.ftype(column))))
        for row in range(result.ntuples):
            values = [result.get_value(row, column) for column in range(result.nfields)]
            size = sum(len(value) for value in values if value is not None)
            self._read += size
            told = [
                _value(value, kind, self._limits.cell)
                for value, (_, kind) in zip(values, current.columns, strict=True)
            ]
            told_size = sum(len(value) if isinstance(value, str) else 8 for value in told)
            if (
                current.left_out
                or len(current.rows) >= self._limits.rows
                or self._told + told_size > self._limits.size
            ):
                current.left_out += 1
                continue
            self._told += told_size
            current.rows.append(told)

    def _finish(self, answer: Answer, current: Result, result: Any) -> Result:
        current.tag = (result.command_status or b"").decode(errors="replace")
        if len(answer.results) < self._limits.results:
            answer.results.append(current)
        elif len(answer.results) == self._limits.results:
            note = (
                f"only the first {self._limits.results} results are told; the further statements were run too"
            )
            if note not in answer.notes:
                answer.notes.append(note)
        if current.left_out:
            answer.notes.append(
                f"{current.left_out:,} further rows of `{current.tag}` are left out: at most {self._limits.rows} rows of a result and "
                f"{self._limits.size:,} bytes of a call are told"
            )
        return Result()

    def _failed(self, result: Any, ending: str) -> StatementFailed:
        def said(which: pq.DiagnosticField) -> str:
            return without_secrets((result.error_field(which) or b"").decode(errors="replace"))

        fields = {name: text for name, which in _FIELDS.items() if (text := said(which))}
        message = said(pq.DiagnosticField.MESSAGE_PRIMARY) or without_secrets(
            (result.error_message or b"").decode(errors="replace").strip()
        )
        lines = [
            f"{fields.get('severity', 'ERROR')} {fields.get('sqlstate', '')}: {message}".replace(" :", ":")
        ]
        if ending:
            lines.insert(0, ending)
        if "position" in fields:
            line, column = _line_of(self._text, int(fields["position"]))
            fields |= {"line": str(line), "column_in_line": str(column)}
            lines.append(f"at line {line}, column {column}: {_cut(self._text.splitlines()[line - 1], 160)}")
        lines += [
            f"{name}: {_cut(fields[name], 600)}" for name in ("detail", "hint", "context") if name in fields
        ]
        if self._read_only and "multiple commands" in message:
            lines.append("read_only runs one statement at a time: call it once for each")
        return StatementFailed("\n".join(lines), fields=fields)


def _cancel(connection: psycopg.Connection[Any]) -> None:
    """Ask for it on a connection of its own, which a server that hangs may not answer: what is to be done then is done at ``PATIENCE``."""
    with suppress(psycopg.Error):
        connection.cancel_safe(timeout=PATIENCE)


def _received(number: int) -> int:
    """Bytes that have come over a TCP connection; 0 where the system does not tell. libpq says nothing of a row before it has all of it."""
    if sys.platform != "linux":
        return 0
    with suppress(OSError), socket.socket(fileno=os.dup(number)) as connection:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED + 8)
        return (
            int(struct.unpack_from("=Q", told, _BYTES_RECEIVED)[0]) if len(told) == _BYTES_RECEIVED + 8 else 0
        )
    return 0


def _noticed(answer: Answer, line: str) -> None:
    if len(answer.notices) < 20:
        answer.notices.append(_cut(without_secrets(line), 500))


def _line_of(text: str, position: int) -> tuple[int, int]:
    before = text[: max(0, position - 1)]
    line = before.count("\n") + 1
    return min(line, max(1, len(text.splitlines()))), len(before) - (before.rfind("\n") + 1) + 1


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}… ({len(text):,} characters in all)"


def _value(raw: bytes | None, kind: str, length: int) -> Any:
    """One value for JSON: numbers that every reader keeps, truth values, NULL; anything else as PostgreSQL writes it."""
    if raw is None:
        return None
    text = raw.decode(errors="replace")
    if kind == "bool":
        return text == "t"
    # The statement is done: whatever cannot be read as a number is told as it came, and is no error.
    with suppress(ValueError):
        if kind in ("int2", "int4", "int8", "oid"):
            return int(text) if abs(int(text)) < SAFE_INTEGER else text
        if kind in ("float4", "float8") and math.isfinite(float(text)):
            return float(text)
    return _cut(text, length)


def _type(types: Any, oid: int) -> str:
    """What a column's type is called; psycopg finds an array's OID at its element's type."""
    known = types.get(oid)
    if known is None:
        return f"oid {oid}"
    return str(known.name) if known.oid == oid else f"{known.name}[]"
