"""Planted bugs: a differential test that lets one of these pass would be worth nothing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from diff_schemas import generate as generate_schema
from diff_workloads import DDL
from diff_workloads import generate as generate_workload
from fix_reset_servers import Server
from test_differential import Runner

from harness.errors import ServerLost, ServerRefused
from harness.postgres.session import Session
from harness.reset import detect
from harness.reset.changes import Changes, RecloneNeeded
from harness.reset.restore import Attempt
from harness.reset.tracker import Tracker

TRIES = 120 if os.environ.get("PGHARNESS_TEST_LONG") == "1" else 15


@pytest.fixture
def runner(reset_server: Server) -> Iterator[Runner]:
    made = Runner(reset_server, generate_schema(5))
    yield made
    made.close()


OPEN_ENDED = ("open transaction", "open snapshot", "open savepoint", "prepared truncate")
"""Operations after which nobody could look at the tables: a prepared TRUNCATE kept the picture waiting for ever."""


@pytest.mark.timeout(600 if TRIES > 100 else 180)
def test_a_hidden_relation_is_always_found(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide all records of one relation whose contents truly differ: the comparison must see it each time."""
    real = detect.changes
    hidden: list[int] = []

    def blind(*arguments: object, **options: object) -> Changes:
        found = real(*arguments, **options)  # type: ignore[arg-type]
        return replace(
            found,
            tables={oid: change for oid, change in found.tables.items() if oid not in hidden},
            sequences=found.sequences - set(hidden),
        )

    caught = 0
    engine = runner.bench.engine
    for seed in range(1, 40 * TRIES):
        operations = [
            o
            for o in generate_workload(seed, runner.schema)
            if o.kind not in DDL and o.kind not in OPEN_ENDED
        ]
        for operation in operations:
            runner.perform(operation)
        for session in runner.sessions:
            if session is not None and not session.closed:
                with suppress(ServerLost):
                    session.execute("rollback")
        with runner.bench.superuser() as session:
            differing = {
                key.removeprefix("rows of ").removeprefix("sequence ")
                for key, value in runner.picture.take(session).items()
                if value != runner.wanted[key] and key.startswith(("rows of ", "sequence "))
            }
        relations = engine.store.relations
        # An unlogged relation is restored whatever the log says: it cannot be hidden.
        chosen = sorted(
            r.oid for r in relations.values() if r.name in differing and r.kind in "rS" and not r.unlogged
        )
        if not chosen:
            runner.bench.reclone()
            continue
        hidden[:] = [chosen[seed % len(chosen)]]
        monkeypatch.setattr(detect, "changes", blind)
        try:
            engine.reset()
        except RecloneNeeded:
            runner.bench.reclone()
            continue
        finally:
            monkeypatch.setattr(detect, "changes", real)
        differences = runner.compare()
        assert any(relations[hidden[0]].name in line for line in differences), (
            f"workload {seed}: the changes of {relations[hidden[0]]} were hidden, and nobody noticed"
        )
        caught += 1
        runner.bench.reclone()
        if caught >= TRIES:
            return
    pytest.fail(f"only {caught} relations could be hidden")


def _oid(runner: Runner, name: str) -> int:
    return next(r.oid for r in runner.bench.engine.store.relations.values() if r.name == name)


def _write_while_locked(runner: Runner) -> list[str]:
    """A writer that tries while the reset holds its locks; returns what differs right after the reset.

    All is sent at once, but somebody holds a row that is to be deleted, so that the reset stands still in the middle.
    """
    writer, holder = runner.bench.app(lock_timeout="50ms"), runner.bench.app()
    writer.execute("insert into cat (name) values ('before')")
    writer.execute("insert into dog (name) values ('held')")
    assert runner.bench.engine.store.relations[_oid(runner, "cat")].oid < _oid(runner, "dog")

    def write() -> None:
        admin, restorer = runner.bench.admin.dsn, runner.bench.engine.ours[1]
        with Session.connect(admin) as watching:
            for _ in range(200):
                if watching.value(
                    "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s", (restorer,)
                ):
                    break
                time.sleep(0.001)
        # A key of its own: else it would wait for the deleted row's, and not for the lock.
        with suppress(ServerRefused):
            writer.execute("insert into cat (id, name) values (777, 'meanwhile')")
        holder.execute("rollback")

    writing = threading.Thread(target=write)

    def reached(stage: str) -> None:
        if stage == "before-lock" and not writing.ident:
            holder.execute("begin")
            holder.execute("select from dog where name = 'held' for update")
            writing.start()

    engine = runner.bench.engine
    engine._stage = reached
    try:
        engine.reset()
    finally:
        engine._stage = lambda name: None
    # The reset says that the database is pristine as of its commit: look at once.
    writing.join(10)
    found = [line for line in runner.compare() if "rows of cat" in line]
    writer.close()
    holder.close()
    runner.bench.reclone()
    return found


def test_a_lock_that_is_skipped_is_found(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _write_while_locked(runner) == []
    monkeypatch.setattr(Attempt, "lock_statement", lambda *_: "")
    assert _write_while_locked(runner) != []


def _write_between_windows(runner: Runner) -> list[str]:
    """A writer between the commit of one reset and the beginning of the next."""
    writer = runner.bench.app()
    writer.execute("insert into cat (name) values ('before')")
    engine = runner.bench.engine

    def reached(stage: str) -> None:
        if stage == "committed":
            engine._stage = lambda name: None
            writer.execute("insert into dog (name) values ('between')")

    engine._stage = reached
    engine.reset()
    engine.reset()
    found = runner.compare()
    writer.close()
    runner.bench.reclone()
    return found


def test_a_window_end_that_is_moved_is_found(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _write_between_windows(runner) == []
    real = Tracker.advance

    def moved(self: Tracker, window: object, **options: Any) -> None:
        real(self, window, **options)  # type: ignore[arg-type]
        self.start = self._connections.wal.position()

    monkeypatch.setattr(Tracker, "advance", moved)
    assert _write_between_windows(runner) != []
