"""What an engine knows right after a reset, for another process: the note of a database that was pristine *again*.

A first note (:class:`harness.reset.sql.shared.Note`) is of a fresh clone: every row lies where it lies in the
baseline. A reset puts rows elsewhere, gives files new numbers, and writes catalogs; what it knows of that is here. All
that happens later is in the log, so a note stays true however old it is, and whoever else resets in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from harness.reset.changes import RecloneNeeded
from harness.reset.sql.rows import Tid
from harness.reset.sql.shared import Note

if TYPE_CHECKING:
    from harness.reset.baseline import TableBase
    from harness.reset.tracker import EngineState

Places = Mapping[Tid, tuple[Tid, int]]
"""Where a row lies in the baseline → where it lies now, and who wrote it there."""


@dataclass(frozen=True)
class Carried(Note):
    """Of a database that an engine has reset.

    Attributes:
        own: ids of the transactions of that reset: its records come after ``position`` too.
        files: OID → number of its file, of relations whose file is another one than the baseline's.
        touched: catalog → blocks of it that were written since the clone was made.
        places: OID of a table → its rows that lie elsewhere than in the baseline.
    """

    own: tuple[int, ...] = ()
    files: Mapping[int, int] = field(default_factory=dict)
    touched: Mapping[str, frozenset[int]] = field(default_factory=dict)
    places: Mapping[int, Places] = field(default_factory=dict)

    @classmethod
    def of(cls, engine: EngineState, baseline: Mapping[int, int]) -> Self:
        """What this engine knows. It must have no marks, and nothing may have failed since its last reset.

        Args:
            baseline: OID → number of its file, as it was when the clone was made.
        """
        return cls(
            engine._start,
            engine._database,
            engine._role_oid,
            engine._shared,
            tuple(engine._own),
            {oid: node for oid, node in engine._files.items() if baseline.get(oid) != node},
            {name: frozenset(blocks) for name, blocks in engine._touched.items() if blocks},
            {oid: places for oid, base in engine._bases.items() if (places := _moved(base))},
        )

    def hand_over(self, engine: EngineState) -> None:
        """Let an engine that was just opened know all of it.

        Raises:
            RecloneNeeded: the baseline is another one than that of the note.
        """
        engine._own.extend(self.own)
        engine._remember_files(self.files)
        engine._touched.update({name: set(blocks) for name, blocks in self.touched.items()})
        for oid, places in self.places.items():
            if oid not in engine.store.relations:
                raise RecloneNeeded("the note of the last reset is of another baseline")
            base = engine._bases[oid] = engine.store.table(oid)
            if base.rows is None:
                base.moved.update(places)
                continue
            numbers = {home: number for number, (home, _) in enumerate(base.rows.places)}
            if not places.keys() <= numbers.keys():
                raise RecloneNeeded("the note of the last reset is of another baseline")
            base.move({numbers[home]: place for home, place in places.items()})

    def as_json(self) -> dict[str, Any]:
        """For a file; lists and text only."""
        return {
            "own": list(self.own),
            "files": sorted(self.files.items()),
            "touched": {name: sorted(blocks) for name, blocks in self.touched.items()},
            "places": {
                str(oid): [[*home, *tid, xmin] for home, (tid, xmin) in sorted(places.items())]
                for oid, places in self.places.items()
            },
        }

    @classmethod
    def from_json(cls, note: Note, found: Mapping[str, Any]) -> Self:
        """The opposite.

        Raises:
            KeyError, TypeError, ValueError: it has another form.
        """
        return cls(
            note.position,
            note.database,
            note.role,
            note.shared,
            tuple(int(xid) for xid in found["own"]),
            {int(oid): int(node) for oid, node in found["files"]},
            {str(name): frozenset(map(int, blocks)) for name, blocks in found["touched"].items()},
            {
                int(oid): {
                    (int(block), int(number)): ((int(to), int(at)), int(xmin))
                    for block, number, to, at, xmin in places
                }
                for oid, places in found["places"].items()
            },
        )


def _moved(base: TableBase) -> Places:
    if base.rows is None:
        return dict(base.moved)
    homes = base.rows.places
    return {
        home: place for (home, xmin), place in zip(homes, base.places, strict=True) if place != (home, xmin)
    }
