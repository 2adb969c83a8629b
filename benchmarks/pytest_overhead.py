#!/usr/bin/env python3
"""What the plugin costs: unconfigured, and at a warm start. Ratios and differences within one run.

python benchmarks/pytest_overhead.py [ROUNDS]
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


def throughput(folder: Path, environ: dict[str, str], rounds: int) -> None:
    """400 short database tests with ``-n 4``, against four databases made by hand with hard-coded URLs.

    Told for the whole run, and for the time from the first test to the last: how long the start takes is above.
    By hand nothing is put back between two tests: with ``fresh = "reset"`` the harness does more.
    """
    from harness.core import Harness

    (folder / "test_a.py").write_text(MANY)
    command = [*BASE, "-p", "xdist", "-n", "4"]
    with Harness.open(root=folder, environ=environ) as harness:
        for lease in harness.leases(4, first=0):
            environ[f"URL_gw{lease.worker}"] = lease.url
        for fresh in ("none", "reset"):
            by_hand, ours = [], []
            for _ in range(rounds):
                (folder / "conftest.py").write_text(HARD_CODED)
                by_hand.append((seconds(command, folder, environ)[0], between(folder)))
                (folder / "conftest.py").unlink()
                command_of_ours = [*command, *OURS, "--pg-harness-fresh", fresh]
                ours.append((seconds(command_of_ours, folder, environ)[0], between(folder)))
            for index, what in enumerate(("the whole run", "first test to last")):
                a, b = ([times[index] for times in both] for both in (by_hand, ours))
                ratio = statistics.median(one / other for one, other in zip(a, b, strict=True))
                print(
                    f"400 short tests, -n 4, fresh = {fresh}, {what}: {statistics.median(a):.2f} s by hand, "
                    f"{statistics.median(b):.2f} s with: {ratio:.2f}× the throughput"
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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_a.py").write_text("")
        environ = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(REPOSITORY)}
        environ |= {"PGHARNESS_STATE_DIR": f"{name}/state", "PGHARNESS_CACHE_DIR": f"{name}/cache"}
        look = [*BASE, "--collect-only"]
        compare("installed, unconfigured, --collect-only", look, [*look, *OURS], folder, environ, rounds)
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
            for workers in ("0", "4"):
                plain = [*BASE, "-p", "xdist", "-n", workers]
                compare(
                    f"warm start, -n {workers}", plain, [*plain, *OURS], folder, environ, max(3, rounds // 3)
                )
        throughput(folder, environ, max(3, rounds // 5))
        from harness import config, running

        running.stop(config.load(environ, start=folder), environ)


if __name__ == "__main__":
    main()
