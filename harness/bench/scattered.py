"""Rows that lie far apart in a table of a million: how a restore grows, and what it holds in memory."""

from __future__ import annotations

import random
from pathlib import Path

from harness import Lease
from harness.bench import clones
from harness.bench.measuring import Row, Table
from harness.bench.processes import Peak, ServerProcesses
from harness.bench.project import MILLION, Application, project
from harness.reset.report import ResetReport

COUNTS = (10, 66, 200, 1000)


def measure(table: Table, version: str | None, below: Path | None, slow: int) -> None:
    """Rows on a server of its own: the template is large, and so is every clone.

    Args:
        below: where the data goes; None: in memory where there is room.
    """
    with project(MILLION, version, below) as (harness, folder):
        processes = ServerProcesses(harness.link.session)
        with harness.lease("million", watch=True) as lease, Application(lease) as app:
            app.script("update accounts set abalance = 1 where aid = 1")
            lease.reset()
            read = Row(
                "reset, only read, beside a million rows",
                lambda: app.script("select count(*) from accounts where aid < 100"),
                lease.reset,
                slow,
            )
            rows = [_scattered(lease, app, count, slow) for count in COUNTS]
            table.measure(read, *rows, processes=processes)
        # Afterwards: the engine must not have learnt from them what a clone takes.
        clones.measure(table, processes, folder, version, max(1, slow // 4), of=" of a million rows")


def _scattered(lease: Lease, app: Application, count: int, rounds: int) -> Row:
    chosen = random.Random(count)

    def prepare() -> None:
        ids = ", ".join(map(str, chosen.sample(range(1, 1_000_001), count)))
        app.script(f"update accounts set abalance = abalance + 1 where aid in ({ids})")

    def act() -> ResetReport:
        if "peak_mb" in row.more:
            return lease.reset()
        # The first round, which warms up: asking for the memory takes time.
        peak = Peak()
        report = lease.reset()
        row.more["peak_mb"] = megabytes = peak.megabytes()
        row.note = "" if megabytes is None else f"{megabytes:.1f} MB of this process"
        return report

    row = Row(f"reset, {count:,} scattered rows of a million", prepare, act, rounds)
    return row
