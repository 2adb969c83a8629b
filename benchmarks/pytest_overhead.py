#!/usr/bin/env python3
"""What the plugin costs: unconfigured, and at a warm start. Ratios and differences within one run.

python benchmarks/pytest_overhead.py [ROUNDS] [unconfigured] [start] [throughput]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


MANY = """
import os, time, psycopg, pytest

@pytest.fixture(scope="session")
def connection():
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    open("began-" + worker, "w").write(repr(time.time()))
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        yield connection
    open("ended-" + worker, "w").write(repr(time.time()))

@pytest.mark.parametrize("i", range(400))
def test_it(connection, i):
    for n in range(10):
        connection.execute("insert into users (name) values (%s)", (f"user {n}",))
        connection.execute("select id, name from users order by id desc limit 10").fetchall()
    connection.execute("insert into orders (user_id) select max(id) from users")
    connection.execute("update orders set user_id = user_id where user_id > 0")
"""

HARD_CODED = """
import os
os.environ["DATABASE_URL"] = os.environ["URL_" + os.environ.get("PYTEST_XDIST_WORKER", "gw0")]
"""

CLEANED = """
import pytest

@pytest.fixture(autouse=True)
def cleaned(connection):
    yield
    connection.execute({statement!r})
"""

BY_HAND = {
    "nothing is put back": HARD_CODED,
    "DELETE of both tables": HARD_CODED + CLEANED.format(statement="delete from orders; delete from users"),
    "TRUNCATE of both tables": HARD_CODED
    + CLEANED.format(statement="truncate users, orders restart identity cascade"),
}
"""How a suite on databases made by hand may clean up after each test: what it does → its conftest."""


def throughput(folder: Path, environ: dict[str, str], rounds: int) -> None:
    """400 short database tests with ``-n 4``, against four databases made by hand with hard-coded URLs.

    Told for the whole run, and for the time from the first test to the last: how long the start takes is above.
    ``fresh = "none"`` does what a suite by hand does that puts nothing back; ``fresh = "reset"`` does more, and is
    compared with suites that clean up by themselves, too.
    """
    from harness.core import Harness

    (folder / "test_a.py").write_text(MANY)
    command = [*BASE, "-p", "xdist", "-n", "4"]
    times: dict[str, list[tuple[float, float]]] = {}

    def run(what: str, conftest: str, more: list[str]) -> None:
        (folder / "conftest.py").write_text(conftest)
        whole = seconds([*command, *more], folder, environ)[0]
        times.setdefault(what, []).append((whole, between(folder)))

    with Harness.open(root=folder, environ=environ) as harness:
        for lease in harness.leases(4, first=0):
            environ[f"URL_gw{lease.worker}"] = lease.url
        for _ in range(rounds):
            for what, conftest in BY_HAND.items():
                run(what, conftest, [])
            for fresh in ("none", "reset"):
                run(fresh, "", [*OURS, "--pg-harness-fresh", fresh])
    (folder / "conftest.py").unlink()
    nothing = next(iter(BY_HAND))
    for fresh, by_hand in [("none", nothing), *(("reset", what) for what in BY_HAND)]:
        for index, part in enumerate(("the whole run", "first test to last")):
            a, b = ([taken[index] for taken in times[which]] for which in (by_hand, fresh))
            ratio = statistics.median(one / other for one, other in zip(a, b, strict=True))
            print(
                f"400 short tests, -n 4, fresh = {fresh}, {part}: {statistics.median(b):.2f} s, by hand "
                f"({by_hand}) {statistics.median(a):.2f} s: {ratio:.2f}× the throughput"
            )


def between(folder: Path) -> float:
    """Seconds from the first worker's first test to the last one's last."""
    began, ended = (
        [float(p.read_text()) for p in folder.glob(f"{which}-gw*")] for which in ("began", "ended")
    )
    return max(ended) - min(began)


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
        from harness.core import Harness

        with Harness.open(root=folder, environ=environ) as harness, harness.lease() as lease:
            environ["DATABASE_URL"] = lease.url
            for workers in ("0", "4") if "start" in parts else ():
                plain = [*BASE, "-p", "xdist", "-n", workers]
                compare(
                    f"warm start, -n {workers}", plain, [*plain, *OURS], folder, environ, max(3, rounds // 3)
                )
        if "throughput" in parts:
            throughput(folder, environ, max(3, rounds // 5))
        from harness import config, running

        running.stop(config.load(environ, start=folder), environ)


if __name__ == "__main__":
    main()
