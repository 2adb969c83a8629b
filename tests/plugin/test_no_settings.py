"""Projects without settings: who asks for a fixture of ours is told what to do, and nobody else notices anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fix_backends import INSTALLED

ASKS = """
import pytest
def test_conn(pg_conn): pass
@pytest.mark.usefixtures("pg")
def test_used(): pass
def test_wrong(pg_con): pass
def test_none(): pass
"""

OTHERS = """
import pytest
@pytest.fixture(name="pg")
def somebody_elses(): return "theirs"
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {
        "PATH": "/usr/bin:/bin",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": f"{INSTALLED}:{folder}",
        "COLUMNS": "300",
    }
    named = ("-p", "pg_harness_pytest", "-p", "xdist", "-p", "no:cacheprovider")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *named, *arguments],
        cwd=folder, env=env, text=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("workers", ["0", "1"])
def test_the_fixtures_say_init(workers: str, tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(ASKS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = run(tmp_path, "-n", workers)
    assert "1 passed, 3 errors" in done.stdout
    for name in ("pg_conn", "pg"):
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"fixture {name!r}: ")]
        assert line.endswith("Run: pg-harness init")
        assert f"found from {tmp_path} upwards" in line
    # What is not ours is pytest's to tell.
    assert done.stdout.count("available fixtures") == 1
    assert "fixture 'pg_con' not found" in done.stdout


def test_a_fixture_of_another_plugin_stays_theirs(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(OTHERS)
    (tmp_path / "test_a.py").write_text(
        "def test_it(pg, request):\n"
        "    assert pg == 'theirs'\n"
        "    assert request.config.pluginmanager.has_plugin('pg_harness_missing_report')\n"
    )
    for order in (("-p", "theirs"), ("-p", "theirs", "-p", "pg_harness_pytest")):
        assert run(tmp_path, *order).returncode == 0


def test_who_asks_for_none_has_no_hook_of_ours_in_tests(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(
        "import sys\n"
        "def test_it(request):\n"
        "    assert not request.config.pluginmanager.has_plugin('pg_harness_missing_report')\n"
        "    assert 'harness' not in sys.modules\n"
    )
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout


def test_where_a_harness_of_the_projects_own_hides_ours(tmp_path: Path) -> None:
    (tmp_path / "harness.py").write_text("")
    (tmp_path / "pg-harness.toml").write_text("")
    (tmp_path / "test_a.py").write_text("def test_it(pg_url): pass\n")
    # As a command of `pg-harness run` has it.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "pg_harness_pytest", "-p", "no:cacheprovider"], cwd=tmp_path, text=True,
        env={"PATH": "/usr/bin:/bin", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(INSTALLED),
             "PGHARNESS_WORKERS": "1", "COLUMNS": "300"},
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (
        "fixture 'pg_url': pg-harness has no fixtures in a project with a `harness` of its own" in done.stdout
    )
