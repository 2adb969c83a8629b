#!/usr/bin/env python3
"""What a pooler in front costs: a reset, and the next test's first statement, through pgbouncer and past it, in turn on one server.

python benchmarks/pooler.py [ROUNDS]

Before each reset a client that stays connected inserts two rows, as a test does. One lease is of a project with ``pooler = "pgbouncer"``,
the other of the same project without.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from measure import timed

from harness.config.load import load
from harness.config.project import Project
from harness.databases.lease import Lease
from harness.runs.run import Run
from harness.servers import inventory


def measured(lease: Lease, into: dict[str, list[float]]) -> Callable[[], None]:
    """One round: rows, a reset, the first statement after it."""
    client = lease.connect(autocommit=True, prepare_threshold=None)
    table = "measured"

    def once() -> None:
        client.execute(f"insert into {table} default values")
        client.execute(f"insert into {table} default values")
        into["reset"].append(1000 * timed(lease.reset))
        into["first statement"].append(1000 * timed(lambda: client.execute("select 1")))
        into["second statement"].append(1000 * timed(lambda: client.execute("select 1")))

    return once


def main() -> None:
    """Measure, and print one line for each thing."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "db").mkdir()
        (root / "db" / "1.sql").write_text("create table measured (id serial primary key);")
        (root / "pg-harness.toml").write_text('backend = "process"\nmigrations = ["sql:db"]\n')
        plain = load(os.environ, start=root)
        front = load(os.environ, start=root, overrides={"pooler": "pgbouncer"})
        past: dict[str, list[float]] = {"reset": [], "first statement": [], "second statement": []}
        through: dict[str, list[float]] = {name: [] for name in past}
        try:
            with Run.open_with(plain, os.environ) as one, Run.open_with(front, os.environ) as other:
                direct, pooled = (
                    measured(one.lease(watch=True), past),
                    measured(other.lease(watch=True), through),
                )
                for _ in range(rounds + 5):
                    direct()
                    pooled()
        finally:
            inventory.stop(Project.of(plain, os.environ), purpose="run")
    print(f"{'median (95th percentile) in ms':24} {'direct':>18} {'pgbouncer':>18}")
    for name in past:
        columns = [
            f"{statistics.median(values[5:]):.2f} ({statistics.quantiles(values[5:], n=20)[-1]:.2f})"
            for values in (past[name], through[name])
        ]
        print(f"{name:24} {columns[0]:>18} {columns[1]:>18}")


if __name__ == "__main__":
    main()
