"""One attempt to put a database back, in one transaction of the restorer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from harness.catalog import restore_batch, restore_catalogs, restore_facts, restore_rows, restore_sessions
from harness.catalog.restore_batch import Result
from harness.catalog.restore_facts import Relation, SequenceState, block_ranges
from harness.catalog.restore_rows import Tid
from harness.catalog.session import Session
from harness.errors import ServerRefused
from harness.reset.baseline import BaselineStore, TableBase
from harness.reset.model import How, RecloneNeeded, Restore, TableChange

ORDER_ATTEMPTS = 3
"""How often the rows of a table are written again until they lie in their order, before a TRUNCATE."""

MOST_SETVALS = 200
"""How many sequences one statement puts back; a row of PostgreSQL's has at most 1,664 columns."""

Step = tuple[str, Callable[[Result], None]]
"""A statement, and who takes what it gives."""

Chosen = tuple[restore_rows.Rows, int]
"""Rows of a table, and which of them."""

_HERE = "select pg_current_wal_insert_lsn(), pg_current_xact_id()"


@dataclass
class Outcome:
    """What an attempt has done.

    Attributes:
        position: the insert position once the locks were held.
        xid: our transaction, as a 64-bit id.
        rows: rows deleted or inserted.
        dead: table OID → rows that a VACUUM has to remove some day.
        places: table OID → where its rows will lie after the COMMIT.
        replaced: table OID → number of a row → where it will lie, of rows that were put back one by one.
        moved: table OID → rows of a large table that lie elsewhere after the COMMIT.
        files: OID → number of its new file, where a statement of ours made one.
        written: table OID → blocks into which we inserted.
        inserted: table OID → rows that we inserted, those of attempts at an order too.
        present: who was in a transaction right after the COMMIT.
        disturbed: somebody wrote between the look and the locks; he may have written elsewhere too.
    """

    position: str = ""
    xid: int = 0
    rows: int = 0
    dead: dict[int, int] = field(default_factory=dict)
    places: dict[int, list[tuple[Tid, int]]] = field(default_factory=dict)
    replaced: dict[int, dict[int, tuple[Tid, int]]] = field(default_factory=dict)
    moved: dict[int, dict[Tid, tuple[Tid, int]]] = field(default_factory=dict)
    files: dict[int, int] = field(default_factory=dict)
    written: dict[int, set[int]] = field(default_factory=dict)
    inserted: dict[int, int] = field(default_factory=dict)
    present: restore_sessions.Present = field(default_factory=restore_sessions.Present)
    disturbed: bool = False


def _ignore(result: Result) -> None:
    """Of LOCK, BEGIN and COMMIT there is nothing to be learnt."""


