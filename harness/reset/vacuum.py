"""Dead rows: their room lies before the rows of the next test, and 2,000 resets made a table of 40 kB one of 31 MB."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from harness.errors import ServerRefused
from harness.postgres.session import Session, ident
from harness.reset.sql import batch
from harness.reset.sql.relations import Relation

EVERY_RESETS = 50
DEAD_ROWS = 2000
LARGE_PART = 10
"""Of a large table the part, a tenth, that dead rows may be; autovacuum leaves a fifth."""

CATALOG_RESETS = 100
OWNERS = "pg_shdepend"

MOST_ROOM = 4
"""The part of the room behind the last row of a table, a fourth, that dead rows may take up: the next rows come after
them, in order, as long as they do not need more than what is left. A VACUUM costs half of what a reset does."""

RECORD = 26
"""Bytes by which the record of a new row in the log is longer than the row and the pointer to it (access/heapam_xlog.h)."""

ROW_BYTES = 100
"""What a dead row is taken for where its size is not known."""


class Litter(NamedTuple):
    """What one reset leaves in a table.

    Attributes:
        rows: dead rows that are known of.
        size: bytes that they take up, about.
        room: bytes in which the next rows of the application belong.
        first, last: the blocks in which they lie; the last may be beyond the end that the table has to have.
        end: the block in which the next row of the application belongs.
        ordered: whether its rows are kept in their order.
    """

    rows: int
    size: int
    room: int
    first: int
    last: int
    end: int
    ordered: bool


class Vacuum:
    """Counts what resets leave behind, and cleans up where it would be noticed, or grow."""

    def __init__(self) -> None:
        self._dead: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        self._resets: dict[int, int] = {}
        self._catalogs: dict[str, int] = {}

    def after(
        self,
        session: Session,
        left: Mapping[int, Litter],
        relations: Mapping[int, Relation],
        touched: Iterable[str],
        *,
        truncate: bool,
    ) -> None:
        """Count one reset, and vacuum the tables and catalogs whose turn it is.

        Args:
            left: OID of each table that was written → what is left there. An application that deletes leaves
                rows of which nobody tells: each reset counts as well.
            relations: OID → relation.
            touched: catalogs that were written since the clone.
            truncate: nobody is in a transaction, so that files may be made shorter without waiting for him.
        """
        soon: list[str] = []
        longer: list[str] = []
        whole: list[str] = []
        for oid, litter in left.items():
            self._dead[oid] = self._dead.get(oid, 0) + litter.rows
            self._bytes[oid] = self._bytes.get(oid, 0) + (litter.size or ROW_BYTES * litter.rows)
            self._resets[oid] = self._resets.get(oid, 0) + 1
            name = relations[oid].sql
            # A VACUUM of a million rows takes longer than the clone that a reset is to spare.
            most = max(DEAD_ROWS, relations[oid].rows // LARGE_PART)
            if self._resets[oid] >= EVERY_RESETS or self._dead[oid] >= most:
                whole.append(name)
                self._resets[oid] = 0
            elif not litter.ordered:
                continue
            elif litter.last > litter.end:
                longer.append(name)
            elif litter.first < litter.end or MOST_ROOM * self._bytes[oid] > litter.room:
                soon.append(name)
            else:
                continue
            self._dead[oid] = self._bytes[oid] = 0
        # Every temporary table and large object has a row about its owner in a catalog of the whole server.
        names = list(touched)
        for name in (*names, OWNERS) if names else ():
            self._catalogs[name] = self._catalogs.get(name, 0) + 1
            if self._catalogs[name] >= CATALOG_RESETS:
                whole.append(ident("pg_catalog", name))
                self._catalogs[name] = 0
        try:
            if soon:
                free_places(session, soon, truncate=False)
            if longer:
                free_places(session, longer, truncate=truncate)
            if whole:
                # Locked tables have their turn later.
                session.execute(
                    f"vacuum (skip_locked, index_cleanup on, truncate {str(truncate).lower()}) {', '.join(whole)}"
                )
        except ServerRefused:
            return  # it is only housekeeping: the rows are where they belong already

    def cleaned(self, tables: Iterable[int]) -> None:
        """These were vacuumed on the way."""
        for oid in tables:
            self._dead[oid] = self._bytes[oid] = 0


def free_places(session: Session, tables: Sequence[str], *, truncate: bool) -> None:
    """VACUUM tables so that the places of their dead rows can be taken again, by the next row that is inserted.

    Args:
        tables: as SQL.
        truncate: make files shorter that end in empty pages. It waits for whoever holds a lock, up to 5 s
            (vacuumlazy.c: VACUUM_TRUNCATE_LOCK_TIMEOUT).
    """
    # INDEX_CLEANUP: with few dead rows VACUUM else leaves index entries, and with them the places, for later.
    options = f"skip_locked, index_cleanup on, process_toast off, truncate {str(truncate).lower()}"
    if session.server_version >= 160000:
        # It reads pg_class from end to end.
        options += ", skip_database_stats"
    batch.run(session, [f"vacuum ({options}) {', '.join(tables)}"])
