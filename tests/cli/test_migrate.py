"""`migrate`: what is pending reaches the databases that are there, and nothing in them is lost, whatever fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

import psycopg
import pytest
from fix_cli import Project


def names(url: str) -> list[str]:
    return [str(name) for (name,) in query(url, "select name from users order by id")]


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement.encode()).fetchall()


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture(scope="module")
def base(new_project: Callable[..., Project]) -> Project:
    made = new_project("migrated")
    made.ok("up", "-n", "2")
    return made


@pytest.fixture
def mine(base: Project) -> Project:
    """One migration, two workers with a row each, no marks."""
    for path in (base.root / "db" / "migrations").iterdir():
        if path.name != "001_users.sql":
            path.unlink()
    (base.root / "pg-harness.toml").unlink(missing_ok=True)
    base.migrate(
        "001_users.sql", "create table users (id int generated always as identity primary key, name text);\n"
    )
    for url in base.ok("up", "-n", "2", "--fresh", "--yes").split():
        execute(url, "insert into users (name) values ('precious')")
    return base


def test_pending_files_are_applied_and_the_data_stays(mine: Project) -> None:
    first, second = mine.ok("up", "-n", "2").split()
    database = str(psycopg.conninfo.conninfo_to_dict(first)["dbname"])
    execute(first, f"alter database \"{database}\" set work_mem = '7MB'")
    assert "nothing is pending" in mine.run("migrate").stderr
    mine.migrate("002_age.sql", "alter table users add age int not null default 7;\n")
    comment = (
        "do $$ begin execute format('comment on database %I is %L', current_database(), 'mine'); end $$;\n"
    )
    mine.migrate("003_more.sql", f"create table more (id int); insert into more values (3); {comment}")
    # It says so, and touches nothing.
    said = mine.run("up")
    assert said.stdout.split() == [first, second]
    assert "`pg-harness migrate` applies what is pending and keeps the data" in said.stderr
    assert "migrations are pending" in mine.ok("status")
    assert mine.ok("migrate", "--dry-run").splitlines() == [
        f"{worker}  db/migrations/{name}" for worker in "12" for name in ("002_age.sql", "003_more.sql")
    ]
    assert names(first) == ["precious"]
    with pytest.raises(psycopg.errors.UndefinedTable):
        query(first, "select * from more")

    report = json.loads(mine.ok("migrate", "--json"))
    assert [entry["worker"] for entry in report] == ["1", "2"]
    assert report[0]["steps"] == {"default": ["db/migrations/002_age.sql", "db/migrations/003_more.sql"]}
    for url in (first, second):
        assert query(url, "select name, age from users") == [("precious", 7)]
        assert query(url, "select id from more") == [(3,)]
    assert query(first, "show work_mem") == [("7MB",)]
    assert query(first, "select shobj_description(oid, 'pg_database') from pg_database where datname = current_database()")[0][0].startswith("mine\n")  # type: ignore[attr-defined]  # fmt: skip
    # As `up` has made it: current, the same address, and a reset knows the new state. Nothing of ours is among its tables.
    done = mine.run("up")
    assert (done.stdout.split(), "pending" in done.stderr) == ([first, second], False)
    assert query(first, "select tablename from pg_tables where schemaname = 'public' order by 1") == [
        ("more",),
        ("users",),
    ]
    mine.ok("reset")
    assert (names(first), query(first, "select id from more")) == ([], [(3,)])
    assert "nothing is pending" in mine.run("migrate").stderr


def test_an_extension_that_was_added_to_the_settings_is_pending(mine: Project) -> None:
    """It was taken for applied: the database counted as made from today's migrations, and never had it."""
    url = mine.ok("up").split()[0]
    (mine.root / "pg-harness.toml").write_text('extensions = ["pg_trgm"]\n')
    assert mine.ok("migrate", "--dry-run", "1") == "1  extension pg_trgm\n"
    assert "applied extension pg_trgm" in mine.run("migrate", "1").stderr
    assert query(url, "select extname from pg_extension where extname = 'pg_trgm'") == [("pg_trgm",)]
    assert names(url) == ["precious"]
    assert "nothing is pending" in mine.run("migrate", "1").stderr
    mine.ok("reset", "1")
    assert query(url, "select similarity('a', 'a')") == [(1.0,)]
    # With a file, both; one that the server lacks changes nothing.
    (mine.root / "pg-harness.toml").write_text('extensions = ["pg_trgm", "citext"]\n')
    mine.migrate("002_more.sql", "create table more (id int, name citext);\n")
    assert json.loads(mine.ok("migrate", "--json", "1"))[0]["steps"] == {
        "default": ["extension citext", "db/migrations/002_more.sql"]
    }
    (mine.root / "pg-harness.toml").write_text('extensions = ["pg_trgm", "citext", "none_such"]\n')
    assert "none_such" in mine.fails(123, "migrate", "1")
    assert query(url, "select count(*) from more") == [(0,)]


