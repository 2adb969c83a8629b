"""What an agent's own SQL makes us do as a superuser: nothing of it runs, whichever way a database is brought back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from fix_cli import Project
from fix_mcp import agent, tell

from harness.config.project import project_id

pytestmark = pytest.mark.server

SLY = """
create or replace function public.{name} language plpgsql as $$
begin
    create role evil superuser;
    return {value};
exception when others then return {value}; end $$;
"""
"""A function that uses the rights of whoever runs it, and works for those without any."""

IN_A_CHECK = SLY.format(name="sly(int) returns bool", value="true")

ROWS = {"PGHARNESS_ENGINE": "rows"}

MIGRATION = """
create function fine(int) returns bool language sql immutable as 'select true';
create table users (id serial primary key, name text, constraint fine check (fine(id)));
insert into users (name) values ('a'), ('b');
"""


@pytest.fixture(scope="module")
def base(new_project: Callable[..., Project]) -> Project:
    made = new_project("rights", migrations=False)
    made.migrate("001_users.sql", MIGRATION)
    return made


KILLED = """
import os, pathlib
from harness.config.load import load
from harness.config.project import Project
from harness.mcp.databases import AgentDatabases
me = AgentDatabases(Project.of(load(os.environ, start=pathlib.Path.cwd()), os.environ), frozenset())
place = me.create("hidden")
made = place.databases["default"]
label = f'pg-harness {{"kind":"x","claimed":"{made.label.claimed}"}}'
place.session.link.session.execute(f"comment on database {made.name} is '{label}'")
os._exit(9)
"""
"""A session that takes the label of its database away, and is killed."""


async def assert_no_superuser(me: object, database: str) -> None:
    found = await me.sql(database, "select rolname from pg_roles where rolsuper order by 1")  # type: ignore[attr-defined]
    assert found == [["postgres"]]


def test_rows_of_a_mark_are_not_put_back_by_the_agents_own_functions(base: Project) -> None:
    async def story() -> None:
        async with agent(base, **ROWS) as me:
            await me.ok("create", name="m")
            await me.sql("m", f"{IN_A_CHECK} alter table users add constraint sly check (sly(id))")
            await me.ok("mark", database="m")
            await me.sql("m", "delete from users")
            back = (await me.ok("reset", database="m"))["databases"]["default"]
            assert back["strategy"] == "clone"
            assert "an agent may have changed the schema" in back["reason"]
            assert await me.sql("m", "select name from users order by id") == [["a"], ["b"]]
            await assert_no_superuser(me, "m")

    tell(story)


def test_a_function_of_the_migrations_that_was_replaced_does_not_put_rows_back(base: Project) -> None:
    async def story() -> None:
        async with agent(base, **ROWS) as me:
            await me.ok("create", name="t")
            await me.sql("t", f"delete from users; {SLY.format(name='fine(int) returns bool', value='true')}")
            back = (await me.ok("reset", database="t"))["databases"]["default"]
            assert back["strategy"] == "clone"
            await assert_no_superuser(me, "t")
            # What is replaced after the look at the catalogs would be run: rows alone are no reason to take that way either.
            await me.sql("t", "delete from users")
            back = (await me.ok("reset", database="t"))["databases"]["default"]
            assert back["strategy"] == "clone"
            assert "an agent may have changed the schema" in back["reason"]
            assert await me.sql("t", "select name from users order by id") == [["a"], ["b"]]

    tell(story)


def test_functions_that_pass_for_postgresqls_own_are_not_called(base: Project) -> None:
    async def story() -> None:
        async with agent(base) as me:
            await me.ok("create", name="p")
            for name, value in (
                ("format(text, regclass) returns text", "'select 1::int8, true, 0::int8'"),
                ("pg_relation_size(oid) returns int8", "0"),
                ("format(text, oid) returns text", "''"),
            ):
                await me.sql("p", SLY.format(name=name, value=value))
            await me.sql("p", "create unlogged table u (id serial); select nextval('u_id_seq')")
            await me.ok("mark", database="p", name="one")
            await assert_no_superuser(me, "p")
            await me.sql("p", "drop table u")
            await me.ok("reset", database="p")
            await me.ok("drop", database="p")
            await me.ok("create", name="look")
            await assert_no_superuser(me, "look")

    tell(story)


def test_a_setting_of_its_database_is_no_statement_of_ours(base: Project) -> None:
    async def story() -> None:
        async with agent(base) as me:
            await me.ok("create", name="s")
            # FROM CURRENT keeps the list as it was given, and a list's word may have anything but a blank in it.
            await me.sql(
                "s",
                "select set_config('search_path', 'public,a;create/**/role/**/evil/**/superuser', false);"
                "do $$ begin execute format('alter database %I set search_path from current', current_database()); end $$",
            )
            await me.ok("mark", database="s")
            await assert_no_superuser(me, "s")
            await me.ok("fork", database="s", name="s2")
            assert await me.sql("s2", "show search_path") == [
                ['public, "a;create/**/role/**/evil/**/superuser"']
            ]
            await assert_no_superuser(me, "s")

    tell(story)


def commented(text: str) -> str:
    return f"do $$ begin execute format('comment on database %I is %L', current_database(), {text}); end $$"


def test_a_label_that_names_another_sessions_database_is_not_believed(base: Project) -> None:
    async def story() -> None:
        async with agent(base) as me, agent(base) as other:
            await me.ok("create", name="mine")
            theirs = (await other.ok("create", name="x"))["word"]
            for word in (theirs, theirs.replace("/x", "/y"), "1"):
                label = {"kind": "lease", "worker": word, "database": "default"}
                await me.sql("mine", commented(f"'pg-harness {json.dumps(label)}'"))
                assert await other.words() == [theirs]
                assert await other.sql("x", "select name from users order by id") == [["a"], ["b"]]
                assert await me.sql("mine", "select name from users order by id") == [["a"], ["b"]]
                assert "you have no database 'y'" in await other.fails("drop", database="y")
            assert base.fails(120, "url", theirs.replace("/x", "/y"))
            await other.ok("drop", database="x")
            assert await me.sql("mine", "select name from users order by id") == [["a"], ["b"]]

    tell(story)


def test_a_database_without_its_label_counts_and_ends_with_the_session(base: Project) -> None:
    def left() -> list[str]:
        told = json.loads(base.ok("status", "--json"))
        return [
            worker["worker"]
            for server in told["servers"]
            if server["purpose"] == "mcp"
            for worker in server["workers"]
        ]

    async def story() -> None:
        async with agent(base) as me, agent(base) as other:
            await me.ok("create", name="hidden")
            await me.ok("mark", database="hidden", name="one")
            await me.sql("hidden", commented("'x'"))
            assert [one["name"] for one in (await me.ok("list"))["databases"]] == ["hidden"]
            assert "already" in await me.fails("create", name="hidden")
            await me.sql("hidden", "delete from users")
            await me.ok("reset", database="hidden")
            assert await me.sql("hidden", "select count(*) from users") == [[2]]
            # Another session that begins leaves it alone, and does not see it.
            await other.ok("create", name="o")
            assert len(await other.words()) == 1
            assert await me.sql("hidden", "select count(*) from users") == [[2]]

    tell(story)
    assert left() == []

    # One that is killed.
    subprocess.run([sys.executable, "-c", KILLED], cwd=base.root, env=base.environ, check=False, timeout=100)
    assert len(left()) == 1

    async def next_one() -> None:
        async with agent(base) as me:
            await me.ok("create")

    tell(next_one)
    assert left() == []


def test_nor_where_a_person_resets_what_an_agent_could_change(base: Project) -> None:
    url = base.ok("up", **ROWS).strip()

    async def story() -> None:
        async with agent(base, "--allow", "change", **ROWS) as me:
            await me.sql("1", f"{IN_A_CHECK} alter table users add constraint sly check (sly(id))")

    tell(story)
    base.ok("mark", **ROWS)
    with psycopg.connect(url) as connection:
        connection.execute("delete from users")
    said = base.run("reset", **ROWS)
    assert "an agent may have changed the schema" in said.stdout + said.stderr
    with psycopg.connect(url) as connection:
        assert connection.execute("select name from users order by id").fetchall() == [("a",), ("b",)]
        assert connection.execute("select rolname from pg_roles where rolsuper").fetchall() == [("postgres",)]
    # A superuser's part of the migrations is not run where the agent's functions are.
    base.migrate("002_more.sql", "create table more (id int);")
    for name in ("extensions", "migrate_as"):
        settings = base.root / "pg-harness.toml"
        settings.write_text(
            {"extensions": 'extensions = ["pg_trgm"]', "migrate_as": 'migrate_as = "admin"'}[name]
        )
        said = base.fails(124, "migrate", **ROWS)
        assert "an agent may have changed the schema" in said
        assert "`pg-harness up --fresh`" in said
        settings.unlink()
    base.ok("migrate", **ROWS)
    with psycopg.connect(url) as connection:
        assert connection.execute("select count(*) from more").fetchone() == (0,)
    notes = Path(base.environ["PGHARNESS_STATE_DIR"]) / project_id(base.root) / "guests"
    assert len([*notes.iterdir()]) == 1
    base.ok("down", "--yes", **ROWS)
    assert [*notes.iterdir()] == []
