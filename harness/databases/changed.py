"""What changed in the databases of a lease, by names: for people, for programs, and as the control interface tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.reset.changes import Changes

NOTHING = "nothing changed"


@dataclass(frozen=True)
class TableChanges:
    """What was written to one table, as the server's log has it.

    Attributes:
        inserted: records of inserted rows; one COPY or one INSERT of many rows may be one.
        updated, deleted: rows.
        rewritten: TRUNCATE, REFRESH or CLUSTER gave it a new file.
        unlogged: it writes no log, so it may have changed.
        uncommitted: nobody has committed anything to it, as far as is known: the transactions that wrote go on.
    """

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    rewritten: bool = False
    unlogged: bool = False
    uncommitted: bool = False

    def __str__(self) -> str:
        told = [
            f"{count} {what}"
            for count, what in (
                (self.inserted, "inserted"),
                (self.updated, "updated"),
                (self.deleted, "deleted"),
            )
            if count
        ]
        if self.rewritten:
            told.append("rewritten")
        if self.unlogged:
            told.append("unlogged, perhaps changed")
        if self.uncommitted:
            told.append("not committed")
        return ", ".join(told) or "changed"


@dataclass(frozen=True, repr=False)
class DatabaseChanges:
    """What changed in one database. True where anything did.

    Attributes:
        tables: name → what was written to it; of schemas other than ``public`` with the schema before it.
        sequences: names of those that moved.
        schema: what differs in the schema, one line each.
        other: whether system catalogs were written beyond that.
    """

    tables: Mapping[str, TableChanges] = field(default_factory=dict)
    sequences: tuple[str, ...] = ()
    schema: tuple[str, ...] = ()
    other: bool = False

    @property
    def lines(self) -> list[str]:
        """For people, one change each."""
        tables = [f"{name}: {change}" for name, change in self.tables.items()]
        return [*tables, *(f"{name}: sequence moved" for name in self.sequences), *self.schema]

    @property
    def committed(self) -> bool:
        """Whether other sessions see any of it; a sequence that moved moves in a ROLLBACK too."""
        return bool(self.schema) or any(not change.uncommitted for change in self.tables.values())

    def __bool__(self) -> bool:
        return bool(self.tables or self.sequences or self.schema or self.other)

    def __str__(self) -> str:
        return "\n".join(self.lines) or NOTHING

    def __repr__(self) -> str:
        return f"<DatabaseChanges {'; '.join(self.lines) or NOTHING}>"


class LeaseChanges(dict[str, DatabaseChanges]):
    """Database name → what changed in it. True where anything did; ``str()`` tells people."""

    def __bool__(self) -> bool:
        return any(self.values())

    @property
    def committed(self) -> bool:
        """Whether other sessions see any of it."""
        return any(found.committed for found in self.values())

    def __str__(self) -> str:
        if len(self) == 1:
            return str(next(iter(self.values())))
        return "\n".join(f"{name}: {line}" for name, c in self.items() for line in str(c).splitlines())

    def __repr__(self) -> str:
        return f"<LeaseChanges {'; '.join(str(self).splitlines())}>"


def by_names(found: Changes) -> DatabaseChanges:
    """What the reset found, which knows tables by their OIDs."""
    named = sorted(
        ((found.names.get(oid, str(oid)), oid, change) for oid, change in found.tables.items()),
        key=lambda each: each[:2],
    )
    return DatabaseChanges(
        tables={
            name: TableChanges(
                change.inserts,
                change.updates,
                change.deletes,
                change.rewritten,
                change.unlogged,
                oid in found.unfinished,
            )
            for name, oid, change in named
        },
        sequences=found.sequence_names,
        schema=found.ddl,
        other=bool(found.catalogs or found.unknown),
    )


def for_json(changes: DatabaseChanges) -> dict[str, Any]:
    """As the control interface tells it."""
    return asdict(changes)


def from_json(told: Mapping[str, Any]) -> DatabaseChanges:
    """What :func:`for_json` gave."""
    return DatabaseChanges(
        {name: TableChanges(**change) for name, change in told["tables"].items()},
        tuple(told["sequences"]),
        tuple(told["schema"]),
        told["other"],
    )
