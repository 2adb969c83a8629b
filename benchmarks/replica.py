#!/usr/bin/env python3
"""What a standby costs: a server's start, a reset until the standby shows it, and the wait for a row, with one and without, in turn.

python benchmarks/replica.py [ROUNDS [STARTS]]

Before each reset a client that stays connected inserts two rows, as a test does. Both sides are reset by rows: by pages there is no standby
to compare with, so that a reset by pages without one is a column of its own.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from measure import timed

from harness.config.load import load
from harness.config.project import Project
from harness.databases.lease import Lease
from harness.runs.run import Run
from harness.servers import inventory

SIDES: dict[str, dict[str, int | str]] = {
    "none, by pages": {"replicas": 0},
    "none, by rows": {"replicas": 0, "engine": "rows"},
    "one standby": {"replicas": 1, "engine": "rows"},
}


def main() -> None:
    """Measure, and print one line for each thing."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    starts = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    found: dict[str, dict[str, list[float]]] = {
        what: {name: [] for name in SIDES} for what in ("start", "reset", "wait for a row")
    }
    with tempfile.TemporaryDirectory() as folder:
        for number in range(starts - 1):
            with ExitStack() as stack:
                _leases(Path(folder) / str(number), stack, found["start"])
        with ExitStack() as stack:
            leases = _leases(Path(folder) / "last", stack, found["start"])
            _rounds(leases, rounds + 5, found)
    print(f"{'median (95th percentile) in ms':32}" + "".join(f"{name:>20}" for name in SIDES))
    for what, columns in found.items():
        warm = 0 if what == "start" else 5
        line = "".join(f"{_told(values[warm:]):>20}" for values in columns.values())
        print(f"{what:32}{line}")


def _leases(folder: Path, stack: ExitStack, took: dict[str, list[float]]) -> dict[str, Lease]:
    """A lease on a new server for each side, until the stack ends."""
    leases: dict[str, Lease] = {}
    for name, overrides in SIDES.items():
        root = folder / name.replace(" ", "-")
        (root / "db").mkdir(parents=True)
        (root / "db" / "1.sql").write_text("create table measured (id serial primary key);")
        (root / "pg-harness.toml").write_text('backend = "process"\nmigrations = ["sql:db"]\n')
        settings = load(os.environ, start=root, overrides=overrides)
        stack.callback(inventory.stop, Project.of(settings, os.environ), purpose="run")
        began = time.monotonic()
        run = stack.enter_context(Run.open_with(settings, os.environ))
        took[name].append(1000 * (time.monotonic() - began))
        leases[name] = run.lease(watch=True)
    return leases


def _rounds(leases: dict[str, Lease], rounds: int, found: dict[str, dict[str, list[float]]]) -> None:
    """The sides in turn."""
    clients = {name: lease.connect(autocommit=True) for name, lease in leases.items()}
    for _ in range(rounds):
        for name, lease in leases.items():
            for _ in range(2):
                clients[name].execute("insert into measured default values")
            if lease.replica is not None:
                found["wait for a row"][name].append(1000 * timed(lease.wait_for_replica))
            found["reset"][name].append(1000 * timed(lease.reset))


def _told(values: list[float]) -> str:
    if len(values) < 2:
        return "-"
    return f"{statistics.median(values):.2f} ({statistics.quantiles(values, n=20)[-1]:.2f})"


if __name__ == "__main__":
    main()
