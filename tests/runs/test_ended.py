"""What a server of test runs leaves when its time is over, and what is copied when it outgrows memory: never migrated twice."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fix_backends import until
from fix_runs import local_environ

from harness.config.load import load
from harness.config.project import Project
from harness.config.settings import Settings
from harness.postgres import databases
from harness.runs import ended
from harness.runs.run import Run
from harness.servers import inventory, memory
from harness.servers.process.backend import ProcessBackend

pytestmark = pytest.mark.server

SQL = "create table users (id serial primary key, name text);\ninsert into users (name) values ('seed');\n"
SLOW = f"{SQL}create unlogged table seen as select 1 as id;\nselect pg_sleep(0.6);\n"


@pytest.fixture
def environ(folders: tuple[Path, Path]) -> dict[str, str]:
    return local_environ(folders, PGHARNESS_TTL="1s")


@pytest.fixture
def settings(tmp_path: Path, environ: dict[str, str]) -> Iterator[Settings]:
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "001.sql").write_text(SLOW)
    (tmp_path / "pg-harness.toml").write_text('migrations = ["sql:db"]\n')
    found = load(environ, start=tmp_path)
    yield found
    inventory.stop(Project.of(found, environ))


@pytest.fixture(autouse=True)
def dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Migrations of half a second are dear already: the tests need not wait for more."""
    monkeypatch.setattr(ended, "START", 0.1)


def backend(settings: Settings, environ: dict[str, str]) -> ProcessBackend:
    found = ProcessBackend.of(Project.of(settings, environ), timeout=10)
    assert isinstance(found, ProcessBackend)
    return found


def over(settings: Settings, environ: dict[str, str]) -> None:
    """Once the server's time is over and its folder is gone."""
    project = Project.of(settings, environ)
    until(lambda: not backend(settings, environ).list(project.id), seconds=30, what="its TTL is over")


def left(settings: Settings, environ: dict[str, str]) -> list[str]:
    there = backend(settings, environ).snapshots().list()
    return [snapshot.ref for snapshot in there if snapshot.facts["root"] == str(settings.root)]


@pytest.mark.parametrize("storage", ["auto", "disk"])
def test_after_a_coffee_nothing_is_migrated_again(
    settings: Settings, environ: dict[str, str], storage: str
) -> None:
    settings = replace(settings, storage=storage)
    with Run.open_with(settings, environ) as before, before.lease() as lease:
        assert before.templates["default"].built
        with lease.connect() as connection:
            connection.execute("insert into users (name) values ('mine')")
    over(settings, environ)
    assert len(left(settings, environ)) == 1
    with Run.open_with(settings, environ) as after, after.lease() as lease:
        assert after.server.started
        assert after.server.info.server_id != before.server.info.server_id
        assert not after.templates["default"].built
        with lease.connect() as connection:
            assert connection.execute("select name from users").fetchall() == [("seed",)]
            assert connection.execute("select id from seen").fetchall() == [(1,)]
            connection.execute("insert into users (name) values ('other')")
        lease.reset()
        with lease.connect() as connection:
            assert connection.execute("select name from users").fetchall() == [("seed",)]
        # Whoever knows the password of the server that has ended does not come in.
        assert after.server.info.dsn.password != before.server.info.dsn.password
    # And what it leaves in its turn is there already.
    over(settings, environ)
    assert len(left(settings, environ)) == 1


def test_what_is_migrated_at_once_leaves_nothing(settings: Settings, environ: dict[str, str]) -> None:
    (settings.root / "db" / "001.sql").write_text(SQL)
    with Run.open_with(settings, environ) as harness:
        handle = Path(harness.server.info.handle)
    over(settings, environ)
    assert not handle.exists()
    assert left(settings, environ) == []


