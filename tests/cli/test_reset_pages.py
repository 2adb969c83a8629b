"""``reset`` by pages, one process after another: each goes on from what the last one noted, whatever was done to the schema."""

from __future__ import annotations

import json
from collections.abc import Callable

import psycopg
import pytest
from fix_cli import Project

SCHEMA = """
create table users (id serial primary key, name text not null);
insert into users (name) values ('Ada'), ('Bob'), ('Cyd');
create table notes (id int primary key, body text);
"""


@pytest.fixture(scope="module")
def mine(new_project: Callable[..., Project]) -> Project:
    made = new_project("pages", migrations=False)
    made.migrate("001_all.sql", SCHEMA)
    up = made.run("up")
    if "reset: rewind" not in up.stdout + up.stderr and "reset     rewind" not in made.ok("status"):
        pytest.skip(made.ok("status"))
    return made


def reset(mine: Project, *words: str) -> str:
    (report,) = json.loads(mine.ok("reset", "--json", *words))
    assert report["ended"] == []
    return str(report["strategy"])


def test_sessions_are_kept_and_every_process_goes_on_from_the_last_ones_note(mine: Project) -> None:
    mine.ok("reset")
    with psycopg.connect(mine.ok("url").strip(), autocommit=True, application_name="shell") as application:
        application.execute("prepare mine as select count(*) from users")
        for statements in (
            "insert into users (name) values ('Eve')",
            "alter table users add column age int; create index on users (name); drop table notes",
            "create table extra (id serial); update users set name = 'x' where id = 2",
            "truncate users restart identity; begin; insert into users (name) values ('gone'); rollback",
        ):
            for statement in statements.split("; "):
                application.execute(statement.encode())
            assert reset(mine) == "rewind"
            found = application.execute("select ctid::text, * from users").fetchall()
            assert found == [("(0,1)", 1, "Ada"), ("(0,2)", 2, "Bob"), ("(0,3)", 3, "Cyd")]
            assert application.execute("execute mine").fetchone() == (3,)
            assert application.execute("select count(*) from notes").fetchone() == (0,)
        assert reset(mine) == "nothing"


def test_a_mark_is_reset_to_and_what_is_below_it(mine: Project) -> None:
    mine.ok("reset")
    with psycopg.connect(mine.ok("url").strip(), autocommit=True) as connection:
        connection.execute("alter table users add column age int")
        connection.execute("insert into users (name, age) values ('Dan', 7)")
    mine.ok("mark", "--name", "grown")
    with psycopg.connect(mine.ok("url").strip(), autocommit=True, application_name="shell") as application:
        for _ in range(2):
            application.execute("insert into users (name) values ('only here')")
            application.execute("drop table notes")
            assert reset(mine) == "rewind"
            assert application.execute("select max(name), max(age) from users").fetchone() == ("Dan", 7)
            assert application.execute("select count(*) from notes").fetchone() == (0,)
    mine.ok("reset", "--to", "template")
    with psycopg.connect(mine.ok("url").strip(), autocommit=True) as connection:
        assert connection.execute("select max(id) from users").fetchone() == (3,)
