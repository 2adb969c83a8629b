"""Writers that go on during resets, clones and marks: once they have stopped, one more reset gives what a fresh clone gives.

Two kinds of company. *Beside*: one to three threads write all the time; a seed brings the same statements again, not the same
moments. *Between*: operations run at the stages of a reset, so that a seed brings the same story again.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from diff_further import ENOUGH, FURTHER, ORDERED, SEED, TIMEOUT, enlarge, fail, replace, schemas
from diff_schemas import SETTLE, Schema
from diff_schemas import generate as generate_schema
from diff_workloads import CONNECTIONS, DDL, OPERATIONS, Maker, Operation, some_of
from fix_reset_picture import difference
from fix_reset_servers import Server
from fix_rewind import engine_of
from test_differential import Runner

from harness.errors import HarnessError, LeaseError
from harness.reset.changes import RecloneNeeded
from harness.reset.marks import Mark
from harness.reset.sql import relations

KINDS = [kind for kind in OPERATIONS if kind not in (*DDL, "advisory")]
MARKABLE = [kind for kind in KINDS if kind not in ("setting", "large object")]
STAGES = (
    "before-look",
    "looked",
    "before-lock",
    "locked",
    "before-commit",
    "committed",
    "before files are asked for",
)
OF_MARKS = ("before-look", "looked", "before files are asked for")
RESETS = 3
PATIENCE = 10.0

PAIRS = """
create table pair_one (tag text primary key, n integer)
; create table pair_two (id serial primary key, tag text, part integer)
; insert into pair_two (tag, part) select 'seed', i from generate_series(1, 3) i
; insert into pair_one values ('seed', 3)
"""

TORN = """
select tag from pair_one full join (select tag, count(*) from pair_two group by tag) two using (tag)
 where n is distinct from count
