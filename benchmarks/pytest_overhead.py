#!/usr/bin/env python3
"""What the plugin costs: unconfigured, and at a warm start. Ratios and differences within one run.

python benchmarks/pytest_overhead.py [ROUNDS] [unconfigured] [start] [throughput | throughput-60 | throughput-2]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pytest_throughput import SCHEMAS, throughput

REPOSITORY = Path(__file__).resolve().parents[1]
BASE = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
OURS = ["-p", "pg_harness_pytest"]


def seconds(command: list[str], cwd: Path, environ: dict[str, str]) -> tuple[float, float]:
    """Wall-clock time of one process that must succeed, and until its first test was done; 0 where none was."""
    reached = cwd / "reached"
    reached.unlink(missing_ok=True)
    began = time.time()
    done = subprocess.run(
        command, cwd=cwd, env=environ, text=True, check=False, capture_output=True, timeout=120
    )
    took = time.time() - began
    if done.returncode not in (0, 5):
        sys.exit(done.stdout + done.stderr)
    return took, (float(reached.read_text()) - began if reached.exists() else 0.0)


def compare(
    title: str, one: list[str], other: list[str], cwd: Path, environ: dict[str, str], rounds: int
) -> None:
    """Alternate both, so that a busy machine hits both."""
    first, second = [], []
    for _ in range(rounds):
        first.append(seconds(one, cwd, environ))
        second.append(seconds(other, cwd, environ))
    for index, what in enumerate(("", " (until the first test)")):
        a, b = (statistics.median(times[index] for times in both) for both in (first, second))
        if a:
            print(
                f"{title}{what}: {1000 * a:.0f} ms without, {1000 * b:.0f} ms with: "
                f"{1000 * (b - a):+.1f} ms, {b / a:.2f}×"
            )


def main() -> None:
    """The table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    parts = sys.argv[2:] or ["unconfigured", "start", "throughput"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_a.py").write_text("")
        environ = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(REPOSITORY)}
        environ |= {"PGHARNESS_STATE_DIR": f"{name}/state", "PGHARNESS_CACHE_DIR": f"{name}/cache"}
        look = [*BASE, "--collect-only"]
        if "unconfigured" in parts:
            compare("installed, unconfigured, --collect-only", look, [*look, *OURS], folder, environ, rounds)
        if parts == ["unconfigured"]:
            return
        (folder / "pg-harness.toml").write_text('backend = "process"\nmigrations = ["sql:m"]\n')
        (folder / "m").mkdir()
        (folder / "m" / "1.sql").write_text(
            "create table users (id serial primary key, name text);"
            "create table orders (id serial primary key, user_id int references users);"
        )
        (folder / "test_a.py").write_text(
            "import os, time, psycopg\n"
            "def test_it():\n"
            "    with psycopg.connect(os.environ['DATABASE_URL']) as c: c.execute('select 1')\n"
            "    open('reached', 'w').write(repr(time.time()))\n"
        )
        from harness.runs.run import Run

        with Run.open(root=folder, environ=environ) as harness, harness.lease() as lease:
            environ["DATABASE_URL"] = lease.url
            for workers in ("0", "4") if "start" in parts else ():
                plain = [*BASE, "-p", "xdist", "-n", workers]
                compare(
                    f"warm start, -n {workers}", plain, [*plain, *OURS], folder, environ, max(3, rounds // 3)
                )
        from harness.config.load import load
        from harness.config.project import Project
        from harness.servers import inventory

        inventory.stop(Project.of(load(environ, start=folder), environ))
        for tables, schema in SCHEMAS.items():
            if {"throughput", f"throughput-{tables}"} & set(parts):
                throughput(
                    schema,
                    folder / tables,
                    environ,
                    max(3, rounds // 5),
                    run=lambda options, cwd, given: seconds([*BASE, *options], cwd, given)[0],
                )


if __name__ == "__main__":
    main()
