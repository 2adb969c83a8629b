"""A `.env` that overrides DATABASE_URL: found by doctor, and said at the end of a run whose databases nobody used."""

from __future__ import annotations

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


def test_without_such_a_file_nothing_is_said(project: Project) -> None:
    assert "was used" not in project.run("run", "--", "true").stderr


def test_doctor_finds_it(project: Project, env_file: Path) -> None:
    out = project.run("doctor").stdout
    assert ".env:2 sets DATABASE_URL" in out
    assert "secret" not in out
    env_file.write_text("PORT=3000\n")
    assert "no .env file sets" in project.run("doctor").stdout
