#!/usr/bin/env python3
"""Ten thousand resets, after which nothing may have grown: the database, the log, files, the memory of both ends.

    python benchmarks/soak_resets.py [--engine rows|rewind] [--version N] [--resets 10000] [--json FILE]

Tests of many kinds take turns; the engine's clones are counted. After the first tenth, in which caches fill, the sizes are
noted ten times. The verdict compares the last three notes with the first three; it ends with 1 where something grew. The
server keeps files of the log, up to min_wal_size for use again and wal_keep_size for readers, however few it needs: the log
has grown beyond that only. And a session keeps pages of temporary tables up to temp_buffers: they are filled before.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import Lease
from harness.bench.engines import had
from harness.bench.measuring import REWIND, ROWS
from harness.bench.project import DIRTY, THOUSAND, VIEW, WORKLOAD, Application, open_run, project, schema_of
from harness.postgres.session import Session

QUICK = (
    "select count(*) from t000",
    "insert into t001 (name) values ('new')",
    "begin; insert into t001 (name) values ('new'); rollback",
    DIRTY,
    WORKLOAD,
    "update thousand set name = 'changed' where id = 7",
    "delete from thousand where id % 3 = 0",
    "insert into t001 (name) select 'new' from generate_series(1, 500)",
)

CATALOGS = (
    "create temp table x (id serial); drop table x",
    "create table x (id serial primary key, name text); drop table x",
    "truncate t002, t005, t008",
)

LASTING = (
    "refresh materialized view m000",
    "alter table t004 add column extra int default 1",
    "create index on t000 (amount)",
    "drop table t059",
)

FILL = """
set temp_buffers = 100;
create temp table filling (id int, much text);
insert into filling select i, repeat('x', 1000) from generate_series(1, 2000) i;
drop table filling
"""
"""All pages that the session may keep of temporary tables: the smallest number that can be set."""

NOTES = 10
"""How often the sizes are noted."""

FEW = 3
"""Of the first and last notes that are compared."""


@dataclass(frozen=True)
class Sizes:
    """What may not grow: bytes, and numbers of things.

    Attributes:
        database: on disk, of the lease.
        log: of all files of the log.
        others: of the server's other databases.
        backends: private memory of the harness's own sessions; None where it cannot be seen.
        application: of the application's session, which is kept; None where it was replaced, or cannot be seen.
        client: of this process.
        files: in the folder of the lease, and of marks.
        descriptors: open files of the harness's own sessions, of the application's session and of this process.
        statistics: what the server counts for, of relations of the lease that are or were.
    """

    database: int
    log: int
    others: int
    backends: int | None
    application: int | None
    client: int | None
    files: int
    descriptors: int | None
    statistics: int


BYTES = ("database", "log", "others", "backends", "application", "client")
"""What is shown in kilobytes."""

SLACK = {
    "database": 64 << 10,
    "log": 0,
    "others": 1 << 20,
    "backends": 512 << 10,
    "application": 256 << 10,
    "client": 2 << 20,
    "files": 8,
    "descriptors": 16,
    "statistics": 16,
}
"""What each may differ by: what is left is not worth a word."""


def tests(engine: str, number: int) -> str:
    """What the test of that number writes: every kind that the engine resets without a clone."""
    if number % 10 == 9:
        return CATALOGS[number // 10 % len(CATALOGS)]
    if engine == REWIND and number % 10 == 4:
        return LASTING[number // 10 % len(LASTING)]
    return QUICK[number % len(QUICK)]


def private(pid: int | str) -> int | None:
    """Bytes of memory that a process shares with nobody: shared buffers fill, and are no leak."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), None)


def descriptors(pid: int | str) -> int | None:
    """How many files a process has open; None where it cannot be seen."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def added(values: list[int | None]) -> int | None:
    """The sum, where all are known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


FILES = """
select (select count(*) from pg_ls_dir('base/' || oid)) + (select count(*) from pg_ls_dir('pgh_marks', true, false))
from pg_database where datname = %s
"""

STATISTICS = """
select count(*) from pg_database, generate_series(16384, (select next_oid::text::int8 from pg_control_checkpoint())) number
where datname = %s and pg_stat_have_stats('relation', pg_database.oid, number::oid)
"""
"""Tables of tests have numbers that no catalog knows any more. (A checkpoint says which is the last one.)"""


def look(admin: Session, lease: Lease, app: int) -> Sizes:
    """All sizes now, behind a checkpoint: it is what recycles the log."""
    admin.execute("checkpoint")
    pids = [
        pid
        for (pid,) in admin.rows(
            "select pid from pg_stat_activity where backend_type = 'client backend' and pid <> %s and pid <> pg_backend_pid()",
            (app,),
        )
    ]
    processes: list[int | str] = [*map(int, map(str, pids)), app, "self"]
    return Sizes(
        database=int(str(admin.value("select pg_database_size(%s)", (lease.dsn.database,)))),
        log=int(str(admin.value("select sum(size) from pg_ls_waldir()"))),
        others=int(
            str(
                admin.value(
                    "select coalesce(sum(pg_database_size(oid)), 0) from pg_database where datname <> %s",
                    (lease.dsn.database,),
                )
            )
        ),
        backends=added([private(pid) for pid in processes[:-2]]),
        application=private(app),
        client=private("self"),
        files=int(str(admin.value(FILES, (lease.dsn.database,)))),
        descriptors=added([descriptors(pid) for pid in processes]),
        statistics=int(
            str(
                admin.value(
                    STATISTICS if admin.server_version < 180000 else STATISTICS.replace("::oid)", ")"),
                    (lease.dsn.database,),
                )
            )
        ),
    )


