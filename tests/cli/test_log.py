"""What the command line tells of its work: how much is chosen, and nothing secret is in it."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_cli import Project

from harness.config import logs
from harness.config.load import load
from harness.config.project import Project as Checkout
from harness.dsn import Dsn
from harness.errors import HarnessError
from harness.reset.report import ResetReport
from harness.runs.run import Run
from harness.servers import inventory

DETAILED = re.compile(r"pg-harness: +\d+\.\d{3} s  [a-z.]+: \S")


def unlike_others(new_project: Callable[..., Project], word: str = "log") -> Project:
    """A project whose migrations no other test has: what another one has baked would else be found, and nothing migrated."""
    mine = new_project()
    mine.migrate("001_users_of_the_log.sql", f"create table of_the_log_{word} (id int);\n")
    return mine


def test_how_much_is_told(new_project: Callable[..., Project]) -> None:
    mine = unlike_others(new_project)
    enters = (sys.executable, "-c", "import os, psycopg; psycopg.connect(os.environ['DATABASE_URL'])")
    usual = mine.run("up").stderr
    assert "migrating default: sql:db/migrations" in usual
    assert "pg_harness" not in usual
    assert not DETAILED.search(usual)
    mine.migrate("002.sql", "create table two (id int);\n")
    detailed = mine.run("run", "-v", "--", *enters).stderr
    assert "migrating default" in detailed
    assert all(DETAILED.match(line) for line in detailed.splitlines())
    assert mine.run("run", "--", *enters).stderr == mine.run("run", "-v", "--", *enters).stderr == ""
    everything = mine.run("run", "-vv", "--", *enters).stderr
    assert re.search(r"databases: default: template \w+ is there", everything)
    assert re.search(r"databases: pgh_\w+_1_0: (cloned from|taken from spare)", everything)
    assert all(DETAILED.match(line) for line in everything.splitlines())
    # The option of the command that is run is not ours.
    assert mine.run("run", "--", *enters, "-vv").stderr == ""
    mine.migrate("003.sql", "create table three (id int);\n")
    assert mine.run("run", "-q", "--", *enters).stderr == ""
    mine.migrate("004.sql", "create table four (id int);\n")
    assert "migrating" in mine.run("run", "--", "true", "-q").stderr


def test_the_variable_decides_alone(project: Project) -> None:
    assert "server: using" in project.run("up", "-q", PGHARNESS_LOG="debug").stderr
    assert project.run("up", "-vv", PGHARNESS_LOG="warning").stderr == ""
    assert project.run("up", PGHARNESS_LOG="info").stderr == ""
    said = project.fails(120, "up", PGHARNESS_LOG="loud")
    assert "the variable PGHARNESS_LOG is 'loud'" in said
    assert "debug, info, warning, error" in said


def test_a_library_tells_nothing(new_project: Callable[..., Project]) -> None:
    mine = new_project()
    code = "import harness\nwith harness.Harness.open() as run, run.lease() as lease: lease.reset()\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=mine.root, env=mine.environ, text=True, timeout=120,
        capture_output=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")


def secrets_of(project: Project) -> set[str]:
    """The passwords of all servers of these projects, and of the application's role on them."""
    from harness.postgres.roles import derived_password

    found = set()
    for path in Path(project.environ["PGHARNESS_STATE_DIR"]).glob("*/*.json"):
        noted = json.loads(path.read_text())
        # A server, or the address that a person's had last.
        password = Dsn(**noted["dsn"]).password if "dsn" in noted else noted["password"]
        found |= {password, derived_password(password, "app")}
    assert found
    return found


def test_no_password_is_told(new_project: Callable[..., Project]) -> None:
    mine = new_project()
    mine.migrate("002.sql", "insert into users (name) values ('a');\n")
    told = ""
    for words in (
        ["up"],
        ["up", "-n", "2"],
        ["mark"],
        ["reset"],
        ["run", "-n", "2", "--", "true"],
        ["run", "--isolation", "server", "--", "true"],
        ["gc"],
    ):
        done = mine.run(*words, PGHARNESS_LOG="debug")
        assert done.returncode == 0, done.stderr
        told += done.stderr
    secrets = secrets_of(mine)
    url = Dsn.parse(mine.ok("url").strip())
    assert url.password in secrets
    told += mine.run("down", "--all", "--yes", PGHARNESS_LOG="debug").stderr
    assert "server: started" in told
    assert not any(secret in told for secret in secrets)
    # Those of servers that are gone by now too: all that is told has no login in an address.
    assert not re.search(r"://[^/\s]*:[^*/\s][^/\s]*@", told)


class Strict(logging.Handler):
    """Keeps what is wrong with a record's arguments: other people's handlers may keep those as they are.

    Attributes:
        secrets: what must not be in any.
        seen: how many there were.
    """

    def __init__(self, secrets: set[str]) -> None:
        super().__init__()
        self.secrets = secrets
        self.seen: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())
        assert isinstance(record.args, tuple)
        self.seen += record.args

    def wrong(self) -> list[Any]:
        allowed = (str, int, float, Path, ResetReport, HarnessError)
        return [
            one
            for one in self.seen
            if not isinstance(one, allowed)
            or any(secret in f"{one} {getattr(one, '__dict__', '')}" for secret in self.secrets)
        ]


@pytest.fixture
def strict() -> Iterator[Strict]:
    handler = Strict(set())
    undo = logs.show(handler, logging.DEBUG)
    yield handler
    undo()


@pytest.mark.parametrize("isolation", ["database", "server"])
def test_no_argument_of_a_record_holds_a_password(
    new_project: Callable[..., Project], strict: Strict, isolation: str
) -> None:

    mine = unlike_others(new_project, isolation)
    settings = load(mine.environ, start=mine.root, overrides={"isolation": isolation})
    checkout = Checkout.of(settings, mine.environ)
    with Run.open_project(checkout) as run:
        lease = run.lease("1")
        lease.watch()
        with lease.connect() as connection:
            connection.execute("insert into users (name) values ('x')")
        assert lease.reset().strategy in ("restore", "rewind")
        lease.renew()
        members = list(run.placement.members.values())
        for member in members:
            strict.secrets |= {member.server.info.dsn.password, member.owner.password, lease.dsn.password}
    for info in inventory.servers(checkout):
        strict.secrets.add(info.dsn.password)
        inventory.stop(checkout, purpose=info.purpose)
    assert len(strict.secrets) >= 2
    assert all(len(secret) >= 16 for secret in strict.secrets)
    assert any("migrating" in str(one) for one in strict.seen)
    assert any("reset" in str(one) for one in strict.seen)
    assert strict.wrong() == []
