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

PLAN = """\
%syntax-version=1.0.0
%project=parts

parts 2026-01-01T00:00:00Z Ann <ann@example.com>
"""
PARTS = "create table parts (name text);\ninsert into parts values ('bolt');\n"
# What the example calls: it takes its address as Sqitch does, and deploys a plan.
SQITCH = """\
#!{python}
import sys, psycopg
verb, option, plan, target = sys.argv[1:]
assert (verb, option, target) == ("deploy", "--plan-file", "db:pg:"), sys.argv
with psycopg.connect("") as connection:
    for change in open(plan).read().partition("\\n\\n")[2].splitlines():
        name = change.partition(" ")[0]
        print("+", name, flush=True)
        try:
            connection.execute(open("deploy/" + name + ".sql").read())
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


def plan(project: Project, **more: str) -> None:
    """Write the plan, with further changes by their names."""
    folder = project.root / "deploy"
    folder.mkdir(exist_ok=True)
    for name, text in {"parts": PARTS, **more}.items():
        (folder / f"{name}.sql").write_text(text)
    lines = [f"{name} 2026-01-02T00:00:00Z Ann <ann@example.com>\n" for name in more]
    (project.root / "sqitch.plan").write_text("".join([PLAN, *lines]))


@pytest.fixture
def mine(new_project: Callable[..., Project], tmp_path: Path) -> Project:
    """A project with a plan, the example of the docs, and the tool on PATH."""
    project = new_project(migrations=False)
    plan(project)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "migration-tools.md").read_text(), re.DOTALL)
    install(tmp_path / "site", blocks[0], name="pg_harness_sqitch", word="sqitch", group=GROUP)
    tool = tmp_path / "bin" / "sqitch"
    tool.parent.mkdir()
    tool.write_text(SQITCH.format(python=sys.executable))
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
    assert "found sqitch:sqitch.plan (Sqitch: sqitch.plan)" in found.stderr
    assert parts(found.stdout.strip()) == ["bolt"]

    assert 'migrations = ["sqitch:sqitch.plan"]' in mine.ok("init")
    report = mine.ok("doctor")
    assert "sqitch:sqitch.plan can be read" in report
    assert "pg-harness-sqitch 1.2 adds sqitch, written sqitch:sqitch.plan" in report

    plan(mine, nuts="insert into parts values ('nut');")
    look = "import os, psycopg; print(psycopg.connect(os.environ['DATABASE_URL']).execute('select count(*) from parts').fetchone()[0])"
    assert mine.ok("run", "--", sys.executable, "-c", look).strip() == "2"
    assert parts(mine.ok("up", "--fresh", "--yes").strip()) == ["bolt", "nut"]

    plan(mine)
    (mine.root / "test_parts.py").write_text(TEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "pg_harness_pytest", "-q"],
        cwd=mine.root, env={**mine.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_its_failure_is_told_as_any_other(mine: Project) -> None:
    (mine.root / "pg-harness.toml").write_text('migrations = ["sqitch:sqitch.plan"]\n')
    plan(mine, wrong="select 1/0;")
    told = mine.fails(123, "up")
    assert "sqitch:sqitch.plan: failed with exit code 1" in told
    assert "division by zero" in told


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ('"sqich:x.plan"', ["The nearest is 'sqitch': sqitch:sqitch.plan", "; sqitch:sqitch.plan."]),
        ('"sqitch"', ["lacks what follows the colon; it is written sqitch:sqitch.plan"]),
        ('"sqitch:x.txt"', ["a Sqitch plan is written sqitch:sqitch.plan"]),
    ],
)  # fmt: skip
def test_messages_name_it_with_the_settings_file(mine: Project, entry: str, told: list[str]) -> None:
    (mine.root / "pg-harness.toml").write_text(f"migrations = []\nseeds = [{entry}]\n")
    message = mine.fails(120, "up")
    assert "pg-harness.toml: seeds holds" in " ".join(message.split())
    for words in told:
        assert words in " ".join(message.split())


def test_init_says_that_it_looked(mine: Project) -> None:
    (mine.root / "sqitch.plan").unlink()
    assert "#   Sqitch: sqitch.plan" in mine.ok("init", "--dry-run")


@pytest.mark.parametrize(
    ("code", "word", "told"),
    [
        ("import nothing_of_that_name", "other", "'other' cannot be imported from broken:KIND (broken 1.2)"),
        ("KIND = 7", "other", "must name a harness.migrations.registry.Kind; broken:KIND is int"),
        ("KIND = 7", "sqitch", "has the same word as"),
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
    (mine.root / "pg-harness.toml").write_text('migrations = ["sql:deploy"]\n')
    assert re.search(rf"fail +migrations .*{re.escape(told)}", mine.run("doctor").stdout)
    assert parts(mine.ok("up").strip()) == ["bolt"]
