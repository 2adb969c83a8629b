#!/usr/bin/env python3
"""A reset over HTTP, asked for by Node over a kept connection, against the same reset in this process, in turn on one lease.

python benchmarks/control.py [ROUNDS] [run]

Before each reset an open client inserts rows, as a test does. The aims: 1.5 ms more at the median, 5 ms more at the 95th percentile.
``run``: also what ``pg-harness run -- true`` takes over ``true``, warm (aim: 0.4 s), and processor time beside it.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import schema

from harness.config.project import Project
from harness.control.serving import Serving
from harness.databases.lease import Lease
from harness.runs.run import Run
from harness.servers import inventory

WORKERS = 4

CLIENT = """
const http = require('node:http');
const agent = new http.Agent({ keepAlive: true });
const { hostname, port } = new URL(process.env.PGHARNESS_CONTROL_URL);
const headers = { authorization: `Bearer ${process.env.PGHARNESS_CONTROL_TOKEN}` };
function reset(id) {
  return new Promise((done, failed) => {
    const request = http.request({ hostname, port, path: `/v1/reset/${id}`, method: 'POST', agent, headers }, (answer) => {
      let text = '';
      answer.setEncoding('utf8').on('data', (part) => (text += part)).on('end', () =>
        answer.statusCode === 200 ? done(JSON.parse(text)) : failed(new Error(text)));
    });
    request.on('error', failed).end();
  });
}
require('node:readline').createInterface({ input: process.stdin }).on('line', async (id) => {
  const began = process.hrtime.bigint();
  const report = await reset(id);
  console.log(`${Number(process.hrtime.bigint() - began) / 1e6} ${report.strategy}`);
});
"""


class Node:
    """A process of Node that resets a lease when it is told to, and says how many milliseconds that took."""

    def __init__(self, serving: Serving) -> None:
        self._child = subprocess.Popen(
            ["node", "-e", CLIENT], env={**os.environ, **serving.variables()},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def reset(self, number: int) -> float:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{number}\n")
        self._child.stdin.flush()
        milliseconds, strategy = self._child.stdout.readline().split()
        assert strategy != "clone"
        return float(milliseconds)

    def close(self) -> None:
        self._child.kill()
        self._child.wait()


@contextmanager
def writers(leases: list[Lease]) -> Iterator[list[Callable[[], None]]]:
    """For each lease a client that stays connected, and writes what a test writes."""
    connections = [psycopg.connect(lease.url, autocommit=True) for lease in leases]
    tables = (
        connections[0]
        .execute(
            "select quote_ident(relname) from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace order by 1 limit 3"
        )
        .fetchall()
    )

    def write(connection: psycopg.Connection[tuple[object, ...]]) -> None:
        for (name,) in tables:
            connection.execute(f"insert into {name} (name) values ('new')")

    try:
        yield [lambda c=connection: write(c) for connection in connections]  # type: ignore[misc]
    finally:
        for connection in connections:
            connection.close()


def quantiles(times: list[float]) -> tuple[float, float]:
    """The median and the 95th percentile."""
    ordered = sorted(times)
    return statistics.median(ordered), ordered[int(0.95 * len(ordered))]


def resets(rounds: int) -> None:
    """One lease both ways, in turn; then all workers at once."""
    with schema.project() as (folder, environ):
        with Run.open(root=folder, environ=environ, workers=WORKERS) as harness:
            leases = harness.leases(WORKERS, watch=None, apart=True)
            with Serving(harness, leases) as serving, writers(leases) as write:
                node = Node(serving)
                inside: list[float] = []
                outside: list[float] = []
                for turn in range(rounds + 10):
                    write[0]()
                    began = time.perf_counter()
                    leases[0].reset()
                    here = 1000 * (time.perf_counter() - began)
                    write[0]()
                    there = node.reset(1)
                    if turn >= 10:
                        inside.append(here)
                        outside.append(there)
                node.close()
                print(f"resets: {harness.reset_told}; {rounds} rounds; median and 95th percentile in ms")
                (a, b), (c, d) = quantiles(inside), quantiles(outside)
                print(f"in process                    {a:6.2f} {b:6.2f}")
                print(
                    f"over HTTP, from Node          {c:6.2f} {d:6.2f}   +{c - a:.2f} +{d - b:.2f}   aims +1.50 +5.00"
                )

                def work(number: int) -> list[float]:
                    one = Node(serving)
                    found = []
                    for turn in range(rounds // 2 + 5):
                        write[number]()
                        took = one.reset(number + 1)
                        if turn >= 5:
                            found.append(took)
                    one.close()
                    return found

                with ThreadPoolExecutor() as pool:
                    together = [t for times in pool.map(work, range(WORKERS)) for t in times]
                e, f = quantiles(together)
                print(
                    f"{WORKERS} workers at once, over HTTP   {e:6.2f} {f:6.2f}   {e / c:.2f}× on {os.cpu_count()} processors"
                )
        inventory.stop(Project.of(harness.settings, environ), purpose="run")


def run(rounds: int) -> None:
    """``pg-harness run -- true`` over ``true``, warm."""
    with schema.project() as (folder, environ):
        ours = [sys.executable, "-m", "harness", "-q", "run", "--", "true"]

        def once(command: list[str]) -> tuple[float, float]:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            began = time.perf_counter()
            subprocess.run(command, cwd=folder, env=environ, check=True)
            took = time.perf_counter() - began
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        once(ours)
        pairs = [(once(ours), once(["true"]), once([sys.executable, "-c", ""])) for _ in range(rounds)]
        for name, column in (("run -- true", 0), ("true", 1), ("python -c ''", 2)):
            wall, cpu = (statistics.median(pair[column][i] for pair in pairs) for i in (0, 1))
            print(f"{name:14} {1000 * wall:6.0f} ms wall, {1000 * cpu:6.0f} ms of processor")
        subprocess.run([*ours[:3], "down", "--all", "--yes", "-q"], cwd=folder, env=environ, check=False)


def main() -> None:
    """The tables."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    resets(rounds)
    if "run" in sys.argv[2:]:
        run(10)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