def test_neither_other_migrations_nor_another_checkout_start_from_it(
    settings: Settings, environ: dict[str, str], tmp_path: Path
) -> None:
    with Run.open_with(settings, environ):
        pass
    over(settings, environ)
    other = tmp_path / "other"
    (other / "db").mkdir(parents=True)
    (other / "db" / "001.sql").write_text(SLOW)
    (other / "pg-harness.toml").write_text('migrations = ["sql:db"]\n')
    theirs = load(environ, start=other)
    try:
        with Run.open_with(theirs, environ) as harness:
            assert harness.templates["default"].built
    finally:
        inventory.stop(Project.of(theirs, environ))
    (settings.root / "db" / "002.sql").write_text("alter table users add column email text;")
    with Run.open_with(settings, environ) as after:
        assert after.templates["default"].built
        # Nothing of the older one is there.
        assert [d.name for d in databases.list_ours(after.link.session, after.project) if d.is_template] == [
            after.templates["default"].name
        ]


def test_a_server_that_was_killed_leaves_nothing(settings: Settings, environ: dict[str, str]) -> None:
    harness = Run.open_with(settings, environ)
    folder = Path(harness.server.info.handle)
    assert (folder / "keep" / "target").exists()
    pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])
    assert pid > 1
    os.kill(pid, 9)
    harness.session.abandon()
    until(lambda: not folder.exists(), seconds=60, what="its switch removes it")
    assert left(settings, environ) == []


def test_down_leaves_nothing(settings: Settings, environ: dict[str, str]) -> None:
    with Run.open_with(settings, environ):
        pass
    inventory.stop(Project.of(settings, environ))
    assert left(settings, environ) == []


def test_data_that_outgrows_memory_is_copied_to_disk(
    settings: Settings, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setattr(memory, "allowed", lambda settings: memory.WRITES)
    began = time.monotonic()
    with Run.open_with(settings, environ) as harness, harness.lease() as lease:
        if not any("memory" in line for line in told):
            pytest.skip("this machine has no room in memory to begin with")
        assert harness.server.info.storage == "disk"
        assert not harness.templates["default"].built
        with lease.connect() as connection:
            assert connection.execute("select id from seen").fetchall() == [(1,)]
    assert sum("migrating default" in line for line in told) == 1, time.monotonic() - began
    assert any("moving to disk" in line for line in told)


def test_workers_are_counted_and_not_processors(
    settings: Settings, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings.root / "db" / "001.sql").write_text(SQL)
    with Run.open_with(settings, environ, workers=2) as harness:
        if harness.server.info.storage != "memory":
            pytest.skip("this machine has no room in memory to begin with")
        size = harness.templates["default"].size
    enough = memory.WRITES + size * (4 + 3)
    monkeypatch.setattr(memory, "allowed", lambda settings: enough)
    with Run.open_with(settings, environ, workers=4) as harness:
        assert harness.server.info.storage == "memory"
        with Run.open_with(settings, environ, workers=5) as more:
            # Others use the one in memory.
            assert more.server.info.storage == "disk"
            assert more.server.info.server_id != harness.server.info.server_id
    # What is noted is the template's size: for fewer workers there is room again.
    inventory.stop(Project.of(settings, environ))
    with Run.open_with(settings, environ, workers=4) as harness:
        assert harness.server.info.storage == "memory"


def test_workers_of_other_runs_are_counted_too(
    settings: Settings, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings.root / "db" / "001.sql").write_text(SQL)
    with Run.open_with(settings, environ, workers=3) as harness:
        if harness.server.info.storage != "memory":
            pytest.skip("this machine has no room in memory to begin with")
        leases = harness.leases(3)
        size = harness.templates["default"].size
        enough = memory.WRITES + size * (5 + 3)
        monkeypatch.setattr(memory, "allowed", lambda settings: enough)
        with Run.open_with(settings, environ, workers=2) as fits:
            assert fits.server.info.storage == "memory"
        with Run.open_with(settings, environ, workers=3) as more:
            assert more.server.info.storage == "disk"
        for lease in leases:
            with lease.connect() as connection:
                assert connection.execute("select name from users").fetchall() == [("seed",)]
