"""A `.env` that overrides DATABASE_URL: found by doctor, and said at the end of a run whose databases nobody used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_cli import Project


@pytest.fixture
def env_file(project: Project) -> Iterator[Path]:
    path = project.root / ".env"
    path.write_text('# development\nexport DATABASE_URL="postgresql://dev:secret@127.0.0.1:1/dev"\n')
    yield path
    path.unlink()


def test_a_run_whose_databases_nobody_used_says_why_that_may_be(project: Project, env_file: Path) -> None:
    done = project.run("run", "--", "sh", "-c", '. ./.env; psql "$DATABASE_URL" -c "select 1"')
    assert done.returncode == 2
    assert "none of this run's databases was used, and .env:2 sets DATABASE_URL" in done.stderr
    assert "secret" not in done.stderr


def test_one_that_used_its_own_says_nothing(project: Project, env_file: Path) -> None:
    done = project.run("run", "-n", "2", "--", "sh", "-c", 'psql "$DATABASE_URL_2" -c "select 1"')
    assert done.returncode == 0
    assert ".env" not in done.stderr


ENTERS = "import os, psycopg; psycopg.connect(os.environ['DATABASE_URL'])"


def test_a_database_that_nobody_entered(project: Project) -> None:
    (line,) = project.run("run", "-q", "--", "true").stderr.splitlines()
    assert "nobody entered this run's database: the command takes its address from somewhere else" in line
    assert project.run("run", "-q", "--", sys.executable, "-c", ENTERS).stderr == ""
    # It was ended before it could.
    assert "nobody" not in project.run("run", "-q", "--", "sh", "-c", "kill -9 $$").stderr
    # With several, some may have had nothing to do.
    assert project.run("run", "-q", "-n", "2", "--", "true").stderr == ""


def test_djangos_own_runner(project: Project) -> None:
    (project.root / "manage.py").write_text("raise SystemExit(1)")
    done = project.run("run", "-q", "--", sys.executable, "manage.py", "test", "--parallel", "2")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "nobody entered this run's database: Django's test runner makes" in line
    assert 'TEST_RUNNER = "harness.django.Runner"' in line
    (project.root / "manage.py").unlink()


def test_a_form_that_the_application_does_not_take(project: Project) -> None:
    (project.root / ".env.example").write_text("DATABASE_URL=postgresql+asyncpg://me:secret@db/shop\n")
    try:
        (line,) = project.run("run", "-q", "--", "false").stderr.splitlines()
        assert ".env.example:1 has postgresql+asyncpg://, which this run's DATABASE_URL is not" in line
        assert 'DATABASE_URL = "{asyncpg}" in [tool.pg-harness.env] of pyproject.toml' in line
    finally:
        (project.root / ".env.example").unlink()


def test_doctor_finds_it(project: Project, env_file: Path) -> None:
    out = project.run("doctor").stdout
    assert ".env:2 sets DATABASE_URL" in out
    assert "secret" not in out
    env_file.write_text("PORT=3000\n")
    assert "no .env file sets" in project.run("doctor").stdout
