"""Marks: states to come back to, a stack above the template's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from harness.errors import LeaseError
from harness.reset.baseline import TableBase
from harness.reset.changes import Changes, TableChange
from harness.reset.sql.relations import SequenceState


class Mark:
    """A state to come back to. The engine's ``reset(to=mark)`` goes to it.

    Args:
        stack: what it lies on while it is set.
        release_top: releases the top mark of that stack.
    """

    def __init__(self, number: int, stack: Marks, release_top: Callable[[], object]) -> None:
        self.number = number
        self._stack = stack
        self._release_top = release_top

    @property
    def released(self) -> bool:
        """Whether it cannot be gone back to any more."""
        return self not in self._stack

    def release(self) -> None:
        """Forget this mark and those above it. The next reset goes to what is below. Twice is once."""
        while not self.released:
            self._release_top()

    def __repr__(self) -> str:
        return f"<Mark {self.number}{' released' if self.released else ''}>"


@dataclass
class Layer:
    """What one mark holds.

    Attributes:
        tables: of the tables that differ from the state below, all rows.
        sequences: of the sequences that differ.
        changes: what differs from the state below, and where its rows lay and lie that we have put elsewhere since.
        pages: the server's file with the pages that differ (:mod:`harness.reset.rewind.page_marks`), where the mark is one of pages,
            and then there are no tables and sequences; empty for one of rows.
    """

    mark: Mark
    tables: dict[int, TableBase]
    sequences: dict[int, SequenceState]
    changes: Changes
    pages: str = ""


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

    @property
    def pages(self) -> tuple[str, ...]:
        """Files of the marks of pages, the lowest first. All marks are of one kind."""
        return tuple([layer.pages for layer in self._layers if layer.pages])

    @property
    def of_rows(self) -> bool:
        """Whether any mark is one of rows."""
        return any(not layer.pages for layer in self._layers)

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
