"""``reset`` by the engine, one process after another: what changed is put back, and the application's sessions go on."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_cli import Project
from fix_reset_picture import Picture, difference

from harness.postgres.session import Session

SCHEMA = """
create table users (id int generated always as identity primary key, name text not null);
create table orders (id serial primary key, user_id int references users on delete cascade, paid bool default false);
create table colours (id int primary key, name text unique);
create table notes (id int primary key, next int references notes deferrable initially deferred, body text);
create sequence invoices cache 5;
insert into users (name) values ('root');
insert into colours select g, 'colour ' || g from generate_series(1, 300) g;
insert into notes values (1, 2, 'a'), (2, 1, repeat('long ', 2000));
"""

Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture(scope="module")
def mine(new_project: Callable[..., Project]) -> Project:
    made = new_project("resets", migrations=False)
    # By pages: test_reset_pages.py.
    made.environ["PGHARNESS_ENGINE"] = "rows"
    made.migrate("001_all.sql", SCHEMA)
    (made.root / "pg-harness.toml").write_text(
        'migrations = ["sql:db/migrations"]\n[databases.analytics]\nmigrations = ["sql:analytics"]\n'
    )
    (made.root / "analytics").mkdir()
    (made.root / "analytics" / "001.sql").write_text("create table hits (id int)")
    made.ok("up")
    return made


@pytest.fixture
def url(mine: Project) -> str:
    """The worker's database, pristine."""
    mine.ok("reset")
    return mine.ok("url").strip()


@pytest.fixture
def application(url: str) -> Iterator[Connection]:
    """A session that stays open through resets."""
    with psycopg.connect(url, autocommit=True, application_name="shell") as connection:
        yield connection


