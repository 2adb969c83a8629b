"""Servers as other people run them: checksums, compressed images, 64-bit ids beyond the first 2^32, slots, little log."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from fix_reset_case import Case
from fix_reset_servers import SETTINGS, Server, binaries, dispose, running

from harness.postgres.session import Session

pytestmark = pytest.mark.server

SCHEMA = """
create table plain (id serial primary key, v text);
create table seeded (id serial primary key, v text); insert into seeded (v) select 'row ' || i from generate_series(1, 100) i;
create table wide (id serial primary key, v text); insert into wide (v) select repeat('w', 150) from generate_series(1, 8000) i;
create table toasted (id integer primary key, v text);
insert into toasted select i, (select string_agg(md5(n::text), '') from generate_series(1, 300) n) from generate_series(1, 3) i;
alter table wide replica identity full;
create sequence cached cache 20;
"""
WORK = [
    "insert into plain (v) values ('x')", "update seeded set v = 'y' where id in (7, 14, 21)", "delete from seeded where id = 3",
    "update wide set v = 'changed' where id in (5, 4000, 7999)", "update toasted set v = v || 'x' where id = 2",
    "select nextval('cached')", "begin", "savepoint a", "insert into plain (v) values ('y')", "rollback to a",
    "insert into plain (v) values ('z')", "commit",
]  # fmt: skip


def _run(server: Server, program: str, *arguments: str) -> None:
    folder = binaries(server.version)
    assert folder is not None
    user = "postgres" if os.geteuid() == 0 else None
    assert server.data is not None
    with open(server.data / "audit.log", "ab") as log:
        subprocess.run([folder / program, "-D", server.data, *arguments], user=user, cwd="/", stdout=log, stderr=log,
                       check=True, timeout=60)  # fmt: skip


@contextmanager
def prepared(
    version: int, monkeypatch: pytest.MonkeyPatch, settings: Mapping[str, str], *programs: list[str]
) -> Iterator[Server]:
    """A server with these settings, on which the programs ran while it was stopped."""
    if binaries(version) is None:
        pytest.skip(f"the programs of PostgreSQL {version} are not here")
    for name, value in settings.items():
        monkeypatch.setitem(SETTINGS, name, value)
    with running(version) as server:
        options = " ".join(f"-c {key}='{value}'" for key, value in {**SETTINGS, "port": server.port}.items())
        _run(server, "pg_ctl", "-w", "-s", "-m", "fast", "stop")
        for program, *arguments in programs:
            _run(server, program, *arguments)
        _run(server, "pg_ctl", "-w", "-s", "-o", options, "start")
        try:
            yield server
        finally:
            _run(server, "pg_ctl", "-w", "-s", "-m", "immediate", "stop")


@pytest.mark.parametrize("version", [15, 18], ids=lambda v: f"pg{v}")
def test_checksums_images_wide_ids_and_a_slot(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"wal_level": "logical", "full_page_writes": "on", "wal_compression": "on", "track_commit_timestamp": "on",
                "wal_keep_size": "128MB"}  # fmt: skip
    epoch = ["pg_resetwal", "-e", "7"]
    with prepared(version, monkeypatch, settings, ["pg_checksums", "--enable"], epoch) as server:
        case = Case(server, "hostile", SCHEMA)
        admin = case.bench.admin
        assert admin.value("show data_checksums") == "on"
        assert admin.value("select pg_current_xact_id()::text::int8") > 7 * 2**32
        with case.bench.superuser() as session:
            session.execute("select pg_create_logical_replication_slot('hostile', 'pgoutput')")
        with case.bench.app() as app:
            for number in range(4):
                _work(app)
                # The next write of each page carries all of it, and the next reader of a page writes its hints.
                admin.execute("checkpoint")
                app.execute("update seeded set v = 'after'")
                app.rows("select count(*) from wide")
                if number % 2:
                    admin.value("select pg_switch_wal()")
                assert case.reset().strategy == "restore"
                app.rows("select count(*) from wide")
                case.assert_pristine()
                assert case.reset().ended == ()
        assert repr(case.bench.engine._connections.wal) == "<ChosenReader ByteReader>"
        with case.bench.superuser() as session:
            session.execute("select pg_drop_replication_slot('hostile')")
        dispose(case.bench)


@pytest.mark.parametrize("version", [15, 18], ids=lambda v: f"pg{v}")
def test_a_log_that_leaves_out_rows_of_new_files(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``wal_level = minimal`` rows of a file that their own transaction made are not in the log: only the file is."""
    settings = {"wal_level": "minimal", "max_wal_senders": "0", "wal_skip_threshold": "0"}
    with prepared(version, monkeypatch, settings) as server:
        case = Case(server, "minimal", SCHEMA)
        with case.bench.app() as app:
            for _ in range(3):
                for statement in ["begin", "truncate seeded, plain", "insert into seeded (v) values ('x')", "savepoint a",
                                  "truncate toasted", "insert into toasted values (1, 'x')", "release a",
                                  "insert into plain (v) select 'x' from generate_series(1, 300)", "commit"]:  # fmt: skip
                    app.execute(statement)
                assert case.reset().strategy == "restore"
                case.assert_pristine()
        dispose(case.bench)


def _work(app: Session) -> None:
    for statement in WORK:
        app.execute(statement)
