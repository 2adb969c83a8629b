"""``pg-harness bench reset``: what a reset costs by either engine, beside everything else that people do instead.

All rows are measured in one run, on servers of its own with their data in memory where there is room.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import harness as package
from harness.bench import clones, crowd, instead, limits, rows, scattered, suite
from harness.bench.engines import BOTH, Engine, had, leased, opened
from harness.bench.measuring import Row, Table, done
from harness.bench.processes import ServerProcesses
from harness.bench.project import BIG, DIRTY, THOUSAND, VIEW, project, schema_of


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        versions: PostgreSQL's major versions; empty: the one that there is.
        rounds: of each row; slow rows have a tenth.
        workers: of the crowded rows.
        folder: where the servers' data lies; None: in memory where there is room.
        long: also 1,000 tables, 1 GB, 2,000 resets.
        quick: without crowds, suites and a million rows.
        json: a file for all figures; ``-`` for stdout, and the table goes to stderr.
        engine: ``"rows"``, ``"rewind"``, or ``"both"`` in turn.
    """

    versions: Sequence[str] = ()
    rounds: int = 200
    workers: int = 8
    folder: Path | None = None
    long: bool = False
    quick: bool = False
    json: str | None = None
    engine: str = BOTH


def measure(options: Options) -> int:
    """Print the table; return 0, or 1 where a row failed.

    Raises:
        HarnessError: no server can be started here. ConfigError: the folder cannot be used; only rewind was asked
            for, and it is not to be had.
    """
    tables = [_table(version, options) for version in options.versions or (None,)]
    told = {
        "harness": package.__version__,
        "python": platform.python_version(),
        "rounds": options.rounds,
        "tables": [table.told() for table in tables],
    }
    if options.json == "-":
        print(json.dumps(told, indent=2))
    elif options.json:
        Path(options.json).write_text(json.dumps(told, indent=2) + "\n")
    return int(any(row.failed for table in tables for row in table.rows))


def _table(version: str | None, options: Options) -> Table:
    """All rows of one version."""
    rounds, slow = options.rounds, max(min(5, options.rounds), options.rounds // 10)
    with project(schema_of(60) + THOUSAND + VIEW, version, options.folder) as (harness, folder):
        session = harness.link.session
        table = Table(
            f"PostgreSQL {session.server_version // 10000}.{session.server_version % 10000}, 60 tables, five of them "
            f"seeded, {rounds} rounds",
            out=sys.stderr if options.json == "-" else sys.stdout,
        )
        names, table.missing = had(options.engine, folder, version)
        if table.missing:
            table.say(f"rows only, rewind is not to be had here: {table.missing}")
        processes = ServerProcesses(session)
        with opened(folder, version, names) as engines:
            with leased(engines, "bench") as sides:
                table.measure(*rows.resets(sides, rounds, slow), processes=processes)
                if options.long:
                    for side in sides:
                        for _ in range(2000):
                            side.app.script(DIRTY)
                            side.lease.reset()
            if options.long:
                _dirty(table, engines, "reset, 3 dirty tables, after 2,000 resets", rounds)
            with leased(engines, "marks") as sides:
                rows.marks(table, processes, sides, rounds, slow)
            rows.sessions(table, processes, engines, folder, version, slow)
            with leased(engines, "lasting") as sides:
                table.measure(*rows.lasting(sides, slow), processes=processes)
        clones.measure(table, processes, folder, version, slow)
        with harness.lease("instead", watch=True) as lease:
            instead.report(table, processes, harness, lease, slow)
        if not options.quick:
            suite.measure(table, processes, folder, version, rounds, names)
            _crowd(table, folder, options, version, names)
    if not options.quick:
        scattered.measure(table, version, options.folder, slow, names)
    if options.long:
        _large(table, schema_of(1000), version, options, names, "reset, 3 dirty tables of 1,000")
        _large(
            table, schema_of(60) + BIG, version, options, names, "reset, 3 dirty tables, a template of 1 GB"
        )
    limits.judge(table)
    limits.tell(table)
    return table


def _large(
    table: Table, schema: str, version: str | None, options: Options, names: Sequence[str], name: str
) -> None:
    """Three dirty tables of another template."""
    with (
        project(schema, version, options.folder) as (_, folder),
        opened(folder, version, names) as engines,
    ):
        _dirty(table, engines, name, options.rounds)


def _dirty(table: Table, engines: Sequence[Engine], name: str, rounds: int) -> None:
    processes = ServerProcesses(engines[0].harness.link.session)
    with leased(engines, "dirty") as sides:
        made = [
            Row(
                name,
                partial(side.app.script, DIRTY),
                side.lease.reset,
                rounds,
                engine=side.name,
                position=side.position,
                pages=side.pages,
            )
            for side in sides
        ]
        table.measure(*made, processes=processes)


def _crowd(table: Table, folder: Path, options: Options, version: str | None, names: Sequence[str]) -> None:
    """Many workers on one server, whose log holds what all of them write."""
    count, seconds = options.workers, min(3.0, 0.015 * options.rounds)
    for name in names:
        alone = crowd.measure([folder], version, DIRTY, seconds, name)
        table.add(done("reset, 3 dirty tables, 1 busy worker", alone, engine=name))
    shared = []
    # The same processors, and nobody else's log: what is left is waiting for a processor.
    with ExitStack() as stack:
        made = [project(schema_of(60), version, options.folder) for _ in range(count)]
        folders = [stack.enter_context(one)[1] for one in made]
        for name in names:
            took = crowd.measure(folders, version, DIRTY, seconds, name)
            apart = done(f"the same, {count} busy workers with a server each", took, engine=name)
            table.add(apart)
            took = crowd.measure([folder] * count, version, DIRTY, seconds, name)
            together = done(f"the same, {count} busy workers on one server", took, engine=name)
            if together.p50 is not None and apart.p50:
                together.more["of_apart"] = together.p50 / apart.p50
            table.add(together)
            shared.append(together)
    table.say_ratios("one with a server of its own and as much of the processors", "of_apart", shared)
    with opened(folder, version, names) as engines:
        for engine in engines:
            _turns(table, engine, count, options.rounds)


def _turns(table: Table, engine: Engine, count: int, rounds: int) -> None:
    """One after the other, so that nobody waits for a processor: what the others' log alone costs."""
    with ExitStack() as stack:
        sides = [stack.enter_context(leased([engine], f"turn{n}"))[0] for n in range(count)]
        taken = []
        for number in range(3 + max(min(10, rounds), rounds // count)):
            for side in sides:
                side.app.script(DIRTY)
            for side in sides:
                began = time.perf_counter()
                side.lease.reset()
                if number >= 3:
                    taken.append(1000 * (time.perf_counter() - began))
        table.add(done(f"reset, 3 dirty tables, {count} workers in turns", taken, engine=engine.name))