class Attempt:
    """Locks, deletes, inserts, commits.

    A statement that PostgreSQL refuses leaves the transaction failed, and raises.
    """

    def __init__(
        self,
        session: Session,
        store: BaselineStore,
        todo: Restore,
        changes: Mapping[int, TableChange],
        bases: Mapping[int, TableBase],
        sequences: Mapping[int, SequenceState],
        stage: Callable[[str], None],
    ) -> None:
        self.session = session
        self.store = store
        self.todo = todo
        self.changes = changes
        self.bases = bases
        self.sequences = sequences
        self.stage = stage
        self.done = Outcome()

    def run(self, *, locked: bool, database: int, ours: Sequence[int]) -> Outcome:
        """Put everything back and commit, in one round trip where no row has to be looked at first.

        Whoever wrote between the look and the locks is found after the COMMIT: what was put back stays put back,
        and the caller begins again. ``setval`` comes last of all, it is not rolled back with an attempt that fails.

        Args:
            locked: the transaction is open already, and holds the locks.
            database, ours: to ask who still sees what was before, or may write into it.

        Raises:
            RecloneNeeded: it turned out not to be possible.
            ServerRefused: ``55P03`` for a lock that is held too long, and whatever PostgreSQL says.
        """
        self.stage("before-lock")
        steps: list[Step] = [] if locked else [("begin", _ignore)]
        if not locked and (lock := self.lock_statement()):
            steps.append((lock, _ignore))
        steps.append((_HERE, self._here))
        # Before any DELETE: a lock that is not to be had must not have cost anything.
        steps += self._truncating()
        looks: list[tuple[str, Callable[[Result], None]]] = []
        for oid, how in self.todo.tables.items():
            relation = self.bases[oid].relation
            if how is How.TRUNCATE:
                continue
            if how is How.EMPTY:
                steps.append((restore_rows.delete_all(relation), partial(self._deleted, oid)))
            elif how is How.EXTRAS:
                kept, blocks = self.bases[oid].kept, self.changes[oid].blocks
                for statement in restore_rows.delete_but(relation, kept, blocks):
                    steps.append((statement, partial(self._deleted, oid)))
            elif how is How.REWRITE:
                looks.append((f"select ctid, xmin from only {relation.sql}", partial(self._rewrite, oid)))
            elif how is How.BLOCKS:
                ranges = block_ranges(self.changes[oid].blocks)
                source = f"select ctid, xmin from only {relation.sql}"
                look = " union all ".join(f"({source} where {where})" for where in ranges)
                looks.append((look or f"{source} where false", partial(self._blocks, oid)))
            else:
                raise RecloneNeeded(f"the materialised view {relation} was written")
        if not looks and not self.todo.large_objects:
            self._take([*steps, *self._ending(database, ours)])
            return self.done
        seen: list[Result] = []
        self._take([*steps, *((look, seen.append) for look, _ in looks)])
        self.stage("locked")
        for (_, act), result in zip(looks, seen, strict=True):
            act(result)
        if self.todo.large_objects:
            self._large_objects()
        self.stage("before-commit")
        self._take(self._ending(database, ours))
        return self.done

    def _take(self, steps: Sequence[Step]) -> None:
        """Send the statements as one message, and hand out what each gave."""
        results = restore_batch.run(self.session, [statement for statement, _ in steps])
        for (_, handle), result in zip(steps, results, strict=True):
            handle(result)

    def _here(self, result: Result) -> None:
        position, xid = result.rows[0]
        self.done.position, self.done.xid = (position or b"").decode(), int(xid or b"0")

    def _truncating(self) -> list[Step]:
        truncated = sorted(
            {oid for oid, how in self.todo.tables.items() if how is How.TRUNCATE} | self.todo.along
        )
        if not truncated:
            return []
        self.done.rows += sum(self.changes[oid].inserts for oid in truncated if oid in self.changes)
        names = ", ".join("only " + self.store.relations[oid].sql for oid in truncated)
        return [
            # Not waiting: a reader that is in the way of a TRUNCATE is in nobody's way after it.
            (f"lock table {names} in access exclusive mode nowait", _ignore),
            (f"truncate {names}", _ignore),
            (restore_facts.files_of_statement(truncated), self._new_files),
        ]

    def _ending(self, database: int, ours: Sequence[int]) -> list[Step]:
        """Sequences, COMMIT, and who still sees what was before, may still write into it, or has prepared to."""
        steps: list[Step] = []
        simple: list[str] = []
        for oid in self.todo.sequences:
            state = self.sequences[oid]
            if state.cache == 1:
                simple.append(setval(oid, state))
            else:
                for statement in sequence_statements(self.store.relations[oid], state):
                    steps.append((statement, self._new_files))
        # After those that need a lock: where it is not to be had, no setval must have happened.
        steps += [(f"select {', '.join(some)}", _ignore) for some in batched(simple, MOST_SETVALS)]
        return [
            *steps,
            ("commit", _ignore),
            (restore_sessions.present_statement(database, ours), self._present),
        ]

    def _present(self, result: Result) -> None:
        rows = [(int(r[0] or b"0"), r[1] == b"t", r[2] == b"t", r[3] == b"t") for r in result.rows]
        self.done.present = restore_sessions.Present.of(rows)

    def lock_statement(self) -> str:
        """Keep writers out of every table that is put back, in OID order so that two resets cannot deadlock."""
        tables = [self.bases[oid].relation.sql for oid in sorted(self.todo.tables)]
        if not tables:
            return ""
        return f"lock table {', '.join('only ' + table for table in tables)} in share row exclusive mode"

    def _new_files(self, result: Result) -> None:
        for row in result.rows:
            if len(row) == 2:  # setval says only its value
                self.done.files[int(row[0] or b"0")] = int(row[1] or b"0")

    def _deleted(self, oid: int, result: Result) -> None:
        self.done.rows += result.touched
        self.done.dead[oid] = self.done.dead.get(oid, 0) + result.touched

    def _rewrite(self, oid: int, result: Result) -> None:
        """Delete what is not the baseline's; where a row of the baseline is gone, write all of them again."""
        base = self.bases[oid]
        assert base.rows is not None
        # CLUSTER permutes rows: the same places and writers, of a table that is written anew, prove nothing.
        live = set() if self.changes[oid].rewritten else result.pairs()
        expected = set(base.places)
        extras = [tid for tid, _ in live - expected]
        if not expected - live:
            self._delete(oid, extras)
            return
        chosen = [(base.rows, index) for index in range(len(base.rows))]
        clear, fill = restore_rows.delete_all(base.relation), self._filling(base.relation, chosen)
        for _ in range(ORDER_ATTEMPTS):
            cleared, filled = restore_batch.run(self.session, [clear, fill])
            self._deleted(oid, cleared)
            self.done.rows += filled.touched
            if self._in_order(oid, filled, chosen):
                return
        self._truncate(oid, base, fill, chosen)

    def _in_order(self, oid: int, filled: Result, chosen: Sequence[Chosen]) -> bool:
        tids = self._filled(oid, filled, chosen)
        if tids != sorted(tids):
            return False
        self.done.places[oid] = [(tid, self.done.xid % 2**32) for tid in tids]
        self.done.written.setdefault(oid, set()).update(block for block, _ in tids)
        return True

    def _truncate(self, oid: int, base: TableBase, fill: str, chosen: Sequence[Chosen]) -> None:
        """A new file: the last way to have the rows in their order."""
        name = base.relation.sql
        try:
            results = restore_batch.run(
                self.session,
                [f"truncate only {name}", fill, restore_facts.files_of_statement([oid])],
            )
        except ServerRefused as error:
            raise RecloneNeeded(
                f"the rows of {base.relation} cannot be put back in their order ({error})"
            ) from error
        if not self._in_order(oid, results[1], chosen):
            raise RecloneNeeded(f"the rows of {base.relation} do not keep their order")
        self._new_files(results[2])

    def _blocks(self, oid: int, result: Result) -> None:
        """Put back the rows of a large table that differ in the blocks that were written."""
        base = self.bases[oid]
        blocks = self.changes[oid].blocks
        # Many runs are asked for as one range, with blocks between them that nobody wrote.
        live = {place for place in result.pairs() if place[0][0] in blocks}
        if base.rows is not None:
            self._held_blocks(oid, base, blocks, live)
            return
        rows = self.store.blocks(base.relation, blocks)
        here = {
            place: index
            for index, place in enumerate(rows.places)
            if place[0][0] in blocks and place[0] not in base.moved
        }
        back = {place: home for home, place in base.moved.items() if place[0][0] in blocks}
        expected = {*here, *back}
        self._delete(oid, [tid for tid, _ in live - expected])
        gone = sorted(expected - live)
        if not gone:
            return
        homes = [rows.places[here[place]][0] if place in here else back[place] for place in gone]
        away = [home for home in homes if home[0] not in blocks]
        others = self.store.blocks(base.relation, {home[0] for home in away}) if away else rows
        sources = {place[0]: (others, index) for index, place in enumerate(others.places)}
        sources.update({place[0]: (rows, index) for index, place in enumerate(rows.places)})
        tids = self._insert(oid, base, [sources[home] for home in homes])
        self.done.moved[oid] = {
            home: (tid, self.done.xid % 2**32) for home, tid in zip(homes, tids, strict=True)
        }

    def _held_blocks(
        self, oid: int, base: TableBase, blocks: frozenset[int], live: set[tuple[Tid, int]]
    ) -> None:
        assert base.rows is not None
        expected = base.expected(blocks)
        self._delete(oid, [tid for tid, _ in live - expected.keys()])
        gone = sorted(expected[place] for place in expected.keys() - live)
        if not gone:
            return
        tids = self._insert(oid, base, [(base.rows, index) for index in gone])
        xid = self.done.xid % 2**32
        self.done.replaced[oid] = {index: (tid, xid) for index, tid in zip(gone, tids, strict=True)}

    def _delete(self, oid: int, tids: Sequence[Tid]) -> None:
        if tids:
            statement = restore_rows.delete_at(self.bases[oid].relation, tids)
            self._deleted(oid, restore_batch.run(self.session, [statement])[0])

    def _insert(self, oid: int, base: TableBase, chosen: Sequence[Chosen]) -> list[Tid]:
        filled = restore_batch.run(self.session, [self._filling(base.relation, chosen)])[0]
        tids = self._filled(oid, filled, chosen)
        self.done.rows += len(tids)
        self.done.written.setdefault(oid, set()).update(block for block, _ in tids)
        return tids

    def _filling(self, relation: Relation, chosen: Sequence[Chosen]) -> str:
        values = [rows.value(index) for rows, index in chosen]
        return restore_rows.insert(relation, chosen[0][0].columns, values)

    def _filled(self, oid: int, filled: Result, chosen: Sequence[Chosen]) -> list[Tid]:
        """Where the rows lie now; what PostgreSQL computed for them must be what it was."""
        relation = self.bases[oid].relation
        self.done.inserted[oid] = self.done.inserted.get(oid, 0) + len(filled.rows)
        if len(filled.rows) != len(chosen):
            raise RecloneNeeded(
                f"only {len(filled.rows)} of {len(chosen)} rows of {relation} could be put back"
            )
        if len(filled.rows[0]) > 1 and any(
            found[1:] != rows.generated(index)
            for found, (rows, index) in zip(filled.rows, chosen, strict=True)
        ):
            raise RecloneNeeded(
                f"a generated column of {relation} has another value when it is computed again"
            )
        return [restore_rows.parse_tid(row[0] or b"") for row in filled.rows]

    def _large_objects(self) -> None:
        before = self.store.large_objects
        now = restore_catalogs.large_objects(self.session)
        statements = [f"select lo_unlink({oid})" for oid in now if oid not in before]
        for oid, wanted in before.items():
            found = now.get(oid)
            if found == wanted:
                continue
            if found is None or found.metadata != wanted.metadata:
                raise RecloneNeeded(
                    f"large object {oid} of the template was removed, or its rights were changed"
                )
            data = restore_catalogs.large_object_data(self.store.session, oid).hex()
            # 131072 is INV_WRITE; a write past the end would leave what a longer test value had there.
            statements.append(f"select lo_truncate(lo_open({oid}, 131072), 0)")
            statements.append(f"select lo_put({oid}, 0, '\\x{data}'::bytea)")
        if statements:
            restore_batch.run(self.session, statements)


def setval(oid: int, state: SequenceState) -> str:
    """The call that puts a sequence back."""
    return f"setval('{oid}'::regclass, {state.last_value}, {str(state.is_called).lower()})"


def sequence_statements(relation: Relation, state: SequenceState) -> list[str]:
    """Put a sequence back whose values sessions keep: only a new file makes them forget."""
    return [
        f"alter sequence {relation.sql} restart with {state.last_value}",
        f"select {setval(relation.oid, state)}",
        f"select {relation.oid}, pg_relation_filenode({relation.oid})",
    ]


def batched(items: Sequence[str], size: int) -> list[Sequence[str]]:
    """Some at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]
