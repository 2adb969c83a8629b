"""``bench reset``: every row is there, with figures. How large they are is no matter of a test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_backends import INSTALLED
from fix_cli import Project

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "compare_resets.py"

QUICK = {
    "SELECT 1",
    "reset, only read",
    "reset, 3 tables and a seeded row, all rolled back",
    "reset, 3 tables and a seeded row, committed",
    "reset, one of 1,000 seeded rows updated",
    "reset, one insert",
    "reset, one insert, rolled back",
    "reset, 30 dirty tables",
    "reset, 10,000 new rows",
    "reset, a temporary table",
    "reset, CREATE and DROP of a table",
    "reset, TRUNCATE of five tables",
    "reset, REFRESH of a materialised view",
    "reset, ALTER TABLE that stays",
    "reset, CREATE INDEX that stays",
    "reset, DROP TABLE that stays",
    "set a mark over 3 tables of 1,000 rows",
    "reset to it, 3 rows changed",
    'the same, sessions = "end"',
    "a session ended: the difference",
    "reset, only read, a session advisory lock held all along",
    "reset, only read, a session advisory lock taken and left",
    "reset, a session idle in transaction ended, less the wait",
    "CREATE DATABASE and log-in, by hand",
    "fallback clone",
    "fallback clone, a spare ready",
    "reset that falls back to a clone",
    "instead: TRUNCATE all 60, seed again",
    "instead: roll back",
}
WHOLE = QUICK | {
    'one pytest test, rolled back, fresh = "none"',
    'one pytest test, rolled back, fresh = "reset"',
    "the same, 2 busy workers on one server",
    *(f"reset, {count} scattered rows of a million" for count in ("10", "66", "200", "1,000")),
    "fallback clone of a million rows, a spare ready",
}


@pytest.mark.timeout(300)
def test_the_table_has_every_row_with_its_figures(project: Project, tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    words = ("bench", "reset", "--rounds", "2", "--workers", "2", "--json", str(target))
    done = subprocess.run(
        project.command(*words), cwd=project.root, env=project.environ, text=True, timeout=280,
        stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (table,) = json.loads(target.read_text())["tables"]
    rows = {row["name"]: row for row in table["rows"]}
    assert set(rows) >= WHOLE
    for name, row in rows.items():
        assert name in done.stdout
        assert row["rounds"] > 0, name
        assert all(isinstance(row[key], float) for key in ("p50", "p95", "of_read_only", "of_select")), name
    assert rows["reset, only read"]["of_read_only"] == 1
    assert rows["fallback clone"]["strategies"] == {"clone": 2}
    assert rows["fallback clone, a spare ready"]["of_by_hand"] > 0
    # Elsewhere the processes of a server cannot be seen.
    if sys.platform == "linux":
        for name in ("reset, one insert", 'one pytest test, rolled back, fresh = "reset"'):
            assert all(isinstance(rows[name][key], float) for key in ("client_cpu", "server_cpu")), name
        assert isinstance(rows["reset, 200 scattered rows of a million"]["peak_mb"], float)


@pytest.mark.timeout(120)
def test_json_alone_goes_to_stdout_and_the_table_to_stderr(project: Project) -> None:
    done = project.run("bench", "reset", "--quick", "--rounds", "1", "--json")
    assert done.returncode == 0, done.stderr
    (table,) = json.loads(done.stdout)["tables"]
    assert {row["name"] for row in table["rows"]} >= QUICK
    assert "reset, one insert" in done.stderr


@pytest.mark.timeout(120)
def test_two_checkouts_side_by_side(new_project: Callable[..., Project], tmp_path: Path) -> None:
    """The old one has no row of its own: the code that measures it is the new one's."""
    environ = new_project(migrations=False).environ
    old = tmp_path / "old"
    shutil.copytree(INSTALLED / "harness", old / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(old / "harness" / "bench")
    (old / "harness" / "bench").mkdir()
    (old / "harness" / "bench" / "__init__.py").touch()
    target = tmp_path / "both.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, old, INSTALLED, "--quick", "--times", "1", "--rounds", "1", "--json", target],
        env={**os.environ, **environ}, text=True, timeout=110, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (compared,) = json.loads(target.read_text())["compared"].values()
    assert set(compared) >= QUICK
    assert len(compared["reset, one insert"]["ratios"]["p50"]) == 1
