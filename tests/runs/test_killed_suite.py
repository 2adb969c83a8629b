"""A suite that is killed leaves no server, wherever it was."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fix_backends import processes_naming, until

pytestmark = pytest.mark.server

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"

SUITE = """
import os, pathlib, sys
sys.path[:0] = sys.argv[1:]
import pytest
from fix_last_will import leave
from fix_servers import enterable_folder
from fix_reset_servers import running, VERSIONS
from harness.config.project import Project
from harness.servers import acquire
from harness.config.settings import Settings

with enterable_folder("killed") as folder, running({version}) as scratch:
    project = folder / "project"
    project.mkdir()
    environ = {{**os.environ, "PGHARNESS_STATE_DIR": str(folder / "state"), "PGHARNESS_CACHE_DIR": str(folder / "cache")}}
    # As of `up`: without a TTL.
    info = acquire.ensure(Project.of(Settings(root=project, backend="process", storage="{storage}"), environ), purpose="up").info
    print(info.handle, scratch.data.parent, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("storage", ["disk", "memory"])
def test_nothing_is_left_of_a_suite_that_was_killed(storage: str) -> None:
    from fix_reset_servers import VERSIONS, binaries

    version = next((v for v in VERSIONS if binaries(v)), None)
    if version is None or (storage == "memory" and not Path("/dev/shm").is_dir()):
        pytest.skip("no local binaries, or no folder in memory")
    suite = subprocess.Popen(
        [sys.executable, "-c", SUITE.format(version=version, storage=storage), *sys.path, str(FIXTURES)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    with suite:
        assert suite.stdout is not None
        folders = suite.stdout.readline().split()
        assert all(processes_naming(folder) for folder in folders)
        os.killpg(suite.pid, signal.SIGKILL)
    assert suite.stdin is not None
    try:
        until(lambda: not any(processes_naming(f) for f in folders), seconds=60, what="everything has ended")
        until(lambda: not any(Path(f).exists() for f in folders), seconds=10, what="their data is gone")
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
