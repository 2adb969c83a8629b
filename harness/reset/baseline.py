"""The pristine state: facts of all relations, and rows of those that were ever written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.postgres.session import Session
from harness.reset.changes import SMALL, TableState
from harness.reset.sql import batch, catalogs, relations
from harness.reset.sql import rows as rows_sql
from harness.reset.sql.batch import Tid
from harness.reset.sql.relations import Relation, SequenceState
from harness.reset.sql.rows import PAGE, Blocks, Columns, Rows

HELD_PAGES = 128
"""Pages (of 8 kB) up to which a table's rows are kept in memory as a whole; beyond, blocks are asked for."""

MOST_BLOCKS_KNOWN = 4096
"""Blocks of a large table whose rows' places are kept here: 400 bytes each."""


@dataclass
class TableBase:
    """One table as it is to be.

    Attributes:
        rows: all of its rows; None where it is too large: its blocks are read from the baseline.
        room: bytes that are free in the block in which the next row of the application belongs.
        ordered: whether its rows go back to their places, where it is not too large for that.
        marked: whether it is as a mark has it: a fresh clone does not have these rows.
        moved: for large tables: where a row lay in the baseline → where it lies in the lease now.
        refilled: how many rows were put back the last time, and the block in which the last of them lies.
    """

    relation: Relation
    rows: Rows | None
    room: int = PAGE
    ordered: bool = True
    marked: bool = False
    moved: dict[Tid, tuple[Tid, int]] = field(default_factory=dict)
    refilled: tuple[int, int] = (0, -1)
    _places: list[tuple[Tid, int]] | None = field(default=None, repr=False)
    _kept: list[Tid] | None = field(default=None, repr=False)
    _index: dict[int, dict[tuple[Tid, int], int]] = field(default_factory=dict, repr=False)
    _texts: Blocks = field(default_factory=dict, repr=False)
    _ends: tuple[Tid, Tid] | None = field(default=None, repr=False)

    @property
    def places(self) -> list[tuple[Tid, int]]:
        """Where each of ``rows`` lies now in the lease, and who wrote it."""
        if self._places is None:
            self._places = list(self.rows.places) if self.rows is not None else []
        return self._places

    @property
    def kept(self) -> list[Tid]:
        """Where its rows lie now, sorted."""
        if self._kept is None:
            self._kept = sorted(tid for tid, _ in self.places)
        return self._kept

    def expected(self, block: int) -> Mapping[tuple[Tid, int], int]:
        """Of the rows that ought to lie in this block: place → which row."""
        if not self._index:
            for number, place in enumerate(self.places):
                self._index.setdefault(place[0][0], {})[place] = number
        return self._index.get(block, {})

    def numbers_in(self, block: int) -> list[int]:
        """Numbers of the rows that ought to lie in this block."""
        return sorted(self.expected(block).values())

    def texts(self, blocks: Iterable[int]) -> Blocks:
        """The rows that ought to lie in these blocks, as the server tells it: compared before they are taken apart."""
        found: Blocks = {}
        for block in blocks:
            if block not in self._texts:
                self._texts[block] = rows_sql.in_order(self.expected(block))
            if text := self._texts[block]:
                found[block] = text
        return found

    def lie(self, places: Sequence[tuple[Tid, int]]) -> None:
        """All rows lie elsewhere now."""
        self._places, self._kept = list(places), None
        self.refilled = len(places), places[-1][0][0] if places else -1
        self._index.clear()
        self._texts.clear()
        self._ends = None

    def move(self, places: Mapping[int, tuple[Tid, int]]) -> None:
        """Some rows lie elsewhere now."""
        for number, place in places.items():
            old, (tid, _) = self.places[number], place
            if old[0] != tid:
                self._kept = self._ends = None
                self._texts.pop(old[0][0], None)
                self._texts.pop(tid[0], None)
            elif text := self._texts.get(tid[0]):
                self._texts[tid[0]] = rows_sql.written_again(text, place)
            if self._index:
                self._index.get(old[0][0], {}).pop(old, None)
                self._index.setdefault(tid[0], {})[place] = number
            self.places[number] = place
        self.refilled = len(places), max(tid[0] for tid, _ in places.values()) if places else -1

    def go_astray(self, missing: Collection[int]) -> bool:
        """Whether these rows would come to lie behind all others if they were put back.

        A session inserts where it did so last, as long as there is room (hio.c: the target block), as in the last block.
        It forgets that with a VACUUM that finds another number of rows than the one before (vac_update_relstats).
        """
        count, block = self.refilled
        return count == len(missing) and block == self.last_block > self.places[min(missing)][0][0]

    @property
    def state(self) -> TableState:
        """For the planner."""
        return (
            TableState(None) if self.rows is None else TableState(len(self.rows), self.last_block, self.tidy)
        )

    @property
    def ends(self) -> tuple[Tid, Tid]:
        """The first and the last place at which a row lies now."""
        if self._ends is None:
            tids = [tid for tid, _ in self.places] or [(0, 1)]
            self._ends = min(tids), max(tids)
        return self._ends

    @property
    def last_block(self) -> int:
        """The block in which the next row of the application belongs: the last one, or the first of an empty table."""
        return max(0, self.relation.pages - 1) if self.rows is None else self.ends[1][0]

    @property
    def in_place(self) -> bool:
        """Whether rows that are missing go back to the very places that they had."""
        return self.rows is not None and self.ordered and self.last_block < HELD_PAGES

    @property
    def tidy(self) -> bool:
        """Whether no room was left before its rows, as far as is known: that of old ones, after they were written again
        while somebody was in the way of a VACUUM. The next rows would come to lie there."""
        return self.rows is None or len(self.rows) > SMALL or self.ends[0] == (0, 1)

    def rebase(self) -> None:
        """The lease is a fresh copy: every row lies where it lies in the baseline."""
        self.moved.clear()
        self.refilled = (0, -1)
        self._places = self._kept = None
        self._index.clear()
        self._texts.clear()
        self._ends = None


