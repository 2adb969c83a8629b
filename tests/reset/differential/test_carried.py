"""Resets by one process after another: each engine knows only what the one before it has written into a file."""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from diff_further import enlarge
from diff_schemas import SETTLE
from diff_schemas import generate as generate_schema
from diff_workloads import DDL, Operation
from diff_workloads import generate as generate_workload
from fix_reset_picture import Picture, difference
from fix_reset_servers import Bench, Server, clone, drop
from fix_rewind import engine_of
from test_differential import SEED, Runner

from harness.databases.resetting import watermark_of
from harness.postgres.databases import apply_statements, read_attributes
from harness.postgres.incarnation import Incarnation
from harness.reset.changes import RecloneNeeded
from harness.reset.engine import ResetEngine
from harness.reset.tracker import Tracker
from harness.reset.watermark import Watermark
from harness.sandbox import marks
from harness.sandbox.watermarks import Provenance, WatermarkStore

LONG = os.environ.get("PGHARNESS_TEST_LONG") == "1"
WORKLOADS = 300 if LONG else 30
PER_SCHEMA = 30 if LONG else 15


def life(bench: Bench) -> Provenance:
    """What the notes are of: the same in all workloads, as the server does not crash."""
    now = Incarnation.of(bench.admin)
    return Provenance("server", now.started, now.crashed, 7)


class Processes(Runner):
    """A runner whose engine ends after each reset."""

    def __init__(self, server: Server, schema: int, folder: Path) -> None:
        made = generate_schema(schema)
        made.sql += ";" + SETTLE
        super().__init__(server, made)
        self.notes = WatermarkStore(folder)
        self.killed = 0
        self.end(random.Random(schema), written=True)

    def end(self, rng: random.Random, *, written: bool = False) -> None:
        """The process ends; now and then it is killed when all is put back, and before it has written that down."""
        engine = self.bench.engine
        if written or rng.random() < 0.8:
            noted = engine.watermark
            assert noted is not None
            self.notes.write(self.bench.name, life(self.bench), noted)
        else:
            self.killed += 1
        engine.close()

    def begin(self) -> None:
        """The next process."""
        bench = self.bench
        oid = bench.admin.value("select oid::int8 from pg_database where datname = %s", (bench.name,))
        noted, _ = self.notes.read(bench.name, oid, life(bench))
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
def test_every_process_resets_to_what_a_fresh_clone_gives(engine_server: Server, tmp_path: Path) -> None:
    strategies: Counter[str] = Counter()
    killed = 0
    for first in range(SEED, SEED + WORKLOADS, PER_SCHEMA):
        rng = random.Random(first)
        runner = Processes(engine_server, first, tmp_path / str(first))
        try:
            for seed in range(first, min(first + PER_SCHEMA, SEED + WORKLOADS)):
                differences, operations = runner.round(seed, rng)
                if differences:
                    steps = "\n  ".join(map(str, operations))
                    found = "\n  ".join(differences[:10])
                    pytest.fail(
                        f"PostgreSQL {engine_server.version} {engine_of(engine_server)}, schema {first}, workload {seed}: the database differs "
                        f"from a fresh clone:\n  {found}\nThe last workload:\n  {steps}"
                    )
            strategies += runner.strategies
            killed += runner.killed
        finally:
            runner.close()
    print(
        f"\nPostgreSQL {engine_server.version} {engine_of(engine_server)}: {dict(strategies)}, {killed} killed"
    )
    assert killed
    assert strategies["clone"] + strategies["clone at once"] <= 0.4 * strategies["restore"]


