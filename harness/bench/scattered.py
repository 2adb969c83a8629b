"""Rows that lie far apart in a table of a million: how a restore grows, and what it holds in memory."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from harness.bench import clones
from harness.bench.engines import Side, leased, opened
from harness.bench.measuring import Row, Table
from harness.bench.processes import Peak, ServerProcesses
from harness.bench.project import MILLION, project
from harness.reset.report import ResetReport

COUNTS = (10, 66, 200, 1000)


def measure(table: Table, version: str | None, below: Path | None, slow: int, engines: Sequence[str]) -> None:
    """Rows on a server of its own: the template is large, and so is every clone.

    Args:
        engines: names of those that are measured.
        below: where the data goes; None: in memory where there is room.
    """
    with project(MILLION, version, below) as (harness, folder):
        processes = ServerProcesses(harness.link.session)
        with opened(folder, version, engines) as runs, leased(runs, "million") as sides:
            for side in sides:
                side.app.script("update accounts set abalance = 1 where aid = 1")
                side.lease.reset()
            rows = [_read(side, slow) for side in sides]
            rows += [_scattered(side, count, slow) for count in COUNTS for side in sides]
            table.measure(*rows, processes=processes)
        # Afterwards: the engine must not have learnt from them what a clone takes.
        clones.measure(table, processes, folder, version, max(1, slow // 4), of=" of a million rows")


def _read(side: Side, rounds: int) -> Row:
    return Row(
        "reset, only read, beside a million rows",
        lambda: side.app.script("select count(*) from accounts where aid < 100"),
        side.lease.reset,
        rounds,
        engine=side.name,
        position=side.position,
        pages=side.pages,
    )


def _scattered(side: Side, count: int, rounds: int) -> Row:
    chosen = random.Random(count)

    def prepare() -> None:
        ids = ", ".join(map(str, chosen.sample(range(1, 1_000_001), count)))
        side.app.script(f"update accounts set abalance = abalance + 1 where aid in ({ids})")

    def act() -> ResetReport:
        if "peak_mb" in row.more:
            return side.lease.reset()
        # The first round, which warms up: asking for the memory takes time.
        peak = Peak()
        report = side.lease.reset()
        row.more["peak_mb"] = megabytes = peak.megabytes()
        row.note = "" if megabytes is None else f"{megabytes:.1f} MB of this process"
        return report

    row = Row(f"reset, {count:,} scattered rows of a million", prepare, act, rounds)
    row.engine, row.position, row.pages = side.name, side.position, side.pages
    return row
