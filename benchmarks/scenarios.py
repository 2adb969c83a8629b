#!/usr/bin/env python3
"""The suites of examples/ in parallel here, without any clean-up, against the same serially on one database that is cleaned by hand, in turn.

python benchmarks/scenarios.py [ROUNDS] [EXAMPLE …]

Both exit codes are counted: a round of ours that fails is a failure. JavaScript examples are installed by npm first (Node 22.12 or
later on PATH). Seconds of wall-clock and of processor time; on an idle machine. Examples without a serial line have no
clean-up by hand to compare with.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.bench.project import environ_of

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
HARNESS = (sys.executable, "-m", "harness", "-q")


@dataclass(frozen=True)
class Scenario:
    """One example.

    Attributes:
        ours: the command of its README.
        serial: the same suite, one file at a time, on one database; empty: there is none.
        shared: variables that make it clean up by hand.
    """

    ours: Sequence[str]
    serial: Sequence[str] = ()
    shared: Mapping[str, str] = field(default_factory=dict)
    prepare: Sequence[Sequence[str]] = ()


NPM = (("npm", "install", "--no-audit", "--no-fund"),)

SCENARIOS = {
    "vitest-prisma": Scenario(
        (*HARNESS, "run", "-n", "8", "--", "npm", "test"),
        (*HARNESS, "run", "--", "npm", "test", "--", "--maxWorkers=1"),
        {"SHARED": "1", "PGHARNESS_CONNECTIONS_PER_WORKER": "16"},
        NPM,
    ),
    "vitest-nest-prisma": Scenario(
        (*HARNESS, "run", "-n", "3", "--", "npm", "test"),
        (*HARNESS, "run", "--", "npm", "test", "--", "--maxWorkers=1"),
        {"SHARED": "1"},
        NPM,
    ),
    "jest-nest-mikroorm": Scenario(
        (*HARNESS, "run", "-n", "4", "--", "npm", "test"),
        (*HARNESS, "run", "--", "npm", "test", "--", "--runInBand"),
        {"SHARED": "1"},
        NPM,
    ),
    "tenants": Scenario(
        (*HARNESS, "run", "-n", "4", "--", "npm", "test"),
        (*HARNESS, "run", "--", "npm", "run", "test:serial"),
        {"SHARED": "1", "PGHARNESS_CONNECTIONS_PER_WORKER": "16"},
        NPM,
    ),
    "async-pools": Scenario((sys.executable, "-m", "pytest", "-q", "-n", "4")),
    "go": Scenario(
        (*HARNESS, "run", "-n", "4", "--", "go", "test", "-count=1", "./..."),
        prepare=(("go", "mod", "download"), ("go", "vet", "./...")),
    ),
    "junit": Scenario(
        (*HARNESS, "run", "-n", "3", "--", "mvn", "-q", "test"), prepare=(("mvn", "-q", "test-compile"),)
    ),
    "playwright": Scenario(
        (*HARNESS, "run", "-n", "4", "--", "npm", "test", "--", "--project=api"), prepare=NPM
    ),
}


def once(command: Sequence[str], folder: Path, environ: Mapping[str, str]) -> tuple[float, float, int]:
    """Wall-clock seconds, seconds of processor time, exit code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environ, check=False, capture_output=True, timeout=600)
    took = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.returncode


def compare(name: str, rounds: int) -> None:
    """One scenario, in turn; a line for each side."""
    scenario = SCENARIOS[name]
    with tempfile.TemporaryDirectory(prefix="pg-harness-bench-") as place:
        Path(place).chmod(0o755)
        root = Path(place) / "clone"
        # The client is taken from the checkout that the example lies in.
        shutil.copytree(EXAMPLES.parent / "clients", root / "clients")
        folder = root / "examples" / name
        shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns("node_modules", "generated"))
        environ = {**environ_of(folder), "PRISMA_SCHEMA_ENGINE_BINARY": "/bin/true", "CI": "true"}
        for command in scenario.prepare:
            subprocess.run(command, cwd=folder, env=environ, check=True, capture_output=True, timeout=600)
        # The first starts the server and migrates.
        once(scenario.ours, folder, environ)
        sides = [("in parallel, no clean-up", scenario.ours, environ)]
        if scenario.serial:
            sides.append(("serial, cleaned by hand", scenario.serial, {**environ, **scenario.shared}))
        taken: list[list[tuple[float, float, int]]] = [[] for _ in sides]
        for number in range(rounds):
            for side, (_, command, variables) in enumerate(sides):
                # What it takes serially is a comparison, and takes long: every third time.
                if side == 0 or number % 3 == 0:
                    taken[side].append(once(command, folder, variables))
        once([*HARNESS, "down", "--all", "--yes"], folder, environ)
    for (what, _, _), each in zip(sides, taken, strict=True):
        wall, processor = (statistics.median(one[i] for one in each) for i in (0, 1))
        failed = sum(one[2] != 0 for one in each)
        print(
            f"{name:20} {what:26} {wall:6.1f} s {processor:6.1f} s of processor, {failed} of {len(each)} runs failed",
            flush=True,
        )


def main() -> None:
    """The table."""
    words = sys.argv[1:]
    rounds = int(words.pop(0)) if words and words[0].isdigit() else 10
    print(f"{os.cpu_count()} processors; medians of {rounds} rounds, in turn (serial: every third)")
    for name in words or [name for name in SCENARIOS if (EXAMPLES / name).is_dir()]:
        compare(name, rounds)


if __name__ == "__main__":
    main()
