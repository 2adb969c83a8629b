"""Baked data directories: made once, right, bounded, and never half."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from fix_backends import until
from fix_fleets import Estate

from harness.config.project import Project
from harness.databases.sweep import Retention
from harness.errors import MigrationError, ServerStartError
from harness.postgres import roles
from harness.runs import bake
from harness.runs.run import Run
from harness.servers import inventory
from harness.servers.process.user import renamed_last


@pytest.fixture
def estate(new_estate: Callable[..., Estate]) -> Estate:
    return new_estate(backend="process")


def test_two_bakes_at_once_are_one(estate: Estate) -> None:
    with ThreadPoolExecutor(2) as threads:
        baked = list(threads.map(lambda _: estate.ensure(), range(2)))
    assert sorted(item.built for item in baked) == [False, True]
    assert baked[0].snapshot == replace(baked[1].snapshot, used=baked[0].snapshot.used)
    assert estate.purposes() == []
    assert not (Path(baked[0].snapshot.ref) / "data" / "postmaster.pid").exists()


def test_a_base_holds_no_password_that_was_discarded(estate: Estate) -> None:
    """The application's, of the bake alone: its verifier stayed in a dead row, and in the log of the time before."""
    base = Path(estate.ensure().snapshot.ref)
    found = {
        verifier
        for path in (base / "data").rglob("*")
        if path.is_file()
        for verifier in re.findall(
            rb"SCRAM-SHA-256\$\d+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+", path.read_bytes()
        )
    }
    superuser = roles.verifier("postgres", (base / "password").read_text().strip(), rounds=1)
    assert found == {superuser.encode()}
    with estate.open() as fleet, fleet.lease().connect() as connection:
        assert connection.execute("select name from users").fetchall() == [("a",)]


def test_after_many_migrations_the_cache_is_bounded(estate: Estate) -> None:
    keys = []
    for number in range(4):
        estate.migrate(f"create table users (id int, column{number} int)")
        keys.append(estate.ensure(keep_baked=2).snapshot.key)
    assert len(set(keys)) == 4
    left = estate.bases()
    assert {base.key for base in left} == set(keys[-2:])
    store = estate.baker().store
    going = bake.evict(store, Retention(count=1), dry_run=True)
    assert [item.item.key for item in going] == [keys[-2]]
    assert len(estate.bases()) == 2
    shown = estate.cli("gc", "--dry-run", PGHARNESS_KEEP_BAKED="1")
    out, err = shown.communicate(timeout=60)
    assert shown.returncode == 0, err
    assert left[0].ref in out or left[1].ref in out
    assert "more than keep_baked = 1" in out


@pytest.mark.slow
def test_fifty_migrations(estate: Estate) -> None:
    for number in range(50):
        estate.migrate(f"create table users (id int, column{number} int)")
        estate.ensure(keep_baked=3)
        assert len(estate.bases()) <= 3


def test_a_failed_migration_leaves_nothing(estate: Estate) -> None:
    estate.migrate("create table a (id int); selectt 1;")
    with pytest.raises(MigrationError, match="look at the half-migrated") as caught:
        estate.ensure()
    assert caught.value.database == ""
    assert estate.bases() == []
    assert estate.purposes() == []


def test_killed_while_baking(estate: Estate) -> None:
    estate.migrate("create table users (id int); select pg_sleep(20);")
    child = estate.python("bake.TTL = 1.0\nestate_open()\n")
    try:
        until(estate.migrating, seconds=30, what="a migration that sleeps")
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=20)
    until(lambda: estate.purposes() == [], seconds=30, what="the builder to end itself")
    assert estate.bases() == []
    estate.migrate("create table users (id int);")
    assert estate.ensure().built


def test_a_base_that_lies_is_found_out(estate: Estate) -> None:
    wrong = Path(estate.ensure().snapshot.ref)
    estate.migrate("create table other (id int)")
    key, _ = estate.baker().key()
    # A directory of other migrations under the right name, with a label that says so.
    forged = wrong.with_name(f"base-{key}")
    shutil.copytree(wrong, forged)
    for place, folders, files in os.walk(forged):
        for name in [".", *folders, *files]:
            about = (wrong / Path(place).relative_to(forged) / name).stat()
            os.chown(Path(place) / name, about.st_uid, about.st_gid)
    (forged / "base.json").write_text(
        json.dumps({**json.loads((wrong / "base.json").read_text()), "key": key})
    )
    with estate.open() as fleet:
        assert not fleet.baked.built
        with fleet.lease().connect() as connection:
            assert connection.execute("select to_regclass('other'), to_regclass('users')").fetchone() == (
                "other",
                None,
            )
    assert any("did not hold its templates: removed" in line for line in estate.told)
    assert not forged.exists()


