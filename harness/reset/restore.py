"""One attempt to put a database back: delete what is not the baseline's, insert what is missing from it.

Where rows are missing from a table that is kept in its order, they go back to the very places that they had, so that
the next test reads, and appends, as in a fresh clone. A place is free only after a VACUUM, and that is no part of a
transaction. Hence two of them::

    BEGIN   lock   look   delete what is too much           COMMIT
                          who still sees it? wait
    VACUUM  the tables that miss rows: their places are free
    BEGIN   lock   insert what is missing, in the order of place   sequences   COMMIT

In between a session that reads sees rows missing, and one that writes is found in the log afterwards: the caller
begins again, and where that happened once, the locks stay, and all is done in one transaction: rows are written again in
their order, and the places of the old ones are freed another time. Where nothing is missing, or a table is too large
for an order to be kept, one transaction does as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial

from harness.errors import ServerRefused
from harness.postgres import activity
from harness.postgres.session import Session
from harness.reset import vacuum
from harness.reset.baseline import BaselineStore, TableBase
from harness.reset.changes import SMALL, UNCHANGED, How, RecloneNeeded, Restore, TableChange
from harness.reset.outcome import Outcome, Place, Terms
from harness.reset.plan import HEAVY_PAGES, ROW_MS
from harness.reset.sql import batch, catalogs, relations
from harness.reset.sql import rows as rows_sql
from harness.reset.sql.batch import Result, Tid, parse_tid
from harness.reset.sql.relations import Relation, SequenceState
from harness.reset.sql.sequences import MOST_SETVALS, sequence_statements, setval

ORDER_ATTEMPTS = 3
"""How often rows are put back until they lie in their order, before a TRUNCATE."""

MISCOUNTED = 10
"""A tenth of a table's rows: as far as its count may be wrong for a moment."""

MOST_LEADERS = 3
"""Rows of a page that are written again with those that are missing, at most."""

Step = tuple[str, Callable[[Result], None]]
"""A statement, and who takes what it gives."""

Chosen = tuple[rows_sql.Rows, int]
"""Rows of a table, and which of them."""

_HERE = "select pg_current_wal_insert_lsn(), pg_current_xact_id()"


def _ignore(result: Result) -> None:
    """Of LOCK, BEGIN and COMMIT there is nothing to be learnt."""


