"""Each verb, on a real server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from fix_cli import Project


def rows(url: str, query: str = "select count(*) from users") -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def test_up_prints_one_url_a_line_and_the_same_again(project: Project) -> None:
    first = project.run("up", "-n", "2")
    urls = first.stdout.splitlines()
    assert len(urls) == 2
    assert rows(urls[0], "select current_database()") != rows(urls[1], "select current_database()")
    execute(urls[1], "insert into users (name) values ('stays')")
    again = project.run("up")
    assert again.stdout == first.stdout
    assert again.stderr == ""
    assert rows(urls[1]) == 1
    assert project.ok("up", "-n", "1").splitlines() == urls[:1]


def test_up_as_json(project: Project) -> None:
    found = json.loads(project.ok("up", "-n", "2", "--json"))
    assert [w["worker"] for w in found["workers"]] == ["1", "2"]
    assert found["workers"][0]["databases"]["default"] == found["workers"][0]["url"]
    assert found["server"]["backend"] == "process"
    assert found["server"]["storage"] == "disk"
    assert not found["workers"][0]["stale"]


def test_a_warm_up_imports_no_vendor_of_containers(project: Project) -> None:
    done = subprocess.run(
        [*project.command()[:1], "-X", "importtime", *project.command()[1:], "up"],
        cwd=project.root, env=project.environ, text=True, timeout=60, capture_output=True, check=True,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "psycopg" in imported
    assert imported.isdisjoint(
        {"docker", "testcontainers", "rich", "pytest", "filelock", "asyncio.base_events"}
    )


def test_changed_migrations_are_told_and_only_fresh_takes_them(new_project: Callable[..., Project]) -> None:
    mine = new_project()
    url = mine.ok("up").strip()
    execute(url, "insert into users (name) values ('mine')")
    mine.migrate("002_more.sql", "create table more (id int);\n")
    done = mine.run("up")
    assert done.stdout.strip() == url
    assert "up --fresh" in done.stderr
    assert rows(url) == 1
    said = mine.fails(120, "up", "--fresh")
    assert "--yes" in said
    assert "pgh_" in said
    assert rows(url) == 1
    assert mine.ok("up", "--fresh", "--yes").strip() == url
    assert rows(url) == 0
    assert rows(url, "select count(*) from more") == 0
    # A migration that fails must not cost the databases that work.
    mine.migrate("003_bad.sql", "create tabel x ();\n")
    said = mine.fails(123, "up", "--fresh", "--yes")
    assert "003_bad.sql" in said
    assert "The half-migrated database is kept: " in said
    assert rows(url) == 0


def test_up_without_migrations_lists_what_was_looked_for(new_project: Callable[..., Project]) -> None:
    done = new_project(migrations=False).run("up", "-q")
    assert done.returncode == 0
    assert "alembic.ini" in done.stderr
    assert "pg-harness init" in done.stderr
    assert rows(done.stdout.strip(), "select count(*) from pg_tables where schemaname = 'public'") == 0


def test_a_persons_data_survives_a_stop_of_the_server(new_project: Callable[..., Project]) -> None:
    mine = new_project()
    url = mine.ok("up").strip()
    execute(url, "insert into users (name) values ('survives')")
    execute(url, "checkpoint") if rows(
        url, "select rolsuper from pg_roles where rolname = current_user"
    ) else None
    status = json.loads(mine.ok("status", "--json"))
    pid = int(status["servers"][0]["description"].split("process ")[1].split()[0])
    os.kill(pid, 2)  # SIGINT: a fast shutdown, as at the end of the machine's day
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            break
        subprocess.run(["sleep", "0.1"], check=True, timeout=5)
    with pytest.raises(psycopg.OperationalError):
        rows(url)
    assert mine.ok("up").strip() == url
    assert rows(url) == 1


def test_url_env_and_words(project: Project) -> None:
    urls = project.ok("up", "-n", "2").splitlines()
    assert project.ok("url").strip() == urls[0]
    assert project.ok("url", "2").strip() == urls[1]
    assert project.ok("url", "2", "--form", "sqlalchemy").startswith("postgresql+psycopg://")
    assert json.loads(project.ok("url", "--json"))["url"] == urls[0]
    said = project.fails(120, "url", "7")
    assert "yours, worker 1" in said
    assert "template" in said
    assert "dropped afterwards" in project.fails(124, "url", "template")
    values = json.loads(project.ok("env", "2", "--format", "json"))
    assert values["DATABASE_URL"] == urls[1]
    assert "DATABASE_URL_1" not in values
    values = json.loads(project.ok("env", "--json"))
    assert [values[f"DATABASE_URL{end}"] for end in ("", "_1", "_2")] == [urls[0], *urls]
    assert (values["PGHARNESS_WORKERS"], "DATABASE_URL_3" in values) == ("2", False)
    assert f"DATABASE_URL={urls[0]}" in project.ok("env", "--format", "dotenv").splitlines()
    assert f"DATABASE_URL={urls[0]}" in project.ok("env", "--format", "github").splitlines()


def test_env_for_the_shell_removes_what_bends(project: Project) -> None:
    script = project.ok("env", PGHOSTADDR="192.0.2.1", PGOPTIONS="-c x=y")
    done = subprocess.run(
        ["sh", "-c", script + '\nprintf "%s|%s|%s" "$PGHOSTADDR" "$PGOPTIONS" "$DATABASE_URL"'],
        env={**os.environ, "PGHOSTADDR": "192.0.2.1"}, text=True, capture_output=True, check=True, timeout=20,
    )  # fmt: skip
    assert done.stdout == "||" + project.ok("url").strip()


def test_psql_on_a_worker_and_on_a_copy_of_the_template(project: Project) -> None:
    out = project.ok("psql", "2", "--", "-Atc", "select current_user")
    assert out.strip() == "app"
    assert project.ok("psql", "--admin", "--", "-Atc", "select current_user").strip() == "postgres"
    copy = project.ok(
        "psql", "template", "--", "-Atc", "insert into users default values; select count(*) from users"
    )
    assert copy.splitlines()[-1] == "1"
    assert "0" in project.ok("psql", "template", "--", "-Atc", "select count(*) from users")
    left = project.ok(
        "psql", "--admin", "--", "-Atc", "select datname from pg_database where datname like '%psql%'"
    )
    assert left == ""
    assert project.run("psql", "--", "-c", "select no_such_column").returncode == 1


def test_reset_brings_back_the_state_of_the_migrations(new_project: Callable[..., Project]) -> None:
    mine = new_project()
    urls = mine.ok("up", "-n", "2").splitlines()
    for url in urls:
        execute(url, "insert into users (name) values ('x')")
    mine.ok("reset", "2")
    assert [rows(url) for url in urls] == [1, 0]
    execute(urls[1], "drop table users")
    report = json.loads(mine.ok("reset", "--all", "--json"))
    assert [entry["worker"] for entry in report] == ["1", "2"]
    assert [rows(url) for url in urls] == [0, 0]
    mine.fails(120, "reset", "1", "--all")
    mine.fails(124, "reset", "template")


def test_status_masks_passwords_and_counts_connections(project: Project) -> None:
    url = project.ok("url").strip()
    with psycopg.connect(url) as connection:
        connection.execute("select 1")
        status = json.loads(project.ok("status", "--json"))
    server = status["servers"][0]
    assert status["root"] == str(project.root.resolve())
    assert server["workers"][0]["connections"] == {"idle in transaction": 1}
    assert server["workers"][0]["current"] is True
    assert server["templates"][0]["sources"] == ["sql:db/migrations"]
    password = psycopg.conninfo.conninfo_to_dict(url)["password"]
    text = project.ok("status")
    assert str(password) not in text
    assert "***" in text


def test_logs(project: Project) -> None:
    assert "ready to accept connections" in project.ok("logs")
    assert "There are:" in project.fails(120, "logs", "nope")


def test_gc_drops_what_a_killed_run_left(new_project: Callable[..., Project]) -> None:
    mine = new_project()
    run = mine.start("run", "--", "sh", "-c", "echo $DATABASE_URL; exec sleep 15")
    assert run.stdout is not None
    url = run.stdout.readline().strip()
    status = json.loads(mine.ok("status", "--json"))
    assert [w["alive"] for w in status["servers"][0]["workers"]] == [True]
    name = status["servers"][0]["workers"][0]["databases"]["default"]
    assert name not in mine.ok("gc", "--dry-run")
    run.kill()
    run.wait(timeout=30)
    for stream in (run.stdout, run.stderr):
        assert stream is not None
        stream.close()
    # The command itself outlives us; its database must not, once nobody is in it. The server's first
    # 30 seconds are a time of grace for leases, so the plan is asked until it says so.
    for _ in range(120):
        if name in mine.ok("gc", "--dry-run"):
            break
        subprocess.run(["sleep", "0.5"], check=True, timeout=5)
    assert name in mine.ok("gc")
    with pytest.raises(psycopg.OperationalError):
        rows(url)
    assert name not in mine.ok("gc")


def test_gc_says_what_it_waits_for_and_need_not(new_project: Callable[..., Project]) -> None:
    """It said that nothing is left over, while `status` said that the run is dead."""
    mine = new_project("waiting")
    run = mine.start("run", "--", "sh", "-c", "echo $DATABASE_URL; exec sleep 30")
    assert run.stdout is not None
    url = run.stdout.readline().strip()
    with psycopg.connect(mine.admin("run", url).url) as connection:
        found = connection.execute("select pid from pg_stat_activity where backend_type = 'walwriter'")
        ((writer,),) = found.fetchall()
    run.kill()
    run.communicate(timeout=30)
    # The server recovers from a crash: whoever lives takes its sign of life again, and nobody has it yet.
    os.kill(writer, signal.SIGKILL)
    for _ in range(60):
        if json.loads(mine.run("gc", "--dry-run", "--json").stdout or "{}").get("waiting"):
            break
        time.sleep(0.2)
    said = mine.run("gc")
    assert (said.returncode, said.stdout) == (0, "")
    assert "1 database on PostgreSQL" in said.stderr
    assert "shows no sign of life, which a run may take again within" in said.stderr
    assert "nothing is left over" not in said.stderr
    assert rows(url) is not None
    dropped = json.loads(mine.ok("gc", "--now", "--json"))
    assert [item["database"] for item in dropped["dropped"]] == [url.rpartition("/")[2]]
    assert dropped["waiting"] == []
    with pytest.raises(psycopg.OperationalError):
        rows(url)
    assert "nothing is left over" in mine.run("gc").stderr


def test_gc_ends_the_server_of_a_checkout_that_is_gone(new_project: Callable[..., Project]) -> None:
    gone, mine = new_project("gone"), new_project()
    # Where only this suite's `gc` sees it: shared memory is all checkouts'.
    url = gone.ok("up", PGHARNESS_STORAGE="disk").strip()
    shutil.rmtree(gone.root)
    told = [line for line in json.loads(mine.ok("doctor", "--json")) if str(gone.root) in line["detail"]]
    assert [(line["check"], line["state"]) for line in told] == [("orphans", "note")]
    assert str(gone.root) in mine.ok("gc", "--dry-run")
    assert rows(url) is not None
    dropped = json.loads(mine.ok("gc", "--json"))["dropped"]
    assert [item["backend"] for item in dropped if str(gone.root) in item["reason"]] == ["process"]
    with pytest.raises(psycopg.OperationalError):
        rows(url)
    assert str(gone.root) not in mine.ok("gc")


def test_down_ends_only_this_checkouts_server(new_project: Callable[..., Project], project: Project) -> None:
    mine = new_project()
    url = mine.ok("up").strip()
    mine.ok("run", "--", "true")
    theirs = project.ok("url").strip()
    ended = json.loads(mine.ok("down", "--json"))["ended"]
    assert [entry["purpose"] for entry in ended] == ["up"]
    with pytest.raises(psycopg.OperationalError):
        rows(url)
    assert rows(theirs) is not None
    assert len(json.loads(mine.ok("status", "--json"))["servers"]) == 1
    mine.ok("down", "--all", "--yes")
    assert json.loads(mine.ok("status", "--json"))["servers"] == []
    assert "nothing to end" in mine.run("down").stderr
    mine.fails(124, "url")
    mine.fails(124, "logs")


def test_init_writes_once_and_never_over(new_project: Callable[..., Project]) -> None:
    mine = new_project()
    (mine.root / "pyproject.toml").write_bytes(b'[project]\r\nname = "x"\r\n')
    out = mine.ok("init")
    assert 'migrations = ["sql:db/migrations"]' in out
    content = (mine.root / "pyproject.toml").read_bytes()
    assert content.startswith(b'[project]\r\nname = "x"\r\n')
    assert b"[tool.pg-harness]\r\n" in content
    assert "settings already" in mine.fails(120, "init")
    assert (mine.root / "pyproject.toml").read_bytes() == content
    assert "pyproject.toml" in mine.ok("doctor")


def test_init_without_pyproject(new_project: Callable[..., Project]) -> None:
    mine = new_project()
    assert not (mine.root / "pg-harness.toml").exists()
    assert "migrations" in mine.ok("init", "--dry-run")
    assert not (mine.root / "pg-harness.toml").exists()
    mine.ok("init")
    assert "sql:db/migrations" in (mine.root / "pg-harness.toml").read_text()


def test_doctor(project: Project) -> None:
    lines = json.loads(project.ok("doctor", "--json"))
    states = {line["check"]: line["state"] for line in lines}
    assert states["python"] == states["process"] == states["migrations"] == "ok"
    assert {"ok", "note"} >= set(states.values())


def test_doctor_says_which_migration_tool_is_missing(new_project: Callable[..., Project]) -> None:
    """Their files can be read without it: a run would fail in the middle of its start."""
    mine = new_project()
    (mine.root / "pg-harness.toml").write_text('migrations = ["command:no-such-tool up", "alembic"]\n')
    (mine.root / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/alembic\n")
    (mine.root / "alembic").mkdir()
    (mine.root / "alembic" / "env.py").write_text("")
    # Without the site's packages there is no Alembic; ours come by their own path.
    lacking = (
        "import sys, harness.migrations.hashing.imports as imports\n"
        "imports.installed_versions = lambda only=(): []\n"
        "from harness.cli import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", lacking, "doctor"],
        cwd=mine.root,
        env=mine.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert "command:no-such-tool up cannot be applied: there is no program 'no-such-tool' on PATH" in said, (
        done.stdout
    )
    assert "alembic cannot be applied: Alembic is not installed" in said, done.stdout
    assert "pip install alembic" in said


def test_doctor_says_what_shadows_the_package(new_project: Callable[..., Project]) -> None:
    mine = new_project()
    (mine.root / "harness").mkdir()
    (mine.root / "harness" / "__init__.py").write_text("")
    done = mine.run("doctor", PYTHONSAFEPATH="1")
    assert "pg-harness run -- pytest" in done.stdout


def test_two_databases_each(new_project: Callable[..., Project]) -> None:
    mine = new_project()
    other = mine.root / "analytics"
    other.mkdir()
    (other / "001.sql").write_text("create table facts (id int);\n")
    (mine.root / "pg-harness.toml").write_text(
        'migrations = ["sql:db/migrations"]\n[databases.analytics]\nmigrations = ["sql:analytics"]\n'
        'env = { ANALYTICS_URL = "{url}" }\n'
    )
    url = mine.ok("up").strip()
    second = mine.ok("url", "1", "--database", "analytics").strip()
    assert rows(url) == rows(second, "select count(*) from facts") == 0
    out = mine.ok(
        "run",
        "-n",
        "2",
        "--",
        "sh",
        "-c",
        "echo $ANALYTICS_URL_1; echo $ANALYTICS_URL_2; echo $ANALYTICS_URL",
    )
    assert len(set(out.splitlines())) == 2
    assert "it has default, analytics" in mine.fails(120, "url", "1", "--database", "nope")


def test_a_database_that_was_added_later_does_not_cost_the_others(
    new_project: Callable[..., Project],
) -> None:
    mine = new_project()
    (mine.root / "pg-harness.toml").write_text('migrations = ["sql:db/migrations"]\n')
    url = mine.ok("up").strip()
    execute(url, "insert into users (name) values ('kept')")
    with (mine.root / "pg-harness.toml").open("a") as file:
        file.write("[databases.analytics]\n")
    assert mine.ok("up").strip() == url
    assert rows(url) == 1
    assert rows(mine.ok("url", "1", "--database", "analytics").strip(), "select 1") == 1


def test_several_up_at_once_make_one_server_and_one_database(new_project: Callable[..., Project]) -> None:
    mine = new_project()
    children = [mine.start("up", "-n", "2") for _ in range(5)]
    answers = {child.communicate(timeout=120)[0] for child in children}
    assert [child.returncode for child in children] == [0] * 5
    assert len(answers) == 1
    assert len(json.loads(mine.ok("status", "--json"))["servers"][0]["workers"]) == 2


def test_a_path_with_blanks_and_quotes(new_project: Callable[..., Project]) -> None:
    mine = new_project("a 'quoted' \"päth\"")
    assert rows(mine.ok("up").strip()) == 0
    assert mine.ok("run", "--", "pwd").strip() == str(Path(mine.root).resolve())


@pytest.mark.parametrize(
    "words",
    [["up"], ["up", "--fresh", "--yes"], ["status"], ["url"], ["reset"], ["run", "--", "true"]],
    ids=" ".join,
)
def test_the_project_is_made_once(project: Project, words: list[str]) -> None:
    project.ok("up")
    code = (
        "import sys\n"
        "from harness.cli.entry import run\n"
        "from harness.config import project\n"
        "made, machine_id = [], project.machine_id\n"
        "project.machine_id = lambda: made.append(1) or machine_id()\n"
        "code = run(sys.argv[1:])\n"
        "print('made', len(made), code, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=project.root, env=project.environ, text=True, timeout=60,
        stdin=subprocess.DEVNULL, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "made 1 0"