def test_a_base_that_was_removed_under_us(estate: Estate) -> None:
    with estate.open() as fleet:
        shutil.rmtree(fleet.baked.snapshot.ref)
        with pytest.raises(ServerStartError, match="run again, and it is baked anew"):
            fleet.lease()
    with estate.open() as fleet:
        assert fleet.baked.built


def test_a_full_disk_while_baking(estate: Estate) -> None:
    cache = Path(estate.environ["PGHARNESS_CACHE_DIR"])
    estate.migrate("create table big as select repeat('x', 1000) from generate_series(1, 40000)")
    small = cache.with_name("small")
    small.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=70m,mode=755", "tmpfs", str(small)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("only root may mount a small file system")
    try:
        # Room for an empty cluster, not for the migrated one beside it.
        estate.environ["PGHARNESS_CACHE_DIR"] = str(small)
        with pytest.raises(ServerStartError, match="full"):
            estate.ensure()
        assert estate.bases() == []
        assert estate.purposes() == []
        assert list(small.glob("base-*")) == []
    finally:
        estate.environ["PGHARNESS_CACHE_DIR"] = str(cache)
        subprocess.run(["umount", str(small)], check=True, timeout=20)


def test_a_shared_server_starts_from_the_base_too(estate: Estate) -> None:
    estate.ensure()
    settings = estate.settings(isolation="database")
    with Run.open_with(settings, estate.environ) as harness:
        assert not harness.templates["default"].built
        assert harness.templates["default"].name.startswith(f"pgh_{harness.project}_t_")
        with harness.lease().connect() as connection:
            assert connection.execute("select name from users").fetchall() == [("a",)]
    assert any("starting from a baked server" in line for line in estate.told)
    inventory.stop(Project.of(settings, estate.environ))


def test_a_start_that_was_cut_off_is_removed_when_it_is_old(estate: Estate) -> None:
    estate.ensure()
    with estate.open() as fleet:
        fleet.lease()
        folder = Path(fleet.members["1"].server.info.handle)
        record = json.loads((folder / "server.json").read_text())
        # Killed after its record was written, before its server ran.
        cut_off = folder.with_name(folder.name[:-8] + "deadbeef")
        cut_off.mkdir()
        (cut_off / "server.json").write_text(
            json.dumps({**record, "purpose": "run-cutoff-1", "pid": 0, "watcher": 0})
        )
        fleet.sweep()
        assert cut_off.exists()
        for path in (cut_off, folder):
            os.utime(path, (1, 1))
        fleet.sweep()
        assert not cut_off.exists()
        assert folder.exists()


def test_half_a_base_goes_as_soon_as_nobody_fills_it(estate: Estate) -> None:
    target = Path(estate.ensure().snapshot.ref)
    half = target.with_name(f"{target.name}.0123abcd")
    half.mkdir()
    # Its own user's: no data directory of that name is at work.
    with renamed_last(target.with_name("base-other")) as filled:
        assert str(half) in estate.baker().store.leftovers()
        assert filled.exists()
        assert target.exists()
    assert not half.exists()
    shutil.rmtree(target.with_name("base-other"))


def test_bake_by_hand(estate: Estate) -> None:
    (estate.root / "pg-harness.toml").write_text('migrations = ["sql:migrations"]\n')

    def call(*words: str) -> str:
        child = estate.cli("bake", *words)
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0, err
        return out.strip()

    place = call()
    assert Path(place, "data", "PG_VERSION").exists()
    assert json.loads(call("--json"))["built"] is False
    assert json.loads(call("--rebuild", "--json"))["built"] is True
    (listed,) = json.loads(call("--list", "--json"))
    assert (listed["name"], listed["sources"]) == (place, "sql:migrations")
    # What tests get is what was baked: the same key from the settings of a run.
    with estate.open() as fleet:
        assert fleet.baked.snapshot.ref == place
        assert not fleet.baked.built
