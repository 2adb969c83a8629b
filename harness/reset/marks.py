"""Marks: states to come back to, a stack above the template's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.errors import LeaseError, ServerRefused
from harness.reset.baseline import TableBase, room
from harness.reset.changes import SMALL, Changes, TableChange
from harness.reset.sql import batch
from harness.reset.sql import relations as relations_sql
from harness.reset.sql import rows as rows_sql
from harness.reset.sql.catalogs import LARGE_OBJECTS, STATISTICS
from harness.reset.sql.relations import SequenceState
from harness.reset.sql.sequences import setval

if TYPE_CHECKING:
    from harness.reset.engine import ResetEngine

MOST_BYTES = 512 * 1024**2
"""Bytes of rows that one mark may hold in memory."""

PATIENCE = 5000.0
"""Milliseconds that reading the log may take for a mark: no other way leads to one."""


class Mark:
    """A state to come back to. The engine's ``reset(to=mark)`` goes to it."""

    def __init__(self, engine: ResetEngine, number: int) -> None:
        self._engine = engine
        self.number = number

    @property
    def released(self) -> bool:
        """Whether it cannot be gone back to any more."""
        return self not in self._engine._marks

    def release(self) -> None:
        """Forget this mark and those above it. The next reset goes to what is below. Twice is once."""
        while not self.released:
            self._engine._pop()

    def __repr__(self) -> str:
        return f"<Mark {self.number}{' released' if self.released else ''}>"


@dataclass
class Layer:
    """What one mark holds.

    Attributes:
        tables: of the tables that differ from the state below, all rows.
        sequences: of the sequences that differ.
        changes: what differs from the state below, and where its rows lay and lie that we have put elsewhere since.
    """

    mark: Mark
    tables: dict[int, TableBase]
    sequences: dict[int, SequenceState]
    changes: Changes


class Marks:
    """The stack."""

    def __init__(self) -> None:
        self._layers: list[Layer] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._layers)

    def __contains__(self, mark: object) -> bool:
        return any(layer.mark is mark for layer in self._layers)

    @property
    def top(self) -> Mark | None:
        """The mark that a reset goes to; None is the template."""
        return self._layers[-1].mark if self._layers else None

    def check(self, mark: Mark) -> None:
        """Raise LeaseError for a mark that is not set any more."""
        if mark not in self:
            raise LeaseError(f"mark {mark.number} was released; set a new one with mark()")

    def push(self, layer: Layer) -> Mark:
        """Make this the top."""
        self._layers.append(layer)
        return layer.mark

    def next_number(self) -> int:
        """1, 2, …"""
        self._number += 1
        return self._number

    def pop(self) -> Layer:
        """Take the top off."""
        return self._layers.pop()

    def table(self, oid: int) -> TableBase | None:
        """The table as the top mark wants it; None where no mark holds it."""
        return next((layer.tables[oid] for layer in reversed(self._layers) if oid in layer.tables), None)

    @property
    def held(self) -> frozenset[int]:
        """OIDs of the tables that any mark holds."""
        return frozenset(oid for layer in self._layers for oid in layer.tables)

    @property
    def rows(self) -> int:
        """How many rows all marks hold."""
        return sum(len(base.rows or ()) for layer in self._layers for base in layer.tables.values())

    def sequence(self, oid: int) -> SequenceState | None:
        """The sequence as the top mark wants it; None where no mark holds it."""
        return next(
            (layer.sequences[oid] for layer in reversed(self._layers) if oid in layer.sequences), None
        )

    def everything(self) -> Changes:
        """What all marks together differ in from the template; for a new clone, where no old place holds."""
        tables: dict[int, TableChange] = {}
        names: dict[int, str] = {}
        sequences: set[int] = set()
        for layer in self._layers:
            for oid, base in layer.tables.items():
                tables[oid] = TableChange(rewritten=True)
                names[oid] = str(base.relation)
                base.lie([((0, 0), 0)] * len(base.places))
            sequences.update(layer.sequences)
            names.update(layer.changes.names)
        for layer in self._layers:
            # The state below knows no place of the new clone either: when this layer goes, all is written again.
            layer.changes = replace(
                layer.changes,
                tables={**layer.changes.tables, **tables},
                names={**layer.changes.names, **names},
            )
        return Changes(tables=tables, sequences=frozenset(sequences), names=names)

    def displaced(self, blocks: Mapping[int, Collection[int]]) -> None:
        """We put rows of these tables elsewhere.

        The state below does not know where they lie now, and looks for its own where they lay. So it is noted with
        the mark that holds the table, which those above share; it goes with that mark, and with no other.

        Args:
            blocks: table OID → where those rows lay, and lie.
        """
        for oid, elsewhere in blocks.items():
            layer = next((layer for layer in reversed(self._layers) if oid in layer.tables), None)
            if layer is None:
                continue  # the template's rows: their base was told
            change = layer.changes.tables.get(oid, TableChange())
            # Not inserts alone any more: rows that nobody knows would else be deleted, and none looked for.
            change = replace(change, blocks=change.blocks.union(elsewhere), deletes=max(1, change.deletes))
            layer.changes = replace(layer.changes, tables={**layer.changes.tables, oid: change})


