"""What the next test sees: after each reset the same statements give the same rows, in the same order, as in a fresh clone.

Nothing is ordered here, neither what the statements pick (``LIMIT`` without ``ORDER BY``) nor what is read between them. Left
out is what differs between any two runs, or by what a kept session keeps on purpose: temporary tables, names of cursors and
prepared transactions, OIDs of large objects, ``VACUUM`` (which rows it may remove depends on other sessions), and whole
transactions that are left open. Tables of more than 128 pages are read as sets: their rows are put back, not their places.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import psycopg
import pytest
from diff_further import ENOUGH, FURTHER, SEED, TIMEOUT, Step, deterministic, enlarge, fail, schemas, shrunk
from diff_schemas import Schema, Table
from diff_schemas import generate as generate_schema
from diff_workloads import CONNECTIONS, DDL, Maker, Operation, some_of
from diff_workloads import generate as generate_workload
from fix_reset_servers import Server
from fix_rewind import engine_of
from test_differential import KEPT, Runner

from harness.errors import ServerLost, ServerRefused
from harness.postgres.session import Session, ident
from harness.reset.changes import RecloneNeeded

NEXT = [
    "insert", "insert many", "update", "delete", "transaction", "rolled back", "subtransactions", "copy", "truncate",
    "upsert", "cycle", "sequence", "setval", "read", "toast", "cascade", "merge", "exception block", "reordered",
    "truncate in a transaction", "moved rows", "through a view", "no columns", "restarted sequence", "kept statement",
    "many rows", "listen", "lock rows", "serializable",
]  # fmt: skip
ONE_PLAN = "set enable_hashjoin = off; set enable_mergejoin = off; set enable_hashagg = off"
"""Statistics are not put back: another plan may write the same rows in another order, of which places are no cause."""

PAGES = 128
LARGE = ("wide", "large")


class NextView(Runner):
    """A runner that looks at what the test after the next reset sees."""

    def __init__(self, server: Server, schema: Schema) -> None:
        super().__init__(server, enlarge(deterministic(schema), weight=2))
        self.counts: Counter[str] = Counter()
        self.story: list[Step] = []
        parts = []
        for namespace, name, size in self.picture.tables:
            order = " order by t::text" if size >= PAGES * 8192 else ""
            parts.append(
                f"select '{name}', count(*)::int, md5(string_agg(t::text, '|'{order})) from only {ident(namespace, name)} t"
            )
        self.reads = " union all ".join(f"({part})" for part in parts)

    def play(self, steps: Sequence[Step], *, kept: bool) -> list[str]:
        """Tests, each with its reset, and the next test here and in a fresh clone; what differs."""
        for step in [*steps, Step("reset")]:
            if step.what == "test" and step.operation is not None:
                self.perform(step.operation)
            elif step.what == "reset":
                try:
                    self.bench.engine.reset()
                    self.strategies["restore"] += 1
                except RecloneNeeded as error:
                    self.strategies["clone"] += 1
                    self.reasons[error.reason[:80]] += 1
                    self.bench.reclone()
        here = self.session(0) if kept else self._login(self.bench.name)
        there = self._login(self.bench.clone_fresh())
        try:
            return self._compared(steps, here, there)
        except ServerLost:
            # The kept session was ended by the reset, which says so: the application logs in again.
            if not here.closed:
                raise
            kept, here = False, self._login(self.bench.name)
            return self._compared(steps, here, there)
        finally:
            there.close()
            if not kept:
                here.close()

    def _login(self, database: str) -> Session:
        session = Session.connect(
            self.server.dsn(database, "app"), application_name="app", settings={"lock_timeout": "20ms"}
        )
        for statement in KEPT:
            session.execute(statement)
        return session

    def _compared(self, steps: Sequence[Step], here: Session, there: Session) -> list[str]:
        for session in (here, there):
            session.script(ONE_PLAN)
        for step in [Step("next", Operation("before", 0, ())), *(s for s in steps if s.what == "next")]:
            operation = step.operation
            assert operation is not None
            if (one := outcome(here, operation)) != (two := outcome(there, operation)):
                return [f"{operation} gives", f"{str(one)[:300]} instead of", f"{str(two)[:300]}"]
            seen, wanted = ({n: rest for n, *rest in s.rows(self.reads)} for s in (here, there))
            if differing := [name for name in wanted if seen[name] != wanted[name]]:
                return [f"after {operation}", *(f"{n}: {seen[n]} instead of {wanted[n]}" for n in differing)]
        return []

    def fails(self, steps: list[Step], *, kept: bool) -> bool:
        """Whether it does from a clone, without what was before."""
        self.bench.reclone()
        return bool(self.play(steps, kept=kept))


def outcome(session: Session, operation: Operation) -> list[object]:
    """What each statement gives: rows in their order, or how many it touched, or why it was refused."""
    found: list[object] = []
    try:
        if operation.copy is not None:
            with session.connection.cursor() as cursor:
                with cursor.copy(operation.copy[0]) as copy:
                    copy.write(operation.copy[1])
                found.append(cursor.rowcount)
        for statement in operation.statements:
            cursor = session.connection.execute(statement)
            # As text: a NaN is not equal to itself.
            found.append(str(cursor.fetchall()) if cursor.description else cursor.rowcount)
    except psycopg.Error as error:
        if session.closed:
            raise ServerLost(str(error)) from error
        found.append(error.sqlstate)
        with suppress(ServerRefused):
            session.execute("rollback")
    return found


def story(seed: int, schema: Schema) -> tuple[list[Step], bool]:
    """Tests and the next one; and whether the application's session stays."""
    rng = random.Random(seed)
    whole = schema
    # Which rows of a table an unordered LIMIT takes is certain only where their order comes back.
    schema = replace(schema, tables=[t for t in schema.tables if t.name not in LARGE])
    maker = Maker(rng, schema)
    steps: list[Step] = []
    if rng.random() < 0.5:
        steps += [Step("test", _unanalyzed(o)) for o in generate_workload(seed, whole) if o.kind not in DDL]
        steps += [Step("next", o) for o in some_of(NEXT, rng, maker, rng.randint(1, 4), 0)]
    else:
        # Few changes, more than once, and the next ones in the same table: there it shows which space is taken first.
        table = rng.choice([t for t in schema.tables if not t.no_delete])
        for _ in range(rng.randint(1, 4)):
            steps += [
                Step("test", _here(rng, maker, table, rng.randrange(CONNECTIONS)))
                for _ in range(rng.randint(1, 2))
            ]
            steps.append(Step("reset"))
        steps += [Step("next", _here(rng, maker, table, 0)) for _ in range(rng.randint(1, 3))]
    return steps, rng.random() < 0.5


