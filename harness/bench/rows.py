"""Resets after what tests do: quick rows, marks, and sessions that have to be ended."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from harness import Lease
from harness.bench.measuring import READ_ONLY, SELECT, Row, Table, done
from harness.bench.processes import ServerProcesses
from harness.bench.project import DIRTY, WORKLOAD, Application, open_run
from harness.reset.report import ResetReport

TIMEOUT = 0.05
"""Seconds that a reset waits for a session in its way, where the end of that session is measured."""


def resets(lease: Lease, app: Application, rounds: int, slow: int) -> list[Row]:
    """Rows of one lease whose resets restore."""

    def after(name: str, statements: str, count: int) -> Row:
        return Row(name, lambda: app.script(statements), lease.reset, count)

    numbers = itertools.count()

    def one_of_thousand() -> None:
        app.script(f"update thousand set name = 'changed' where id = {1 + next(numbers) * 37 % 1000}")

    thirty = "; ".join(
        f"insert into t{n:03} (name) select 'new' from generate_series(1, 10)" for n in range(30)
    )
    five = ", ".join(f"t{n:03}" for n in (2, 5, 8, 11, 14))
    return [
        Row(SELECT, act=lambda: app.session.value("select 1"), rounds=rounds),
        after(READ_ONLY, "select count(*) from t000", rounds),
        after("reset, 3 tables and a seeded row, all rolled back", f"begin; {WORKLOAD}; rollback", rounds),
        after("reset, 3 tables and a seeded row, committed", WORKLOAD, rounds),
        after("reset, 3 dirty tables", DIRTY, rounds),
        after(
            "reset, seeded rows changed",
            "update t000 set name = 'changed' where id in (1, 50, 100); delete from t000 where id = 7",
            rounds,
        ),
        Row("reset, one of 1,000 seeded rows updated", one_of_thousand, lease.reset, rounds),
        after("reset, one insert", "insert into t001 (name) values ('new')", rounds),
        after("reset, 30 dirty tables", thirty, slow),
        after(
            "reset, 10,000 new rows",
            "insert into t001 (name) select 'new' from generate_series(1, 10000)",
            slow,
        ),
        after("reset, a temporary table", "create temp table x (id serial); drop table x", slow),
        after(
            "reset, CREATE and DROP of a table",
            "create table x (id serial primary key, name text); insert into x (name) values ('new'); drop table x",
            slow,
        ),
        after("reset, TRUNCATE of five tables", f"truncate {five}", slow),
    ]


def marks(table: Table, processes: ServerProcesses, lease: Lease, rounds: int, slow: int) -> None:
    """Set a mark, and go back to it."""
    load = "; ".join(
        f"insert into t{n:03} (name) select 'marked' from generate_series(1, 1000)" for n in (3, 4, 5)
    )
    taken = []
    with Application(lease) as app:
        for _ in range(slow):
            app.script(load)
            began = time.perf_counter()
            mark = lease.mark()
            taken.append(1000 * (time.perf_counter() - began))
            mark.release()
            lease.reset()
            # Once more, so that what the reset itself wrote does not lie before the next mark.
            lease.reset()
        table.add(done("set a mark over 3 tables of 1,000 rows", taken))
        app.script(load)
        mark = lease.mark()
        changed = "update t003 set name = 'x' where id = (select max(id) from t003); insert into t004 (name) values ('x'), ('y')"
        table.measure(
            Row("reset to it, 3 rows changed", lambda: app.script(changed), lease.reset, rounds),
            processes=processes,
        )
        mark.release()
        lease.reset()


def sessions(
    table: Table, processes: ServerProcesses, lease: Lease, folder: Path, version: str | None, slow: int
) -> None:
    """What it costs to end a session, without what is waited for on purpose."""
    app = Application(lease)

    def idle() -> None:
        app.close()
        app.script("select count(*) from t000")

    def end() -> ResetReport:
        return lease.reset(sessions="end")

    kept = Row("reset, only read, an idle session kept", idle, lease.reset, slow)
    ended = Row('the same, sessions = "end"', idle, end, slow)
    with app:
        table.measure([kept, ended], processes=processes)
        # Round by round, which were done in turn: the end alone.
        alone = [b - a for a, b in zip(kept.taken, ended.taken, strict=False)]
        difference = done("a session ended: the difference", alone)
        if None not in (kept.client, ended.client):
            difference.client = ended.client - kept.client  # type: ignore[operator]
        if None not in (kept.server, ended.server):
            difference.server = ended.server - kept.server  # type: ignore[operator]
        table.add(difference)
        with Application(lease) as queue:
            # As a job queue does that a wider fixture has started: what is there when the changes are asked for stays.
            queue.script("select pg_advisory_lock(1)")
            lease.changes()
            held = Row(
                "reset, only read, a session advisory lock held all along",
                lambda: app.script("select count(*) from t000"),
                lease.reset,
                slow,
            )
            table.measure(held, processes=processes)
        taken = Row(
            "reset, only read, a session advisory lock taken and left",
            lambda: app.script("select pg_advisory_lock(1), count(*) from t000"),
            lease.reset,
            slow,
        )
        table.measure(taken, processes=processes)
    with (
        open_run(folder, version, reset_timeout=TIMEOUT) as harness,
        harness.lease("hurried", watch=True) as other,
        Application(other) as writer,
    ):

        def write() -> None:
            writer.close()
            writer.script("begin; insert into t001 (name) values ('new')")

        row = Row(
            "reset, a session idle in transaction ended, less the wait", write, other.reset, slow,
            less=1000 * TIMEOUT, note=f"waited {1000 * TIMEOUT:.0f} ms before",
        )  # fmt: skip
        table.measure(row, processes=processes)
