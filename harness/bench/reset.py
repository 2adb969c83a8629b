"""``pg-harness bench reset``: what a reset costs, beside everything else that people do instead.

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
from pathlib import Path

import harness as package
from harness import Harness
from harness.bench import clones, crowd, instead, rows, scattered, suite
from harness.bench.measuring import Row, Table, done
from harness.bench.processes import ServerProcesses
from harness.bench.project import BIG, DIRTY, THOUSAND, Application, project, schema_of


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
    """

    versions: Sequence[str] = ()
    rounds: int = 200
    workers: int = 8
    folder: Path | None = None
    long: bool = False
    quick: bool = False
    json: str | None = None


def measure(options: Options) -> int:
    """Print the table; return 0, or 1 where a row failed.

    Raises:
        HarnessError: no server can be started here. ConfigError: the folder cannot be used.
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
    with project(schema_of(60) + THOUSAND, version, options.folder) as (harness, folder):
        session = harness.link.session
        table = Table(
            f"PostgreSQL {session.server_version // 10000}.{session.server_version % 10000}, 60 tables, five of them "
            f"seeded, {rounds} rounds",
            out=sys.stderr if options.json == "-" else sys.stdout,
        )
        processes = ServerProcesses(session)
        with harness.lease("bench", watch=True) as lease:
            with Application(lease) as app:
                table.measure(*rows.resets(lease, app, rounds, slow), processes=processes)
                if options.long:
                    for _ in range(2000):
                        app.script(DIRTY)
                        lease.reset()
                    _dirty(table, harness, "reset, 3 dirty tables, after 2,000 resets", rounds)
            rows.marks(table, processes, lease, rounds, slow)
            rows.sessions(table, processes, lease, folder, version, slow)
        clones.measure(table, processes, folder, version, slow)
        with harness.lease("instead", watch=True) as lease:
            instead.report(table, processes, harness, lease, slow)
        if not options.quick:
            suite.measure(table, processes, folder, version, rounds)
            _crowd(table, harness, folder, options, version)
    if not options.quick:
        scattered.measure(table, version, options.folder, slow)
    if options.long:
        with project(schema_of(1000), version, options.folder) as (harness, _):
            _dirty(table, harness, "reset, 3 dirty tables of 1,000", rounds)
        with project(schema_of(60) + BIG, version, options.folder) as (harness, _):
            _dirty(table, harness, "reset, 3 dirty tables, a template of 1 GB", rounds)
    return table


def _dirty(table: Table, harness: Harness, name: str, rounds: int) -> None:
    processes = ServerProcesses(harness.link.session)
    with harness.lease("dirty", watch=True) as lease, Application(lease) as app:
        table.measure(Row(name, lambda: app.script(DIRTY), lease.reset, rounds), processes=processes)


def _crowd(table: Table, harness: Harness, folder: Path, options: Options, version: str | None) -> None:
    """Many workers on one server, whose log holds what all of them write."""
    count, seconds = options.workers, min(3.0, 0.015 * options.rounds)
    alone = crowd.measure([folder], version, DIRTY, seconds)
    table.add(done("reset, 3 dirty tables, 1 busy worker", alone))
    # The same processors, and nobody else's log: what is left is waiting for a processor.
    with ExitStack() as stack:
        made = [project(schema_of(60), version, options.folder) for _ in range(count)]
        folders = [stack.enter_context(one)[1] for one in made]
        apart = done(
            f"the same, {count} busy workers with a server each",
            crowd.measure(folders, version, DIRTY, seconds),
        )
    table.add(apart)
    together = done(
        f"the same, {count} busy workers on one server",
        crowd.measure([folder] * count, version, DIRTY, seconds),
    )
    if together.p50 is not None and apart.p50:
        together.more["of_apart"] = together.p50 / apart.p50
    table.add(together)
    table.say_ratios("one with a server of its own and as much of the processors", "of_apart", [together])
    _turns(table, harness, count, options.rounds)


def _turns(table: Table, harness: Harness, count: int, rounds: int) -> None:
    """One after the other, so that nobody waits for a processor: what the others' log alone costs."""
    with ExitStack() as stack:
        leases = [stack.enter_context(harness.lease(f"turn{n}", watch=True)) for n in range(count)]
        apps = [stack.enter_context(Application(lease)) for lease in leases]
        taken = []
        for number in range(3 + max(min(10, rounds), rounds // count)):
            for app in apps:
                app.script(DIRTY)
            for lease in leases:
                began = time.perf_counter()
                lease.reset()
                if number >= 3:
                    taken.append(1000 * (time.perf_counter() - began))
        table.add(done(f"reset, 3 dirty tables, {count} workers in turns", taken))
