"""Crowds: nothing is refused that fits, nothing is handed out twice, nothing is lost and nothing is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from fix_cli import Project

pytestmark = pytest.mark.timeout(900)
"""On a quiet machine they take 5 to 20 s each; beside other suites many times that."""

PATIENCE = 600.0
SECONDS = "60" if os.environ.get("PGHARNESS_TEST_LONG") else "8"

Done = subprocess.CompletedProcess[str]


def at_once(commands: Sequence[tuple[Project, tuple[str, ...]]]) -> list[Done]:
    """Call them all, wait for all: none may fail."""
    for project, _ in commands:
        project.patience = PATIENCE
    with ThreadPoolExecutor(len(commands)) as threads:
        done = list(threads.map(lambda command: command[0].run(*command[1]), commands))
    assert [(d.args, d.returncode, d.stderr) for d in done if d.returncode] == []
    return done


def nothing_is_left(project: Project) -> None:
    assert json.loads(project.ok("gc", "--json"))["dropped"] == []
    servers = json.loads(project.ok("status", "--json"))["servers"]
    assert [worker for server in servers for worker in server["workers"] if worker["run"] is not None] == []


def test_sixty_four_runs_at_once(new_project: Callable[..., Project]) -> None:
    """Seventeen were refused: each claimed after it had counted, and what a run holds besides its databases was not counted."""
    project = new_project("crowd")
    project.environ["PGHARNESS_LEASE_TIMEOUT"] = str(PATIENCE)
    project.ok("run", "--", "true")
    done = at_once([(project, ("run", "--", "sh", "-c", "echo $DATABASE_URL; sleep 0.5"))] * 64)
    assert len({d.stdout for d in done}) == 64
    nothing_is_left(project)


def test_ten_checkouts_at_once_have_ten_servers(new_project: Callable[..., Project]) -> None:
    """Five of them worktrees of one repository."""
    projects = [new_project(f"checkout{number}") for number in range(5)]
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(projects[0].root)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True, timeout=60)
    for number in range(5):
        tree = new_project(f"worktree{number}", migrations=False)
        subprocess.run(
            [*git, "worktree", "add", "-q", "-b", f"b{number}", str(tree.root / "tree")],
            check=True,
            timeout=60,
        )
        tree.root = tree.root / "tree"
        projects.append(tree)
    done = at_once([(project, ("run", "--", "sh", "-c", "echo $DATABASE_URL")) for project in projects])
    ports = {psycopg.conninfo.conninfo_to_dict(d.stdout.strip())["port"] for d in done}
    assert len(ports) == 10
    for project in projects:
        nothing_is_left(project)


def test_up_beside_down_beside_gc(new_project: Callable[..., Project]) -> None:
    project = new_project("all")
    project.migrate(
        "002_rows.sql", "insert into users (name) select 'seeded' from generate_series(1, 100);\n"
    )
    commands = (
        ("up", "-n", "2"),
        ("down",),
        ("gc",),
        ("run", "--", "true"),
        ("up", "-n", "2"),
        ("gc", "--dry-run"),
    )
    for _ in range(3):
        at_once([(project, words) for words in commands])
    for url in project.ok("up", "-n", "2").split():
        with psycopg.connect(url) as connection:
            assert connection.execute("select count(*) from users").fetchone() == (100,)
    nothing_is_left(project)


LESSEES = """
import os, sys, time, traceback
import psycopg
import harness.runs.opening
from harness import Harness

def lease(name, end):
    taken = 0
    with Harness.open() as harness:
        while not taken or time.monotonic() < end:
            with harness.lease() as lease, psycopg.connect(lease.url, autocommit=True) as connection:
                connection.execute("insert into users (name) values (%s)", (name,))
                time.sleep(0.01)
                assert connection.execute("select array_agg(name) from users").fetchone() == ([name],)
            taken += 1
    return taken

end = time.monotonic() + float(sys.argv[1])
children = []
for number in range(16):
    child = os.fork()
    if child:
        children.append(child)
        continue
    try:
        os.write(1, f"{lease(f'lessee {number}', end)}\\n".encode())
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
sys.exit(any(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_sixteen_lessees_for_a_while(new_project: Callable[..., Project], tmp_path: Path) -> None:
    """A row of somebody else's would be seen: the databases are pristine, and each is one lessee's alone."""
    project = new_project("lessees")
    project.ok("run", "--", "true")
    script = tmp_path / "lessees.py"
    script.write_text(LESSEES)
    done = subprocess.run(
        [sys.executable, script, SECONDS], cwd=project.root, env=project.environ, text=True, timeout=PATIENCE,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    taken = [int(line) for line in done.stdout.split()]
    assert len(taken) == 16
    assert min(taken) >= 1
    nothing_is_left(project)