def test_a_migration_that_fails_on_the_data_changes_nothing(mine: Project) -> None:
    first, second = mine.ok("up").split()
    execute(first, "insert into users (name) values (null)")
    mine.ok("mark", "--name", "before")
    mine.migrate("002_more.sql", "create table more (id int);\n")
    mine.migrate("003_null.sql", "alter table users alter name set not null;\n")
    said = mine.fails(123, "migrate", "1")
    assert "contains null values" in said
    assert "yours, worker 1 is as it was: the migrations ran on a copy" in said
    assert query(first, "select name from users order by id") == [("precious",), (None,)]
    assert query(first, "select to_regclass('more')") == [(None,)]
    assert [m["name"] for m in json.loads(mine.ok("mark", "--list", "--json", "1"))] == ["before"]
    assert not [line for line in mine.ok("status").splitlines() if "left over" in line]
    # Once it is mended, it goes on from there.
    execute(first, "update users set name = 'found' where name is null")
    mine.ok("migrate")
    assert names(first) == ["precious", "found"]
    assert query(second, "select count(*) from more") == [(0,)]
    # A mark is what it was when it was set, and what it lacks is pending again.
    mine.ok("reset", "--to", "before")
    assert query(first, "select name from users order by id") == [("precious",), (None,)]
    assert mine.ok("migrate", "--dry-run").splitlines() == [
        "1  db/migrations/002_more.sql", "1  db/migrations/003_null.sql",
    ]  # fmt: skip


def test_one_that_fails_on_an_empty_database_is_not_tried_on_the_data(mine: Project) -> None:
    first, _ = mine.ok("up").split()
    mine.migrate("002_broken.sql", "create table more (id int); select 1 / 0;\n")
    assert "division by zero" in mine.fails(123, "migrate")
    assert names(first) == ["precious"]
    assert query(first, "select to_regclass('more')") == [(None,)]


def test_what_was_applied_and_is_another_now_is_refused(mine: Project) -> None:
    first, _ = mine.ok("up").split()
    mine.migrate("005_five.sql", "create table five (id int);\n")
    mine.ok("migrate")
    mine.migrate("005_five.sql", "create table five (id bigint);\n")
    said = mine.fails(123, "migrate")
    assert "db/migrations/005_five.sql was changed since the database has it" in said
    assert "write a new file; or `pg-harness up --fresh`" in said
    (mine.root / "db" / "migrations" / "005_five.sql").unlink()
    said = mine.fails(123, "migrate")
    assert "db/migrations/005_five.sql: the database has it, and today's migrations do not any more" in said
    mine.migrate("005_five.sql", "create table five (id int);\n")
    assert "nothing is pending" in mine.run("migrate").stderr
    mine.migrate("003_late.sql", "create table late (id int);\n")
    said = mine.fails(123, "migrate")
    assert "003_late.sql would come before db/migrations/005_five.sql, which the database has already" in said
    assert query(first, "select to_regclass('late')") == [(None,)]
    mine.ok("migrate", "--out-of-order")
    assert query(first, "select to_regclass('late')::text") == [("late",)]
    assert names(first) == ["precious"]
    assert "nothing is pending" in mine.run("migrate").stderr


