"""The values of a reset: what changed, what to do about it, and why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import inf

from harness.reset.report import RecloneNeeded as RecloneNeeded
from harness.reset.sql.relations import Relation, SequenceState

SMALL = 1000
"""Rows up to which a table may be written again as a whole."""


@dataclass(frozen=True)
class TableChange:
    """What was written to one table.

    Attributes:
        inserts: records of inserted rows (many rows may share one).
        updates, deletes: records of rows.
        other: records of any other kind that may change rows.
        blocks: blocks of the table that they name.
        rewritten: the table has a new file: TRUNCATE, REFRESH, CLUSTER.
        unlogged: it writes no log, so it may have changed.
        size: bytes of log that brought new rows, about as much as they take up; 0 where that is not known.
    """

    inserts: int = 0
    updates: int = 0
    deletes: int = 0
    other: int = 0
    blocks: frozenset[int] = frozenset()
    rewritten: bool = False
    unlogged: bool = False
    size: int = field(default=0, compare=False)

    @property
    def gone(self) -> int:
        """Rows that the application left dead, as far as records tell."""
        return self.updates + self.deletes

    @property
    def only_inserts(self) -> bool:
        """Whether every old row is proven to be untouched."""
        return not (self.updates or self.deletes or self.other or self.rewritten or self.unlogged)


UNCHANGED = TableChange()
"""Of a table to which nothing was written."""


@dataclass(frozen=True)
class Changes:
    """What changed in a database since it was pristine.

    Attributes:
        tables: OID → change, of tables and materialised views.
        sequences: OIDs.
        catalogs: name of a system catalog → blocks of it that were written.
        shared: the catalogs of the whole server were written by somebody.
        unknown: numbers of relation files that are no file of this database (any more).
        ddl: what differs in the catalogs from the baseline, for people; empty where nothing does.
        names: OID → name, for people.
        aborted: OID → what transactions wrote to tables that were rolled back: no row of it is seen, but it takes room.
        unfinished: OIDs of tables to which nobody has committed anything, as far as is known: the transactions that wrote go on.
    """

    tables: Mapping[int, TableChange] = field(default_factory=dict)
    sequences: frozenset[int] = frozenset()
    catalogs: Mapping[str, frozenset[int]] = field(default_factory=dict)
    shared: bool = False
    unknown: frozenset[int] = frozenset()
    ddl: tuple[str, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)
    aborted: Mapping[int, TableChange] = field(default_factory=dict)
    unfinished: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.tables or self.sequences or self.catalogs or self.unknown or self.ddl)

    @property
    def table_names(self) -> tuple[str, ...]:
        """Names of the tables, sorted."""
        return tuple(sorted(self.names.get(oid, str(oid)) for oid in self.tables))

    @property
    def sequence_names(self) -> tuple[str, ...]:
        """Names of the sequences, sorted."""
        return tuple(sorted(self.names.get(oid, str(oid)) for oid in self.sequences))

    def __str__(self) -> str:
        lines = []
        for oid in sorted(self.tables, key=lambda o: self.names.get(o, "")):
            change = self.tables[oid]
            counts = [
                f"{count} {what}"
                for count, what in (
                    (change.inserts, "inserted"), (change.updates, "updated"), (change.deletes, "deleted"),
                )
                if count
            ]  # fmt: skip
            if change.rewritten:
                counts.append("rewritten")
            if change.unlogged:
                counts.append("unlogged, perhaps changed")
            if oid in self.unfinished:
                counts.append("not committed")
            lines.append(f"{self.names.get(oid, oid)}: {', '.join(counts) or 'changed'}")
        lines.extend(f"{name}: sequence moved" for name in self.sequence_names)
        lines.extend(self.ddl)
        return "\n".join(lines) or "nothing changed"


class How(Enum):
    """The way in which one table is put back."""

    EMPTY = "delete every row"
    TRUNCATE = "truncate it: it grew beyond what a DELETE costs"
    EXTRAS = "delete the rows that are not the baseline's"
    REWRITE = "compare all of its rows, and put back those that differ"
    BLOCKS = "compare the blocks that were written, and put back the rows that differ"
    REFRESH = "refresh the materialised view"


@dataclass(frozen=True)
class TableState:
    """What the baseline holds of a table.

    Attributes:
        rows: how many; None where the table is too large to be kept.
        last_block: the last block that holds any of them; 0 where none does.
        tidy: no room was left before them.
    """

    rows: int | None
    last_block: int = 0
    tidy: bool = True


@dataclass(frozen=True)
class Baseline:
    """What the planner knows of the pristine state.

    Attributes:
        relations: OID → relation.
        states: OID → what the table holds; those that the changes name, at least.
        sequences: OID → state.
        small: rows up to which a table is put back as a whole, in its order.
        held: tables that a mark holds, so that they are not as empty as in the template.
        may_truncate: False once somebody was found to hold a lock on what would be truncated.
        worth: milliseconds that putting rows back may take: what a fresh clone costs.
    """

    relations: Mapping[int, Relation]
    states: Mapping[int, TableState]
    sequences: Mapping[int, SequenceState]
    small: int = SMALL
    held: frozenset[int] = frozenset()
    may_truncate: bool = True
    worth: float = inf


@dataclass(frozen=True)
class Nothing:
    """The database is as it was."""


@dataclass(frozen=True)
class Restore:
    """Put these back.

    Attributes:
        tables: OID → how, in OID order.
        sequences: OIDs, in order.
        catalogs: system catalogs to be compared with the baseline first; a difference means a clone.
        large_objects: compare the large objects, and put them back.
        estimate: milliseconds that it is reckoned to take.
        along: empty tables that are truncated too, because their foreign keys point to one that is.
    """

    tables: Mapping[int, How] = field(default_factory=dict)
    sequences: tuple[int, ...] = ()
    catalogs: Mapping[str, frozenset[int]] = field(default_factory=dict)
    large_objects: bool = False
    along: frozenset[int] = frozenset()
    estimate: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Reclone:
    """Take a fresh clone."""

    reason: str


Plan = Nothing | Restore | Reclone