def _unanalyzed(operation: Operation) -> Operation:
    """Without ANALYZE: statistics are not put back, and another plan may take other rows first."""
    return replace(
        operation, statements=tuple(s.replace("vacuum analyze", "vacuum") for s in operation.statements)
    )


def _here(rng: random.Random, maker: Maker, table: Table, connection: int) -> Operation:
    """One change of this table."""
    name = table.written
    statement = rng.choice([
        maker.insert(table, 1), maker.insert(table, 40), maker.update(table), maker.update(table), maker.delete(table),
        f"insert into {table.name} ({name}) select {name} from {table.name} limit {rng.randint(1, 300)}",
        f"update {table.name} set {name} = {name} where {table.key} in (select {table.key} from {table.name} limit 1)",
    ])  # fmt: skip
    return Operation(
        "here", connection, rng.choice([(statement,), (statement,), ("begin", statement, "rollback")])
    )


def search(runner: NextView, first: int, seeds: range) -> None:
    """Fail with the shortest story of the first seed that fails."""
    for seed in seeds:
        steps, kept = story(seed, runner.schema)
        if differences := runner.play(steps, kept=kept):
            if runner.fails(steps, kept=kept):
                steps = shrunk(steps, partial(runner.fails, kept=kept))
                runner.bench.reclone()
                differences = runner.play(steps, kept=kept) or differences
            shown = [f"{step.what} {step}" for step in steps]
            fail(
                runner.server.version,
                first,
                seed,
                differences,
                [*shown, "session kept" if kept else "new session"],
            )


@pytest.mark.timeout(TIMEOUT)
def test_the_next_test_sees_what_it_sees_in_a_fresh_clone(engine_server: Server) -> None:
    strategies: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for first, seeds in schemas():
        runner = NextView(engine_server, generate_schema(first))
        try:
            search(runner, first, seeds)
            strategies += runner.strategies
            reasons += runner.reasons
        finally:
            runner.close()
    print(
        f"\nPostgreSQL {engine_server.version} {engine_of(engine_server)}: {FURTHER} next tests from seed {SEED}, {dict(strategies)}, {dict(reasons)}"
    )
    assert FURTHER < ENOUGH or strategies["clone"] <= 0.25 * strategies["restore"]
