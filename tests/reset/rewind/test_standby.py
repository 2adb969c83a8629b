"""A standby that is made before rewinds and follows after them: what the log says of a rewind makes the same pages there."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fix_last_will import leave
from fix_reset_bytes import compare_files, folder, relations
from fix_reset_servers import VERSIONS, Server, binaries, dispose, free_port, program, running
from fix_rewind import RewindCase, exactly, module_on
from fix_rewind_module import need_compiler
from rw_operations import generate
from rw_runner import Rounds

from harness.errors import ServerLost, ServerRefused
from harness.reset.rewind.module import Prepared

SCHEMA = """
create table people (id serial primary key, v text);
insert into people (v) select 'row ' || i from generate_series(1, 2000) i;
create index on people (v); create index on people using hash (v); create index on people using gin (to_tsvector('simple', v));
create table wide (id integer primary key, v text);
insert into wide select i, (select string_agg(md5(i::text || g), '') from generate_series(1, 100) g) from generate_series(1, 30) i;
create materialized view counted as select count(*) as n from people;
"""

WINDOWS = (
    "insert into people (v) select 'new ' || i from generate_series(1, 3000) i",
    "update people set v = v || '!' where id % 5 = 0; delete from people where id % 7 = 0",
    "truncate people, wide restart identity; insert into wide values (1, 'x')",
    "alter table people add column more integer default 7; create index on people (id, v); drop table wide",
    "refresh materialized view counted; create table made (id serial primary key, v text); insert into made (v) values ('x')",
    "reindex table people; cluster people using people_pkey; analyze; select nextval('people_id_seq') from generate_series(1, 40)",
)
PATIENCE = 120.0
SEED = int(os.environ.get("PGHARNESS_TEST_SEED", "1"))
REPLAYED = int(
    os.environ.get("PGHARNESS_TEST_REPLAYS", "300" if os.environ.get("PGHARNESS_TEST_LONG") == "1" else "20")
)


@contextmanager
def copied(server: Server) -> Iterator[Path]:
    """A base backup of the server, set up to follow it; not started."""
    assert server.data is not None
    target = server.data.parent / "standby"
    subprocess.run(
        [program("pg_basebackup", server.version), "-D", target, "-R", "-c", "fast", "-X", "stream", "-U", "postgres",
         "-h", "127.0.0.1", "-p", str(server.port)],
        check=True, user="postgres" if os.geteuid() == 0 else None, cwd="/", capture_output=True, timeout=60,
    )  # fmt: skip
    yield target


@contextmanager
def following(server: Server, data: Path) -> Iterator[Server]:
    """The standby, running, and as far as the server is."""
    assert server.data is not None
    port = free_port()
    words = shlex.split((server.data / "postmaster.opts").read_text())
    words = [word.replace(str(server.data), str(data)) for word in words if not word.startswith("--port=")]
    with open(data.parent / "standby-log", "ab") as log:
        standby = subprocess.Popen(
            [*words, f"--port={port}"],
            user="postgres" if os.geteuid() == 0 else None,
            cwd="/",
            stdout=log,
            stderr=log,
        )
    leave("process", standby.pid, str(data))
    found = Server(server.version, port, data)
    try:
        _wait(server, found)
        yield found
    finally:
        standby.terminate()
        standby.wait(PATIENCE)


def _wait(server: Server, standby: Server) -> None:
    with server.session(settings={"synchronous_commit": "on"}) as session:
        # Its COMMIT flushes all that was written before.
        session.rows("select pg_logical_emit_message(true, 'wait', '')")
        position = session.value("select pg_current_wal_flush_lsn()::text")
    deadline = time.monotonic() + PATIENCE
    assert standby.data is not None
    while True:
        try:
            with standby.session() as session:
                if session.value("select pg_last_wal_replay_lsn() >= %s::pg_lsn", (position,)):
                    return
        except (ServerLost, ServerRefused):
            pass
        assert time.monotonic() < deadline, (standby.data.parent / "standby-log").read_text()[-3000:]
        time.sleep(0.05)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("version", VERSIONS, ids=lambda v: f"pg{v}")
def test_a_standby_that_follows_after_rewinds_has_the_same_pages(version: int) -> None:
    if binaries(version) is None:
        pytest.skip("the server is in a container")
    program("pg_basebackup", version)
    with running(version, {"wal_keep_size": "512MB", "max_wal_senders": "4"}) as server:
        assert server.data is not None
        prepared = module_on(server)
        if not isinstance(prepared, Prepared):
            pytest.skip(prepared)
        case = RewindCase(server, "rewindfollow", SCHEMA, module=prepared.schema)
        with copied(server) as data:
            for _ in range(2):
                for window in WINDOWS:
                    with case.bench.app() as app:
                        for statement in window.split(";"):
                            app.execute(statement)
                    case.rewound()
            with following(server, data) as standby:
                with standby.session(case.bench.name) as session:
                    seen = exactly(session)
                assert [name for name in case.exact if seen.get(name) != case.exact[name]] == []
                # While it is connected its sessions would not be told: then it is for the rows, and it follows those.
                with case.bench.app() as app:
                    app.execute("insert into people (v) values ('x')")
                assert case.reset_or_clone() != "rewind"
                assert "standby" in case.rewinder.left
                _wait(server, standby)
                with standby.session(case.bench.name) as session:
                    assert session.value("select count(*) from people") == 2000
                with server.session() as session:
                    session.execute("checkpoint")
                _wait(server, standby)
                with standby.session() as session:
                    session.execute("checkpoint")
            # Its files, as they are once it has ended.
            with server.session() as admin, case.bench.superuser() as inside:
                known = relations(inside)
                oid = admin.value("select oid::int8 from pg_database where datname = %s", (case.bench.name,))
                mine = folder(admin, server.data, oid)
                theirs = folder(admin, data, oid)
            differences = compare_files(theirs, mine, known, hole=False)
            # Of a relation that a test made recovery leaves an empty file, which goes with the lease.
            left = [one for one in differences if one.fork != "fsm" and not one.what.endswith("of 0 bytes")]
            assert left == []
            for _ in range(3):
                with case.bench.app() as app:
                    app.execute("insert into people (v) values ('x')")
                if case.reset_or_clone() == "rewind":
                    break
            else:
                raise AssertionError(f"no rewind after the standby is gone: {case.rewinder}")
        dispose(case.bench)


@pytest.mark.timeout(180 + 5 * REPLAYED)
@pytest.mark.parametrize("version", VERSIONS, ids=lambda v: f"pg{v}")
def test_every_page_that_recovery_makes_is_the_one_that_was_logged(version: int) -> None:
    """PostgreSQL itself compares them, record by record (``wal_consistency_checking``): random tests, and their rewinds."""
    need_compiler(version)
    program("pg_basebackup", version)
    settings = {"wal_consistency_checking": "all", "wal_keep_size": "4GB", "max_wal_senders": "4"}
    with running(version, settings) as server:
        rounds = Rounds(server, SEED)
        try:
            with copied(server) as data:
                for seed in range(SEED, SEED + REPLAYED):
                    found = rounds.round(seed, generate(seed, rounds.schema), thorough=False)
                    assert not found, f"seed {seed}: {found[:10]}"
                assert rounds.answers["rewound"] > REPLAYED / 2
                with following(server, data) as standby:
                    with standby.session() as session:
                        assert session.value("select pg_is_in_recovery()") is True
                    log = (data.parent / "standby-log").read_text()
            assert "inconsistent page" not in log
        finally:
            rounds.close()