def set_mark(engine: ResetEngine) -> Mark:
    """Read what changed since the state below, while nobody may write to it, and push it.

    Raises:
        LeaseError: what changed cannot be held by a mark.
    """
    from harness.reset.engine import _Run

    run = _Run(engine)
    while True:
        window = engine._look(force=True, patience=PATIENCE)
        engine._locks = frozenset(window.advisory)
        if run.waiting.hindered(window):
            continue
        if window.too_much:
            raise LeaseError(
                f"{window.bytes / 1e6:.0f} MB of log were written since the last reset: too much for a mark. "
                "Load such data in a migration or a seed."
            )
        found, files = engine._resolve(window)
        layer = _read(engine, found)
        position = layer.position
        if position == window.seen or engine._unchanged_since(window, position) is not None:
            # So that every later nextval is in the log (see SequenceState.logged_ahead). Not before: it is not
            # rolled back with an attempt, and somebody who goes on meanwhile would be given keys that exist.
            setvals = [f"select {setval(oid, state)}" for oid, state in layer.sequences.items()]
            batch.run(engine._lease, [*setvals, "commit"])
            break
        batch.rollback(engine._lease)
        # Past the deadline, whoever goes on writing is ended.
        run.waiting.crowd()
    engine._remember_files(files)
    engine._own = [layer.xid]
    engine._advance(window)
    engine._seen = ""
    engine._pending = Changes()
    mark = Mark(engine, engine._marks.next_number())
    return engine._marks.push(
        Layer(mark, layer.tables, layer.sequences, replace(found, catalogs={}, unknown=frozenset()))
    )


@dataclass
class _Copy:
    tables: dict[int, TableBase]
    sequences: dict[int, SequenceState]
    position: str
    xid: int


def _read(engine: ResetEngine, found: Changes) -> _Copy:
    """Copy the tables that changed; leaves a transaction open that keeps writers out of them."""
    if differences := engine._compare(found.catalogs):
        raise LeaseError(
            f"a mark holds rows, not a schema that differs from the template's ({'; '.join(differences)})"
        )
    if any(name in LARGE_OBJECTS for name in found.catalogs if name not in STATISTICS):
        raise LeaseError("a mark does not hold large objects")
    if found.shared and engine.shared_changed:
        raise LeaseError(
            "a mark does not hold ALTER DATABASE or ALTER ROLE … SET, nor rights of the database"
        )
    relations = engine.store.relations
    for oid in found.tables:
        if oid not in relations or relations[oid].kind != "r":
            raise LeaseError(
                f"a mark does not hold {relations.get(oid, oid)}: it is no table of the template"
            )
        if relations[oid].obstacle:
            raise LeaseError(f"a mark does not hold {relations[oid]}: {relations[oid].obstacle}")
    tables = [relations[oid] for oid in sorted(found.tables)]
    statements = ["begin"]
    if tables:
        listed = ", ".join("only " + table.sql for table in tables)
        statements.append(f"lock table {listed} in share row exclusive mode")
    statements.append("select pg_current_wal_insert_lsn(), pg_current_xact_id()")
    listed = "{" + ",".join(str(table.oid) for table in tables) + "}"
    statements.append(f"select sum(pg_table_size(oid)) from unnest('{listed}'::oid[]) oid")
    lease = engine._lease
    try:
        *_, places, sizes = batch.run(lease, statements)
        here = places.rows[0]
        position, xid = (here[0] or b"").decode(), int(here[1] or b"0")
        copied: dict[int, TableBase] = {}
        if int(sizes.rows[0][0] or b"0") > MOST_BYTES:
            raise LeaseError(
                f"the tables that changed hold more than {MOST_BYTES >> 20} MB: too much for a mark"
            )
        for table in tables:
            rows = rows_sql.read(lease, table, known=engine.store.columns(table))
            copied[table.oid] = TableBase(table, rows, room(lease, table, rows), ordered=len(rows) <= SMALL)
        wanted = [relations[oid] for oid in sorted(found.sequences)]
        caches = {oid: state.cache for oid, state in engine.store.sequences.items()}
        states = relations_sql.sequences(lease, wanted, caches=caches)
    except ServerRefused as error:
        batch.rollback(lease)
        raise LeaseError(f"the mark cannot be set: {error}") from error
    except LeaseError:
        batch.rollback(lease)
        raise
    engine._own.append(xid)
    return _Copy(copied, states, position, xid)
