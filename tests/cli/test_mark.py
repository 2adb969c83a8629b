"""``mark``, and ``reset`` to a mark: the states of a person at psql, which outlive their process."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import psycopg
import pytest
from fix_cli import Project

from harness.postgres.session import Session


@pytest.fixture(scope="module")
def mine(new_project: Callable[..., Project]) -> Project:
    made = new_project("marks")
    made.ok("up", "-n", "2")
    return made


@pytest.fixture
def url(mine: Project) -> str:
    """The first worker's database, as the migrations left it, without marks."""
    mine.ok("mark", "--release-all")
    mine.ok("reset")
    return mine.ok("url").strip()


def names(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [name for (name,) in connection.execute("select name from users order by id").fetchall()]


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def add(url: str, name: str) -> None:
    execute(url, f"insert into users (name) values ('{name}')")


def marks(mine: Project, *words: str) -> list[str]:
    return [mark["name"] for mark in json.loads(mine.ok("mark", "--list", "--json", *words))]


def test_a_reset_comes_back_to_the_mark_and_below_it_after_its_release(mine: Project, url: str) -> None:
    add(url, "loaded")
    told = json.loads(mine.ok("mark", "--json"))
    assert (told["worker"], told["name"], told["ended"]) == ("1", "1", [])
    for _ in range(2):
        add(url, "tried")
        execute(url, "create table tried (id integer)")
        assert "mark '1'" in mine.run("reset").stderr
        assert names(url) == ["loaded"]
        with psycopg.connect(url) as connection:
            assert connection.execute("select to_regclass('tried')").fetchone() == (None,)
            # Whose tables they are, and where sequences stand, comes back with them.
            connection.execute("insert into users (name) values ('next') returning id")
            assert connection.execute("select max(id) from users").fetchone() == (2,)
            connection.rollback()
    mine.ok("mark", "--release")
    assert names(url) == ["loaded"]
    mine.ok("reset")
    assert names(url) == []


def test_marks_are_a_stack_with_names(mine: Project, url: str) -> None:
    for name in ("one", "two", "three"):
        add(url, name)
        mine.ok("mark", "--name", name)
    assert marks(mine) == ["one", "two", "three"]
    assert "marked: one, two, three" in mine.ok("status")
    assert "'two' already" in mine.fails(124, "mark", "--name", "two")
    assert "there are 'one', 'two', 'three'" in mine.fails(124, "reset", "--to", "four")
    mine.ok("reset", "--to", "two")
    assert names(url) == ["one", "two"]
    assert marks(mine) == ["one", "two"]
    released = json.loads(mine.ok("mark", "--release=one", "--json"))
    assert [mark["name"] for mark in released] == ["two", "one"]
    assert marks(mine) == []
    assert names(url) == ["one", "two"]
    mine.ok("mark")
    mine.ok("reset", "--to", "template")
    assert (names(url), marks(mine)) == ([], [])
    mine.fails(124, "mark", "--release")


def test_a_mark_may_hold_another_schema_settings_and_rights(mine: Project, url: str) -> None:
    database = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
    execute(
        url,
        "create table extra (id integer primary key); insert into extra values (7)",
        f"alter database \"{database}\" set work_mem = '7MB'",
        f'revoke connect on database "{database}" from public',
    )
    mine.ok("mark")
    execute(url, "drop table extra", f'alter database "{database}" reset all')
    mine.ok("reset")
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "select (select id from extra), current_setting('work_mem'), "
            "(select datacl::text !~ '[{,]=[^/]*c' from pg_database where datname = current_database())"
        ).fetchone()
    assert found == (7, "7MB", True)
    mine.ok("mark", "--release-all")
    mine.ok("reset")
    with psycopg.connect(url) as connection:
        assert connection.execute("select to_regclass('extra')").fetchone() == (None,)


def test_sessions_are_waited_for_then_named_and_ended(mine: Project, url: str) -> None:
    idle, busy = psycopg.connect(url, application_name="shell", autocommit=True), psycopg.connect(url)
    idle.execute("select 1")
    busy.execute("insert into users (name) values ('never committed')")
    done = mine.run("mark", PGHARNESS_RESET_TIMEOUT="0.3")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("ended: pid") == 2
    assert "shell" in done.stderr
    for connection in (idle, busy):
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
        connection.close()
    assert names(url) == []


