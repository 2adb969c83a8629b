"""Resets after what tests do: quick rows, what stays in the catalogs, marks, and sessions that have to be ended.

Where several engines are measured, their blocks take turns: within a block each is alone, and the first rounds,
which read what the other one has logged, are its warm-up.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.bench.clones import settle
from harness.bench.engines import Engine, Side, leased
from harness.bench.measuring import READ_ONLY, SELECT, Row, Table, done
from harness.bench.processes import ServerProcesses
from harness.bench.project import DIRTY, WORKLOAD, Application, open_run
from harness.databases.lease import LeaseMark
from harness.reset.report import ResetReport

if TYPE_CHECKING:
    from harness.runs.run import Run

TIMEOUT = 0.05
"""Seconds that a reset waits for a session in its way, where the end of that session is measured."""

LOAD = "; ".join(
    f"insert into t{n:03} (name) select 'marked' from generate_series(1, 1000)" for n in (3, 4, 5)
)
"""3,000 rows, over which a mark is set."""


def resets(sides: Sequence[Side], rounds: int, slow: int) -> list[Row]:
    """Rows whose resets need no clone with any engine, each engine's beside the other's."""
    thirty = "; ".join(
        f"insert into t{n:03} (name) select 'new' from generate_series(1, 10)" for n in range(30)
    )
    five = ", ".join(f"t{n:03}" for n in (2, 5, 8, 11, 14))
    insert = "insert into t001 (name) values ('new')"
    tests: list[tuple[str, str, int]] = [
        (READ_ONLY, "select count(*) from t000", rounds),
        ("reset, 3 tables and a seeded row, all rolled back", f"begin; {WORKLOAD}; rollback", rounds),
        ("reset, 3 tables and a seeded row, committed", WORKLOAD, rounds),
        ("reset, 3 dirty tables", DIRTY, rounds),
        (
            "reset, seeded rows changed",
            "update t000 set name = 'changed' where id in (1, 50, 100); delete from t000 where id = 7",
            rounds,
        ),
        (THOUSANDTH, "", rounds),
        ("reset, one insert", insert, rounds),
        ("reset, one insert, rolled back", f"begin; {insert}; rollback", rounds),
        ("reset, 30 dirty tables", thirty, slow),
        (
            "reset, 10,000 new rows",
            "insert into t001 (name) select 'new' from generate_series(1, 10000)",
            slow,
        ),
        ("reset, a temporary table", "create temp table x (id serial); drop table x", slow),
        (
            "reset, CREATE and DROP of a table",
            "create table x (id serial primary key, name text); insert into x (name) values ('new'); drop table x",
            slow,
        ),
        ("reset, TRUNCATE of five tables", f"truncate {five}", slow),
    ]
    first = sides[0].app
    select = Row(SELECT, act=lambda: first.session.value("select 1"), rounds=rounds)
    return [select, *(_row(side, *test) for test in tests for side in sides)]


THOUSANDTH = "reset, one of 1,000 seeded rows updated"


def lasting(sides: Sequence[Side], slow: int) -> list[Row]:
    """Rows that change the catalogs for good. They stand apart: an engine that clones learns from it what a clone takes."""
    tests = [
        ("reset, REFRESH of a materialised view", "refresh materialized view m000"),
        ("reset, ALTER TABLE that stays", "alter table t004 add column extra int default 1"),
        ("reset, CREATE INDEX that stays", "create index on t000 (amount)"),
        ("reset, DROP TABLE that stays", "drop table t059"),
    ]
    harnesses = [side.engine.harness for side in sides]
    return [_row(side, name, statements, slow, harnesses) for name, statements in tests for side in sides]


def _row(side: Side, name: str, statements: str, count: int, busy: Sequence[Run] = ()) -> Row:
    """One test by one engine.

    Args:
        busy: whose spares and drops are waited for before each round.
    """
    numbers = itertools.count()

    def prepare() -> None:
        for harness in busy:
            settle(harness)
        if name == THOUSANDTH:
            number = 1 + next(numbers) * 37 % 1000
            side.app.script(f"update thousand set name = 'changed' where id = {number}")
        else:
            side.app.script(statements)

    return Row(
        name, prepare, side.lease.reset, count, engine=side.name, position=side.position, pages=side.pages
    )


def marks(table: Table, processes: ServerProcesses, sides: Sequence[Side], rounds: int, slow: int) -> None:
    """Set a mark, and go back to it."""
    table.measure(*(_mark(side, slow) for side in sides), processes=processes)
    held = []
    for side in sides:
        side.lease.reset()
        side.app.script(LOAD)
        held.append(side.lease.mark())
    changed = "update t003 set name = 'x' where id = (select max(id) from t003); insert into t004 (name) values ('x'), ('y')"
    table.measure(
        *(_row(side, "reset to it, 3 rows changed", changed, rounds) for side in sides), processes=processes
    )
    for side, mark in zip(sides, held, strict=True):
        mark.release()
        side.lease.reset()


def _mark(side: Side, slow: int) -> Row:
    held: list[LeaseMark] = []

    def prepare() -> None:
        while held:
            held.pop().release()
        side.lease.reset()
        # Once more, so that what the reset itself wrote does not lie before the next mark.
        side.lease.reset()
        side.app.script(LOAD)

    def act() -> None:
        held.append(side.lease.mark())

    return Row(
        "set a mark over 3 tables of 1,000 rows",
        prepare,
        act,
        slow,
        engine=side.name,
        position=side.position,
        pages=side.pages,
    )


def sessions(
    table: Table,
    processes: ServerProcesses,
    engines: Sequence[Engine],
    folder: Path,
    version: str | None,
    slow: int,
) -> None:
    """What it costs to end a session, without what is waited for on purpose."""
    with leased(engines, "sessions") as sides:
        for side in sides:
            _kept_or_ended(table, processes, side, slow)
    for engine in engines:
        _idle_in_transaction(table, processes, engine.name, folder, version, slow)


def _kept_or_ended(table: Table, processes: ServerProcesses, side: Side, slow: int) -> None:
    lease, app = side.lease, side.app

    def idle() -> None:
        app.close()
        app.script("select count(*) from t000")

    def end() -> ResetReport:
        return lease.reset(sessions="end")

    def row(name: str, prepare: Callable[[], object], act: Callable[[], object] = lease.reset) -> Row:
        return Row(name, prepare, act, slow, engine=side.name)

    kept = row("reset, only read, an idle session kept", idle)
    ended = row('the same, sessions = "end"', idle, end)
    table.measure([kept, ended], processes=processes)
    # Round by round, which were done in turn: the end alone.
    alone = [b - a for a, b in zip(kept.taken, ended.taken, strict=False)]
    difference = done("a session ended: the difference", alone, engine=side.name)
    if kept.client is not None and ended.client is not None:
        difference.client = ended.client - kept.client
    if kept.server is not None and ended.server is not None:
        difference.server = ended.server - kept.server
    table.add(difference)
    with Application(lease) as queue:
        # As a job queue does that a wider fixture has started: what is there when the changes are asked for stays.
        queue.script("select pg_advisory_lock(1)")
        lease.changes()
        held = row(
            "reset, only read, a session advisory lock held all along",
            lambda: app.script("select count(*) from t000"),
        )
        table.measure(held, processes=processes)
    taken = row(
        "reset, only read, a session advisory lock taken and left",
        lambda: app.script("select pg_advisory_lock(1), count(*) from t000"),
    )
    table.measure(taken, processes=processes)


def _idle_in_transaction(
    table: Table, processes: ServerProcesses, engine: str, folder: Path, version: str | None, slow: int
) -> None:
    with (
        open_run(folder, version, engine=engine, reset_timeout=TIMEOUT) as harness,
        harness.lease("hurried", watch=True) as lease,
        Application(lease) as writer,
    ):

        def write() -> None:
            writer.close()
            writer.script("begin; insert into t001 (name) values ('new')")

        row = Row(
            "reset, a session idle in transaction ended, less the wait", write, lease.reset, slow,
            engine=engine, less=1000 * TIMEOUT, note=f"waited {1000 * TIMEOUT:.0f} ms before",
        )  # fmt: skip
        table.measure(row, processes=processes)
