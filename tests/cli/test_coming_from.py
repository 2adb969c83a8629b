"""What docs/coming-from.md says comes in the place of other tools, run as it stands there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_cli import Project
from fix_plugin import USUAL
from fix_snippets import files

SCHEMA = "create table books (id int generated always as identity primary key, title text not null);\n"


def of(tool: str) -> dict[str, str]:
    """Name → text of the files of one section."""
    found = {
        Path(name).name: text for name, text in files("coming-from.md").items() if name.startswith(f"{tool}/")
    }
    assert found
    return found


@pytest.mark.parametrize("tool", ["pytest_postgresql", "testcontainers"])
def test_a_suite_with_its_fixtures_in_the_old_names(tool: str, new_project: Callable[..., Project]) -> None:
    project = new_project(tool, migrations=False)
    for name, text in of(tool).items():
        (project.root / name).write_text(text)
    (project.root / "schema").mkdir()
    (project.root / "schema" / "1.sql").write_text(SCHEMA)
    plugins = [word for plugin in USUAL for word in ("-p", plugin)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugins],
        cwd=project.root, env={**project.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, text=True,
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_a_compose_file_s_database(new_project: Callable[..., Project]) -> None:
    project = new_project("compose", migrations=False)
    for name, text in of("compose").items():
        (project.root / name).write_text(text)
    (project.root / "initdb").mkdir()
    (project.root / "initdb" / "1.sql").write_text("create schema shop;\n")
    (project.root / "migrations").mkdir()
    (project.root / "migrations" / "1.sql").write_text(SCHEMA.replace("books", "shop.books"))
    assert ":54329/" in project.ok("up")
    project.ok("psql", "--", "-c", "insert into shop.books (title) values ('SQL')")
    assert "insert into shop.books" in project.ok("logs")
    project.ok("stop")
    assert ":54329/" in project.ok("up")
    assert project.ok("psql", "--", "-Atc", "select title from shop.books").strip() == "SQL"
    project.ok("down", "--yes")
