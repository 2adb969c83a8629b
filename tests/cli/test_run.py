"""``run``: databases, signals, exit codes, copies, and who shares what."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_cli import Project

Interrupt = Callable[[subprocess.Popen[str], int], tuple[int, str]]
needs_psql = pytest.mark.skipif(shutil.which("psql") is None, reason="no psql on this machine")
SLOW_QUERY = 'psql -Xqc "select pg_sleep(1)" '


def left_over(project: Project) -> list[object]:
    """Databases that test runs still have."""
    return [
        w
        for s in json.loads(project.ok("status", "--json"))["servers"]
        if s["purpose"] == "run"
        for w in s["workers"]
    ]


@needs_psql
def test_four_distinct_databases(project: Project) -> None:
    script = """
    for i in 1 2 3 4; do eval u=\\$DATABASE_URL_$i; psql -XAtqc 'select current_database()' $u; done
    psql -Xqc "insert into users (name) values ('x')" $DATABASE_URL
    for i in 1 2 3 4; do eval u=\\$DATABASE_URL_$i; psql -XAtqc 'select count(*) from users' $u; done
    psql -XAtqc 'select current_database()'
    echo $PGHARNESS_WORKERS
    """
    out = project.ok("run", "-n", "4", "--", "sh", "-c", script).splitlines()
    assert len(set(out[:4])) == 4
    assert out[4:8] == ["1", "0", "0", "0"]
    assert out[8] == out[0]
    assert out[9] == "4"
    assert left_over(project) == []


def test_exit_codes(project: Project) -> None:
    assert project.run("run", "--", "sh", "-c", "exit 7").returncode == 7
    assert project.run("run", "--", "sh", "-c", "kill -KILL $$").returncode == 137
    assert "not found" in project.fails(127, "run", "--", "no-such-command")
    script = project.root / "plain.txt"
    script.write_text("x")
    assert project.run("run", "--", "./plain.txt").returncode == 126
    project.fails(120, "run")
    project.fails(120, "run", "--")
    project.fails(120, "run", "-n", "2", "--copies", "2", "--", "true")
    project.fails(120, "run", "-n", "0", "--", "true")
    assert left_over(project) == []


@pytest.mark.parametrize("words", [(), ("--copies", "2"), ("-n", "2")])
def test_a_path_by_which_the_command_is_not_found(project: Project, words: tuple[str, ...]) -> None:
    """`[env] PATH = ""` ended in a traceback: the command was looked for by our PATH, and started by this one."""
    said = project.fails(127, "run", *words, "--", "ls", PGHARNESS_ENV="PATH=")
    assert "'ls' cannot be started" in said
    assert "(PATH is '' for it)" in said
    assert "bug" not in said
    assert project.run("run", *words, "--", "/bin/true", PGHARNESS_ENV="PATH=").returncode == 0
    assert left_over(project) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_signals_are_passed_on(project: Project, interrupt: Interrupt, signum: int) -> None:
    name = signal.Signals(signum).name.removeprefix("SIG")
    script = f"trap 'echo got; exit 9' {name}; echo ready; while :; do sleep 0.05; done"
    child = project.start("run", "--", "sh", "-c", script)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signum)
    assert child.stdout.readline() == "got\n"
    child.communicate(timeout=60)
    assert child.returncode == 9
    assert left_over(project) == []


def test_a_command_that_a_signal_ends(project: Project, interrupt: Interrupt) -> None:
    child = project.start("run", "--", "sh", "-c", "echo ready; exec sleep 60")
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    assert interrupt(child, signal.SIGTERM)[0] == 128 + signal.SIGTERM
    assert left_over(project) == []


def test_copies(project: Project) -> None:
    script = 'echo "$PGHARNESS_COPY of $PGHARNESS_COPIES $DATABASE_URL"; echo err >&2; exit $PGHARNESS_COPY'
    done = project.run("run", "--copies", "3", "--", "sh", "-c", script)
    assert done.returncode == 3
    lines = sorted(done.stdout.splitlines())
    assert [line[:10] for line in lines] == ["[1] 1 of 3", "[2] 2 of 3", "[3] 3 of 3"]
    assert len({line.split()[-1] for line in lines}) == 3
    assert {"[1] err", "[2] err", "[3] err"} <= set(done.stderr.splitlines())
    assert left_over(project) == []


def test_a_copy_sees_no_other_copys_url(project: Project) -> None:
    out = project.ok(
        "run", "--copies", "2", "--", "sh", "-c", "env | grep -c ^DATABASE_URL_", DATABASE_URL_9="old"
    )
    assert out.splitlines().count("[1] 1") == 1
    assert out.splitlines().count("[2] 1") == 1


def test_the_environment_of_the_command(project: Project) -> None:
    out = project.ok("run", "--", "env", PGHOSTADDR="192.0.2.1", PGSSLMODE="verify-full", DATABASE_URL="mine")
    values = dict(line.partition("=")[::2] for line in out.splitlines() if "=" in line)
    assert "PGHOSTADDR" not in values
    assert "PGSSLMODE" not in values
    assert values["DATABASE_URL"] == values["DATABASE_URL_1"]
    assert values["PGDATABASE"] in values["DATABASE_URL"]


PARTS = {"PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE"}


def variables(out: str) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in out.splitlines() if "=" in line)


def test_the_parts_of_each_workers_address(project: Project) -> None:
    """For clients that connect without an address: `new pg.Pool()` was worker 1's in every worker."""
    own = {"PGHARNESS_ENV": "OWN={database}"}
    values = variables(project.ok("run", "-n", "2", "--", "env", **own))
    for name in ("DATABASE_URL", "OWN", *PARTS):
        assert values[name] == values[f"{name}_1"]
    for n in ("1", "2"):
        host, port, user, password, database = (
            values[f"PG{part}_{n}"] for part in ("HOST", "PORT", "USER", "PASSWORD", "DATABASE")
        )
        assert values[f"DATABASE_URL_{n}"] == f"postgresql://{user}:{password}@{host}:{port}/{database}"
        assert values[f"OWN_{n}"] == database
    assert values["PGDATABASE_2"] != values["PGDATABASE_1"]
    assert not [name for name in values if name.endswith("_3")]
    # Of databases that stay, the same.
    values = variables(project.ok("env", "--format", "dotenv", **own))
    assert {f"{name}_{n}" for name in ("DATABASE_URL", "OWN", *PARTS) for n in (1, 2)} <= values.keys()


