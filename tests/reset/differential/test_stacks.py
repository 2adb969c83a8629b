"""Random stacks of marks: set, come back to, released in any order, renewed, through clones too.

After each reset the database is what it was when the mark that is on top now was set, and at the end of each story that of
a fresh clone: the state *below* each mark is compared when it is reached.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from diff_further import ENOUGH, FURTHER, ORDERED, SEED, TIMEOUT, Step, enlarge, fail, schemas, shrunk
from diff_schemas import Schema, Table
from diff_schemas import generate as generate_schema
from diff_workloads import CONNECTIONS, DDL, OPERATIONS, Maker, Operation, some_of
from fix_reset_picture import Picture, difference
from fix_reset_servers import Server
from fix_rewind import engine_of
from test_differential import KEPT, Runner

from harness.errors import LeaseError
from harness.postgres.session import Session
from harness.reset.changes import RecloneNeeded
from harness.reset.marks import Mark

DEPTH = 5
LEFT_OUT = (
    *DDL,
    "advisory",
    "setting",
    "large object",
    "reindex",
    "open snapshot",
    "open savepoint",
    "prepared truncate",
)
KINDS = [kind for kind in OPERATIONS if kind not in LEFT_OUT]
"""No mark holds settings and large objects; who has to be waited for is no matter of marks, and one kind of it is enough."""


class Stacks(Runner):
    """A runner with a stack of marks, and of what each of them has to bring back."""

    ordered = ORDERED
    patience = 0.01

    def __init__(self, server: Server, schema: Schema) -> None:
        super().__init__(server, enlarge(schema, weight=2))
        self.template = (self.wanted, self.look)
        # Beside each mark what was seen then, and of its tables the rows alone, in whatever order.
        self.stack: list[
            tuple[Mark, tuple[dict[str, object], list[tuple[object, ...]]], dict[str, object]]
        ] = []
        self.counts: Counter[str] = Counter()

    def play(self, steps: Sequence[Step]) -> list[str]:
        """Do all of it, and go down to the template; what differs where it first does."""
        for step in steps:
            if differences := self._step(step):
                return [f"at {step}, {len(self.stack)} marks:", *differences]
        while self.stack:
            self._release(len(self.stack) - 1)
            if differences := self._reset(None):
                return [f"on the way down, {len(self.stack)} marks left:", *differences]
        return [f"at the end: {line}" for line in self._reset(None)]

    def again(self) -> None:
        """From the template, whatever was before."""
        while self.stack:
            self._release(0)
        self.wanted, self.look = self.template
        self.bench.reclone()

    def fails(self, steps: list[Step]) -> bool:
        self.again()
        return bool(self.play(steps))

    def _step(self, step: Step) -> list[str]:
        self.counts[step.what] += 1
        if step.operation is not None:
            self.perform(step.operation)
        elif step.what == "mark" and len(self.stack) < DEPTH:
            self._mark()
        elif step.what == "release" and self.stack:
            self._release(step.pick % len(self.stack))
        elif step.what == "renew" and self.stack:
            self._release(step.pick % len(self.stack))
            self._mark()
        elif step.what == "clone":
            return self._clone()
        elif step.what == "reset to" and self.stack:
            return self._reset(step.pick % len(self.stack))
        elif step.what == "reset":
            return self._reset(None)
        return []

    def _mark(self) -> None:
        try:
            mark = self.bench.engine.mark()
        except LeaseError as error:
            self.counts[f"no mark: {str(error)[:60]}"] += 1
            return
        self.leave_transactions()
        with self.bench.superuser() as session:
            session.execute(KEPT[-1])
            seen = (self.picture.take(session, catalogs=False), session.rows("execute look"))
            sets = self._sets(session)
        self.stack.append((mark, seen, sets))

    def _release(self, number: int) -> None:
        self.stack[number][0].release()
        del self.stack[number:]

    def _reset(self, to: int | None) -> list[str]:
        mark = None if to is None else self.stack[to][0]
        if to is not None:
            del self.stack[to + 1 :]
        try:
            self.bench.engine.reset(to=mark)
            self.strategies["restore"] += 1
        except RecloneNeeded as error:
            self.strategies["clone"] += 1
            self.reasons[error.reason[:80]] += 1
            return self._clone()
        return self._compared()

    def _clone(self) -> list[str]:
        self.bench.reclone()
        return self._compared()

    def _compared(self) -> list[str]:
        wanted, self.look = self.stack[-1][1] if self.stack else self.template
        self.wanted = wanted
        differences = self.compare(catalogs=False)
        given_up = tuple(f"rows of {name}:" for name in self._given_up())
        if not (differences and given_up and all(line.startswith(given_up) for line in differences)):
            return differences
        # Their order is given up, and not one of their rows.
        self.counts["order given up"] += 1
        with self.bench.superuser() as session:
            return difference(self._sets(session), self.stack[-1][2])

    def _sets(self, session: Session) -> dict[str, object]:
        return Picture(session, ordered=0).take(session, catalogs=False)

    def _given_up(self) -> list[str]:
        """Tables of the top mark whose rows do not find room in their order (docs/reset.md)."""
        engine = self.bench.engine
        marks = engine._marks
        held = [(oid, base) for oid in marks.held if (base := marks.table(oid)) is not None]
        return [engine.store.relations[oid].name for oid, base in held if not base.ordered]


def story(seed: int, schema: Schema) -> list[Step]:
    """The story of a seed: writes, marks, and ways back."""
    rng = random.Random(seed)
    maker = Maker(rng, schema)
    # The same few tables again and again: what one mark has moved, the next one moves once more.
    often = rng.sample([table for table in schema.tables if not table.no_delete], 2)
    steps: list[Step] = []
    for _ in range(rng.randint(5, 11)):
        what = rng.choices(
            ["write", "mark", "reset", "release", "renew", "reset to", "clone"], [36, 26, 16, 10, 6, 6, 2]
        )[0]
        if what != "write":
            steps.append(Step(what, pick=rng.randrange(60)))
        if what in ("write", "mark"):
            steps += [Step("write", operation) for operation in _writes(rng, maker, often)]
    return steps


def _writes(rng: random.Random, maker: Maker, often: Sequence[Table]) -> list[Operation]:
    dice = rng.random()
    if dice < 0.25:
        return [_large(rng)]
    if dice < 0.5:
        return some_of(KINDS, rng, maker, rng.randint(1, 3))
    return [_of_table(rng, maker, rng.choice(often)) for _ in range(rng.randint(1, 2))]


def _of_table(rng: random.Random, maker: Maker, table: Table) -> Operation:
    cut = f"truncate {table.name}{'' if table.truncatable else ' cascade'}"
    writes = [maker.insert(table), maker.update(table), maker.delete(table)]
    statement = rng.choice(
        [*writes, *writes, cut, f"update {table.name} set {table.written} = {table.written}"]
    )
    return Operation("often", rng.randrange(CONNECTIONS), (statement,))


def _large(rng: random.Random) -> Operation:
    """Some rows here and there in a table that is not put back as a whole."""
    table, step = rng.choice(["medium", "wide"]), rng.choice([3, 13, 97, 400])
    # One that touches most of them belongs to a clone, and is here to be told apart.
    where = f"id % {step} = {rng.randrange(step)}" if step > 3 else f"id < {rng.randint(1, 60)}"
    statement = rng.choice([
        f"update {table} set n = n + 1 where {where}", f"delete from {table} where {where}",
        f"update {table} set v = v || '+' where {where}",
        f"insert into {table} (v, n) select v, n from {table} where {where}",
    ])  # fmt: skip
    return Operation("large", rng.randrange(CONNECTIONS), (statement,))


def search(runner: Stacks, first: int, seeds: range) -> None:
    """Play the stories of these seeds, and fail with the shortest that fails."""
    for seed in seeds:
        steps = story(seed, runner.schema)
        if differences := runner.play(steps):
            if runner.fails(steps):
                steps = shrunk(steps, runner.fails)
                runner.again()
                differences = runner.play(steps) or differences
            fail(runner.server.version, first, seed, differences, steps)


@pytest.mark.timeout(TIMEOUT)
def test_every_state_below_a_mark_comes_back(engine_server: Server) -> None:
    counts: Counter[str] = Counter()
    strategies: Counter[str] = Counter()
    for first, seeds in schemas():
        runner = Stacks(engine_server, generate_schema(first))
        try:
            search(runner, first, seeds)
            counts += runner.counts
            strategies += runner.strategies
        finally:
            runner.close()
    print(
        f"\nPostgreSQL {engine_server.version} {engine_of(engine_server)}: {FURTHER} stacks from seed {SEED}, {dict(strategies)}, {dict(counts)}"
    )
    if FURTHER < ENOUGH:
        return
    assert counts["mark"] >= FURTHER
    # An engine that always takes a clone is always right, and useless.
    assert strategies["clone"] <= 0.25 * strategies["restore"]
    assert counts["order given up"] <= 0.02 * strategies["restore"]
