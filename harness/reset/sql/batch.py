"""Several statements in one round trip, and the results as PostgreSQL printed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from harness.postgres.session import Session, translated

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

Tid = tuple[int, int]
"""Where a row lies: block, position in it (``ctid``)."""


class Result(NamedTuple):
    """What one statement gave.

    Attributes:
        rows: values as text; None is NULL.
        touched: how many rows were touched or returned.
    """

    rows: tuple[tuple[bytes | None, ...], ...]
    touched: int

    def pairs(self) -> set[tuple[Tid, int]]:
        """Rows of ``ctid, xmin``."""
        return {(parse_tid(row[0] or b""), int(row[1] or b"0")) for row in self.rows}


def parse_tid(text: bytes) -> Tid:
    """``(12,3)`` → (12, 3)."""
    block, position = text[1:-1].split(b",")
    return int(block), int(position)


def run(session: Session, statements: Sequence[str]) -> list[Result]:
    """Send all statements as one message; the first that fails fails all.

    Raises:
        ServerRefused, ServerLost: as :class:`Session` does.
    """
    with translated(f"reset: {len(statements)} statements"):
        results = session.connection.ask(";\n".join(statements).encode())
    return [_result(raw) for raw in results]


def _result(raw: PGresult) -> Result:
    get, columns = raw.get_value, range(raw.nfields)
    rows = tuple(tuple(get(i, j) for j in columns) for i in range(raw.ntuples)) if columns else ()
    return Result(rows, raw.command_tuples or 0)


def rollback(session: Session) -> None:
    """Leave a transaction that failed, if there is one."""
    if not session.closed:
        session.execute("rollback")


def settings(server_version: int) -> Mapping[str, str]:
    """Of the session in the lease and of the one in the baseline, given at login.

    Args:
        server_version: as ``server_version_num``.
    """
    return {**_SETTINGS, "transaction_timeout": "0"} if server_version >= 170000 else _SETTINGS


_SETTINGS = {
    # Triggers and foreign keys of the application must not fire; a superuser may say so, once, at login.
    "session_replication_role": "replica",
    # Below deadlock_timeout (1 s): a wait of ours ends before PostgreSQL would end somebody else's.
    "lock_timeout": "250ms",
    "synchronous_commit": "off",
    "row_security": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    # What the baseline printed must be read as it was meant, whatever ALTER DATABASE … SET says.
    "search_path": "pg_catalog",
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "timezone": "UTC",
    "standard_conforming_strings": "on",
    "lc_monetary": "C",
    "array_nulls": "on",
    "xmlbinary": "base64",
    "xmloption": "content",
    "client_min_messages": "error",
    "jit": "off",
}