@pytest.mark.timeout(180)
def test_a_process_that_does_not_know_where_rows_lie_is_caught(
    reset_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: rows that an earlier reset put elsewhere pass for rows that nobody knows, and are deleted.

    Rows of large tables: those of small ones go back to their places.
    """
    here, made = sys.modules[__name__], generate_schema
    monkeypatch.setattr(here, "generate_schema", lambda seed: enlarge(made(seed)))
    turns = ("update wide set n = n + 1 where id < 9", "insert into wide (v, n) values ('x', 1)")
    monkeypatch.setattr(
        here, "generate_workload", lambda seed, schema: [Operation("wide", 0, (turns[seed % 2],))]
    )
    real = Tracker.resume

    def forgetful(self: Tracker, noted: Watermark) -> None:
        real(self, replace(noted, places={}))

    runner, rng = Processes(reset_server, 1, tmp_path), random.Random(1)
    try:
        assert not any(runner.round(seed, rng)[0] for seed in range(1, 9))
        monkeypatch.setattr(Tracker, "resume", forgetful)
        assert any(runner.round(seed, rng)[0] for seed in range(1, 60))
    finally:
        runner.close()


class Marked(Processes):
    """A runner whose engines go back to a mark of a person's."""

    marked: tuple[Operation, ...] = ()

    def mark(self, seed: int) -> None:
        """Mark what a workload leaves, its DDL included."""
        bench = self.bench
        copy = f"{bench.name}_m"
        self.marked = tuple(generate_workload(seed, self.schema))
        for operation in self.marked:
            self.perform(operation)
        self.leave_transactions()
        drop(bench.admin, copy)
        noted, *_ = marks._copy(bench.admin, bench.name, copy, "app", "file_copy", 0.05)
        assert noted is not None
        self.notes.write(bench.name, life(bench), noted)
        marks.open_up(bench.admin, copy)
        with bench.superuser() as session:
            self.picture = Picture(session)
            self.wanted = self.picture.take(session)

    def begin(self) -> None:
        bench, server = self.bench, self.server
        copy = f"{bench.name}_m"
        bench.engine.close()
        oid = bench.admin.value("select oid::int8 from pg_database where datname = %s", (bench.name,))
        noted, _ = self.notes.read(bench.name, oid, life(bench))
        bench.engine = ResetEngine(
            reader=server.session,
            restorer=lambda settings: server.session(bench.name, settings),
            baseline=lambda settings: server.session(copy, settings),
            role="app",
            reset_timeout=bench.reset_timeout,
        )
        if noted is None:
            return
        try:
            bench.engine.rebase(noted)
        except RecloneNeeded:
            return  # it is not based on anything, and its reset says so

    def run(self, operations: list[Operation]) -> list[str]:
        del operations
        try:
            self.bench.engine.reset()
            self.strategies["restore"] += 1
        except RecloneNeeded:
            self.strategies["clone"] += 1
            self.clone()
        self.leave_transactions()
        with self.bench.superuser() as session:
            return difference(self.picture.take(session), self.wanted)

    def clone(self) -> None:
        """As the command does it."""
        bench = self.bench
        copy = f"{bench.name}_m"
        bench.engine.close()
        marks.shut(bench.admin, copy)
        drop(bench.admin, bench.name)
        clone(bench.admin, copy, bench.name)
        bench.admin.script(
            ";\n".join(apply_statements(bench.name, read_attributes(bench.admin, copy), "app"))
        )
        noted, why = watermark_of(bench.admin, bench.name, "app")
        assert noted is not None, why
        self.notes.write(bench.name, life(bench), noted)
        marks.open_up(bench.admin, copy)

    def end(self, rng: random.Random, *, written: bool = False) -> None:
        if self.bench.engine.watermark is not None:
            super().end(rng, written=written)

    def close(self) -> None:
        super().close()
        with self.server.session() as session:
            drop(session, f"{self.bench.name}_m")


@pytest.mark.timeout(900 if LONG else 180)
def test_every_process_resets_to_what_a_person_marked(engine_server: Server, tmp_path: Path) -> None:
    """The baseline is a copy of a database that was in use: not frozen, its schema changed, its sequences under way."""
    strategies: Counter[str] = Counter()
    for first in range(SEED, SEED + WORKLOADS, PER_SCHEMA):
        rng = random.Random(first)
        runner = Marked(engine_server, first, tmp_path / str(first))
        try:
            for seed in range(first, min(first + PER_SCHEMA, SEED + WORKLOADS)):
                if (seed - first) % 4 == 0:
                    runner.mark(seed + 10000)
                differences, operations = runner.round(seed, rng)
                if differences:
                    steps = "\n  ".join(map(str, [*runner.marked, "--- marked ---", *operations]))
                    found = "\n  ".join(differences[:10])
                    pytest.fail(
                        f"PostgreSQL {engine_server.version} {engine_of(engine_server)}, schema {first}, workload {seed}: the database differs "
                        f"from what was marked:\n  {found}\nWorkloads:\n  {steps}"
                    )
            strategies += runner.strategies
        finally:
            runner.close()
    print(f"\nPostgreSQL {engine_server.version} {engine_of(engine_server)}, to marks: {dict(strategies)}")
    assert strategies["clone"] <= 0.4 * strategies["restore"]
