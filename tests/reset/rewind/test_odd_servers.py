"""What a rewind meets that it is not made for, and what is far larger than usual: an answer, or the exact state; never a wrong one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_reset_servers import Server, dispose, program, running
from fix_rewind import RewindCase, module_on

from harness.errors import ServerRefused
from harness.postgres.session import Session
from harness.reset.changes import RecloneNeeded
from harness.reset.rewind.module import Prepared

SCHEMA = """
create table people (id serial primary key, v text);
insert into people (v) select 'row ' || i from generate_series(1, 30) i;
"""


@pytest.fixture(scope="module")
def shared(reset_server: Server, rewind_schema: Callable[[Server], str]) -> Iterator[RewindCase]:
    case = RewindCase(reset_server, "rewindodd", SCHEMA, module=rewind_schema(reset_server))
    yield case
    dispose(case.bench)


def writes(app: Session) -> None:
    app.execute("insert into people (v) values ('x')")


def by_rows(case: RewindCase, why: str) -> None:
    """The reset is right, and the pages have said why they were not put back."""
    assert case.reset_or_clone() != "rewind"
    assert why in case.rewinder.left, case.rewinder
    case.assert_pristine()


@pytest.fixture
def folder(reset_server: Server) -> Iterator[Path]:
    """A folder in which the server may make a tablespace."""
    if reset_server.data is None:
        pytest.skip("the server is in a container")
    path = reset_server.data.parent / "elsewhere"
    path.mkdir()
    if os.geteuid() == 0:
        shutil.chown(path, "postgres")
    yield path
    shutil.rmtree(path)


def test_another_tablespace_is_for_the_rows(case: RewindCase, folder: Path) -> None:
    with case.bench.superuser() as session:
        with case.bench.server.session() as admin:
            admin.execute(f"create tablespace elsewhere location '{folder}'")
        try:
            session.execute("create table apart (id integer) tablespace elsewhere")
            session.execute("insert into apart values (1)")
            with pytest.raises(RecloneNeeded):
                case.reset()
            assert "tablespace" in case.rewinder.left
            case.bench.reclone()
        finally:
            with case.bench.server.session() as admin:
                admin.execute("drop tablespace elsewhere")
    case.assert_exact()


def test_a_replication_slot_of_the_database_is_for_the_rows(reset_server: Server) -> None:
    if reset_server.data is None:
        pytest.skip("the server is in a container")
    with running(reset_server.version, {"wal_level": "logical"}) as server:
        assert server.data is not None
        prepared = module_on(server)
        if not isinstance(prepared, Prepared):
            pytest.skip(prepared)
        case = RewindCase(server, "rewindslot", SCHEMA, module=prepared.schema)
        with case.bench.superuser() as session, case.bench.app() as app:
            writes(app)
            case.rewound("people")
            session.rows("select pg_create_logical_replication_slot('changes', 'test_decoding')")
            writes(app)
            by_rows(case, "replication slot")
            session.rows("select pg_drop_replication_slot('changes')")
            writes(app)
            case.rewound("people")
        dispose(case.bench)


def test_a_standby_is_for_the_rows_and_is_not_led_astray(reset_server: Server) -> None:
    if reset_server.data is None:
        pytest.skip("the server is in a container")
    receive = program("pg_receivewal", reset_server.version)
    with running(reset_server.version) as server:
        assert server.data is not None
        prepared = module_on(server)
        if not isinstance(prepared, Prepared):
            pytest.skip(prepared)
        case = RewindCase(server, "rewindstandby", SCHEMA, module=prepared.schema)
        to = ["-D", str(server.data.parent), "-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres"]
        receiver = subprocess.Popen([receive, *to], stderr=subprocess.DEVNULL)
        try:
            with server.session() as session, case.bench.app() as app:
                while not session.value("select count(*) from pg_stat_replication"):
                    session.execute("select pg_sleep(0.05)")
                writes(app)
                by_rows(case, "standby")
        finally:
            receiver.terminate()
            receiver.wait(10)
        dispose(case.bench)


def test_a_log_that_went_on_in_the_next_file_is_read_on(case: RewindCase, app: Session) -> None:
    """As a base backup and an archive have it: the rest of the file holds nothing, and no headers of pages."""
    for _ in range(3):
        writes(app)
        with case.bench.server.session() as session:
            for _ in range(2):
                session.rows("select pg_switch_wal()")
            writes(app)
            session.rows("select pg_switch_wal()")
        case.rewound("people")
    app.rows("select 1")
    with case.bench.server.session() as session:
        session.rows("select pg_switch_wal()")
    assert case.reset().strategy == "nothing"


def test_fsync_is_for_the_rows(reset_server: Server) -> None:
    with running(reset_server.version, {"fsync": "on"}) as server:
        if server.data is None:
            pytest.skip("the server is in a container")
        found = module_on(server)
        assert isinstance(found, str), found
        assert "fsync" in found


def test_thousands_of_blocks_are_cut_off_in_one_act(case: RewindCase, app: Session) -> None:
    with case.bench.superuser() as session:
        size = "select pg_relation_size('people') / 8192"
        before = session.value(size)
        app.execute("insert into people (v) select repeat('x', 1500) from generate_series(1, 20000)")
        assert session.value(size) > before + 3000
        case.rewound("people")
        assert session.value(size) == before


def test_a_table_of_1600_columns(case: RewindCase, app: Session) -> None:
    columns = ", ".join(f"c{number} integer" for number in range(1590))
    for _ in range(2):
        app.execute(f"create table broad (id integer, {columns})")
        app.execute("insert into broad (id) values (1)")
        case.rewound()


def test_a_thousand_tables_at_once(case: RewindCase, app: Session) -> None:
    """More locks than the server has room for are an error before the first page, and then a clone."""
    for _ in range(2):
        app.execute(
            "do $$ begin for i in 1..1000 loop execute format('create table t%s (id serial primary key, v text)', i);"
            " end loop; end $$"
        )
        assert case.reset_or_clone()
        case.assert_exact()


def test_a_baseline_that_the_session_does_not_know_is_told_and_asked_again(
    case: RewindCase, app: Session
) -> None:
    with case.bench.server.session() as session:
        for baseline in (0, 4711):
            with pytest.raises(ServerRefused, match="does not know the files"):
                session.execute(
                    f"select {case.rewinder._schema}.pgh_rewind(1, {baseline}, '0/0', '{{}}', '{{}}', '{{}}', 1, 1)"
                )


def test_a_position_that_is_none_is_refused(case: RewindCase) -> None:
    tracker = case.bench.engine._tracker
    for position in ("FFFF/0", "0/1234567"):
        with case.bench.app() as app:
            writes(app)
        tracker.clean = position
        with pytest.raises(RecloneNeeded, match="is no position"):
            case.reset()
        case.bench.reclone()


def test_functions_that_were_declared_otherwise_are_an_error_and_no_crash(
    case: RewindCase, reset_server: Server
) -> None:
    with reset_server.session() as session:
        path = session.value("select probin from pg_proc where proname = 'pgh_know' limit 1")
        for name in ("pgh_know", "pgh_rewind", "pgh_rewind_to", "pgh_mark"):
            session.script(
                f"create schema declared; create function declared.{name}(oid) returns record language c as '{path}', '{name}'"
            )
            with pytest.raises(ServerRefused, match="declared with other arguments"):
                session.execute(f"select declared.{name}(1)")
            session.script("drop schema declared cascade")
    assert case.reset_or_clone()


def test_names_of_marks_stay_in_their_folder(case: RewindCase, reset_server: Server) -> None:
    schema = case.rewinder._schema
    with reset_server.session() as session:
        for name in ("../postgresql.conf", "", "a/b", "A", "x" * 200):
            with pytest.raises(ServerRefused, match="is no name of a mark"):
                session.execute(f"select {schema}.pgh_forget(%s)", (name,))
        session.execute(f"select {schema}.pgh_forget('nothing_of_that_name')")


def test_a_mark_that_was_cut_off_or_is_of_another_baseline_is_an_error(
    case: RewindCase, app: Session, reset_server: Server
) -> None:
    if reset_server.data is None:
        pytest.skip("the server is in a container")
    writes(app)
    mark = case.bench.engine.mark()
    (name,) = case.bench.engine._marks.pages
    path = reset_server.data / "pgh_marks" / name
    whole = path.read_bytes()
    writes(app)
    case.bench.reclone()
    for broken in (whole[:-1], b"x" + whole[1:], b"", whole + b"x"):
        path.write_bytes(broken)
        with pytest.raises(RecloneNeeded, match="mark"):
            case.bench.reclone()
    path.write_bytes(whole)
    case.bench.reclone()
    mark.release()
    assert case.reset_or_clone()
    case.assert_pristine()
