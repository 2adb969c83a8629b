"""Many workers, each a process of its own and as busy as it can be: on one server, and each on its own.

A log of its own for each worker is what one shared log is compared with: the same processors, the same
waiting for them, nobody else's records to read.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from harness.bench.measuring import ROWS
from harness.bench.project import environ_of, open_run
from harness.postgres.session import Session

PATIENCE = 120.0
"""Seconds after which a worker that hangs is ended."""


def measure(
    folders: Sequence[Path], version: str | None, statements: str, seconds: float, engine: str
) -> list[float]:
    """The milliseconds of all resets with one worker for each folder, all at the same time.

    Args:
        folders: of each worker its project; the same folder twice is the same server twice.
        statements: what each test writes.
        seconds: how long the workers are busy, after a warm-up of a tenth of it.
        engine: of the resets.

    Raises:
        RuntimeError: a worker failed; its error output is in the message.
    """
    workers = [_start(folder, version, statements, seconds, engine) for folder in folders]
    ending = threading.Timer(PATIENCE, _end, (workers,))
    ending.start()
    try:
        for worker in workers:
            assert worker.stdout is not None
            if worker.stdout.readline().strip() != "ready":
                raise RuntimeError(f"a worker did not start:\n{worker.communicate()[1]}")
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        taken: list[float] = []
        for worker in workers:
            out, err = worker.communicate()
            if worker.returncode:
                raise RuntimeError(f"a worker failed:\n{err}")
            taken.extend(json.loads(out))
        return taken
    finally:
        ending.cancel()
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()


def _end(workers: Sequence[subprocess.Popen[str]]) -> None:
    for worker in workers:
        worker.kill()


def _start(
    folder: Path, version: str | None, statements: str, seconds: float, engine: str
) -> subprocess.Popen[str]:
    told = {
        "folder": str(folder), "version": version, "statements": statements, "seconds": seconds,
        "engine": engine,
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "harness.bench.crowd", json.dumps(told)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ_of(folder),
    )  # fmt: skip


def main() -> None:
    """One worker: say ``ready``, wait for a line, be busy, print the milliseconds of each reset."""
    told = json.loads(sys.argv[1])
    seconds = float(told["seconds"])
    folder = Path(told["folder"])
    engine = told["engine"]
    strategy = "restore" if engine == ROWS else engine
    with (
        open_run(folder, told["version"], engine=engine) as harness,
        harness.lease("crowd", watch=True) as lease,
    ):
        taken: list[float] = []
        with Session.connect(lease.dsn, application_name="bench") as app:
            for _ in range(3):
                app.script(told["statements"])
                lease.reset()
            print("ready", flush=True)
            sys.stdin.readline()
            began = time.perf_counter()
            # One at least, however busy the machine is.
            while (now := time.perf_counter()) < began + 1.1 * seconds or not taken:
                app.script(told["statements"])
                start = time.perf_counter()
                report = lease.reset()
                end = time.perf_counter()
                if report.strategy != strategy:
                    raise RuntimeError(str(report))
                if now > began + 0.1 * seconds:
                    taken.append(1000 * (end - start))
        print(json.dumps(taken), flush=True)


if __name__ == "__main__":
    main()
