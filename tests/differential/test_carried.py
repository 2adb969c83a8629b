"""Resets by one process after another: each engine knows only what the one before it has written into a file."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from diff_schemas import generate as generate_schema
from diff_workloads import DDL
from diff_workloads import generate as generate_workload
from fix_reset_servers import Server
from test_differential import _SETTLE, SEED, Runner

from harness.pristine import Life, Notes
from harness.reset.carried import Carried
from harness.reset.model import RecloneNeeded
from harness.reset.state import EngineState

LONG = os.environ.get("PGHARNESS_TEST_LONG") == "1"
WORKLOADS = 300 if LONG else 30
PER_SCHEMA = 30 if LONG else 15
LIFE = Life("server", "1.5", "2.5", 7)


class Processes(Runner):
    """A runner whose engine ends after each reset."""

    def __init__(self, server: Server, schema: int, folder: Path) -> None:
        made = generate_schema(schema)
        made.sql += ";" + _SETTLE
        super().__init__(server, made)
        self.notes = Notes(folder)
        self.killed = 0
        self.end(random.Random(schema), written=True)

    def end(self, rng: random.Random, *, written: bool = False) -> None:
        """The process ends; now and then it is killed when all is put back, and before it has written that down."""
        engine = self.bench.engine
        if written or rng.random() < 0.8:
            noted = engine.noted
            assert noted is not None
            self.notes.write(self.bench.name, LIFE, noted)
        else:
            self.killed += 1
        engine.close()

    def begin(self) -> None:
        """The next process."""
        bench = self.bench
        oid = bench.admin.value("select oid::int8 from pg_database where datname = %s", (bench.name,))
        noted, _ = self.notes.read(bench.name, oid, LIFE)
        bench.engine = bench.open_engine()
        # Of a clone whose process was killed nothing was written: as the command does it, the next one is a clone.
        if noted is None:
            bench.reclone()
            return
        try:
            bench.engine.rebase(noted)
        except RecloneNeeded:
            self.strategies["clone at once"] += 1
            bench.reclone()

    def round(self, seed: int, rng: random.Random) -> tuple[list[str], list[object]]:
        """What one person does between two commands, and what differs after the second."""
        operations = generate_workload(seed, self.schema)
        if seed % 4:
            operations = [operation for operation in operations if operation.kind not in DDL]
        for operation in operations:
            if self.perform(operation):
                self.done[operation.kind] += 1
        self.begin()
        differences = self.run([])
        self.end(rng)
        return differences, list(operations)


@pytest.mark.timeout(900 if LONG else 180)
def test_every_process_resets_to_what_a_fresh_clone_gives(reset_server: Server, tmp_path: Path) -> None:
    strategies: Counter[str] = Counter()
    killed = 0
    for first in range(SEED, SEED + WORKLOADS, PER_SCHEMA):
        rng = random.Random(first)
        runner = Processes(reset_server, first, tmp_path / str(first))
        try:
            for seed in range(first, min(first + PER_SCHEMA, SEED + WORKLOADS)):
                differences, operations = runner.round(seed, rng)
                if differences:
                    steps = "\n  ".join(map(str, operations))
                    found = "\n  ".join(differences[:10])
                    pytest.fail(
                        f"PostgreSQL {reset_server.version}, schema {first}, workload {seed}: the database differs "
                        f"from a fresh clone:\n  {found}\nThe last workload:\n  {steps}"
                    )
            strategies += runner.strategies
            killed += runner.killed
        finally:
            runner.close()
    print(f"\nPostgreSQL {reset_server.version}: {dict(strategies)}, {killed} killed")
    assert killed
    assert strategies["clone"] + strategies["clone at once"] <= 0.4 * strategies["restore"]


@pytest.mark.timeout(180)
def test_a_process_that_does_not_know_where_rows_lie_is_caught(
    reset_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: rows that an earlier reset put elsewhere pass for rows that nobody knows, and are deleted."""
    real = Carried.hand_over

    def forgetful(self: Carried, engine: EngineState) -> None:
        real(replace(self, places={}), engine)

    monkeypatch.setattr(Carried, "hand_over", forgetful)
    runner, rng = Processes(reset_server, 1, tmp_path), random.Random(1)
    try:
        assert any(runner.round(seed, rng)[0] for seed in range(1, 60))
    finally:
        runner.close()
