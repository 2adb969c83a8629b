"""The command line with a pooler in front."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import psycopg
import pytest
from fix_backends import until
from fix_cli import Project
from fix_pooler import NEEDS, POOLED

pytestmark = NEEDS


@pytest.fixture
def pooled(new_project: Callable[..., Project]) -> Project:
    project = new_project("pooled")
    project.environ |= POOLED
    return project


def test_up_gives_addresses_through_it_that_stay(pooled: Project) -> None:
    (url,) = pooled.ok("up").split()
    values = json.loads(pooled.ok("env", "--format", "json"))
    assert values["DATABASE_URL"] == url == pooled.ok("url").strip()
    assert values["DATABASE_DIRECT_URL"] != url
    with psycopg.connect(url) as connection:
        connection.execute("insert into users (name) values ('mine')")
    with psycopg.connect(values["DATABASE_DIRECT_URL"]) as connection:
        assert connection.execute("select name from users").fetchall() == [("mine",)]
    pooled.ok("mark", "--name", "m")
    with psycopg.connect(url) as connection:
        connection.execute("delete from users")
        connection.commit()
        pooled.ok("reset")
        assert connection.execute("select name from users").fetchall() == [("mine",)]
    pooled.ok("stop")
    assert pooled.ok("up").split() == [url]
    with psycopg.connect(url) as connection:
        assert connection.execute("select name from users").fetchall() == [("mine",)]
    pooled.ok("down", "--yes")
    until(lambda: not _answers(url), seconds=20, what="the pooler to end with its server")


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def test_a_command_of_run_has_both_addresses(pooled: Project) -> None:
    code = "import os; print(os.environ['DATABASE_URL'] != os.environ['DATABASE_DIRECT_URL'], 'DATABASE_DIRECT_URL_2' in os.environ)"
    assert pooled.ok("run", "-n", "2", "--", sys.executable, "-c", code).split() == ["True", "True"]
    code = (
        "import os, harness; mine = harness.current(); print(mine.pooled, mine.direct.url == os.environ['DATABASE_DIRECT_URL']);"
        "c = mine.direct.connect(); print(c.execute('select count(*) from users').fetchone()[0]); c.close()"
    )
    assert pooled.ok("run", "--", sys.executable, "-c", code).split() == ["True", "True", "0"]
