"""The command line with a standby beside the server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import psycopg
import pytest
from fix_backends import until
from fix_cli import Project

pytestmark = pytest.mark.server

REPLICA = {"PGHARNESS_REPLICAS": "1"}


@pytest.fixture
def with_replica(new_project: Callable[..., Project]) -> Project:
    project = new_project("replicated")
    project.environ |= REPLICA
    return project


def names_at(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [name for (name,) in connection.execute("select name from users")]


def test_a_person_has_one_that_stays_with_the_server(with_replica: Project) -> None:
    (url,) = with_replica.ok("up").split()
    values = json.loads(with_replica.ok("env", "--format", "json"))
    replica = values["DATABASE_REPLICA_URL"]
    assert values["DATABASE_URL"] == url != replica == with_replica.ok("url", "--replica").strip()
    status = with_replica.ok("status")
    assert "standby 1: " in status
    assert ", streaming" in status
    assert "rows (replicas = 1)" in status
    with psycopg.connect(url) as connection:
        connection.execute("insert into users (name) values ('mine')")
    with_replica.ok("mark", "--name", "m")
    with psycopg.connect(url) as connection:
        connection.execute("delete from users")
    with_replica.ok("reset")
    asked = "select pg_is_in_recovery(), current_user"
    assert with_replica.ok("psql", "--replica", "--", "-XAtc", asked).strip() == "t|app"
    assert with_replica.ok("psql", "--replica", "--admin", "--", "-XAtc", asked).strip() == "t|postgres"
    assert "a template takes no connections" in with_replica.fails(124, "psql", "template", "--replica")
    # The command has waited for it.
    assert names_at(replica) == ["mine"]
    with_replica.ok("stop")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(replica, connect_timeout=2)
    assert with_replica.ok("up").split() == [url]
    assert with_replica.ok("url", "--replica").strip() == replica
    until(lambda: names_at(replica) == ["mine"], seconds=20, what="the standby to go on")
    with_replica.ok("down", "--yes")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(replica, connect_timeout=2)


def test_a_command_of_run_has_its_address_and_can_wait(with_replica: Project) -> None:
    code = (
        "import os, harness; mine = harness.current()\n"
        "assert mine.replica.url == os.environ['DATABASE_REPLICA_URL'] != mine.url\n"
        "assert 'DATABASE_REPLICA_URL_2' in os.environ\n"
        "with mine.connect() as c: c.execute(\"insert into users (name) values ('x')\")\n"
        "mine.wait_for_replica()\n"
        "with mine.replica.connect() as c: print(c.execute('select count(*) from users').fetchone()[0])\n"
        "mine.reset()\n"
        "with mine.replica.connect() as c: print(c.execute('select count(*) from users').fetchone()[0])\n"
    )
    assert with_replica.ok("run", "-n", "2", "--", sys.executable, "-c", code).split() == ["1", "0"]
    url = with_replica.ok("run", "--", sys.executable, "-m", "harness", "url", "--replica")
    assert url.startswith("postgresql://")
    words = ("psql", "--replica", "--", "-XAtc", "select pg_is_in_recovery()")
    assert with_replica.ok("run", "--", sys.executable, "-m", "harness", *words).strip() == "t"


def test_without_one_that_is_said(new_project: Callable[..., Project]) -> None:
    project = new_project("alone")
    project.ok("up")
    for verb in ("url", "psql"):
        assert "the server has no standby: set `replicas = 1`" in project.fails(120, verb, "--replica")
    # Who has none pays for none.
    code = (
        "import sys, harness\n"
        "with harness.Harness.open() as h, h.lease() as lease:\n"
        "    with lease.connect() as c: c.execute(\"insert into users (name) values ('x')\")\n"
        "    lease.reset()\n"
        "print([name for name in sys.modules if name.startswith('harness.servers.replica') or name.endswith('standbys')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project.root, env=project.environ, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
    # A person's server is used as it is, and it is said that it was started without one.
    done = project.run("up", **REPLICA)
    assert done.returncode == 0
    assert "replicas unset → 1" in done.stderr
    project.ok("down", "--yes")
