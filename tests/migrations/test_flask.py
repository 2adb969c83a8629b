"""Flask-Migrate, the real one: its folder is found, and `flask db upgrade` runs with the application that Flask finds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fix_flask import FACTORY, REVISION, flask
from fix_migrations import Blank

from harness.config.sources import parse_spec
from harness.errors import MigrationError
from harness.migrations.detect import detect
from harness.migrations.registry import load

pytest.importorskip("flask_migrate", reason="tests/requirements-recipes.txt is not installed")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `flask db init` leaves, with one revision."""
    root = tmp_path_factory.mktemp("flask") / "notes"
    (root / "notes").mkdir(parents=True)
    (root / "notes" / "__init__.py").write_text(FACTORY)
    (root / "app.py").write_text("from notes import create_app\n")
    flask(root, "db", "init")
    (root / "migrations" / "versions" / "0001.py").write_text(REVISION.format("0001", None, "note"))
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "notes", ignore=shutil.ignore_patterns("__pycache__"))


def migrate(blank: Blank, root: Path, spec: str = "flask", url: str = "") -> None:
    environment = {"NOTES_DB": url or blank.dsn.sqlalchemy}
    load(parse_spec(spec, "a test"), root).apply(blank.context(environment=environment))


def test_it_is_found_and_upgraded(project: Path, blank: Blank) -> None:
    (found,) = detect(project)
    assert (found.tool, found.text) == ("Flask-Migrate", "flask")
    assert found.evidence == "migrations/env.py, with current_app"
    migrate(blank, project)
    assert blank.tables() == {"alembic_version", "note"}
    assert blank.sessions() == 0


def test_below_the_root_and_by_flask_app(project: Path, blank: Blank) -> None:
    (project / "app.py").unlink()
    root = project.parent
    (found,) = detect(root)
    assert found.text == "flask:notes/migrations"
    with pytest.raises(MigrationError, match=r"by FLASK_APP, which may stand in \.flaskenv there") as caught:
        migrate(blank, root, found.text)
    assert "Traceback" not in str(caught.value)
    context = blank.context(
        environment={"NOTES_DB": blank.dsn.sqlalchemy, "FLASK_APP": "notes:create_app"},
    )
    load(parse_spec(found.text, "a test"), root).apply(context)
    assert "note" in blank.tables()


def test_another_database_is_never_migrated(project: Path, blank: Blank) -> None:
    other = blank.dsn.with_database("postgres")
    with pytest.raises(MigrationError, match="the application connects to the database 'postgres'") as caught:
        migrate(blank, project, url=other.sqlalchemy)
    assert "Traceback" not in str(caught.value)
    assert "name the variable that it comes from in [tool.pg-harness.env]" in str(caught.value)
    with pytest.raises(MigrationError, match="connects with sqlite, not with PostgreSQL"):
        migrate(blank, project, url=f"sqlite:///{project}/x.db")
    assert not (project / "x.db").exists()


def test_two_heads(project: Path, blank: Blank) -> None:
    (project / "migrations" / "versions" / "0002.py").write_text(REVISION.format("0002", None, "x"))
    with pytest.raises(MigrationError, match="there are 2 heads") as caught:
        migrate(blank, project)
    assert "flask db merge heads" in str(caught.value)


def test_the_fingerprint(project: Path) -> None:
    def now(spec: str = "flask") -> str:
        return load(parse_spec(spec, "a test"), project).fingerprint()

    first = now()
    (project / "notes" / "__init__.py").write_text(FACTORY + "# another model\n")
    assert now() == first
    (project / "migrations" / "versions" / "0002.py").write_text(REVISION.format("0002", "'0001'", "x"))
    assert now() != first
    with pytest.raises(MigrationError, match=r"the file gone/alembic\.ini does not exist"):
        now("flask:gone")
