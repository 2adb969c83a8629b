"""`pg-harness mcp`: what an agent can do with databases of its own, and that nothing else is reached."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import psycopg
import pytest
from fix_cli import MIGRATION, Project
from fix_mcp import agent, tell, text
from fix_pooler import NEEDS, POOLED

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def base(new_project: Callable[..., Project]) -> Project:
    """With a database of the developer's, and a row in it."""
    made = new_project("agents")
    with psycopg.connect(made.ok("up").strip()) as connection:
        connection.execute("insert into users (name) values ('mine')")
    return made


def names(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [name for (name,) in connection.execute("select name from users order by id")]


def agents(project: Project) -> list[str]:
    """The agents' databases, as a person sees them."""
    told = json.loads(project.ok("status", "--json"))
    return [
        worker["worker"]
        for server in told["servers"]
        for worker in server["workers"]
        if worker["worker"].startswith("agent-")
    ]


def test_the_whole_life_of_a_database(base: Project) -> None:
    async def story() -> None:
        async with agent(base) as me:
            assert await me.words() == []
            made = await me.ok("create", name="try")
            word = made["word"]
            assert word.startswith("agent-")
            assert word.endswith("/try")
            await me.sql("try", "insert into users (name) values ('a'), ('b')")
            changed = await me.ok("changes", database="try")
            assert changed["databases"]["default"]["tables"]["users"]["inserted"] >= 1
            await me.ok("mark", database="try", name="two")
            await me.sql("try", "alter table users add column age int; delete from users")
            copy = await me.ok("fork", database="try", name="copy", mark="two")
            assert await me.sql("copy", "select name from users order by id") == [["a"], ["b"]]
            assert (await me.ok("reset", database="try"))["state"] == "mark 'two'"
            assert await me.sql("try", "select * from users order by id") == [[1, "a"], [2, "b"]]
            await me.ok("reset", database="try", to="template")
            assert await me.sql("try", "select count(*) from users") == [[0]]
            # A person sees them, and a program enters them.
            assert sorted(agents(base)) == sorted([word, copy["word"]])
            assert names(base.ok("url", copy["word"]).strip()) == ["a", "b"]
            assert await me.words() == [word, copy["word"]] or set(await me.words()) == {word, copy["word"]}
            await me.ok("drop", database="copy")
            assert await me.words() == [word]
            assert "you have no database 'copy'" in await me.fails("run_sql", database="copy", sql="select 1")

    tell(story)
    assert agents(base) == []


def test_tools_tell_what_they_do(base: Project) -> None:
    async def story() -> None:
        async with agent(base) as me:
            tools = {tool.name: tool for tool in (await me.client.list_tools()).tools}
            assert set(tools) == {
                "create", "list", "describe", "run_sql", "changes", "mark", "reset", "fork", "drop", "logs",
            }  # fmt: skip
            for tool in tools.values():
                assert tool.description
                assert tool.annotations is not None
            reading = {
                name for name, tool in tools.items() if tool.annotations and tool.annotations.read_only_hint
            }
            assert reading == {"list", "describe", "changes", "logs"}
            assert tools["run_sql"].input_schema["required"] == ["database", "sql"]
            assert "sql" in await me.fails("run_sql", database="x")
            assert "lines" not in await me.fails("no_such_tool")

    tell(story)


def test_what_is_somebody_elses_is_not_reached(base: Project, new_project: Callable[..., Project]) -> None:
    person = base.ok("url").strip()
    other = new_project("elsewhere")

    async def story() -> None:
        async with agent(base) as me, agent(base) as another, agent(other) as stranger:
            mine = (await me.ok("create", name="mine"))["word"]
            theirs = (await another.ok("create", name="theirs"))["word"]
            far = (await stranger.ok("create", name="far"))["word"]
            for word in (
                "1",
                theirs,
                "theirs",
                far,
                "template",
                person.rpartition("/")[2],
                "postgres",
                "a b'; --",
            ):
                for tool, rest in (
                    ("run_sql", {"sql": "select 1"}), ("describe", {}), ("drop", {}), ("reset", {}), ("fork", {}), ("logs", {}),
                ):  # fmt: skip
                    said = await me.fails(tool, database=word, **rest)
                    assert f"you have no database {word!r}" in said
                    assert "--allow read" in said
            # By SQL neither: the developer's lie on another server, and another agent's belong to another role.
            databases = await me.sql("mine", "select datname from pg_database")
            assert [person.rpartition("/")[2]] not in databases
            their_database = (await another.ok("list"))["databases"][0]["databases"]["default"]
            assert "must be owner" in await me.fails(
                "run_sql", database="mine", sql=f"alter database {their_database} with connection limit 0"
            )
            assert "must be owner" in await me.fails(
                "run_sql", database="mine", sql=f"drop database {their_database}"
            )
            url = base.ok("url", mine).strip().rpartition("/")[0] + "/" + their_database
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                psycopg.connect(url)
            assert await another.words() == [theirs]

    tell(story)
    assert names(person) == ["mine"]


def test_the_developers_with_allow(base: Project) -> None:
    url = base.ok("url").strip()

    async def story() -> None:
        async with agent(base, "--allow", "read") as me:
            assert await me.words() == ["1"]
            assert await me.sql("1", "select name from users", read_only=True) == [["mine"]]
            assert "users" in str(await me.ok("describe", database="1"))
            assert "inserted" in str(await me.ok("changes", database="1"))
            for tool, rest in (
                ("run_sql", {"sql": "select 1"}), ("reset", {}), ("mark", {}), ("fork", {}),
            ):  # fmt: skip
                assert "--allow change" in await me.fails(tool, database="1", **rest)
            assert "databases of its own only" in await me.fails("drop", database="1")
            for sql in (
                "insert into users (name) values ('x')",
                "commit; insert into users (name) values ('x')",
                "set transaction read write",
                "do $$ begin commit; insert into users (name) values ('x'); end $$",
            ):
                assert "ERROR" in await me.fails("run_sql", database="1", sql=sql, read_only=True)
        assert names(url) == ["mine"]
        async with agent(base, "--allow", "change") as me:
            fork = await me.ok("fork", database="1", name="of-yours")
            await me.sql("of-yours", "insert into users (name) values ('agent')")
            assert names(base.ok("url", fork["word"]).strip()) == ["mine", "agent"]
            await me.sql("1", "insert into users (name) values ('later')")
            assert "databases of its own only" in await me.fails("drop", database="1")

    tell(story)
    assert names(url) == ["mine", "later"]
    assert agents(base) == []
    with psycopg.connect(url) as connection:
        connection.execute("delete from users where name = 'later'")


def test_sql_is_bounded(base: Project) -> None:
    async def story() -> None:
        async with agent(base) as me:
            await me.ok("create", name="b")

            async def fails(sql: str, **how: object) -> str:
                return await me.fails("run_sql", database="b", sql=sql, **how)

            assert "1,000,008 bytes, and 100,000 are allowed" in await fails("select '" + "x" * 1_000_000)
            assert "NUL" in await fails("select 1; \0 drop table users")
            assert "there is no SQL" in await fails("  \n")
            assert "psql" in await fails("\\d users")
            assert "COPY" in await fails("copy users from stdin")
            assert "rolled back" in await fails(
                "insert into users (name) values ('c'); copy users from stdin"
            )
            assert "may have been committed" in await fails("select 1; copy users to stdout")
            assert await me.sql("b", "select count(*) from users") == [[0]]
            said = await fails("select *\nfrom nothing")
            assert "42P01" in said
            assert "line 2, column 6" in said
            assert "57014" in await fails("select pg_sleep(30)", timeout=0.5)
            # Who lifts the server's limit meets ours.
            assert "longer than 0.5 s" in await fails(
                "set statement_timeout = 0; select pg_sleep(30)", timeout=0.5
            )
            assert "larger than 64 MB" in await fails(
                "select repeat('x', 1000000) from generate_series(1, 100000)"
            )
            # Of one row libpq would take all before we see any of it.
            assert "one row is larger than 64 MB" in await fails("select repeat('x', 200000000)")
            told = await me.ok("run_sql", database="b", sql="select n from generate_series(1, 250) n")
            assert [len(told["results"][0]["rows"]), told["results"][0]["rows_left_out"]] == [100, 150]
            assert "150 further rows" in told["notes"][0]
            told = await me.ok(
                "run_sql",
                database="b",
                sql="select null, true, 9007199254740993, 7, 1.5::float8, 'NaN'::float8, '\\x00ff'::bytea, repeat('y', 5000);"
                "begin; insert into users (name) values ('open')",
            )
            first = told["results"][0]["rows"][0]
            assert first[:7] == [None, True, "9007199254740993", 7, 1.5, "NaN", "\\x00ff"]
            assert first[7].endswith("(5,000 characters in all)")
            assert "rolled back" in told["notes"][0]
            assert await me.sql("b", "select count(*) from users") == [[0]]
            told = await me.ok(
                "run_sql",
                database="b",
                sql="select array[1,2], array[1.5::float8], array[true], array[[1],[2]], '{}'::int8[], array['a']",
            )
            assert told["results"][0]["rows"] == [["{1,2}", "{1.5}", "{t}", "{{1},{2}}", "{}", "{a}"]]
            assert [column["type"] for column in told["results"][0]["columns"]][:3] == [
                "int4[]", "float8[]", "bool[]",
            ]  # fmt: skip

    tell(story)


def test_a_cancelled_call_ends_its_statement(base: Project) -> None:
    async def story() -> None:
        async with agent(base) as me:
            await me.ok("create", name="c")
            with anyio.move_on_after(1.5):
                await me.call("run_sql", database="c", sql="select pg_sleep(60), 'wait'", timeout=100)
            for _ in range(50):
                sql = "select count(*) from pg_stat_activity where query like '%pg_sleep(60)%' and pid <> pg_backend_pid()"
                if await me.sql("c", sql) == [[0]]:
                    return
                await anyio.sleep(0.1)
            raise AssertionError("it goes on")

    tell(story)


def test_migrations_that_are_edited(new_project: Callable[..., Project]) -> None:
    project = new_project("edited")

    async def story() -> None:
        async with agent(project) as me:
            await me.ok("create", name="before")
            project.migrate("002_more.sql", "create table more (id int); nonsense;")
            said = await me.fails("create", name="after")
            assert "002_more.sql" in said
            project.migrate("002_more.sql", "create table more (id int);")
            await me.ok("create", name="after")
            assert await me.sql("after", "select count(*) from more") == [[0]]
            told = await me.ok("describe", database="after", table="more")
            assert [table["name"] for table in told["tables"]] == ["more"]
            assert len(told["migrations"]) == 2
            assert "42P01" in await me.fails("run_sql", database="before", sql="select * from more")
            assert "no table 'none'" in await me.fails("describe", database="after", table="none")

    tell(story)


def test_logs_and_secrets(base: Project) -> None:
    async def story() -> None:
        async with agent(base) as me, agent(base) as other:
            word = (await me.ok("create", name="l"))["word"]
            await other.ok("create", name="o")
            await me.fails("run_sql", database="l", sql="select my_own_mistake")
            await me.fails("run_sql", database="l", sql="alter role nobody password 'hunter2'")
            await other.fails("run_sql", database="o", sql="select somebody_elses_mistake")
            said = "\n".join((await me.ok("logs", database="l"))["lines"])
            assert "my_own_mistake" in said
            assert "hunter2" not in said
            assert "somebody_elses_mistake" not in said
            assert len((await me.ok("logs", database="l", number=1))["lines"]) == 1
            password = psycopg.conninfo.conninfo_to_dict(base.ok("url", word).strip())["password"]
            for tool in ("list", "logs", "describe", "changes"):
                answer = await me.call(tool, **({} if tool == "list" else {"database": "l"}))
                assert str(password) not in text(answer) + str(answer.structured_content)

    tell(story)


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(100):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("it does not come")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, None], ids=["SIGTERM", "SIGKILL", "stdin"])
def test_the_end_of_a_session(base: Project, how: int | None) -> None:
    child = subprocess.Popen(
        base.command("mcp"), cwd=base.root, env=base.environ, text=True, bufsize=1,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None

    def send(method: str, **parameters: object) -> None:
        assert child.stdin is not None
        number = {} if method.startswith("notifications/") else {"id": 1}
        child.stdin.write(
            json.dumps({"jsonrpc": "2.0", "method": method, "params": parameters, **number}) + "\n"
        )

    send(
        "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "t", "version": "1"}
    )
    assert json.loads(child.stdout.readline())["result"]["serverInfo"]["name"] == "pg-harness"
    send("notifications/initialized")
    send("tools/call", name="create", arguments={"name": "left"})
    assert json.loads(child.stdout.readline())["result"]["structuredContent"]["name"] == "left"
    assert len(agents(base)) == 1
    if how is None:
        child.stdin.close()
        assert child.wait(30) == 0
    else:
        os.kill(child.pid, how)
        assert child.wait(30) == (128 + how if how == signal.SIGTERM else -how)
    assert child.stderr is not None
    assert "Traceback" not in child.stderr.read()
    if how == signal.SIGKILL:
        # Nobody was there to do it: the next session does.
        assert len(agents(base)) == 1

        async def next_one() -> None:
            async with agent(base) as me:
                await me.ok("create")

        tell(next_one)
    assert agents(base) == []
    for stream in (child.stdin, child.stdout, child.stderr):
        stream.close()


def test_a_signal_ends_the_migrations_that_a_call_has_started(new_project: Callable[..., Project]) -> None:
    project = new_project("slow-command", migrations=False)
    noted = project.root / "pid"
    project.environ |= {
        "PGHARNESS_MIGRATIONS": f"command:sh -c 'echo $$ > {noted}.new; mv {noted}.new {noted}; sleep 300'"
    }
    child = subprocess.Popen(
        project.command("mcp"), cwd=project.root, env=project.environ, text=True, bufsize=1,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with child:
        assert child.stdin is not None
        about = {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "t", "version": "1"},
        }
        for number, method, parameters in (
            (1, "initialize", about),
            (None, "notifications/initialized", {}),
            (2, "tools/call", {"name": "create", "arguments": {}}),
        ):
            call = {"jsonrpc": "2.0", "method": method, "params": parameters}
            child.stdin.write(json.dumps(call if number is None else {**call, "id": number}) + "\n")
        wait_until(noted.exists)
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.killpg(int(noted.read_text()), 0)


@pytest.mark.docker
def test_in_a_container(new_project: Callable[..., Project]) -> None:
    project = new_project("contained")
    project.environ |= {
        "PGHARNESS_BACKEND": "docker",
        "PGHARNESS_IMAGE": "pgharness-test:15",
        "TESTCONTAINERS_RYUK_DISABLED": "true",
    }

    async def story() -> None:
        async with agent(project) as me:
            word = (await me.ok("create", name="try"))["word"]
            await me.sql("try", "insert into users (name) values ('a')")
            await me.ok("mark", database="try", name="one")
            await me.sql("try", "alter table users add column age int; delete from users")
            await me.ok("fork", database="try", name="copy")
            await me.ok("reset", database="try")
            assert await me.sql("try", "select * from users") == [[1, "a"]]
            assert await me.sql("copy", "select count(age) from users") == [[0]]
            assert "42P01" in await me.fails("run_sql", database="copy", sql="select * from my_mistake")
            assert "my_mistake" in "\n".join((await me.ok("logs", database="copy"))["lines"])
            assert names(project.ok("url", word).strip()) == ["a"]
            await me.ok("drop", database="copy")
            assert agents(project) == [word]

    tell(story)
    assert agents(project) == []


@NEEDS[-1]
def test_with_a_pooler_in_front(new_project: Callable[..., Project]) -> None:
    project = new_project("pooled")
    project.environ |= POOLED

    async def story() -> None:
        async with agent(project) as me:
            word = (await me.ok("create", name="p"))["word"]
            # Its limits and its role are those of a session at the server itself.
            assert await me.sql("p", "show statement_timeout", timeout=7) == [["7s"]]
            assert "57014" in await me.fails("run_sql", database="p", sql="select pg_sleep(30)", timeout=0.5)
            with psycopg.connect(project.ok("url", word).strip(), autocommit=True) as program:
                program.execute("insert into users (name) values ('through the pooler')")
                assert await me.sql("p", "select count(*) from users") == [[1]]
                await me.ok("reset", database="p")
                assert program.execute("select count(*) from users").fetchone() == (0,)
            assert "users" in str(await me.ok("describe", database="p"))
        async with agent(project, PGHARNESS_SUPERUSER="true", PGHARNESS_ROLE="boss") as me:
            await me.ok("create", name="super")
            assert "--allow superuser" in await me.fails("run_sql", database="super", sql="select 1")

    tell(story)


def test_down_says_that_it_leaves_the_agents_server(new_project: Callable[..., Project]) -> None:
    project = new_project("left")

    async def story() -> None:
        async with agent(project) as me:
            await me.ok("create", name="mine")
            said = project.run("down").stderr
            assert "left: the agents' server" in said
            assert "`pg-harness down --all` ends it" in said
            assert await me.sql("mine", "select count(*) from users") == [[0]]
            assert "the agents' server" not in project.run("down", "--all", "--yes").stderr

    tell(story)


def test_another_folder_than_the_projects(new_project: Callable[..., Project]) -> None:
    project = new_project("elsewhere-started", migrations=False)

    async def story() -> None:
        async with agent(project) as me:
            made = await me.call("create")
            assert f"none were found in {project.root}" in text(made)
            assert '"--config"' in text(made)
            project.migrate("001_users.sql", MIGRATION)
            assert "it is empty" not in text(await me.call("create"))

    tell(story)


def test_a_mistake_of_ours_is_told_in_words(base: Project, tmp_path: Path) -> None:
    # Its log has each line once, whatever the SDK does to the root logger, and no traceback (see `agent`).
    (tmp_path / "sitecustomize.py").write_text(
        "from harness.mcp import log\ndef last(*_):\n    raise ZeroDivisionError('by hand')\nlog.last = last\n"
    )

    async def story() -> None:
        broken = {"PYTHONPATH": f"{tmp_path}:{base.environ['PYTHONPATH']}"}
        async with agent(base, **broken) as me:
            await me.ok("create", name="b")
            said = await me.fails("logs", database="b")
            assert "ZeroDivisionError: by hand" in said
            assert "a bug in pg-harness" in said

    tell(story)


def test_names_and_numbers(base: Project) -> None:
    async def story() -> None:
        async with agent(base) as me:
            assert (await me.ok("create"))["name"] == "1"
            assert (await me.ok("fork", database="1"))["name"] == "2"
            assert "already" in await me.fails("create", name="1")
            for name in ("", "a b", "../x", "x" * 41, "é"):
                assert "cannot be a database's name" in await me.fails("create", name=name)
            assert "there is no mark 'x'" in await me.fails("reset", database="1", to="x")
            for name in ("template", "m\x1b[31mRED", "two\nlines", "\u202eright"):
                assert "cannot be a mark's name" in await me.fails("mark", database="1", name=name)
            # What its role creates besides goes with it.
            await me.sql("1", "create database beside_an_agent")
            await me.ok("drop", database="2")
            await me.ok("drop", database="1")
            await me.ok("create", name="look")
            assert await me.sql("look", "select from pg_database where datname = 'beside_an_agent'") == []
            roles = "select count(*) from pg_roles where rolname ~ '_r_0{16}_'"
            assert await me.sql("look", roles) == [[1]]

    tell(story)


def test_a_server_that_was_ended(new_project: Callable[..., Project]) -> None:
    project = new_project("ended")

    async def story() -> None:
        async with agent(project) as me:
            await me.ok("create", name="first")
            project.ok("down", "--all", "--yes")
            assert "you have no database" in await me.fails("run_sql", database="first", sql="select 1")
            await me.ok("create", name="first")
            assert await me.sql("first", "select count(*) from users") == [[0]]

    tell(story)


def test_what_is_refused_at_the_start(base: Project, new_project: Callable[..., Project]) -> None:
    said = base.fails(120, "mcp", "--allow", "raed")
    assert "did you mean 'read'" in said
    url = base.admin().url
    said = base.fails(120, "mcp", PGHARNESS_BACKEND="external", PGHARNESS_SERVER_URL=url)
    assert "--allow external" in said


def test_without_the_sdk_or_with_an_old_one(base: Project, tmp_path: Path) -> None:
    for name, content in (
        ("none", "raise ModuleNotFoundError(\"No module named 'mcp'\", name='mcp')"),
        ("old", ""),
    ):
        package = tmp_path / name / "mcp"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(content)
        said = base.fails(120, "mcp", PYTHONPATH=f"{package.parent}:{base.environ['PYTHONPATH']}")
        assert "pip install 'pg-harness[mcp]'" in said


def test_other_commands_import_none_of_it(base: Project) -> None:
    code = (
        "import sys\nfrom harness.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'mcp', 'anyio', 'pydantic', 'harness.mcp', 'harness.postgres.bounded'} & set(sys.modules)))"
    )
    for words in (["up"], ["status"], ["help", "mcp"]):
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.argv = ['pg-harness', *{words!r}]\n{code}"],
            cwd=base.root, env=base.environ, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == "[]"


def test_an_external_server_and_a_superuser(base: Project, new_project: Callable[..., Project]) -> None:
    other = new_project("outside")
    admin = base.admin()

    async def story() -> None:
        outside = {
            "PGHARNESS_BACKEND": "external",
            "PGHARNESS_SERVER_URL": admin.url,
            "PGHARNESS_ALLOW_FOREIGN": "1",
        }
        async with agent(other, "--allow", "external", **outside) as me:
            await me.ok("create", name="out")
            assert await me.sql("out", "select count(*) from users") == [[0]]
            assert "somebody else runs" in await me.fails("logs", database="out")
        async with agent(other, PGHARNESS_SUPERUSER="true", PGHARNESS_ROLE="boss") as me:
            await me.ok("create", name="super")
            assert "--allow superuser" in await me.fails("run_sql", database="super", sql="select 1")
        async with agent(
            other, "--allow", "superuser", PGHARNESS_SUPERUSER="true", PGHARNESS_ROLE="boss"
        ) as me:
            await me.ok("create", name="super")
            assert await me.sql("super", "select 1") == [[1]]

    tell(story)