def reset(mine: Project, *words: str, **environ: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(mine.ok("reset", "--json", *words, **environ))[0]
    return report


def notes_of(mine: Project) -> list[Path]:
    """Files with what is known of the pristine state."""
    database = str(psycopg.conninfo.conninfo_to_dict(mine.ok("url").strip())["dbname"])
    state = Path(mine.environ["PGHARNESS_STATE_DIR"])
    return sorted(state.glob(f"{database.split('_')[1]}/pristine/*.json"))


@pytest.fixture(scope="module")
def differs(mine: Project) -> Iterator[Callable[[], list[str]]]:
    """What differs from a fresh clone of the template."""
    dsn = mine.admin()
    template = next(
        t["name"]
        for t in json.loads(mine.ok("status", "--json"))["servers"][0]["templates"]
        if t["database"] == "default"
    )
    with Session.connect(dsn) as session:
        session.execute(f"create database fresh template {template} strategy file_copy owner app")
        with Session.connect(dsn.with_database("fresh")) as fresh:
            picture = Picture(fresh)
            wanted = picture.take(fresh)
        session.execute("drop database fresh")
    name = str(psycopg.conninfo.conninfo_to_dict(mine.ok("url").strip())["dbname"])

    def look() -> list[str]:
        with Session.connect(dsn.with_database(name)) as session:
            return difference(picture.take(session), wanted)

    return look


def test_one_reset_after_another_gives_what_a_fresh_clone_gives_and_keeps_the_session(
    mine: Project, application: Connection, differs: Callable[[], list[str]]
) -> None:
    pid = application.info.backend_pid
    application.execute("prepare mine as select count(*) from users")
    rounds = [
        # Seeded rows are written again, so they lie elsewhere afterwards, …
        "update colours set name = 'x' where id = 7; delete from colours where id = 9; delete from notes",
        # … and must not pass for new ones where the next test only inserts.
        (
            "insert into colours values (1000, 'new'); insert into notes values (3, null, 'c'); "
            "insert into users (name) values ('Ada'), ('Bob'); insert into orders (user_id) values (1), (2)"
        ),
        "truncate colours; insert into colours values (1, 'one'); select nextval('invoices')",
        "delete from users; select lo_from_bytea(0, 'large'); begin; create table gone (id int); rollback",
        "alter database {db} set work_mem = '7MB'; insert into orders (user_id) select 1 from generate_series(1, 5000)",
        "insert into colours values (1001, 'new'); update notes set body = 'short' where id = 2",
    ]
    for number, statements in enumerate(rounds):
        for statement in statements.replace("{db}", f'"{application.info.dbname}"').split("; "):
            application.execute(statement.encode())
        report = reset(mine)
        assert (report["strategy"], report["reason"], report["ended"]) == ("restore", "", []), (
            number,
            report,
        )
        assert report["rows"] > 0
        assert differs() == [], number
        assert application.execute("execute mine").fetchone() == (1,)
        assert application.execute("select nextval('invoices')").fetchone() == (1,)
        reset(mine)
    assert "default: colours" in report["tables"]
    assert report["reports"]["analytics"]["strategy"] == "nothing"
    assert application.info.backend_pid == pid
    assert " had changed" in mine.run("reset").stderr
    assert all(path.stat().st_mode & 0o077 == 0 for path in notes_of(mine))


def test_a_dry_run_tells_what_changed_and_leaves_it(mine: Project, application: Connection) -> None:
    assert mine.ok("reset", "--dry-run") == ""
    application.execute("insert into users (name) values ('Ada')")
    application.execute("create temporary table kept (id int)")
    for _ in range(2):
        told = mine.ok("reset", "--dry-run").splitlines()
        assert told == ["1 default: users: 1 inserted", "1 default: users_id_seq: sequence moved"]
    found = json.loads(mine.ok("reset", "--dry-run", "--json"))[0]["databases"]
    assert found["default"]["changes"][0] == "users: 1 inserted"
    assert found["analytics"] == {"changes": [], "unknown": ""}
    done = mine.run("reset")
    assert "users, default: users_id_seq put back (1 row), sessions kept" in done.stderr, done.stderr
    # A temporary table is its session's own.
    assert application.execute("select count(*) from kept").fetchone() == (0,)
    application.execute("create table extra (id int)")
    done = mine.run("reset", "--dry-run")
    assert (done.stdout, done.returncode) == ("", 0)
    assert "a reset is a fresh clone (the schema differs from the template's (relation extra" in done.stderr
    assert "there is no mark 'x'" in mine.fails(124, "reset", "--dry-run", "--to", "x")
    mine.fails(124, "reset", "--dry-run", "template")


def test_ddl_needs_a_clone_that_says_why_and_whom_it_ended(
    mine: Project, application: Connection, url: str, differs: Callable[[], list[str]]
) -> None:
    application.execute("alter table users add email text")
    report = reset(mine)
    assert report["strategy"] == "clone"
    assert report["reports"]["analytics"]["strategy"] == "nothing"
    assert "users.email" in report["reason"]
    assert [f"pid {application.info.backend_pid}, shell" in line for line in report["ended"]] == [True]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("insert into users (name) values ('after')")
        # It is said once: the clone was noted too.
        again = reset(mine)
        assert (again["strategy"], again["reason"]) == ("restore", "")
        assert connection.execute("select count(*) from users").fetchone() == (1,)
    assert differs() == []


def test_a_transaction_is_waited_for_then_named_and_ended(
    mine: Project, application: Connection, url: str, differs: Callable[[], list[str]]
) -> None:
    application.execute("insert into users (name) values ('Ada')")
    with psycopg.connect(url, application_name="forgotten") as busy:
        busy.execute("insert into users (name) values ('never committed')")
        done = mine.run("reset", PGHARNESS_RESET_TIMEOUT="0.3")
        assert done.returncode == 0, done.stderr
        assert "waiting for open transactions, up to 0.3 s: pid" in done.stderr
        assert done.stderr.count("ended: pid") == 1
        assert "sessions kept" in done.stderr
        with pytest.raises(psycopg.OperationalError):
            busy.execute("select 1")
    assert application.execute("select count(*) from users").fetchone() == (1,)
    assert differs() == []


def test_what_cannot_be_believed_is_a_clone(mine: Project, application: Connection, url: str) -> None:
    path = next(path for path in notes_of(mine) if path.stem == application.info.dbname)
    for why in ("was not noted", "cannot be read"):
        if why == "was not noted":
            path.unlink()
        else:
            path.write_text("{")
        assert why in mine.run("reset", "--dry-run").stderr
        report = reset(mine)
        assert (report["strategy"], why in report["reason"]) == ("clone", True), report
    assert reset(mine)["strategy"] == "nothing"


def test_a_pool_that_comes_back_at_once_writes_nothing_that_stays(
    mine: Project, url: str, differs: Callable[[], list[str]]
) -> None:
    """It is in the new clone before the command that made it has ended."""
    stop = threading.Event()

    def come_back() -> None:
        while not stop.is_set():
            with suppress(psycopg.Error), psycopg.connect(url, autocommit=True) as connection:
                while not stop.is_set():
                    connection.execute("insert into users (name) values ('pool')")

    pool = [threading.Thread(target=come_back) for _ in range(2)]
    for thread in pool:
        thread.start()
    try:
        for _ in range(2):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("create table extra (id int)")
            assert reset(mine)["strategy"] == "clone"
        assert mine.run("up", "--fresh", "--yes").returncode == 0
    finally:
        stop.set()
        for thread in pool:
            thread.join(30)
    report = reset(mine)
    assert (report["strategy"], report["reason"]) == ("restore", "")
    assert differs() == []


def test_a_mark_is_put_back_too_and_what_is_below_it(
    mine: Project, application: Connection, url: str, differs: Callable[[], list[str]]
) -> None:
    application.execute("create table extra (id serial primary key, body text)")
    application.execute("insert into extra (body) select 'marked' from generate_series(1, 5)")
    application.execute("update colours set name = 'marked' where id = 1")
    told = json.loads(mine.ok("mark", "--name", "loaded", "--json"))
    assert len(told["ended"]) == 1
    with psycopg.connect(url, autocommit=True) as connection:
        look = "select count(*), max(id), (select name from colours order by id limit 1) from extra"
        for number in range(3):
            # The sequence was in the middle of what it had logged when it was copied.
            assert connection.execute(
                "insert into extra (body) values ('later') returning id"
            ).fetchone() == (6,)
            if number:
                connection.execute(
                    "delete from extra where id < 3; update colours set name = 'later' where id = 1"
                )
            assert "extra: " in mine.ok("reset", "--dry-run")
            report = reset(mine)
            assert (report["strategy"], report["state"], report["ended"]) == ("restore", "mark 'loaded'", [])
            assert connection.execute(look.encode()).fetchone() == (5, 5, "marked")
        second = mine.run("mark", "--name", "second")
        assert second.returncode == 0, second.stderr
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("truncate extra")
        # Below: it goes by what was noted then.
        assert reset(mine, "--to", "loaded")["strategy"] == "restore"
        assert connection.execute(look.encode()).fetchone() == (5, 5, "marked")
        pid = connection.info.backend_pid
        connection.execute("drop table extra")
        report = reset(mine)
        assert report["strategy"] == "clone"
        assert "extra" in report["reason"]
        assert f"pid {pid}" in report["ended"][0]
    with psycopg.connect(url, autocommit=True) as connection:
        assert connection.execute("insert into extra (body) values ('later') returning id").fetchone() == (6,)
        assert reset(mine)["strategy"] == "restore"
        assert connection.execute(look.encode()).fetchone() == (5, 5, "marked")
    with Session.connect(mine.admin()) as session:
        copies = session.rows(
            "select datallowconn from pg_database where datname = any(%s)",
            (list(told["databases"].values()),),
        )
    assert copies == [(False,), (False,)]
    report = reset(mine, "--to", "template")
    assert (report["strategy"], "made again" in report["reason"]) == ("clone", True)
    assert differs() == []
    assert not [path for path in notes_of(mine) if "_m_" in path.name]


def test_the_migrations_state_is_put_back_below_marks(
    mine: Project, url: str, differs: Callable[[], list[str]]
) -> None:
    mine.ok("mark")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("insert into users (name) values ('later')")
        assert reset(mine, "--to", "template")["strategy"] == "restore"
        assert connection.execute("select count(*) from users").fetchone() == (1,)
    assert differs() == []


def test_the_likely_mistakes(mine: Project, new_project: Callable[..., Project]) -> None:
    elsewhere = new_project("elsewhere")
    for words in (["reset"], ["reset", "--all"], ["reset", "--dry-run"], ["url"], ["mark"]):
        said = elsewhere.fails(124, *words)
        assert f"there is no database of {elsewhere.root.resolve()} yet: `pg-harness up` makes one" in said
    assert "yours, worker 1" in mine.fails(120, "reset", "7")


def test_down_forgets_what_was_noted(new_project: Callable[..., Project]) -> None:
    made = new_project("ended")
    made.ok("up")
    (path,) = notes_of(made)
    made.ok("down")
    assert not path.exists()


def test_a_server_that_was_restarted_or_crashed_is_noticed(mine: Project, url: str) -> None:
    with Session.connect(mine.admin()) as session:
        folder = Path(str(session.value("show data_directory")))
        with psycopg.connect(url) as victim:
            os.kill(victim.info.backend_pid, signal.SIGKILL)
            # Every session ends with it; what the postmaster says of its start stays the same.
            with suppress(psycopg.OperationalError):
                while True:
                    victim.execute("select pg_sleep(0.1)")
    report = reset(mine)
    assert report["reason"] == "the server crashed since the pristine state was noted"
    assert reset(mine)["strategy"] == "nothing"
    postmaster = int((folder / "postmaster.pid").read_text().splitlines()[0])
    os.kill(postmaster, signal.SIGINT)
    # `up` waits for a server that is going away, and starts it again with its data.
    mine.ok("up")
    report = reset(mine)
    assert report["reason"] == "the server was restarted since the pristine state was noted"
    assert reset(mine)["strategy"] == "nothing"
