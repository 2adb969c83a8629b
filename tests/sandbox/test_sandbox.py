"""A developer's own databases, called from Python: no command line has a part in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from fix_runs import local_environ

from harness.config.load import load
from harness.config.project import Project
from harness.config.settings import Settings
from harness.errors import LeaseError
from harness.runs.places import places_on
from harness.runs.run import Run
from harness.sandbox.current import urls
from harness.sandbox.sandbox import Sandbox
from harness.servers import inventory

pytestmark = pytest.mark.server


@pytest.fixture
def environ(folders: tuple[Path, Path]) -> dict[str, str]:
    return local_environ(folders)


@pytest.fixture
def settings(tmp_path: Path, environ: dict[str, str]) -> Iterator[Settings]:
    """A project of one migration; its servers are gone afterwards."""
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "1.sql").write_text("create table users (name text primary key);")
    (tmp_path / "pg-harness.toml").write_text('migrations = ["sql:db"]\n')
    found = load(environ, start=tmp_path)
    yield found
    for purpose in ("run", "up"):
        inventory.stop(Project.of(found, environ), purpose=purpose)


def users(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [name for (name,) in connection.execute("select name from users order by name")]


def add(url: str, name: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("insert into users values (%s)", (name,))


def test_the_whole_life_of_two_workers(settings: Settings, environ: dict[str, str]) -> None:
    assert urls(Project.of(settings, environ), None) == []
    with Sandbox.open(Project.of(settings, environ)) as sandbox:
        assert (sandbox.workers(), sandbox.missing(["1", "2"])) == ({}, ["1", "2"])
        sandbox.ensure(["1", "2"])
        assert sandbox.missing(["1", "2", "3"]) == ["3"]
        there = sandbox.workers()
        first, second = there["1"], there["2"]
        one, two = first.dsn().url, second.dsn().url
        assert urls(Project.of(settings, environ), None) == [one, two]

        add(one, "a")
        add(two, "of the other one")
        assert sandbox.mark(first, "loaded")[0].name == "loaded"
        add(one, "b")
        sandbox.mark(first)
        add(one, "c")
        assert [mark.name for mark in sandbox.marks(first)] == ["loaded", "2"]
        differences = sandbox.changes(first, "loaded")
        assert differences.mark
        assert differences.mark.name == "loaded"
        assert "users" in str(differences.databases["default"])

        returned = sandbox.reset(first)
        assert (returned.mark and returned.mark.name, users(one)) == ("2", ["a", "b"])
        sandbox.reset(first, "loaded")
        assert ([mark.name for mark in sandbox.marks(first)], users(one)) == (["loaded"], ["a"])
        gone, left = sandbox.release(first)
        assert ([mark.name for mark in gone], left) == (["loaded"], [])
        returned = sandbox.reset(first)
        assert (returned.mark, users(one), users(two)) == (None, [], ["of the other one"])
        with pytest.raises(LeaseError, match="nothing is marked"):
            sandbox.release(first)


def test_what_is_outdated_stays_until_it_is_replaced(settings: Settings, environ: dict[str, str]) -> None:
    with Sandbox.open(Project.of(settings, environ)) as sandbox:
        sandbox.ensure(["1"])
        (mine,) = sandbox.workers().values()
        url = mine.dsn().url
        add(url, "a")
        sandbox.mark(mine, "old")
        (settings.root / "db" / "2.sql").write_text("insert into users values ('seed');")
        assert sandbox.stale([mine]) == [mine]
        assert urls(Project.of(settings, environ), None) == []
        sandbox.ensure(["1"])
        assert users(url) == ["a"]

        (settings.root / "db" / "3.sql").write_text("select 1 / 0;")
        with pytest.raises(Exception, match="division by zero"):
            sandbox.fresh(["1", "2"], doomed=[mine])
        assert users(url) == ["a"]
        (settings.root / "db" / "3.sql").unlink()
        sandbox.fresh(["2"], doomed=[mine])
        there = sandbox.workers()
        assert there.keys() == {"1", "2"}
        assert there["1"].dsn().url == url
        assert users(url) == users(there["2"].dsn().url) == ["seed"]
        assert (sandbox.marks(there["1"]), sandbox.stale(list(there.values()))) == ([], [])


def test_a_test_runs_databases_are_refused(settings: Settings, environ: dict[str, str]) -> None:
    with Run.open_with(settings, environ) as run:
        run.lease("gw0")
        place = next(place for place in places_on(run.session) if place.worker == "gw0")
        for act in (
            Sandbox(run.session).mark,
            Sandbox(run.session).release,
            Sandbox(run.session).reset,
            Sandbox(run.session).changes,
        ):
            with pytest.raises(LeaseError, match="gw0 is not yours"):
                act(place)


@pytest.mark.parametrize("then", ["up", "reset", "mark"])
def test_a_database_that_a_killed_command_has_shut_is_opened_again(
    settings: Settings, environ: dict[str, str], then: str
) -> None:
    project = Project.of(settings, environ)
    with Sandbox.open(project) as sandbox:
        sandbox.ensure(["1"])
        place = sandbox.workers()["1"]
        url = place.dsn().url
        add(url, "a")
        name = place.dsn().database
        # What a retirement, and a mark, begin with.
        sandbox.server.session.execute(f'alter database "{name}" with allow_connections false')
        assert urls(project, None) == []
        assert sandbox.missing(["1"]) == ["1"]
        if then == "up":
            sandbox.ensure(["1"])
        elif then == "mark":
            sandbox.mark(sandbox.workers()["1"])
        else:
            sandbox.reset(sandbox.workers()["1"])
    assert users(url) == ([] if then == "reset" else ["a"])
    assert urls(project, None) == [url]
