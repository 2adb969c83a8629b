"""examples/async-pools: one shared database fails its suite in parallel; here the four profiles are one command."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_backends import ROOT
from fix_cli import Project

TESTS = 25

for _module in ("sqlalchemy", "asyncpg", "greenlet", "pytest_asyncio"):
    if importlib.util.find_spec(_module) is None:
        pytest.skip(f"{_module} is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory, folders: tuple[Path, Path]) -> Iterator[Project]:
    root = tmp_path_factory.mktemp("example") / "async pools"
    shutil.copytree(ROOT / "examples" / "async-pools", root)
    project = Project(root, *folders)
    yield project
    project.ok("down", "--all", "--yes")


def suite(project: Project, *words: str, harness: bool = True, **environ: str) -> tuple[dict[str, int], str]:
    """Run pytest there; how many tests ended how, and what it said."""
    plugins = ["-p", "pg_harness_pytest"] if harness else []
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "pytest_asyncio.plugin", *plugins, *words]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-q", "--junitxml=results.xml"],
        cwd=project.root, capture_output=True, text=True, timeout=150, check=False,
        env={**project.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environ},
    )  # fmt: skip
    tree = ET.parse(project.root / "results.xml").getroot()[0]  # noqa: S314 — pytest's own
    counted = {key: int(tree.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}
    return counted, done.stdout + done.stderr


def test_on_one_database_it_fails(pools: Project) -> None:
    url = pools.ok("up").strip()
    shared = {
        "ASYNC_DATABASE_URL": url.replace("postgresql://", "postgresql+asyncpg://"),
        "PG_POOL_SIZE": "20",
        "PG_MAX_OVERFLOW": "40",
    }
    markers = ("-o", "markers=integration\nserial_only\nparallel_safe")
    counted, said = suite(pools, "-n", "4", *markers, harness=False, **shared)
    assert counted["tests"] >= TESTS
    assert counted["failures"] + counted["errors"] > TESTS // 3, said
    assert "duplicate key" in said or "UniqueViolation" in said


def test_one_command_instead_of_four_profiles(pools: Project) -> None:
    counted, said = suite(pools, "-n", "4")
    assert counted == {"tests": TESTS, "failures": 0, "errors": 0, "skipped": 0}, said
    assert "a new clone was needed" not in said


def test_the_profiles_work_too(pools: Project) -> None:
    serial, said = suite(pools, "-m", "integration and serial_only")
    assert serial == {"tests": 5, "failures": 0, "errors": 0, "skipped": 0}, said
    parallel, said = suite(pools, "-m", "integration and parallel_safe", "-n", "4", "--dist", "loadgroup")
    assert parallel == {"tests": TESTS - 5, "failures": 0, "errors": 0, "skipped": 0}, said


def test_the_pool_has_the_workers_share_of_the_server(pools: Project) -> None:
    (pools.root / "tests" / "test_share.py").write_text(
        "import os, pytest\n@pytest.mark.parametrize('i', range(8))\n"
        "def test_share(i):\n    open(f'share-{os.getpid()}', 'w').write(os.environ['PG_POOL_SIZE'])\n"
    )
    try:
        for workers in ("2", "4"):
            _, said = suite(pools, "-n", workers, "tests/test_share.py")
            found = {path.read_text() for path in pools.root.glob("share-*")}
            for path in pools.root.glob("share-*"):
                path.unlink()
            assert len(found) == 1, said
            # PostgreSQL keeps three, the run some for itself.
            assert 5 <= int(*found) <= 97 // int(workers)
    finally:
        (pools.root / "tests" / "test_share.py").unlink()


def test_connections_are_seen_live(pools: Project) -> None:
    for _ in range(3):
        seen = watched(pools)
        busiest = max((worker["total"] for look in seen for worker in look["workers"]), default=0)
        # On a busy machine a look may come between two tests, each time.
        if busiest > 1:
            break
    assert busiest > 1
    # A database that is just being made has no limit yet, and no sessions of the application.
    limited = [worker for look in seen for worker in look["workers"] if worker["limit"] is not None]
    assert limited
    for worker in limited:
        assert worker["total"] <= worker["limit"]


def watched(pools: Project) -> list[dict[str, Any]]:
    """What ``status --watch`` saw while the suite ran once."""
    watch = subprocess.Popen(
        pools.command("status", "--watch=100ms", "--json"), cwd=pools.root, env=pools.environ,
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    counted, said = suite(pools, "-n", "2")
    assert counted["failures"] == 0, said
    os.kill(watch.pid, signal.SIGINT)
    out, _ = watch.communicate(timeout=30)
    # The last one may have been cut off.
    seen = [json.loads(line) for line in out.splitlines(keepends=True) if line.endswith("\n")]
    assert seen, watch.returncode
    return seen