"""
"""Transactions of which a part is there."""


class Company(Runner):
    """A runner with company."""

    ordered = ORDERED

    def __init__(self, server: Server, schema: Schema) -> None:
        enlarge(schema, weight=1)
        schema.sql += ";" + PAIRS + ";" + SETTLE
        super().__init__(server, schema)
        self.story: list[str] = []
        self.written = 0
        self.counts: Counter[str] = Counter()
        self._progress = threading.Condition()
        self._allowed = threading.Semaphore(0)

    # --- the writers -------------------------------------------------------------------------------

    def write(self, operation: Operation) -> None:
        """One operation, whatever becomes of it: a reset may end the session, a clone take the database away."""
        went = False
        with suppress(HarnessError):
            went = self.perform(operation)
        self.story.append(f"{'' if went else '(refused) '}{operation}")
        with self._progress:
            self.written += 1
            self._progress.notify_all()

    @contextmanager
    def beside(self, rng: random.Random, kinds: list[str]) -> Iterator[None]:
        """One to three threads that write until the block ends, as much as :meth:`allow` lets them."""
        stop = threading.Event()
        self._allowed = threading.Semaphore(0)
        failed: list[BaseException] = []

        def go(number: int, seed: int) -> None:
            mine = random.Random(seed)
            maker = Maker(mine, self.schema)
            try:
                while not stop.is_set():
                    if self._allowed.acquire(timeout=0.01):
                        self.write(self._one(mine, maker, kinds, number))
            except Exception as error:  # noqa: BLE001 — told in the main thread
                failed.append(error)

        writers = [
            threading.Thread(target=go, args=(number, rng.randrange(2**32)))
            for number in range(rng.randint(1, CONNECTIONS))
        ]
        for writer in writers:
            writer.start()
        try:
            yield
        finally:
            stop.set()
            for writer in writers:
                writer.join(PATIENCE)
        assert not failed, failed
        assert not any(writer.is_alive() for writer in writers)

    def allow(self, rng: random.Random) -> None:
        """Let the writers do some more, and wait until they have begun; writers without an end take a reset seconds."""
        with self._progress:
            wanted = self.written + rng.randint(1, 3)
            self._allowed.release(rng.randint(4, 16))
            assert self._progress.wait_for(lambda: self.written >= wanted, PATIENCE), (
                "the writers stand still"
            )

    @contextmanager
    def between(
        self, rng: random.Random, kinds: list[str], stages: tuple[str, ...] = STAGES
    ) -> Iterator[None]:
        """A few operations at stages of the resets of the block."""
        maker = Maker(rng, self.schema)
        due = {rng.choice(stages) for _ in range(rng.randint(1, 2))}
        left = rng.randint(1, 5)

        def reached(stage: str) -> None:
            nonlocal left
            if stage in due and left > 0 and rng.random() < 0.7:
                left -= 1
                self.story.append(f"-- at stage {stage}")
                self.write(self._often_cut(rng, maker, kinds))

        real = relations.files

        def files(*arguments: Any, **options: Any) -> dict[int, int]:
            reached("before files are asked for")
            return real(*arguments, **options)

        self.bench.engine._stage = reached
        relations.files = files
        try:
            yield
        finally:
            relations.files = real
            self.bench.engine._stage = lambda name: None

    def _one(self, rng: random.Random, maker: Maker, kinds: list[str], number: int) -> Operation:
        dice = rng.random()
        if dice < 0.2:
            tag, parts = f"w{number}-{rng.randrange(10**9)}", rng.randint(1, 3)
            return Operation("pair", number, (
                "begin", f"insert into pair_one values ('{tag}', {parts})",
                f"insert into pair_two (tag, part) select '{tag}', i from generate_series(1, {parts}) i", "commit",
            ))  # fmt: skip
        if dice < 0.35:
            return self._cut(rng, maker, number)
        return some_of(kinds, rng, maker, 1, number)[0]

    def _cut(self, rng: random.Random, maker: Maker, number: int) -> Operation:
        """What is empty, small, and large: a new file is what is lost most easily."""
        table = rng.choice(["hollow", "medium", "base", "uniq", "booking"])
        again = rng.choice([[], [maker.insert(next(t for t in self.schema.tables if t.name == table))]])
        return Operation("cut", number, (f"truncate {table}", *again))

    def _often_cut(self, rng: random.Random, maker: Maker, kinds: list[str]) -> Operation:
        number = rng.randrange(CONNECTIONS)
        return self._cut(rng, maker, number) if rng.random() < 0.5 else self._one(rng, maker, kinds, number)

    # --- resets ------------------------------------------------------------------------------------

    def reset(self) -> None:
        """What a lease does, while others go on."""
        try:
            report = self.bench.engine.reset()
            self.strategies[report.strategy] += 1
            self.story.append(f"-- reset: {report.strategy}")
        except RecloneNeeded as error:
            self.strategies["clone"] += 1
            self.reasons[error.reason[:80]] += 1
            self.story.append(f"-- clone: {error.reason[:150]}")
            replace(self.bench)

    def resets_in_company(self, seed: int) -> list[str]:
        rng = random.Random(seed)
        self.story = []
        if rng.random() < 0.5:
            with self.beside(rng, KINDS):
                for _ in range(RESETS):
                    self.allow(rng)
                    self.reset()
                    self.story.append("-- reset ends")
        else:
            for _ in range(RESETS):
                maker = Maker(rng, self.schema)
                for _ in range(rng.randint(0, 2)):
                    self.write(self._often_cut(rng, maker, KINDS))
                with self.between(rng, KINDS):
                    self.reset()
        self.story.append("-- all have stopped")
        self.reset()
        return self.compare(catalogs=False)

    # --- marks -------------------------------------------------------------------------------------

    def marks_in_company(self, seed: int) -> list[str]:
        rng = random.Random(seed)
        self.story = []
        maker = Maker(rng, self.schema)
        if rng.random() < 0.5:
            with self.beside(rng, MARKABLE):
                self.allow(rng)
                mark = self._mark()
        else:
            for _ in range(rng.randint(0, 3)):
                self.write(self._often_cut(rng, maker, MARKABLE))
            with self.between(rng, MARKABLE, OF_MARKS):
                mark = self._mark()
        found: list[str] = []
        if mark is not None:
            first = self._seen()
            for operation in some_of(MARKABLE, rng, maker, rng.randint(1, 3)):
                self.write(operation)
            second = self._seen()
            with self.bench.superuser() as session:
                torn = [f"torn: {tag}" for (tag,) in session.rows(TORN)]
            found = [*torn, *(f"the mark comes back another: {line}" for line in difference(second, first))]
            mark.release()
        self.reset()
        return [*found, *(f"below the mark: {line}" for line in self.compare(catalogs=False))]

    def _mark(self) -> Mark | None:
        try:
            mark = self.bench.engine.mark()
        except LeaseError as error:
            self.counts[f"no mark: {str(error)[:60]}"] += 1
            self.story.append(f"-- no mark: {error}")
            return None
        self.counts["marked"] += 1
        self.story.append("-- marked")
        return mark

    def _seen(self) -> dict[str, object]:
        self.reset()
        self.leave_transactions()
        with self.bench.superuser() as session:
            return self.picture.take(session, catalogs=False)


def search(runner: Company, first: int, seeds: Iterable[int], *, marks: bool) -> None:
    for seed in seeds:
        differences = runner.marks_in_company(seed) if marks else runner.resets_in_company(seed)
        if differences:
            fail(runner.server.version, first, seed, differences, runner.story)


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("marks", [False, True], ids=["resets", "marks"])
def test_what_is_written_meanwhile_is_gone_afterwards(engine_server: Server, marks: bool) -> None:
    counts: Counter[str] = Counter()
    strategies: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for first, seeds in schemas():
        runner = Company(engine_server, generate_schema(first))
        try:
            # Every other one: a replay of the first few brings the same.
            search(runner, first, [seed for seed in seeds if seed % 2 == marks], marks=marks)
            counts += runner.counts
            strategies += runner.strategies
            reasons += runner.reasons
        finally:
            runner.close()
    print(
        f"\nPostgreSQL {engine_server.version} {engine_of(engine_server)}: {FURTHER} in company from seed {SEED}, {dict(strategies)}, {dict(counts)}, {dict(reasons)}"
    )
    if FURTHER < ENOUGH:
        return
    assert strategies["clone"] <= 0.4 * (strategies["restore"] + strategies["rewind"])
    assert not marks or counts["marked"] >= FURTHER / 8
