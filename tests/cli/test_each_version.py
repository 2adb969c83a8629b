"""Several versions on the command line: `run` and `bake` on each, servers side by side, what fails and what goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_backends import until
from fix_cli import Project
from fix_version_folders import linked

ASK = (
    "import os, psycopg\n"
    "with psycopg.connect(os.environ['DATABASE_URL']) as connection:\n"
    "    print(os.environ.get('PGHARNESS_PG_VERSION'), connection.info.server_version // 10000)\n"
)
COMMAND = ("--", sys.executable, "-c", ASK)
TABLE = "version  seconds  outcome"


@pytest.fixture(scope="module")
def mine(new_project: Callable[..., Project], folders: tuple[Path, Path]) -> Project:
    """Two versions by the settings, and no server yet."""
    made = new_project("each-version")
    places = linked(folders[0].parent / "programs")
    (made.root / "pg-harness.toml").write_text(
        f'pg_version = ["15", "18"]\nbinaries = "{places}"\nmigrations = ["sql:db/migrations"]\nttl = "5m"\n'
    )
    return made


def table(text: str) -> dict[str, str]:
    """Version → outcome, of the table at the end."""
    lines = [line.removeprefix("pg-harness: ") for line in text.splitlines()]
    rows = [line.split(None, 2) for line in lines[lines.index(TABLE) + 1 :]]
    return {row[0]: row[2] if row[1][0].isdigit() else " ".join(row[1:]) for row in rows}


def servers(project: Project) -> dict[str, str]:
    """Purpose → version, of the servers that run."""
    return {
        s["purpose"]: s["version"].split(".")[0]
        for s in json.loads(project.ok("status", "--json"))["servers"]
    }


def test_each_in_turn_and_all_stay_warm(mine: Project) -> None:
    first = mine.run("run", "--each-version", *COMMAND)
    assert (first.returncode, first.stdout) == (0, "15 15\n18 18\n"), first.stderr
    assert "---- PostgreSQL 15 (1 of 2): " in first.stderr
    assert table(first.stderr) == {"15": "passed", "18": "passed"}
    before = servers(mine)
    assert before == {"run": "15", "run-pg18": "18"}
    # Once more: found, and neither replaced nor called drifted.
    again = mine.run("run", "--each-version", *COMMAND)
    assert again.stdout == first.stdout
    assert "started" not in again.stderr
    assert "other settings" not in first.stderr + again.stderr
    # With one, they take their own: the first by default.
    assert mine.ok("run", *COMMAND) == "None 15\n"
    assert mine.ok("run", "--pg-version", "18", *COMMAND) == "18 18\n"
    assert mine.ok("run", *COMMAND, PGHARNESS_PG_VERSION="18") == "18 18\n"
    assert servers(mine) == before
    shown = mine.ok("status")
    assert "PostgreSQL 15." in shown
    assert "PostgreSQL 18." in shown
    assert "run-pg18" not in shown


def test_databases_of_its_own_for_each_and_for_each_worker(mine: Project) -> None:
    script = "import os; print(*sorted(os.environ[f'PGDATABASE_{n}'] for n in (1, 2)), os.environ['PGPORT'])"
    lines = mine.ok("run", "--each-version", "-n", "2", "--", sys.executable, "-c", script).splitlines()
    assert len(lines) == 2
    assert len({tuple(line.split()) for line in lines}) == 2
    assert len({line.split()[-1] for line in lines}) == 2
    shards = "echo $PGHARNESS_PG_VERSION $PGHARNESS_SHARD/$PGHARNESS_SHARDS"
    told = mine.ok("run", "--each-version", "--copies", "2", "--", "sh", "-c", shards).splitlines()
    assert sorted(told) == ["[1] 15 1/2", "[1] 18 1/2", "[2] 15 2/2", "[2] 18 2/2"]


def test_what_fails_is_named_and_the_others_go_on(mine: Project) -> None:
    done = mine.run("run", "--each-version", "--", "sh", "-c", "exit $PGHARNESS_PG_VERSION")
    assert done.returncode == 15
    assert table(done.stderr) == {"15": "exit code 15", "18": "exit code 18"}
    # A version that is not here, in the middle; the table is there with -q, because something failed.
    done = mine.run("run", "-q", "--each-version", "--pg-version", "18,3,15", *COMMAND)
    assert (done.returncode, done.stdout) == (121, "18 18\n15 15\n"), done.stderr
    assert table(done.stderr) == {
        "18": "passed",
        "3": "not run: no binaries of PostgreSQL 3 were found",
        "15": "passed",
    }
    assert "/programs/3 has no postgres" in done.stderr
    assert "Traceback" not in done.stderr
    quiet = mine.run("run", "-q", "--each-version", *COMMAND)
    assert (quiet.returncode, quiet.stderr) == (0, "")


def test_a_migration_that_needs_a_later_version(new_project: Callable[..., Project], mine: Project) -> None:
    other = new_project("later")
    (other.root / "pg-harness.toml").write_text((mine.root / "pg-harness.toml").read_text())
    # json_scalar() is of 17.
    other.migrate("002_later.sql", "create view v as select json_scalar(1) as n;\n")
    done = other.run("run", "--each-version", *COMMAND)
    assert (done.returncode, done.stdout) == (123, "18 18\n"), done.stderr
    assert table(done.stderr)["15"].startswith("not run: ")
    assert table(done.stderr)["18"] == "passed"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_of_it(mine: Project, tmp_path: Path, signum: int) -> None:
    script = f"echo $PGHARNESS_PG_VERSION >> {tmp_path}/began; exec sleep 60"
    child = mine.start("run", "--each-version", "--", "sh", "-c", script)
    until((tmp_path / "began").exists, seconds=60, what="the command began")
    child.send_signal(signum)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 128 + signum, said
    assert (tmp_path / "began").read_text() == "15\n"
    assert table(said) == {"15": f"exit code {128 + signum}", "18": "not run: it was ended before"}
    left = json.loads(mine.ok("status", "--json"))["servers"]
    assert [w for s in left for w in s["workers"]] == []


def test_a_command_that_ends_well_after_a_signal_has_not_run_on_all(mine: Project, tmp_path: Path) -> None:
    script = f"trap 'exit 0' TERM; touch {tmp_path}/began; while :; do sleep 0.05; done"
    child = mine.start("run", "--each-version", "--", "sh", "-c", script)
    until((tmp_path / "began").exists, seconds=60, what="the command began")
    child.terminate()
    _, said = child.communicate(timeout=60)
    assert child.returncode == 143, said
    assert table(said) == {"15": "passed", "18": "not run: it was ended before"}


def test_it_must_know_which(new_project: Callable[..., Project]) -> None:
    other = new_project("none-named")
    assert "--each-version needs to know which" in other.fails(120, "run", "--each-version", *COMMAND)
    url = "postgresql://me:secret@127.0.0.1:1/postgres"
    said = other.fails(120, "run", "--each-version", "--pg-version", "15,18", "--server-url", url, *COMMAND)
    assert "names one server, which has one version" in said
    assert "secret" not in said


def test_bake_one_or_each(mine: Project) -> None:
    told = mine.run("bake")
    assert "PostgreSQL 15 of 15, 18 (" in told.stderr
    each = json.loads(mine.ok("bake", "--each-version", "--json"))
    assert [made["pg_version"] for made in each] == ["15", "18"]
    assert each[0]["name"] == told.stdout.strip()
    assert each[0]["name"] != each[1]["name"]
    done = mine.run("bake", "--each-version", "--pg-version", "3,18")
    assert (done.returncode, done.stdout.strip()) == (121, each[1]["name"])
    assert "error: PostgreSQL 3: no binaries of PostgreSQL 3" in done.stderr


def test_what_doctor_tells_and_down_ends(mine: Project, folders: tuple[Path, Path]) -> None:
    mine.ok("run", "--each-version", *COMMAND)
    told = mine.ok("doctor")
    assert "PostgreSQL 15 of 15, 18 (" in told
    assert "servers     run: PostgreSQL 15." in told
    assert "servers     run-pg18: PostgreSQL 18." in told
    assert {
        line.split()[2] + line.split()[3] for line in told.splitlines() if line.startswith("ok    process")
    } == {f"PostgreSQL{v}" for v in versions_here(folders[0].parent / "programs")}
    ended = json.loads(mine.ok("down", "--all", "--yes", "--json"))["ended"]
    assert sorted(entry["purpose"] for entry in ended) == ["run", "run-pg18"]
    assert servers(mine) == {}


def versions_here(programs: Path) -> set[str]:
    """As the programs themselves say."""
    found = set()
    for folder in programs.iterdir():
        done = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True)
        found.add(done.stdout.split()[2])
    return found


def test_up_takes_the_one_that_is_named(mine: Project) -> None:
    mine.ok("up", "--pg-version", "18")
    show = ("psql", "--", "-XAtqc", "show server_version_num")
    assert mine.ok(*show).startswith("18")
    assert mine.ok("run", *COMMAND) == "None 15\n"
    mine.ok("down", "--all", "--yes")


@pytest.mark.docker
def test_images_by_a_template(new_project: Callable[..., Project]) -> None:
    other = new_project("images")
    other.environ |= {"PGHARNESS_BACKEND": "docker", "TESTCONTAINERS_RYUK_DISABLED": "true"}
    (other.root / "pg-harness.toml").write_text(
        'pg_version = ["15", "17"]\nimage = "pgharness-test:{pg_version}"\nmigrations = ["sql:db/migrations"]\n'
    )
    done = other.run("run", "--each-version", *COMMAND)
    assert (done.returncode, done.stdout) == (0, "15 15\n17 17\n"), done.stderr
    assert servers(other) == {"run": "15", "run-pg17": "17"}
    again = other.run("run", "--each-version", *COMMAND)
    assert again.stdout == done.stdout
    assert "started" not in again.stderr
    # An image that is the same for all is one of them only, and says what would help.
    said = other.run("run", "--each-version", "--image", "pgharness-test:15", *COMMAND)
    assert (said.returncode, said.stdout) == (120, "15 15\n")
    assert "with {pg_version} in its place" in said.stderr
    other.ok("down", "--all", "--yes")
