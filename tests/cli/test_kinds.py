"""A migration tool that a package adds from one file: the example of the docs, installed and used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from fix_backends import ROOT
from fix_cli import Project
from fix_packages import install

from harness.migrations.registry import GROUP

CHANGELOG = """\
--liquibase formatted sql
--changeset ann:1
create table parts (name text);
insert into parts values ('bolt');
"""
# What the example calls: it takes its address as Liquibase does, and runs a formatted changelog.
LIQUIBASE = """\
#!{python}
import os, sys, psycopg
assert sys.argv[1] == "update", sys.argv
name = sys.argv[2].removeprefix("--changelog-file=")
url = os.environ["LIQUIBASE_COMMAND_URL"].removeprefix("jdbc:")
with psycopg.connect(
    url, user=os.environ["LIQUIBASE_COMMAND_USERNAME"], password=os.environ["LIQUIBASE_COMMAND_PASSWORD"]
) as connection:
    for changeset in open(name).read().split("--changeset ")[1:]:
        print("running changeset", changeset.splitlines()[0], flush=True)
        try:
            connection.execute(changeset.partition("\\n")[2])
        except psycopg.Error as error:
            sys.exit(str(error))
"""
TEST = """\
import os, psycopg, pytest

@pytest.mark.parametrize("number", [1, 2])
def test_parts(number):
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        assert connection.execute("select name from parts").fetchall() == [("bolt",)]
        connection.execute("delete from parts")
"""


@pytest.fixture
def mine(new_project: Callable[..., Project], tmp_path: Path) -> Project:
    """A project with a changelog, the example of the docs, and the tool on PATH."""
    project = new_project(migrations=False)
    (project.root / "changelog.sql").write_text(CHANGELOG)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "migration-tools.md").read_text(), re.DOTALL)
    install(tmp_path / "site", blocks[0], name="pg_harness_liquibase", word="liquibase", group=GROUP)
    tool = tmp_path / "bin" / "liquibase"
    tool.parent.mkdir()
    tool.write_text(LIQUIBASE.format(python=sys.executable))
    tool.chmod(0o755)
    environ = project.environ
    environ["PYTHONPATH"] = os.pathsep.join([environ["PYTHONPATH"], str(tmp_path / "site")])
    environ["PATH"] = os.pathsep.join([str(tool.parent), environ["PATH"]])
    return project


def parts(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [name for (name,) in connection.execute("select name from parts order by 1")]


def test_a_tool_from_one_file_goes_everywhere(mine: Project) -> None:
    found = mine.run("up")
    assert found.returncode == 0, found.stderr
    assert "found liquibase:changelog.sql (Liquibase: changelog.sql)" in found.stderr
    assert parts(found.stdout.strip()) == ["bolt"]

    assert 'migrations = ["liquibase:changelog.sql"]' in mine.ok("init")
    report = mine.ok("doctor")
    assert "liquibase:changelog.sql can be read" in report
    assert "pg-harness-liquibase 1.2 adds liquibase, written liquibase:changelog.sql" in report

    (mine.root / "changelog.sql").write_text(
        CHANGELOG + "--changeset ann:2\ninsert into parts values ('nut');"
    )
    look = "import os, psycopg; print(psycopg.connect(os.environ['DATABASE_URL']).execute('select count(*) from parts').fetchone()[0])"
    assert mine.ok("run", "--", sys.executable, "-c", look).strip() == "2"
    assert parts(mine.ok("up", "--fresh", "--yes").strip()) == ["bolt", "nut"]

    (mine.root / "changelog.sql").write_text(CHANGELOG)
    (mine.root / "test_parts.py").write_text(TEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "pg_harness_pytest", "-q"],
        cwd=mine.root, env={**mine.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_its_failure_is_told_as_any_other(mine: Project) -> None:
    (mine.root / "pg-harness.toml").write_text('migrations = ["liquibase:changelog.sql"]\n')
    (mine.root / "changelog.sql").write_text(CHANGELOG + "--changeset ann:2\nselect 1/0;")
    told = mine.fails(123, "up")
    assert "liquibase:changelog.sql: failed with exit code 1" in told
    assert "division by zero" in told


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ('"liquibas:x.sql"', ["The nearest is 'liquibase': liquibase:changelog.sql", "; liquibase:changelog.sql."]),
        ('"liquibase"', ["lacks what follows the colon; it is written liquibase:changelog.sql"]),
        ('"liquibase:x.txt"', ["a Liquibase changelog is written liquibase:changelog.sql"]),
    ],
)  # fmt: skip
def test_messages_name_it_with_the_settings_file(mine: Project, entry: str, told: list[str]) -> None:
    (mine.root / "pg-harness.toml").write_text(f"migrations = []\nseeds = [{entry}]\n")
    message = mine.fails(120, "up")
    assert "pg-harness.toml: seeds holds" in " ".join(message.split())
    for words in told:
        assert words in " ".join(message.split())


def test_init_says_that_it_looked(mine: Project) -> None:
    (mine.root / "changelog.sql").unlink()
    assert "#   Liquibase: files that begin with --liquibase formatted sql" in mine.ok("init", "--dry-run")


@pytest.mark.parametrize(
    ("code", "word", "told"),
    [
        ("import nothing_of_that_name", "other", "'other' cannot be imported from broken:KIND (broken 1.2)"),
        ("KIND = 7", "other", "must name a harness.migrations.registry.Kind; broken:KIND is int"),
        ("KIND = 7", "liquibase", "has the same word as"),
        ("KIND = 7", "sql", "has the same word as one of pg-harness itself"),
    ],
)
def test_a_package_that_is_wrong_is_named(
    mine: Project, tmp_path: Path, code: str, word: str, told: str
) -> None:
    install(tmp_path / "site", code, name="broken", word=word, group=GROUP)
    (mine.root / "pg-harness.toml").write_text('migrations = ["nothing:x"]\n')
    assert told in " ".join(mine.fails(120, "up").split())
    # Where the settings do not need it, it is only doctor's business.
    (mine.root / "pg-harness.toml").write_text('migrations = ["sql:changelog.sql"]\n')
    assert re.search(rf"fail +migrations .*{re.escape(told)}", mine.run("doctor").stdout)
    assert parts(mine.ok("up").strip()) == ["bolt"]
