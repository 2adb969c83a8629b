"""One pytest test of the workload rolled back: its whole cost, from a long and a short run of the same suite."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.bench.measuring import Row, Table, done
from harness.bench.processes import ServerProcesses
from harness.bench.project import WORKLOAD, environ_of, knows_engines, version_key

TESTS = f"""
import os
import psycopg
import pytest

@pytest.fixture(scope="session")
def connection():
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        yield connection

@pytest.mark.parametrize("number", range(int(os.environ["BENCH_TESTS"])))
def test_it(connection, number):
    connection.execute('''begin; {WORKLOAD}; rollback''')
"""

PATIENCE = 600
"""Seconds after which a suite that hangs is ended."""


@dataclass(frozen=True)
class Cost:
    """Milliseconds of one run of pytest."""

    wall: float
    client: float
    server: float | None


def measure(
    table: Table,
    processes: ServerProcesses,
    folder: Path,
    version: str | None,
    rounds: int,
    engines: Sequence[str],
) -> None:
    """Rows of one test with ``fresh = "none"`` and ``"reset"``: (long − short) / (tests more), runs in turn.

    Args:
        engines: names of those that are measured.
    """
    short, long = max(2, rounds // 4), max(6, rounds * 9 // 4)
    repeats = max(1, min(7, rounds // 30))
    (folder / "test_bench.py").write_text(TESTS)
    environ = environ_of(folder) | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    # Who rolls everything back by hand is reset by nobody: no engine's row.
    modes = [("none", ""), *(("reset", name) for name in engines)]
    found: dict[tuple[str, str], list[Cost]] = {mode: [] for mode in modes}
    for mode in found:
        _run(folder, environ, version, mode, short, processes)
    for number in range(repeats):
        forward = number % 2 == 0
        for mode in found if forward else reversed(found):
            # Who goes first takes turns: a machine that gets busier must not look like a dearer test.
            cost = {
                tests: _run(folder, environ, version, mode, tests, processes)
                for tests in ((short, long) if forward else (long, short))
            }
            found[mode].append(_each(cost[short], cost[long], long - short))
    none, *resets = [_row(mode, costs, f"from {short} and {long} tests") for mode, costs in found.items()]
    for reset in resets:
        for what in ("p50", "client", "server"):
            a, b = getattr(reset, what), getattr(none, what)
            reset.more[f"{what}_of_none"] = a / b if a is not None and b else None
    for row in (none, *resets):
        table.add(row)
    table.say_ratios('fresh = "none", wall', "p50_of_none", resets)
    table.say_ratios('fresh = "none", processor time of pytest', "client_of_none", resets)


def _each(few: Cost, many: Cost, more: int) -> Cost:
    server = None if few.server is None or many.server is None else (many.server - few.server) / more
    return Cost((many.wall - few.wall) / more, (many.client - few.client) / more, server)


def _row(mode: tuple[str, str], costs: list[Cost], note: str) -> Row:
    fresh, engine = mode
    row = done(
        f'one pytest test, rolled back, fresh = "{fresh}"', [cost.wall for cost in costs], note, engine
    )
    row.client = statistics.median(cost.client for cost in costs)
    servers = [cost.server for cost in costs if cost.server is not None]
    row.server = statistics.median(servers) if servers else None
    return row


def _run(
    folder: Path, environ: Mapping[str, str], version: str | None, mode: tuple[str, str], tests: int,
    processes: ServerProcesses,
) -> Cost:  # fmt: skip
    fresh, engine = mode
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pg_harness_pytest",
        "--pg-harness-fresh", fresh, "test_bench.py",
    ]  # fmt: skip
    told = {"BENCH_TESTS": str(tests)}
    if engine and knows_engines():
        told["PGHARNESS_ENGINE"] = engine
    if version:
        told |= {f"PGHARNESS_{version_key().upper()}": version, "PGHARNESS_BACKEND": "process"}
    busy, spent, began = processes.seconds(), _children(), time.perf_counter()
    ended = subprocess.run(
        command, cwd=folder, env={**environ, **told}, text=True, check=False, capture_output=True,
        timeout=PATIENCE,
    )  # fmt: skip
    took, after, later = time.perf_counter() - began, processes.seconds(), _children()
    if ended.returncode:
        raise RuntimeError(f"pytest failed:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    server = None if busy is None or after is None else 1000 * (after - busy)
    return Cost(1000 * took, 1000 * (later - spent), server)


def _children() -> float:
    """Seconds of processor time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
