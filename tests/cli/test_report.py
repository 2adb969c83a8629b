"""``report``: tells all that a bug report needs, whatever is broken, and no secret."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from fix_cli import Project

from harness.cli.scrub import Scrubber, logged, of_environment
from harness.config import decisions
from harness.config.load import load
from harness.config.project import Project as Checkout

SECTIONS = ["versions", "environment", "settings", "doctor", "state", "servers", "decisions of the last runs"]


def sections(report: str) -> dict[str, str]:
    """Title → text."""
    parts = re.split(r"^## (.*)\n", report, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_it_tells_of_a_run_and_no_secret(new_project: Callable[..., Project]) -> None:
    project = new_project("reported")
    (project.root / "pg-harness.toml").write_text(
        'migrations = ["sql:db/migrations"]\n'
        '[env]\nOTHER_URL = "postgresql://me:planted-in-env-table@h/d"\nAPI_TOKEN = "planted-token-of-settings"\n'
        '[postgres]\nprimary_conninfo = "host=h password=planted-in-postgres"\n'
    )
    url = project.ok("up").strip()
    project.ok("reset")
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in (
            "alter role nobody_there password 'planted-in-the-log'",
            "select 1 / 0, 'planted-literal of the application'",
            "select 'postgresql://u:planted-url-in-log@h/d'::int",
            "select current_setting('no.such'), 'planted-in-environment'",
        ):
            with pytest.raises(psycopg.Error):
                connection.execute(statement)
    environ = {
        "DEPLOY_TOKEN": "planted-in-environment",
        "DATABASE_URL": "postgresql://u:planted%2Dquoted@h/d",
        "PGPASSWORD": "planted-pgpassword",
        "PGHARNESS_ENV": "X=postgresql://u:planted-in-variable@h/d",
    }
    report = project.ok("report", **environ)
    told = sections(report)
    assert list(told) == SECTIONS
    assert [line for line in report.splitlines() if "planted" in line] == []
    # The admin's, and the application's.
    assert project.admin().password not in report
    assert url.split(":")[2].split("@")[0] not in report
    assert "Python 3" in told["versions"]
    assert "psycopg " in told["versions"]
    assert "PGPASSWORD" in told["environment"]
    assert "backend = 'process'  [the variable PGHARNESS_BACKEND]" in told["settings"]
    assert "fresh = 'reset'  [default]" in told["settings"]
    assert "up: PostgreSQL" in told["servers"]
    assert "ready to accept connections" in told["servers"]
    assert "division by zero" in told["servers"]
    assert "up.json" in told["state"]
    assert "server: up: started PostgreSQL" in told["decisions of the last runs"]
    assert "reset: worker 1" in told["decisions of the last runs"] or "nothing had changed" in report
    # Into a file, for its owner only.
    answer = project.ok("report", "--output", "bug.txt", **environ)
    path = project.root / "bug.txt"
    assert answer.strip() == "bug.txt"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(sections(path.read_text())) == SECTIONS
    project.fails(120, "report", "--output", "/proc/no/bug.txt")


def test_without_a_server_and_without_docker(new_project: Callable[..., Project]) -> None:
    project = new_project("alone")
    told = sections(project.ok("report", PGHARNESS_BACKEND="auto", DOCKER_HOST="tcp://127.0.0.1:1"))
    assert "does not answer" in told["servers"]
    assert "none of this checkout" in told["servers"]
    assert "none was noted" in told["decisions of the last runs"]


@pytest.mark.parametrize(
    "text",
    [
        'migrations = ["sql:db',
        "no_such_key = 1\n",
        'server_url = "mysql://u:planted-secret@h/d"\n',
        "[env]\nX = '{nobody}'\n",
    ],
)
def test_with_broken_settings(new_project: Callable[..., Project], text: str) -> None:
    project = new_project("broken")
    (project.root / "pg-harness.toml").write_text(text)
    report = project.ok("report")
    told = sections(report)
    assert list(told) == SECTIONS
    assert "cannot be told: " in told["settings"]
    assert "pg-harness.toml" in told["settings"]
    assert "fail  settings" in told["doctor"]
    assert "planted" not in report
    assert "Traceback" not in report


def test_an_error_is_remembered(new_project: Callable[..., Project]) -> None:
    project = new_project("failed", migrations=False)
    project.migrate("001.sql", "create table a (id int); selectt 1;")
    project.fails(123, "up")
    assert "error: sql:db/migrations" in project.ok("report") or "selectt" in project.ok("report")


def test_the_file_of_decisions_is_bounded(tmp_path: Path) -> None:
    environ = {"PGHARNESS_STATE_DIR": str(tmp_path / "state"), "PGHARNESS_CACHE_DIR": str(tmp_path / "cache")}
    checkout = Checkout.of(load(environ, start=tmp_path), environ)
    # Without a folder of the checkout there is nothing to tell of either.
    decisions.note(checkout, "server", "x")
    assert decisions.last(checkout, 5) == ()
    checkout.folder.mkdir(parents=True)
    for number in range(400):
        decisions.note(checkout, "server", f"{number} {'x' * 400}")
    path = decisions.path_of(checkout)
    assert path.stat().st_size <= decisions.LIMIT
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.text.split()[0] for one in decisions.last(checkout, 2)] == ["398", "399"]
    path.write_bytes(path.read_bytes()[:-20] + b"\xff\n")
    assert decisions.last(checkout, 1) == []


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("postgresql://u:p4ss@h/d?password=other", "postgresql://u:***@h/d?password=***"),
        ("password: 'a b' and more", "password: *** and more"),
        ('{"password": "x", "n": 1}', '{"password": ***, "n": 1}'),
        ("role nobypassrls, author = me", "role nobypassrls, author = me"),
        ("key hunter2!x in a sentence", "key *** in a sentence"),
        ("key hunter2%21x in a url", "key *** in a url"),
        (f"id {'0a' * 24}", "id ***"),
        ("PostgreSQL 15 of postgres", "PostgreSQL 15 of postgres"),
        ("SCRAM-SHA-256$4096:abc$def:ghi", "***"),
    ],
)
def test_what_is_taken_out(text: str, left: str) -> None:
    known = of_environment({"A_KEY": "hunter2!x", "DB_PASSWORD": "postgres", "PWD": "/home/me", "B": "1"})
    assert Scrubber(known)(text) == left


def test_what_a_log_keeps() -> None:
    assert logged("[1] ERROR:  division by zero") == "[1] ERROR:  division by zero"
    assert logged("[1] STATEMENT:  select 'a''b', 1") == "[1] STATEMENT:  select '…', 1"
    assert (
        logged("[1] DETAIL:  Key (email)=(me@x) already exists.")
        == "[1] DETAIL:  Key (email)=(…) already exists."
    )
    assert logged("[1] DETAIL:  Failing row contains (1, me).") == "[1] DETAIL:  Failing row contains (…)."
