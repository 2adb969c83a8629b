"""Connections beyond a worker's budget: whose they were, and what to set, at the end of the run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from fix_backends import until
from fix_cli import Project

from harness.config.load import load
from harness.config.project import Project as Checkout
from harness.runs.refused import Refused
from harness.runs.run import Run
from harness.servers.handle import Server
from harness.servers.port import ServerInfo

POOL = """
import os, sys, psycopg
refused = 0
held = []
url = os.environ[sys.argv[1]]
for _ in range(int(sys.argv[2])):
    try:
        held.append(psycopg.connect(url))
    except psycopg.OperationalError as error:
        assert error.sqlstate is None and "too many connections for database" in str(error), error
        refused += 1
print(refused)
"""


@pytest.fixture
def mine(new_project: Callable[..., Project]) -> Project:
    project = new_project("refused")
    (project.root / "pool.py").write_text(POOL)
    project.environ["PGHARNESS_CONNECTIONS_PER_WORKER"] = "6"
    return project


def pool(project: Project, *words: str, name: str, many: int) -> tuple[int, str]:
    done = project.run("-q", "run", *words, "--", sys.executable, "pool.py", name, str(many))
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]), done.stderr


@pytest.mark.parametrize("isolation", ["database", "server"])
def test_the_worker_its_limit_and_the_setting(mine: Project, isolation: str) -> None:
    refused, err = pool(mine, "--isolation", isolation, "-n", "2", name="DATABASE_URL_2", many=14)
    assert refused == 14 - 6 - 3
    assert f"connections were refused: worker 2: {refused}. A worker may have 6 at once" in err
    assert "(connections_per_worker: the variable PGHARNESS_CONNECTIONS_PER_WORKER)" in err
    assert "make the pools of a worker smaller" in err


def test_nobody_has_set_it(mine: Project) -> None:
    del mine.environ["PGHARNESS_CONNECTIONS_PER_WORKER"]
    mine.environ["PGHARNESS_MAX_CONNECTIONS"] = "60"
    refused, err = pool(mine, "-n", "2", name="DATABASE_URL_1", many=30)
    assert refused > 0
    assert f"worker 1: {refused}. A worker may have " in err
    assert "(connections_per_worker: nobody has set it, and so many fit)" in err


def test_a_copy_and_a_second_database(mine: Project) -> None:
    (mine.root / "pg-harness.toml").write_text(
        'migrations = ["sql:db/migrations"]\n[databases.analytics]\nenv = { ANALYTICS_URL = "{url}" }\n'
    )
    _, err = pool(mine, "--copies", "1", name="ANALYTICS_URL", many=12)
    assert (
        "connections were refused: copy 1 (analytics): 3. A copy may have 6 at once to each of its databases"
        in err
    )


def test_nothing_is_said_where_none_was_refused(mine: Project) -> None:
    assert pool(mine, "-n", "2", name="DATABASE_URL_2", many=6) == (0, "")


@pytest.mark.docker
def test_in_a_container(mine: Project) -> None:
    mine.environ |= {
        "PGHARNESS_BACKEND": "docker",
        "PGHARNESS_IMAGE": "pgharness-test:15",
        "TESTCONTAINERS_RYUK_DISABLED": "true",
    }
    refused, err = pool(mine, "-n", "2", name="DATABASE_URL_2", many=14)
    assert refused > 0
    assert f"connections were refused: worker 2: {refused}. A worker may have 6 at once" in err


def test_another_error_that_ends_a_session_is_none(mine: Project) -> None:
    """It is counted by the server all the same."""
    code = (
        "import os, psycopg, time\n"
        "c = psycopg.connect(os.environ['DATABASE_URL_2'])\n"
        "c.execute(\"set idle_in_transaction_session_timeout = '100ms'\"); c.commit(); c.execute('select 1'); time.sleep(1)\n"
    )
    done = mine.run("-q", "run", "-n", "2", "--", sys.executable, "-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_on_somebody_elses_server(mine: Project, server_of: Callable[[str], ServerInfo]) -> None:
    """Its log is not ours to read: that it may have been something else is said."""
    mine.environ |= {"PGHARNESS_SERVER_URL": server_of("15").dsn.url, "PGHARNESS_ALLOW_FOREIGN": "true"}
    del mine.environ["PGHARNESS_BACKEND"]
    refused, err = pool(mine, "-n", "2", name="DATABASE_URL_2", many=14)
    assert refused > 0
    assert f"connections were refused, or ended by an error of the server: worker 2: {refused}." in err
    mine.ok("down", "--all", "--yes")


def test_a_run_without_trouble_reads_no_log(mine: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    logs = Server.logs
    monkeypatch.setattr(Server, "logs", lambda self, follow=False: read.append("log") or logs(self, follow))
    monkeypatch.chdir(mine.root)
    checkout = Checkout.of(load(mine.environ, start=Path(mine.root)), mine.environ)
    with Run.open_with(checkout.settings, mine.environ) as harness:
        first, second = harness.leases(2)
        with first.connect() as connection:
            connection.execute("select 1")
        assert harness.refused() == []
        assert read == []
        held = [psycopg.connect(second.url) for _ in range(6 + 3)]
        with pytest.raises(psycopg.OperationalError, match="too many connections"):
            psycopg.connect(second.url)
        # Whoever was refused knows it before the server's process has counted it, and ended.
        until(harness.refused, seconds=20, what="the server to count it")
        assert read == ["log"]
        assert harness.refused() == [Refused("2", "default", 1, True)]
        for connection in held:
            connection.close()
