"""Room for connections: who fits begins at once, the dead take none, who does not fit waits and says for whom."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from fix_backends import until
from fix_cli import Project

HOLD = ("sh", "-c", 'touch "$HERE"; while [ ! -e "$THERE" ]; do sleep 0.1; done')
"""Says that it runs, and ends once it may."""


def with_settings(project: Project, **settings: object) -> Project:
    lines = [f"{key} = {value!r}".replace("'", '"') for key, value in settings.items()]
    (project.root / "pg-harness.toml").write_text(
        "\n".join(['migrations = ["sql:db/migrations"]', *lines, ""])
    )
    return project


def test_runs_that_were_killed_take_no_room(new_project: Callable[..., Project], tmp_path: Path) -> None:
    """Within the grace period after the server's start they counted as if they lived."""
    project = with_settings(new_project("killed"), max_connections=200)
    runs = []
    for number in range(6):
        here, there = tmp_path / f"{number}", tmp_path / "never"
        runs.append(project.start("run", "-n", "2", "--", *HOLD, HERE=str(here), THERE=str(there)))
        until(here.exists, seconds=60, what="the run to begin")
        os.killpg(runs[-1].pid, signal.SIGKILL)
        runs[-1].wait(30)
    began = time.monotonic()
    done = project.run("-v", "run", "-n", "8", "--", "true", PGHARNESS_CONNECTIONS_PER_WORKER="20")
    assert done.returncode == 0, done.stderr
    assert "waiting" not in done.stderr
    assert time.monotonic() - began < 30


def test_who_does_not_fit_waits_and_says_for_whom(
    new_project: Callable[..., Project], tmp_path: Path
) -> None:
    project = with_settings(
        new_project("waits"), max_connections=100, connections_per_worker=30, lease_timeout=120
    )
    environ = {"HERE": str(tmp_path / "here"), "THERE": str(tmp_path / "there")}
    first = project.start("run", "-n", "2", "--", *HOLD, **environ)
    until((tmp_path / "here").exists, seconds=60, what="the first run to begin")
    second = project.start("run", "--", "true")
    assert second.stderr is not None
    line = second.stderr.readline()
    assert re.search(
        rf"waiting for connections: 38 are needed, 20 are left: run [0-9a-f]{{8}} \(pid {first.pid}, 2 workers\) has 70",
        line,
    ), line
    (tmp_path / "there").touch()
    _, said = second.communicate(timeout=60)
    assert second.returncode == 0, said
    assert first.wait(60) == 0


def test_who_has_waited_for_long_enough_is_told_what_fits(
    new_project: Callable[..., Project], tmp_path: Path
) -> None:
    project = with_settings(
        new_project("told"), max_connections=100, connections_per_worker=30, lease_timeout=1
    )
    environ = {"HERE": str(tmp_path / "here"), "THERE": str(tmp_path / "there")}
    first = project.start("run", "-n", "2", "--", *HOLD, **environ)
    until((tmp_path / "here").exists, seconds=60, what="the first run to begin")
    said = project.fails(124, "run", "--", "true")
    assert f"(pid {first.pid}, 2 workers) has 70" in said
    assert "Set connections_per_worker = 12 (or less)" in said
    assert "lease_timeout" in said
    # What would not fit a server that nobody else uses is refused at once.
    said = project.fails(120, "run", "-n", "4", "--", "true", PGHARNESS_LEASE_TIMEOUT="600")
    assert "Set connections_per_worker = 19 (or less), or use fewer workers (2 at most)" in said
    (tmp_path / "there").touch()
    assert first.wait(60) == 0