def test_the_projects_own_tool_is_told_to_upgrade(mine: Project) -> None:
    """A command is run again as a whole where what it watches has changed; what has not is not run again."""
    tool = mine.root / "tool.py"
    tool.write_text(
        textwrap.dedent("""\
        import os, pathlib, psycopg
        with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
            connection.execute("create table if not exists done (name text primary key)")
            for path in sorted(pathlib.Path("steps").glob("*.sql")):
                if not connection.execute("select 1 from done where name = %s", (path.name,)).fetchone():
                    connection.execute(path.read_text())
                    connection.execute("insert into done values (%s)", (path.name,))
        """)
    )
    once = mine.root / "once.py"
    once.write_text(
        'import os, psycopg\nwith psycopg.connect(os.environ["DATABASE_URL"]) as c: c.execute("create table once (id int)")\n'
    )
    (mine.root / "steps").mkdir(exist_ok=True)
    (mine.root / "steps" / "1.sql").write_text("create table users (id serial primary key, name text)")
    (mine.root / "pg-harness.toml").write_text(
        'migrations = [{source = "command:python3 tool.py", watch = ["steps/*.sql"]}, '
        '{source = "command:python3 once.py", watch = ["once.py"]}]\n'
        'seeds = [{source = "command:psql -c \\"insert into users (name) values (\'seed\')\\"", watch = ["tool.py"]}]\n'
    )
    environ = {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    url = mine.ok("up", "-n", "1", "--fresh", "--yes", **environ).split()[0]
    execute(url, "insert into users (name) values ('precious')")
    (mine.root / "steps" / "2.sql").write_text("alter table users add age int default 3")
    said = mine.run("migrate", "1", **environ)
    assert said.returncode == 0, said.stderr
    assert "applied command:python3 tool.py" in said.stderr
    assert "the seeds are not applied again" in said.stderr
    assert query(url, "select name, age from users order by id") == [("seed", 3), ("precious", 3)]


def test_flyways_repeatable_files_are_run_again(new_project: Callable[..., Project]) -> None:
    mine = new_project("flyway", migrations=False)
    mine.migrate("V1__users.sql", "create table users (id serial, name text);\n")
    mine.migrate("R__view.sql", "create or replace view v as select name from users;\n")
    url = mine.ok("up").strip()
    execute(url, "insert into users (name) values ('precious')")
    mine.migrate("V2__age.sql", "alter table users add age int default 3;\n")
    mine.migrate("R__view.sql", "create or replace view v as select name, age from users;\n")
    report = json.loads(mine.ok("migrate", "--json"))
    assert report[0]["steps"]["default"] == ["db/migrations/V2__age.sql", "db/migrations/R__view.sql"]
    assert query(url, "select * from v") == [("precious", 3)]
    mine.ok("down", "--yes")


def test_sessions_are_named_and_nothing_they_have_committed_is_lost(mine: Project) -> None:
    first, _ = mine.ok("up").split()
    mine.migrate("002_more.sql", "create table more (id int);\n")
    with psycopg.connect(first, autocommit=True, application_name="shell") as open_:
        open_.execute("insert into users (name) values ('late')")
        said = mine.run("migrate", "1")
        assert said.returncode == 0, said.stderr
        assert "ended: pid" in said.stderr
        assert "shell" in said.stderr
    assert names(first) == ["precious", "late"]


def test_one_that_is_killed_leaves_the_database_as_it_was(mine: Project) -> None:
    first, _ = mine.ok("up").split()
    # Slow on data only: the empty database has no row to sleep for.
    mine.migrate(
        "002_slow.sql",
        "create table more (id int);\nselect pg_sleep(30) from users where name = 'precious';\n",
    )
    child = mine.start("migrate", "1")
    with psycopg.connect(mine.admin().url, autocommit=True) as admin:
        wait_for_the_sleep(admin, child)
        # Nobody can write what would be lost.
        with pytest.raises(psycopg.OperationalError, match="not currently accepting connections"):
            names(first)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(30)
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where query like '%pg_sleep(30)%' and pid <> pg_backend_pid()")  # fmt: skip
    assert mine.run("up").stdout.split()[0] == first
    assert names(first) == ["precious"]
    assert query(first, "select to_regclass('more')") == [(None,)]
    mine.migrate("002_slow.sql", "create table more (id int);\n")
    mine.ok("migrate")
    assert names(first) == ["precious"]
    assert not [
        name for (name,) in query(first, "select datname from pg_database") if str(name).endswith("_n")
    ]


def test_ctrl_c_leaves_the_database_as_it_was_and_open(
    mine: Project, interrupt: Callable[..., tuple[int, str]]
) -> None:
    first, _ = mine.ok("up").split()
    mine.migrate(
        "002_slow.sql",
        "create table more (id int);\nselect pg_sleep(30) from users where name = 'precious';\n",
    )
    child = mine.start("migrate", "1")
    with psycopg.connect(mine.admin().url, autocommit=True) as admin:
        wait_for_the_sleep(admin, child)
        code, told = interrupt(child, signal.SIGINT)
        assert (code, "Traceback" in told) == (130, False), told
        assert names(first) == ["precious"]
        assert query(first, "select to_regclass('more')") == [(None,)]
        assert not admin.execute("select 1 from pg_database where datname like '%\\_n'").fetchone()
        # One that fails on an empty database too keeps nobody out.
        mine.migrate("002_slow.sql", "select 1 / 0;\n")
        database = psycopg.conninfo.conninfo_to_dict(first)["dbname"]
        admin.execute(f'alter database "{database}" with allow_connections false'.encode())
    mine.ok("up")
    assert names(first) == ["precious"]


def wait_for_the_sleep(admin: psycopg.Connection, child: subprocess.Popen[str]) -> None:
    """Until the migration of the child is at its `pg_sleep(30)`."""
    deadline = time.monotonic() + 60
    asked = "select 1 from pg_stat_activity where query like '%pg_sleep(30)%' and wait_event = 'PgSleep'"
    while not admin.execute(asked.encode()).fetchone():
        assert time.monotonic() < deadline, "the migration was not begun"
        assert child.poll() is None, child.communicate()
        time.sleep(0.05)


def test_words(mine: Project, new_project: Callable[..., Project]) -> None:
    assert "you have no database 'nothing'; there are 1, 2" in mine.fails(124, "migrate", "nothing")
    assert "`pg-harness up` makes one" in new_project("empty migrate").fails(124, "migrate")