def test_a_pool_that_comes_back_at_once_does_not_get_in_between(mine: Project, url: str) -> None:
    stop = threading.Event()

    def come_back() -> None:
        while not stop.is_set():
            with suppress(psycopg.OperationalError), psycopg.connect(url, autocommit=True) as connection:
                while not stop.is_set():
                    connection.execute("select 1")

    pool = [threading.Thread(target=come_back) for _ in range(3)]
    for thread in pool:
        thread.start()
    try:
        add(url, "marked")
        mine.ok("mark", PGHARNESS_RESET_TIMEOUT="0.3")
        add(url, "later")
        mine.ok("reset")
    finally:
        stop.set()
        for thread in pool:
            thread.join(30)
    assert names(url) == ["marked"]


def test_prepared_transactions_are_rolled_back_and_named(mine: Project, url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        limit = connection.execute("show max_prepared_transactions").fetchone()
    if limit == ("0",):
        pytest.skip("max_prepared_transactions is 0 on this server")
    execute(url, "begin", "insert into users (name) values ('prepared')", "prepare transaction 'p'")
    assert "prepared transaction p" in mine.run("mark").stderr
    assert names(url) == []


def test_each_worker_has_its_own_marks_and_all_go_to_theirs(mine: Project, url: str) -> None:
    second = mine.ok("url", "2").strip()
    mine.ok("mark", "2", "--release-all")
    mine.ok("reset", "2")
    add(second, "second")
    mine.ok("mark", "2")
    add(url, "x")
    add(second, "x")
    report = json.loads(mine.ok("reset", "--all", "--json"))
    assert [entry["state"] for entry in report] == ["the migrations' state", "mark '1'"]
    assert (names(url), names(second)) == ([], ["second"])
    assert (marks(mine, "1"), marks(mine, "2")) == ([], ["1"])


def wait_for(admin: Session, query: str) -> None:
    """Until another session has asked that."""
    deadline = time.monotonic() + 60
    while not admin.rows("select 1 from pg_stat_activity where query like %s", (query,)):
        assert time.monotonic() < deadline, f"nobody has asked {query}"
        time.sleep(0.02)


@pytest.mark.parametrize("moment", range(3))
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_mark_leaves_the_database_open_and_no_half_mark(
    mine: Project, url: str, interrupt: Callable[..., tuple[int, str]], signum: int, moment: int
) -> None:
    with psycopg.connect(url) as busy, Session.connect(mine.admin()) as admin:
        busy.execute("insert into users (name) values ('open')")
        child = mine.start("mark", PGHARNESS_RESET_TIMEOUT="60")
        # It waits for the transaction: an interrupt there must leave everything as it was.
        wait_for(admin, "select exists (select from pg_stat_activity%")
        time.sleep(0.013 * moment)
        code, told = interrupt(child, signum)
        assert (code, "Traceback" in told) == (128 + signum, False), told
        busy.commit()
    assert names(url) == ["open"]
    assert marks(mine, "1") == []
    mine.ok("mark")
    assert marks(mine, "1") == ["1"]


def test_fresh_drops_marks_of_the_databases_that_it_drops(new_project: Callable[..., Project]) -> None:
    mine = new_project("fresh marks")
    mine.ok("up")
    mine.ok("mark", "--name", "old")
    asked = mine.run("up", "--fresh", "--yes")
    assert asked.returncode == 0, asked.stderr
    assert "its marks 'old'" in asked.stderr
    assert marks(mine) == []
    mine.ok("mark", "--name", "kept")
    mine.ok("gc")
    assert marks(mine) == ["kept"]
    add(url := mine.ok("url").strip(), "x")
    mine.ok("reset")
    assert names(url) == []


def test_words_that_make_no_mark(mine: Project, url: str, new_project: Callable[..., Project]) -> None:
    mine.fails(120, "mark", "--name", "x", "--release")
    mine.fails(120, "mark", "--name", "template")
    mine.fails(120, "mark", "--name", " ")
    mine.fails(124, "mark", "template")
    mine.fails(120, "mark", "9")
    mine.fails(124, "mark", "9", "--list")
    mine.fails(124, "reset", "--to", "nothing")
    new_project("empty marks").fails(124, "mark")