def test_a_run_in_a_run_has_its_own_numbers_only(project: Project) -> None:
    own = {"PGHARNESS_ENV": "OWN={database}"}
    inner = " ".join(f"'{word}'" for word in project.command("-q", "run", "-n", "2", "--", "env"))
    outer = variables(
        project.ok("run", "-n", "3", "--", "sh", "-c", f"env | sed s/^/outer_/; {inner}", **own)
    )
    for name in ("DATABASE_URL", "OWN", *PARTS):
        assert f"outer_{name}_3" in outer
        assert f"{name}_2" in outer
        assert f"{name}_3" not in outer
    assert outer["PGDATABASE_2"] != outer["outer_PGDATABASE_2"]


@needs_psql
def test_a_runner_that_ignores_the_numbers_is_told(project: Project) -> None:
    script = f"for i in 1 2 3; do {SLOW_QUERY} $DATABASE_URL >/dev/null & done; wait"
    said = project.run("run", "-q", "-n", "3", "--", "sh", "-c", script)
    assert said.returncode == 0
    assert "not isolated: only worker 1's database was used, of 3" in said.stderr
    assert "DATABASE_URL_2 … were ignored" in said.stderr


@needs_psql
def test_sessions_that_outlive_the_command_count(project: Project) -> None:
    """They are in no statistics yet."""
    script = f"for i in 1 2; do eval u=\\$DATABASE_URL_$i; {SLOW_QUERY} $u >/dev/null 2>&1 & done; sleep 0.5"
    assert project.run("run", "-q", "-n", "2", "--", "sh", "-c", script).stderr == ""


@needs_psql
def test_less_to_do_than_workers_is_no_fault(project: Project) -> None:
    script = f"for i in 1 2; do eval u=\\$DATABASE_URL_$i; {SLOW_QUERY} $u >/dev/null & done; wait"
    assert project.run("run", "-q", "-n", "3", "--", "sh", "-c", script).stderr == ""
    assert project.run("run", "-q", "-n", "3", "--", "true").stderr == ""