class Attempt:
    """Locks, deletes, inserts, commits.

    A statement that PostgreSQL refuses leaves a transaction failed, and raises; ``done`` tells what was committed
    before.
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
        terms: Terms,
    ) -> None:
        self.session = session
        self.store = store
        self.todo = todo
        self.changes = changes
        self.bases = bases
        self.sequences = sequences
        self.stage = stage
        self.terms = terms
        self.done = Outcome()
        self._xid = 0
        # Table → what is noted with the COMMIT: where its rows lie.
        self._settled: dict[int, Callable[[], None]] = {}
        self._new: dict[int, int] = {}
        self._missing: dict[int, list[int]] = {}

    # --- the first transaction ---------------------------------------------------------------------

    def run(self) -> Outcome:
        """Put everything back and commit, in one round trip where no row has to be looked at first.

        Whoever wrote between the look and the locks is found after the COMMIT: what was put back stays put back,
        and the caller begins again. ``setval`` comes last of all, it is not rolled back with an attempt that fails.

        Raises:
            RecloneNeeded: it turned out not to be possible, or not to be worth it.
            ServerRefused: ``55P03`` for a lock that is held too long, and whatever PostgreSQL says.
        """
        self.stage("before-lock")
        if not (self.todo.tables or self.todo.along or self.todo.large_objects or self.terms.locked):
            return self._sequences()
        steps = self._beginning(self.todo.tables) if not self.terms.locked else [(_HERE, self._here)]
        # Before any DELETE: a lock that is not to be had must not have cost anything.
        steps += self._truncating()
        looks: list[tuple[str, Callable[[Result], list[Step]]]] = []
        for oid, how in self.todo.tables.items():
            base, relation = self.bases[oid], self.bases[oid].relation
            blocks = self.changes.get(oid, UNCHANGED).blocks
            if how is How.TRUNCATE:
                continue
            if how is How.EMPTY:
                steps.append((rows_sql.delete_all(relation), partial(self._deleted, oid)))
            elif how is How.EXTRAS:
                for statement in rows_sql.delete_but(relation, base.kept, blocks):
                    steps.append((statement, partial(self._deleted, oid)))
            elif how is How.REWRITE:
                looks.append((rows_sql.pairs(relation), partial(self._compare_all, oid)))
            elif how is How.BLOCKS:
                compare = self._compare_large if base.rows is None else self._compare_blocks
                looks.append((rows_sql.places_in(relation, blocks), partial(compare, oid)))
            else:
                raise RecloneNeeded(f"the materialised view {relation} was written")
        if looks or self.todo.large_objects:
            seen: list[Result] = []
            self._take([*steps, *((look, seen.append) for look, _ in looks)])
            self.stage("locked")
            steps = [step for (_, act), result in zip(looks, seen, strict=True) for step in act(result)]
            self._worth_it()
            if self.todo.large_objects:
                self._large_objects()
        if self._missing and not self.terms.locked:
            self._take([*steps, ("commit", self._committed)])
            self._refill()
            return self.done
        if self._missing:
            self._take(steps)
            self._write_again()
            steps = []
        if looks or self.todo.large_objects:
            self.stage("before-commit")
        self._take([*steps, *self._ending()])
        return self.done

    def _sequences(self) -> Outcome:
        """Sequences alone, as after a rollback: no row is put back that an old snapshot could lack."""
        setvals = [setval(oid, self.sequences[oid]) for oid in self.todo.sequences]
        if len(setvals) > MOST_SETVALS or any(self.sequences[oid].cache > 1 for oid in self.todo.sequences):
            self._take([*self._beginning(()), *self._ending()])
            return self.done
        # One statement, evaluated from left to right.
        called = "".join(f", {call}" for call in setvals)

        def handle(result: Result) -> None:
            *_, xid = row = result.rows[0]
            self._here(Result(((row[0], xid),), 1))
            self._committed(result)

        steps: list[Step] = [(f"select pg_current_wal_insert_lsn(){called}, pg_current_xact_id()", handle)]
        if not self.terms.quiet:
            steps.append((self._presence(), self._present))
        self._take(steps)
        return self.done

    def _take(self, steps: Sequence[Step]) -> None:
        """Send the statements as one message, and hand out what each gave."""
        if not steps:
            return
        results = batch.run(self.session, [statement for statement, _ in steps])
        for (_, handle), result in zip(steps, results, strict=True):
            handle(result)

    def _beginning(self, tables: Collection[int]) -> list[Step]:
        steps: list[Step] = [("begin", _ignore)]
        if lock := self.lock_statement(tables):
            steps.append((lock, _ignore))
        return [*steps, (_HERE, self._here)]

    def lock_statement(self, tables: Collection[int]) -> str:
        """Keep writers out of every table that is put back, in OID order so that two resets cannot deadlock."""
        if self.terms.lockless or not tables:
            return ""
        names = ", ".join("only " + self.bases[oid].relation.sql for oid in sorted(tables))
        return f"lock table {names} in share row exclusive mode"

    def _here(self, result: Result) -> None:
        position, xid = result.rows[0]
        before, self._xid = self._xid, int(xid or b"0")
        self.done.until = (position or b"").decode()
        if not before:
            self.done.position = self.done.until
        if self._xid != (before + 1 if before else self.terms.next_id):
            self.done.alone = False

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
            (relations.files_of_statement(truncated), self._new_files),
        ]

    def _committing(self) -> list[Step]:
        """COMMIT, and who still sees what was before, may still write into it, or has prepared to."""
        after: list[Step] = [("commit", self._committed)]
        if self.terms.lockless:
            after.append(("select pg_current_wal_insert_lsn()", self._reaches))
        return [*after, (self._presence(), self._present)]

    def _presence(self) -> str:
        return activity.present_statement(self.terms.database, self.terms.ours)

    def _ending(self) -> list[Step]:
        """Sequences, and the last COMMIT."""
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
        return [*steps, *self._committing()]

    def _committed(self, result: Result) -> None:
        self.done.xids.append(self._xid)
        for settle in self._settled.values():
            settle()
        self._settled.clear()
        self.done.files.update(self._new)
        self._new.clear()

    def _reaches(self, result: Result) -> None:
        self.done.until, self.done.alone = (result.rows[0][0] or b"").decode(), False

    def _present(self, result: Result) -> None:
        rows = [(int(r[0] or b"0"), r[1] == b"t", r[2] == b"t", r[3] == b"t") for r in result.rows]
        self.done.present = activity.Present.of(rows)

    def _new_files(self, result: Result) -> None:
        for row in result.rows:
            if len(row) == 2:  # setval says only its value
                self._new[int(row[0] or b"0")] = int(row[1] or b"0")

    def _deleted(self, oid: int, result: Result) -> None:
        self.done.rows += result.touched
        self.done.dead[oid] = self.done.dead.get(oid, 0) + result.touched

    # --- what differs ------------------------------------------------------------------------------

    def _compare_all(self, oid: int, result: Result) -> list[Step]:
        """Every row of a table that was written anew, or writes no log."""
        base = self.bases[oid]
        assert base.rows is not None
        live = result.pairs()
        if not self.changes[oid].rewritten and base.tidy:
            numbers = {place: n for n, place in enumerate(base.places)}
            return self._compare_held(oid, live, numbers)
        # CLUSTER permutes rows: the same places and writers, of a table that is written anew, prove nothing.
        self._missing[oid] = list(range(len(base.rows)))
        return [(rows_sql.delete_all(base.relation), partial(self._deleted, oid))] if live else []

    def _compare_blocks(self, oid: int, result: Result) -> list[Step]:
        """The blocks that were written: only where they differ rows are taken apart."""
        base, blocks = self.bases[oid], self.changes[oid].blocks
        here, there = rows_sql.blocks_of(result.rows), base.texts(blocks)
        live, wanted = rows_sql.differing(here, there)
        if not (live or wanted):
            return []
        return self._compare_held(oid, live, {place: base.expected(place[0][0])[place] for place in wanted})

    def _compare_held(self, oid: int, live: set[Place], expected: Mapping[Place, int]) -> list[Step]:
        """Rows of a table whose rows are all known.

        Args:
            live, expected: those that are there and those that ought to be; what both hold may be left out.
        """
        base = self.bases[oid]
        steps = self._deleting(oid, [tid for tid, _ in live - expected.keys()])
        gone = sorted(expected[place] for place in expected.keys() - live)
        if gone and base.in_place:
            missing = {*gone, *_first_of_pages(base, gone)}
            if base.go_astray(missing):
                block = base.places[min(missing)][0][0]
                missing.update([n for n in base.numbers_in(block) if n not in missing][:1])
            self._missing[oid] = sorted(missing)
            more = sorted(missing.difference(gone))
            steps += self._deleting(oid, [base.places[number][0] for number in more])
        elif gone:
            assert base.rows is not None
            steps.append(self._inserting(oid, base, [(base.rows, number) for number in gone], gone))
        return steps

    def _compare_large(self, oid: int, result: Result) -> list[Step]:
        """The blocks of a table that were written, with the baseline's: only where they differ rows are taken apart."""
        base, blocks = self.bases[oid], self.changes[oid].blocks
        here = rows_sql.blocks_of(result.rows)
        there = self.store.texts(base.relation, blocks)
        live, wanted = rows_sql.differing(here, there)
        back = {place: home for home, place in base.moved.items() if place[0][0] in blocks}
        steps = self._deleting(oid, [tid for tid, _ in live - wanted - back.keys()])
        homes = [home for home, _ in wanted - live if home not in base.moved]
        homes += [home for place, home in back.items() if place not in live]
        if homes:
            homes.sort()
            rows = self.store.rows_at(base.relation, homes)
            if len(rows) != len(homes):
                raise RecloneNeeded(f"the baseline of {base.relation} is not what it was")
            steps.append(self._inserting(oid, base, [(rows, n) for n in range(len(rows))], homes))
        return steps

    def _deleting(self, oid: int, places: Sequence[Tid]) -> list[Step]:
        if not places:
            return []
        return [(rows_sql.delete_at(self.bases[oid].relation, places), partial(self._deleted, oid))]

    def _inserting(
        self, oid: int, base: TableBase, chosen: Sequence[Chosen], which: Sequence[int] | Sequence[Tid]
    ) -> Step:
        """Rows of a table too large for an order to be kept: they go where there is room."""

        def filled(result: Result) -> None:
            tids = self._filled(oid, result, chosen)
            self.done.rows += len(tids)
            placed = [(tid, self._xid % 2**32) for tid in tids]
            self._settled[oid] = partial(self._lie_elsewhere, oid, which, placed)

        return self._filling(base.relation, chosen), filled

    def _lie_elsewhere(self, oid: int, which: Sequence[int] | Sequence[Tid], placed: Sequence[Place]) -> None:
        base = self.bases[oid]
        if base.rows is not None:
            numbers = [number for number in which if isinstance(number, int)]
            self.done.replaced[oid] = dict(zip(numbers, placed, strict=True))
            old = [base.places[number][0][0] for number in numbers]
        else:
            homes = [home for home in which if not isinstance(home, int)]
            old = [base.moved[home][0][0] if home in base.moved else home[0] for home in homes]
            self.done.moved[oid] = dict(zip(homes, placed, strict=True))
        self._displace(oid, old, placed)

    def _displace(self, oid: int, old: Collection[int], placed: Sequence[Place]) -> None:
        self.done.displaced.setdefault(oid, set()).update(old, (tid[0] for tid, _ in placed))

    def _worth_it(self) -> None:
        """Raise RecloneNeeded where what is left to be done would last too long."""
        left = ROW_MS / 1000 * sum(map(len, self._missing.values()))
        if time.monotonic() + left > self.terms.deadline:
            raise RecloneNeeded("putting the rows back took longer than a clone is worth")

    # --- the second transaction --------------------------------------------------------------------

    def _refill(self) -> None:
        """Insert what is missing, in the order of place; what did not come to lie in its order is written again."""
        missing = self._missing
        for tries in range(ORDER_ATTEMPTS):
            if tries or any(self._needs_vacuum(oid) for oid in missing):
                self._make_room(missing, waiting=tries > 0)
            self._worth_it()
            self.stage("before-commit")
            # Looked at after the COMMIT: as a rule they lie right, and the question would be a round trip more.
            self._take([*self._beginning(missing), *self._fillings(missing), *self._ending()])
            wrong = [oid for oid, numbers in missing.items() if not self._lies_right(oid, numbers, tries)]
            if not wrong:
                self._count_again(missing)
                return
            missing = {oid: list(range(len(self.bases[oid].places))) for oid in wrong}
            # Whatever becomes of it now: they lie in a wrong order, or not at all.
            self.done.anew.update(wrong)
            for oid in wrong:
                if self.bases[oid].relation.toast > HEAVY_PAGES:
                    raise RecloneNeeded(
                        f"all long values of {self.bases[oid].relation} would be written anew"
                    )
            if tries < ORDER_ATTEMPTS - 1:
                clear = [
                    (rows_sql.delete_all(self.bases[o].relation), partial(self._deleted, o)) for o in wrong
                ]
                self._take([*self._beginning(wrong), *clear, *self._committing()])
        self._take(self._beginning(missing))
        for oid, numbers in missing.items():
            self._truncate(oid, numbers)
        self._take(self._ending())

    def _write_again(self) -> None:
        """In the transaction that is open: all rows of the tables that miss some, until they lie in their order."""
        for oid, missing in self._missing.items():
            base = self.bases[oid]
            numbers = list(range(len(base.places)))
            if len(numbers) > SMALL:
                assert base.rows is not None
                self._take([self._inserting(oid, base, [(base.rows, n) for n in missing], missing)])
                continue
            if base.relation.toast > HEAVY_PAGES:
                raise RecloneNeeded(f"all long values of {base.relation} would be written anew")
            clear = (rows_sql.delete_all(base.relation), partial(self._deleted, oid))
            for _ in range(ORDER_ATTEMPTS):
                self._take([clear, *self._fillings({oid: numbers})])
                if self._lies_right(oid, numbers, ORDER_ATTEMPTS - 1):
                    break
            else:
                self._truncate(oid, numbers)

    def _needs_vacuum(self, oid: int) -> bool:
        """Whether old rows may lie where the missing ones belong: in a file that is empty none do."""
        return not (self.changes[oid].rewritten and not self.done.dead.get(oid))

    def _make_room(self, missing: Mapping[int, Sequence[int]], *, waiting: bool) -> None:
        """Free the places of deleted rows.

        Args:
            waiting: until nobody sees them any more: a VACUUM would leave them where they are.
        """
        if waiting:
            self.terms.clear(self._xid)
        self.stage("before-vacuum")
        names = [self.bases[oid].relation.sql for oid in sorted(missing)]
        grown = any(
            len(numbers) == len(self.bases[oid].places)
            or max(self.changes[oid].blocks, default=0) > self.bases[oid].last_block
            for oid, numbers in missing.items()
        )
        if grown:
            self._take([(self._presence(), self._present)])
        # Whoever is idle in a transaction may hold a lock, and the truncation waits for seconds.
        there = self.done.present
        vacuum.free_places(self.session, names, truncate=grown and not (there.idle or there.readers))
        self.done.vacuumed.update(missing)
        for oid in missing:
            self.done.dead.pop(oid, None)

    def _count_again(self, missing: Mapping[int, Sequence[int]]) -> None:
        """VACUUM has counted rows, and free bytes of pages, while some rows were missing.

        Where they are many, the planner would go by it. And the next test's rows would go to other pages than in a
        fresh clone, where any has room: the free space map learns that a page is full when a row does not fit there
        (hio.c), that is, of all pages that were filled again but the last of them.
        """
        wrong = [
            base.relation.sql
            for base, numbers in ((self.bases[oid], numbers) for oid, numbers in missing.items())
            if base.relation.oid in self.done.vacuumed
            and (MISCOUNTED * len(numbers) > len(base.places) or self._beckons(base, numbers))
        ]
        if wrong:
            # All is where it belongs already.
            with suppress(ServerRefused):
                vacuum.free_places(self.session, wrong, truncate=False)

    def _beckons(self, base: TableBase, numbers: Sequence[int]) -> bool:
        """Whether the last page that was filled again is not the table's last, and rows may go to any of those before."""
        return base.places[numbers[-1]][0][0] < base.last_block and (
            base.marked or self.store.has_room(base.relation)
        )

    def _fillings(self, missing: Mapping[int, Sequence[int]]) -> list[Step]:
        steps: list[Step] = []
        self._tids: dict[int, list[Tid]] = {}
        for oid, numbers in missing.items():
            rows = self.bases[oid].rows
            assert rows is not None
            chosen = [(rows, number) for number in numbers]

            def filled(
                result: Result,
                oid: int = oid,
                chosen: Sequence[Chosen] = chosen,
                numbers: Sequence[int] = numbers,
            ) -> None:
                self._tids[oid] = self._filled(oid, result, chosen)
                self._placed(oid, numbers, self._tids[oid])

            steps.append((self._filling(self.bases[oid].relation, chosen), filled))
        return steps

    def _lies_right(self, oid: int, numbers: Sequence[int], tries: int) -> bool:
        """Whether the rows came to lie where they belong. Where all of them were written again, no room may be left
        before them; but the last time it is enough that they lie in their order."""
        tids, places = self._tids[oid], self.bases[oid].places
        if len(numbers) == len(places):
            return tids == sorted(tids) and (tids[0] == (0, 1) or tries == ORDER_ATTEMPTS - 1)
        return tids == [places[number][0] for number in numbers]

    def _placed(self, oid: int, numbers: Sequence[int], tids: Sequence[Tid]) -> None:
        """To be noted with the COMMIT."""
        self.done.rows += len(tids)
        placed = [(tid, self._xid % 2**32) for tid in tids]
        whole = len(numbers) == len(self.bases[oid].places)
        note = (
            partial(self._lie_anew, oid, placed)
            if whole
            else partial(self._lie_elsewhere, oid, numbers, placed)
        )
        self._settled[oid] = note

    def _lie_anew(self, oid: int, placed: list[Place]) -> None:
        self._displace(oid, [tid[0] for tid, _ in self.bases[oid].places], placed)
        self.done.anew.discard(oid)
        self.done.replaced.pop(oid, None)
        self.done.places[oid] = placed

    def _truncate(self, oid: int, numbers: Sequence[int]) -> None:
        """A new file: the last way to have the rows in their order."""
        base = self.bases[oid]
        name = base.relation.sql
        try:
            self._take(
                [
                    (f"truncate only {name}", _ignore),
                    *self._fillings({oid: numbers}),
                    (relations.files_of_statement([oid]), self._new_files),
                ]
            )
        except ServerRefused as error:
            raise RecloneNeeded(
                f"the rows of {base.relation} cannot be put back in their order ({error})"
            ) from error
        if not self._lies_right(oid, numbers, 0):
            if not base.marked:
                raise RecloneNeeded(f"the rows of {base.relation} do not keep their order")
            # Wide rows: a later one fits into an earlier page. In a fresh clone it would too, and the mark were lost.
            base.ordered = False

    def _filling(self, relation: Relation, chosen: Sequence[Chosen]) -> str:
        values = [rows.value(index) for rows, index in chosen]
        return rows_sql.insert(relation, chosen[0][0].columns, values)

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
        return [parse_tid(row[0] or b"") for row in filled.rows]

    # --- large objects -----------------------------------------------------------------------------

    def _large_objects(self) -> None:
        before = self.store.large_objects
        now = catalogs.large_objects(self.session)
        statements = [f"select lo_unlink({oid})" for oid in now if oid not in before]
        for oid, wanted in before.items():
            found = now.get(oid)
            if found == wanted:
                continue
            if found is None or found.metadata != wanted.metadata:
                raise RecloneNeeded(
                    f"large object {oid} of the template was removed, or its rights were changed"
                )
            data = catalogs.large_object_data(self.store.session, oid).hex()
            # 131072 is INV_WRITE; a write past the end would leave what a longer test value had there.
            statements.append(f"select lo_truncate(lo_open({oid}, 131072), 0)")
            statements.append(f"select lo_put({oid}, 0, '\\x{data}'::bytea)")
        if statements:
            batch.run(self.session, statements)


def _first_of_pages(base: TableBase, gone: Sequence[int]) -> set[int]:
    """The rows with which each page that misses some begins: written again with them, they lead the others there.

    The first row of a page fitted into no page before it, when it was written, and so it will not now; those after it
    follow into the same page (hio.c: the target block). By itself a row may go where an earlier page has a little room,
    or not find its own, since the free space map counts in 32 bytes (freespace.c).
    """
    found: set[int] = set()
    missing = set(gone)
    for block in {base.places[number][0][0] for number in gone}:
        first, *others = base.numbers_in(block)
        found.add(first)
        # Three at least: what is lost by counting in 32 bytes, twice, is less than the two smallest rows.
        lead = len(missing.intersection(others) | {first})
        for number in others:
            if lead >= MOST_LEADERS:
                break
            if number not in missing:
                found.add(number)
                lead += 1
    return found


def batched(items: Sequence[str], size: int) -> list[Sequence[str]]:
    """Some at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]
