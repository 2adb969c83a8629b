"""`fork`: a second copy of a person's databases, by a name; and marks, which stay as it does, over `stop` and `up`."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from fix_cli import Project

BACKENDS = [
    pytest.param({"PGHARNESS_BACKEND": "process"}, id="process"),
    pytest.param(
        {"PGHARNESS_BACKEND": "docker", "PGHARNESS_IMAGE": "pgharness-test:15", "TESTCONTAINERS_RYUK_DISABLED": "true"},
        id="docker", marks=pytest.mark.docker,
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def base(new_project: Callable[..., Project]) -> Project:
    made = new_project("forked")
    made.ok("up", "-n", "2")
    return made


@pytest.fixture
def mine(base: Project) -> Project:
    """Two workers, the first with a row; no forks, no marks."""
    for fork in json.loads(base.ok("fork", "--json")):
        base.ok("fork", "--drop", fork["name"], "--yes")
    base.ok("mark", "--release-all")
    base.ok("reset", "--all")
    add(base.ok("url").strip(), "mine")
    return base


def add(url: str, name: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("insert into users (name) values (%s)", (name,))


def names(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [name for (name,) in connection.execute("select name from users order by id").fetchall()]


def forks(project: Project) -> list[str]:
    return [fork["name"] for fork in json.loads(project.ok("fork", "--json"))]


@pytest.mark.parametrize("backend", BACKENDS)
def test_forks_and_marks_stay_over_stop_and_up(
    new_project: Callable[..., Project], backend: dict[str, str]
) -> None:
    mine = new_project("stays")
    mine.environ |= backend
    url = mine.ok("up").strip()
    add(url, "marked")
    mine.ok("mark", "--name", "loaded")
    add(url, "later")
    fork = mine.ok("fork", "feature/login").strip()
    add(fork, "in the fork")
    mine.ok("mark", "feature/login", "--name", "of the fork")
    mine.ok("stop")
    for words in (("fork", "x"), ("migrate",), ("mark",)):
        said = mine.fails(124, *words)
        assert "does not run: `pg-harness up` starts it, with your databases as they were" in said
    assert mine.ok("up").strip() == url
    assert (names(url), names(fork)) == (["marked", "later"], ["marked", "later", "in the fork"])
    assert mine.ok("url", "feature/login").strip() == fork
    listed = json.loads(mine.ok("mark", "--list", "--json"))
    assert [(mark["worker"], mark["name"]) for mark in listed] == [
        ("1", "loaded"),
        ("feature/login", "of the fork"),
    ]
    add(url, "wrong")
    mine.ok("reset", "--to", "loaded")
    assert names(url) == ["marked"]
    add(fork, "wrong")
    mine.ok("reset", "feature/login", "--to", "of the fork")
    assert names(fork) == ["marked", "later", "in the fork"]
    # Twice, and after a reset that came from the first one.
    mine.ok("stop")
    assert mine.ok("up").strip() == url
    add(url, "wrong again")
    mine.ok("reset", "--to", "loaded")
    assert names(url) == ["marked"]
    mine.ok("down", "--all", "--yes")
    mine.ok("up")
    assert forks(mine) == []
    assert json.loads(mine.ok("mark", "--list", "--json")) == []
    mine.ok("down")


def test_a_fork_is_a_second_copy_beside_the_first(mine: Project) -> None:
    url = mine.ok("url").strip()
    fork = mine.ok("fork", "experiment").strip()
    assert fork != url
    assert names(fork) == ["mine"]
    add(fork, "tried")
    add(url, "went on")
    assert (names(fork), names(url)) == (["mine", "tried"], ["mine", "went on"])
    # Every verb takes its name.
    assert mine.ok("url", "experiment").strip() == fork
    assert f"DATABASE_URL={fork}" in mine.ok("env", "experiment", "--format", "dotenv")
    assert mine.ok("psql", "experiment", "--", "-Atc", "select max(name) from users").strip() == "tried"
    assert "your fork experiment" in mine.ok("status")
    told = json.loads(mine.ok("status", "--json"))["servers"][0]["workers"]
    assert [(worker["worker"], worker["fork"]) for worker in told] == [
        ("1", False),
        ("2", False),
        ("experiment", True),
    ]
    mine.ok("mark", "experiment")
    add(fork, "wrong")
    mine.ok("reset", "experiment")
    assert names(fork) == ["mine", "tried"]
    # One of a fork, and of another worker.
    assert names(mine.ok("fork", "second", "--of", "experiment").strip()) == ["mine", "tried"]
    assert names(mine.ok("fork", "third", "--of", "2").strip()) == []
    assert forks(mine) == ["experiment", "second", "third"]
    # What is said of all of yours does not mean forks, nor how many there are.
    assert mine.ok("up").split()[0] == url
    assert len(mine.ok("up").split()) == 2
    assert "2 of yours" not in mine.run("up", "-v").stderr
    assert "experiment" not in mine.ok("env", "--format", "dotenv")
    mine.ok("reset", "--all")
    assert names(fork) == ["mine", "tried"]
    mine.ok("up", "--fresh", "--yes")
    assert names(fork) == ["mine", "tried"]
    assert "experiment" not in mine.ok("up", "--fresh", "--dry-run")


def test_a_fork_of_a_mark_ends_nobody(mine: Project) -> None:
    url = mine.ok("url").strip()
    mine.ok("mark", "--name", "loaded")
    with psycopg.connect(url, autocommit=True, application_name="shell") as open_:
        open_.execute("insert into users (name) values ('later')")
        assert names(mine.ok("fork", "old", "--from", "loaded").strip()) == ["mine"]
        open_.execute("select 1")
        assert "there is no mark 'nothing'" in mine.fails(124, "fork", "x", "--from", "nothing")
        # As it is now: whose session was in the way is said.
        said = mine.run("fork", "new")
        assert said.returncode == 0, said.stderr
        assert "ended: pid" in said.stderr
        assert "shell" in said.stderr
    assert names(said.stdout.strip()) == ["mine", "later"]
    assert names(url) == ["mine", "later"]


def test_a_name_that_is_taken_or_none(mine: Project) -> None:
    mine.ok("fork", "taken")
    said = mine.fails(120, "fork", "taken")
    assert "'taken' is taken: your fork taken; `pg-harness fork --drop taken` drops it" in said
    for name in ("1", "7", "2nd", "template", "gw0", "main", "a b", "ä", "x" * 64, "", "a;drop", "pgh_x"):
        assert "cannot be a fork's name" in mine.fails(120, "fork", name), name
    database = psycopg.conninfo.conninfo_to_dict(mine.ok("url").strip())["dbname"]
    assert "cannot be a fork's name" in mine.fails(120, "fork", str(database))
    assert "you have no database '9'" in mine.fails(124, "fork", "x", "--of", "9")
    mine.fails(120, "fork", "--of", "1")
    mine.fails(120, "fork", "--drop")
    mine.fails(120, "fork", "x", "--dry-run")
    assert forks(mine) == ["taken"]


def test_a_fork_is_dropped_by_its_name_after_asking(mine: Project) -> None:
    url, fork = mine.ok("url").strip(), mine.ok("fork", "gone").strip()
    mine.ok("mark", "gone")
    said = mine.fails(120, "fork", "--drop", "gone")
    assert "your fork gone goes with all that is in it" in said
    assert "its marks '1'" in said
    assert "Add --yes" in said
    database = str(psycopg.conninfo.conninfo_to_dict(fork)["dbname"])
    assert mine.ok("fork", "--drop", "gone", "--dry-run").strip() == database
    assert names(fork) == ["mine"]
    assert "(it is no fork)" in mine.fails(124, "fork", "--drop", "1", "--yes")
    assert "there is no fork 'nothing'" in mine.fails(124, "fork", "--drop", "nothing", "--yes")
    # `down` would take it along.
    assert "your fork gone: all that is in it" in mine.fails(120, "down")
    mine.ok("fork", "--drop", "gone", "--yes")
    assert forks(mine) == []
    assert names(url) == ["mine"]
    with psycopg.connect(mine.admin().url) as admin:
        left = admin.execute("select datname from pg_database where datname like '%%gone%%'").fetchall()
    assert left == []


def test_on_a_terminal_it_asks(mine: Project) -> None:
    mine.ok("fork", "asked")
    for answer, code in (("n\n", 120), ("y\n", 0)):
        screen, inside = os.openpty()
        child = subprocess.Popen(
            mine.command("fork", "--drop", "asked"), cwd=mine.root, env={**mine.environ, "TERM": "dumb"},
            stdin=inside, stdout=subprocess.DEVNULL, stderr=inside,
        )  # fmt: skip
        os.close(inside)
        seen = ""
        while "drop it?" not in seen:
            ready, _, _ = select.select([screen], [], [], 60)
            assert ready, seen
            seen += os.read(screen, 4096).decode()
        os.write(screen, answer.encode())
        assert child.wait(60) == code, seen
        os.close(screen)
    assert forks(mine) == []


def test_an_open_prepared_transaction_is_not_rolled_back(base: Project) -> None:
    url = base.ok("url").strip()
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("show max_prepared_transactions").fetchone() == ("0",):
            pytest.skip("max_prepared_transactions is 0 on this server")
        connection.execute("begin; insert into users (name) values ('prepared'); prepare transaction 'p'")
    try:
        assert "prepared transactions are open" in base.fails(124, "fork", "hindered")
        assert forks(base) == [] or "hindered" not in forks(base)
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("commit prepared 'p'")
    assert "prepared" in names(url)


def test_a_fork_goes_its_own_way_with_migrations(new_project: Callable[..., Project]) -> None:
    mine = new_project("fork migrated")
    url = mine.ok("up").strip()
    add(url, "mine")
    fork = mine.ok("fork", "branch").strip()
    mine.migrate("002_age.sql", "alter table users add age int default 3;\n")
    mine.ok("migrate", "branch")
    with psycopg.connect(fork) as connection:
        assert connection.execute("select name, age from users").fetchall() == [("mine", 3)]
    assert names(url) == ["mine"]
    assert "the migrations changed since worker 1 was made" in mine.run("up").stderr
    # Back on the other branch, only the fork is ahead of it.
    Path(mine.root / "db" / "migrations" / "002_age.sql").unlink()
    said = mine.run("up")
    assert (said.stdout.strip(), "migrations changed" in said.stderr) == (url, False)
    mine.ok("gc")
    assert forks(mine) == ["branch"]
    mine.ok("down", "--yes")