@needs_psql
def test_a_runner_that_takes_its_own_is_not_blamed(project: Project) -> None:
    script = f"for i in 1 2 3; do eval u=\\$DATABASE_URL_$i; {SLOW_QUERY} $u >/dev/null & done; wait"
    assert project.run("run", "-q", "-n", "3", "--", "sh", "-c", script).stderr == ""
    # The first is enough where there is one only.
    script = f"for i in 1 2; do {SLOW_QUERY} $DATABASE_URL >/dev/null & done; wait"
    assert project.run("run", "-q", "--", "sh", "-c", script).stderr == ""


def test_a_reader_that_goes_away(project: Project) -> None:
    for words in (["up", "--json"], ["status"], ["logs"], ["run", "--copies", "2", "--", "seq", "100000"]):
        child = project.start(*words)
        assert child.stdout is not None
        child.stdout.close()
        child.stdout = None
        _, err = child.communicate(timeout=60)
        assert "Traceback" not in err
        assert "BrokenPipe" not in err
    assert left_over(project) == []


def test_closed_streams(project: Project) -> None:
    command = " ".join(f"'{word}'" for word in project.command("up"))
    for closing in (">&-", "2>&-", "</dev/null >&- 2>&-"):
        done = subprocess.run(
            ["sh", "-c", f"{command} {closing}"], cwd=project.root, env=project.environ, timeout=60, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        assert done.returncode == 0, done.stderr


def test_ctrl_c_during_a_migration_leaves_nothing(
    new_project: Callable[..., Project], interrupt: Interrupt
) -> None:
    mine = new_project()
    mine.migrate("002_slow.sql", "select pg_sleep(60);\n")
    for verb in (["up"], ["run", "--", "true"]):
        child = mine.start(*verb)
        assert child.stderr is not None
        for line in child.stderr:
            if "migrating default" in line:
                break
        code, err = interrupt(child, signal.SIGINT)
        assert code == 130, err
        assert "Traceback" not in err
    for server in json.loads(mine.ok("status", "--json"))["servers"]:
        assert server["left_over"] == 0
        assert server["templates"] == server["workers"] == server["kept"] == []


def test_ctrl_c_during_the_start_leaves_no_server(
    new_project: Callable[..., Project], interrupt: Interrupt
) -> None:
    mine = new_project()
    # A folder that the server's user may enter: else the machine's own cache is taken, which is warm.
    mine.environ["PGHARNESS_CACHE_DIR"] = str(Path(mine.environ["PGHARNESS_STATE_DIR"]).parent / "cold")
    child = mine.start("up")
    assert child.stderr is not None
    assert any("initialising" in line for line in child.stderr)
    code, err = interrupt(child, signal.SIGINT)
    assert code == 130, err
    assert "Traceback" not in err
    assert json.loads(mine.ok("status", "--json"))["servers"] == []


def test_the_command_has_our_standard_input(project: Project) -> None:
    done = subprocess.run(
        project.command("run", "--", "cat"), cwd=project.root, env=project.environ, input="through\n", text=True,
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "through\n"
    assert os.path.isdir(project.root)


@needs_psql
def test_parameters_that_are_joined_to_a_url(project: Project) -> None:
    told = {"PGHARNESS_ENV": "OWN={url:application_name=worker {worker}&options=-c%20lock_timeout=7s}"}
    ask = "select current_setting('application_name'), current_setting('lock_timeout'), current_database()"
    script = f'for u in $OWN_1 $OWN_2; do psql -XAtqc "{ask}" $u; done; echo $PGDATABASE'
    out = project.ok("run", "-n", "2", "--", "sh", "-c", script, **told).splitlines()
    first, second, database = out
    assert first == f"worker 1|7s|{database}"
    assert second.startswith("worker 2|7s|")
    assert second != first


def test_parameters_that_are_written_behind_a_url(project: Project) -> None:
    said = project.fails(120, "run", "--", "true", PGHARNESS_ENV="PRISMA_URL={url}?connection_limit=5")
    assert "write {url:connection_limit=5}" in said
    assert "PGHARNESS_ENV" in said


def test_more_workers_than_the_server_has_connections_for(project: Project) -> None:
    limits = {"PGHARNESS_MAX_CONNECTIONS": "500", "PGHARNESS_CONNECTIONS_PER_WORKER": "20"}
    said = project.fails(120, "run", "-n", "40", "--", "true", **limits)
    assert "40 workers need 886 connections: 40 × (20 + 2) + 6" in said
    assert "The server has 500" in said
    assert "connections_per_worker = " in said
    assert left_over(project) == []
