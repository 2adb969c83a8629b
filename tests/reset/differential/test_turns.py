"""Two processes that reset one database in turn, each from the other's note, from an older one of its own, or still open."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from diff_further import ENOUGH, FURTHER, ORDERED, SEED, TIMEOUT, fail, schemas
from diff_schemas import SETTLE, Schema
from diff_schemas import generate as generate_schema
from diff_workloads import DDL
from diff_workloads import generate as generate_workload
from fix_reset_servers import Server
from fix_rewind import engine_of
from test_carried import life
from test_differential import Runner

from harness.reset.changes import RecloneNeeded
from harness.reset.engine import ResetEngine
from harness.reset.watermark import Watermark
from harness.sandbox.watermarks import WatermarkStore

OLDEST = 6
"""How many notes back a process may come with."""


class Turns(Runner):
    """A runner with two processes. Of each: its engine, where it is still open, and the note that it has left."""

    ordered = ORDERED

    def __init__(self, server: Server, schema: Schema, folder: Path) -> None:
        schema.sql += ";" + SETTLE
        super().__init__(server, schema)
        self.folder = WatermarkStore(folder)
        self.counts: Counter[str] = Counter()
        self.story: list[str] = []
        self.notes: list[Watermark] = []
        self.open: list[ResetEngine | None] = [None, None]
        self._begin_anew(0)

    def _begin_anew(self, number: int) -> None:
        """After a clone: what the other one knows is of a database that is gone."""
        for engine in {self.open[1 - number], None} - {None}:
            assert engine is not None
            engine.close()
        self.open = [None, None]
        self.open[number] = self.bench.engine
        noted = self.bench.engine.watermark
        assert noted is not None
        self.notes = [noted]

    def _carried(self, note: Watermark) -> Watermark:
        """As another process reads it."""
        bench = self.bench
        self.folder.write(bench.name, life(bench), note)
        oid = bench.admin.value("select oid::int8 from pg_database where datname = %s", (bench.name,))
        noted, why = self.folder.read(bench.name, oid, life(bench))
        assert noted is not None, why
        return noted

    def turn(self, seed: int) -> list[str]:
        """One of them resets, whatever the other one has done meanwhile."""
        rng = random.Random(seed)
        number = rng.randrange(2)
        operations = generate_workload(seed, self.schema)
        if seed % 8:
            operations = [operation for operation in operations if operation.kind not in DDL]
        for operation in operations:
            if self.perform(operation):
                self.done[operation.kind] += 1
            self.story.append(str(operation))
        if not self._take_over(rng, number):
            return self._clone(number)
        try:
            self.bench.engine.reset()
        except RecloneNeeded as error:
            self.reasons[error.reason[:80]] += 1
            return self._clone(number)
        self.strategies["restore"] += 1
        # Now and then it is killed before it has written down what it did.
        if (noted := self.bench.engine.watermark) is not None and rng.random() < 0.85:
            self.notes.append(noted)
        return self.compare(catalogs=False)

    def _take_over(self, rng: random.Random, number: int) -> bool:
        """Make this process's engine the one that resets; False: it needs a clone to begin with."""
        bench, engine = self.bench, self.open[number]
        if engine is not None and rng.random() < 0.4:
            how = "still open"
            bench.engine = engine
        else:
            if engine is not None:
                engine.close()
            back = rng.choice([1, 1, 1, 2, rng.randint(1, OLDEST)])
            how = f"from the note {back} back"
            note = self._carried(self.notes[-min(back, len(self.notes))])
            self.open[number] = bench.engine = bench.open_engine()
            try:
                bench.engine.rebase(note)
            except RecloneNeeded as error:
                self.reasons[error.reason[:80]] += 1
                return False
        self.counts[how] += 1
        self.story.append(f"-- process {number}, {how}")
        return True

    def _clone(self, number: int) -> list[str]:
        self.strategies["clone"] += 1
        self.story = ["-- clone"]
        self.bench.reclone()
        self._begin_anew(number)
        return self.compare(catalogs=False)

    def close(self) -> None:
        for engine in self.open:
            if engine is not None:
                engine.close()
        super().close()


def search(runner: Turns, first: int, seeds: range) -> None:
    """Let them take turns, and fail with all that was done since the last clone."""
    for seed in seeds:
        if differences := runner.turn(seed):
            fail(runner.server.version, first, seed, differences, runner.story)


@pytest.mark.timeout(TIMEOUT)
def test_whoever_comes_next_resets_to_what_a_fresh_clone_gives(engine_server: Server, tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    strategies: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for first, seeds in schemas():
        runner = Turns(engine_server, generate_schema(first), tmp_path / str(first))
        try:
            search(runner, first, seeds)
            counts += runner.counts
            strategies += runner.strategies
            reasons += runner.reasons
        finally:
            runner.close()
    print(
        f"\nPostgreSQL {engine_server.version} {engine_of(engine_server)}: {FURTHER} turns from seed {SEED}, {dict(strategies)}, {dict(counts)}, {dict(reasons)}"
    )
    if FURTHER < ENOUGH:
        return
    assert counts["still open"]
    assert strategies["clone"] <= 0.4 * strategies["restore"]