def room(session: Session, relation: Relation, rows: Rows) -> int:
    """Bytes that are free behind the last of these rows."""
    if not len(rows):
        return PAGE
    return max(0, PAGE - int(session.value(rows_sql.used(relation, rows.last_block))))


class BaselineStore:
    """Facts of the baseline clone, read once; rows when they are first wanted.

    It is read through ``connect`` only, a session in a clone that nobody else enters.
    """

    def __init__(self, connect: Callable[[], Session]) -> None:
        self._connect = connect
        self._session: Session | None = None
        try:
            self._read_facts()
        except BaseException:
            # Nobody has this store, who could close it.
            self.close()
            raise
        self._columns: dict[int, Columns] = {}
        self._texts: dict[int, Blocks] = {}
        self._places: dict[str, dict[int, set[tuple[Tid, int]]]] = {}
        self._has_room: dict[int, bool] = {}
        self._large_objects: dict[int, catalogs.LargeObject] | None = None

    def _read_facts(self) -> None:
        self.relations: dict[int, Relation] = relations.relations(self.session)
        self.sequences: dict[int, SequenceState] = relations.sequences(
            self.session, [r for r in self.relations.values() if r.kind == "S"]
        )
        self.indexed: list[int] = catalogs.indexed(self.session)
        self.watchful = relations.watchful(self.session)
        self.unlogged_tables = tuple(r.oid for r in self._unlogged("rm"))
        self.unlogged_sequences = tuple(r.oid for r in self._unlogged("S"))

    @property
    def session(self) -> Session:
        """The session in the baseline; opened again where it was lost."""
        if self._session is None or self._session.closed:
            self._session = self._connect()
        return self._session

    @property
    def opened(self) -> bool:
        """Whether that session is open."""
        return self._session is not None and not self._session.closed

    def _unlogged(self, kinds: str) -> Iterable[Relation]:
        return (r for r in self.relations.values() if r.unlogged and r.kind in kinds)

    def table(self, oid: int) -> TableBase:
        """What a table held; its rows are read now, where it is not too large."""
        relation = self.relations[oid]
        if relation.pages > HELD_PAGES:
            return TableBase(relation, None)
        rows = rows_sql.read(self.session, relation, known=self.columns(relation))
        return TableBase(relation, rows, room(self.session, relation, rows))

    def columns(self, relation: Relation) -> Columns:
        """The columns of a table; asked once."""
        if relation.oid not in self._columns:
            self._columns[relation.oid] = rows_sql.columns_of(self.session, relation)
        return self._columns[relation.oid]

    def texts(self, relation: Relation, blocks: Collection[int]) -> Blocks:
        """Where the rows of these blocks of a table lie; asked once for each block, as long as there are not too many."""
        known = self._texts.setdefault(relation.oid, {})
        if len(known) > MOST_BLOCKS_KNOWN:
            known.clear()
        if missing := [block for block in blocks if block not in known]:
            found = batch.run(self.session, [rows_sql.places_in(relation, missing)])[0]
            known.update(dict.fromkeys(missing, b""))
            known.update(rows_sql.blocks_of(found.rows))
        return {block: text for block in blocks if (text := known[block])}

    def has_room(self, relation: Relation) -> bool:
        """Whether a short row may fit in a page of this table before the last; asked once.

        Taken for granted where it has long values: the rows may take up less than can be told.
        """
        if relation.oid not in self._has_room:
            asked = rows_sql.has_room(relation, range(relation.pages - 1))
            self._has_room[relation.oid] = bool(relation.toast or self.session.value(asked))
        return self._has_room[relation.oid]

    def rows_at(self, relation: Relation, places: Sequence[Tid]) -> Rows:
        """The rows of a table that lie there."""
        return rows_sql.read_at(self.session, relation, self.columns(relation), places)

    @property
    def large_objects(self) -> dict[int, catalogs.LargeObject]:
        """The large objects of the baseline."""
        if self._large_objects is None:
            self._large_objects = catalogs.large_objects(self.session)
        return self._large_objects

    def places(self, catalog: str, blocks: Iterable[int]) -> set[tuple[Tid, int]]:
        """Place and writer of every row in these blocks of a catalog; asked once for each block."""
        known = self._places.setdefault(catalog, {})
        if missing := [block for block in blocks if block not in known]:
            found = catalogs.places(self.session, catalog, missing)
            for block in missing:
                known[block] = set()
            for place in found:
                known.setdefault(place[0][0], set()).add(place)
        return set().union(*(known[block] for block in blocks))

    def close(self) -> None:
        """Leave the baseline; never raises."""
        if self._session is not None:
            self._session.close()
            self._session = None