def grown(notes: list[Sizes], kept: int) -> dict[str, int | None]:
    """Name → by how much the least of the last notes exceeds the most of the first; None where it cannot be seen.

    Args:
        kept: bytes of log that the server keeps in any case.
    """
    told: dict[str, int | None] = {}
    for name in SLACK:
        first = [value for note in notes[:FEW] if (value := getattr(note, name)) is not None]
        last = [value for note in notes[-FEW:] if (value := getattr(note, name)) is not None]
        before = [*first, kept] if name == "log" else first
        told[name] = min(last) - max(before) if first and last else None
    return told


def shown(name: str, value: int | None) -> str:
    """Of a table."""
    return "-" if value is None else f"{value / 1000:.1f}" if name in BYTES else str(value)


MARKED = 50
"""Each test of that number sets a mark, goes on, comes back to it, and releases it."""


def marked(lease: Lease, app: Application, number: int) -> list[str]:
    """A test with a mark; how its resets were made."""
    app.script(tests(ROWS, number))
    mark = lease.mark()
    app.script(tests(ROWS, number + 1))
    told = [reset(lease)]
    mark.release()
    return [*told, reset(lease)]


def reset(lease: Lease) -> str:
    """How one was made; and where pages were asked for in vain, what was answered last."""
    report = lease.reset()
    last = lease.rewound
    if last is None or report.strategy in ("nothing", "rewind"):
        return report.strategy
    return f"{report.strategy} ({report.reason or last.why or last.status})"


def soak(engine: str, version: str | None, resets: int, below: Path | None) -> dict[str, object]:
    """Run it; print the notes and the verdict."""
    with project(schema_of(60) + THOUSAND + VIEW, version, below) as (first, folder):
        _, missing = had(engine, folder, version)
        number, strategies, notes = 0, Counter[str](), []
        with (
            open_run(folder, version, engine=engine) as harness,
            harness.lease("soak", watch=True) as lease,
            Application(lease) as app,
        ):
            admin = first.link.session
            app.script(FILL)
            with Application(lease) as other:
                # It keeps temporary tables while catalogs change: then the way by rows takes over, and fills its caches.
                other.script("create temp table stays (id int)")
                app.script("create table x (id int); drop table x")
                lease.reset()
            lease.reset()
            print(f"PostgreSQL {admin.server_version // 10000}, engine {engine}, {resets} resets {missing}")
            print(
                f"{'resets':>8} "
                + " ".join(f"{name + ' kB' if name in BYTES else name:>14}" for name in SLACK),
                flush=True,
            )
            began = time.monotonic()
            for note in range(NOTES + 1):
                # The first one ends the warm-up.
                until = resets // 10 + note * (resets - resets // 10) // NOTES
                while number < until:
                    if number % MARKED == 0:
                        strategies.update(marked(lease, app, number))
                        number += 2
                        continue
                    app.script(tests(engine, number))
                    strategies[reset(lease)] += 1
                    number += 1
                pid = int(str(app.session.value("select pg_backend_pid()")))
                notes.append(look(admin, lease, pid))
                row = (f"{shown(name, value):>14}" for name, value in asdict(notes[-1]).items())
                print(f"{number:8d} " + " ".join(row), flush=True)
            took = time.monotonic() - began
            kept = int(
                str(
                    admin.value(
                        "select sum(pg_size_bytes(current_setting(name))) from unnest("
                        "array['min_wal_size', 'wal_keep_size', 'wal_segment_size', 'wal_segment_size', 'wal_segment_size']) name"
                    )
                )
            )
    more = grown(notes, kept)
    verdict = {name: value is None or value <= SLACK[name] for name, value in more.items()}
    for name, value in more.items():
        unit = " kB" if name in BYTES else ""
        said = "cannot be seen" if value is None else f"{shown(name, value)}{unit}"
        print(f"{name:12} {said:>16}  {'ok' if verdict[name] else 'HAS GROWN'}")
    told = ", ".join(f"{what} {count}" for what, count in sorted(strategies.items()))
    print(f"{number} resets in {took:.0f} s: {told}")
    return {
        "engine": engine, "version": version, "resets": number, "seconds": took, "strategies": strategies,
        "notes": [asdict(note) for note in notes], "grown": more, "ok": all(verdict.values()),
    }  # fmt: skip


def main() -> None:
    """One soak for each engine that is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=(ROWS, REWIND), default=REWIND, help="default: rewind")
    parser.add_argument("--version", help="major version of PostgreSQL; default: what there is")
    parser.add_argument("--resets", type=int, default=10_000, help="default: 10000")
    parser.add_argument("--folder", type=Path, help="keep the data below it; default: in memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also all figures, into a file")
    given = parser.parse_args()
    told = soak(given.engine, given.version, given.resets, given.folder)
    if given.json:
        given.json.write_text(json.dumps(told, indent=2) + "\n")
    sys.exit(0 if told["ok"] else 1)


if __name__ == "__main__":
    main()
