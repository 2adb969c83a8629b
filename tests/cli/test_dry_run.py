"""Commands that destroy name what goes, and with ``--dry-run`` do only that."""

from __future__ import annotations

import json
from collections.abc import Callable

import psycopg
import pytest
from fix_cli import Project


@pytest.fixture(scope="module")
def mine(new_project: Callable[..., Project]) -> Project:
    """A project with two databases of a person's and a mark, which no test here may change."""
    project = new_project("dry")
    project.ok("up", "-n", "2")
    project.ok("mark", "--name", "loaded")
    project.ok("mark", "--name", "later")
    return project


def everything(project: Project) -> object:
    """What is there: databases by their OIDs, and servers. Not the baseline, which the first look at changes makes."""
    with psycopg.connect(project.admin().url) as connection:
        databases = connection.execute(
            "select oid, datname from pg_database where datname !~ '_z_' order by oid"
        ).fetchall()
    return databases, [s["description"] for s in json.loads(project.ok("status", "--json"))["servers"]]


def names(project: Project) -> list[str]:
    """Of the person's two databases."""
    return [url.rpartition("/")[2] for url in project.ok("up", "-n", "2").split()]


@pytest.mark.parametrize("words", [("down",), ("down", "--all")])
def test_down(mine: Project, words: tuple[str, ...]) -> None:
    before = everything(mine)
    told = mine.ok(*words, "--dry-run")
    assert told.startswith("up: PostgreSQL ")
    for name in names(mine):
        assert f"  {name}\n" in told
    # The marks' copies are named too.
    assert len([line for line in told.splitlines() if line.startswith("  ")]) == 4
    answer = json.loads(mine.ok(*words, "--dry-run", "--json"))
    assert answer["dry_run"] is True
    assert set(names(mine)) < set(answer["ended"][0]["databases"])
    assert everything(mine) == before


def test_up_fresh(mine: Project) -> None:
    before = everything(mine)
    told = mine.ok("up", "--fresh", "--dry-run")
    assert "worker 1: its marks 'loaded', 'later'" in told
    for worker, name in enumerate(names(mine), 1):
        assert f"worker {worker} (default): {name}, made " in told
    assert json.loads(mine.ok("up", "--fresh", "--dry-run", "--json"))["dropped"] == told.splitlines()
    assert "goes with --fresh" in mine.fails(120, "up", "--dry-run")
    assert everything(mine) == before


def test_marks(mine: Project) -> None:
    before = everything(mine)
    said = mine.run("mark", "--release", "--dry-run").stderr
    assert "would release 'later'" in said
    assert "would go to mark 'loaded'" in said
    assert "would release 'later', 'loaded'" in mine.run("mark", "--release-all", "--dry-run").stderr
    assert "a reset releases 'loaded', 'later'" in mine.run("reset", "--to", "template", "--dry-run").stderr
    assert "--dry-run goes with --release" in mine.fails(120, "mark", "--dry-run")
    assert everything(mine) == before


def test_nothing_is_started_for_it(new_project: Callable[..., Project]) -> None:
    project = new_project("nothing")
    assert project.ok("down", "--all", "--dry-run") == ""
    assert project.ok("up", "--fresh", "--dry-run") == ""
    assert json.loads(project.ok("status", "--json"))["servers"] == []


def test_down_names_what_goes(new_project: Callable[..., Project]) -> None:
    project = new_project("named")
    (name,) = [url.strip().rpartition("/")[2] for url in project.ok("up").split()]
    done = project.run("down")
    assert done.returncode == 0
    assert f"with {name}" in done.stderr
