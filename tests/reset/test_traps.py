"""Each trap that a prototype fell into, on every version: the database is that of a fresh clone afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from fix_reset_case import Case, at
from fix_reset_servers import Server, dispose

from harness.errors import HarnessError, ServerLost, ServerRefused
from harness.postgres.session import Session
from harness.reset.changes import RecloneNeeded
from harness.reset.engine import Limits

SCHEMA = """
create table plain (id bigint generated always as identity primary key, v text);
create table seeded (id serial primary key, v text);
insert into seeded (v) select 'row ' || i from generate_series(1, 100) i;
create table wide (id serial primary key, v text);
insert into wide (v) select repeat('w', 150) from generate_series(1, 8000) i;
create table child (id serial primary key, seeded_id integer references seeded);
create sequence cached cache 20;
create unlogged table fast (id serial primary key, v text);
insert into fast (v) values ('kept');
create table guarded (id serial primary key, v text); insert into guarded (v) values ('g');
create function no() returns trigger language plpgsql as $$ begin raise exception 'not allowed'; end $$;
create trigger no before delete on guarded for each row execute function no();
create table always (id serial primary key, v text);
create trigger always before delete on always for each row execute function no();
alter table always enable always trigger always;
create rule keep as on delete to child do instead nothing;
create table doubtful (v integer); insert into doubtful values (1), (-1);
alter table doubtful add check (v > 0) not valid;
"""


@pytest.fixture(scope="module")
def shared(reset_server: Server) -> Iterator[Case]:
    case = Case(reset_server, "traps", SCHEMA)
    yield case
    dispose(case.bench)


# --- trap 1: open transactions -----------------------------------------------------------------------

OPEN = {
    "insert": ["begin", "insert into plain (v) values ('open')"],
    "savepoint": ["begin", "savepoint s", "insert into seeded (v) values ('open')"],
    "sequence": ["begin", "select nextval('seeded_id_seq')"],
    "ddl": ["begin", "create table never (id integer)"],
    "truncate": ["begin", "truncate plain"],
    "row lock": ["begin", "select * from seeded for update"],
    "unlogged": ["begin", "insert into fast (v) values ('open')"],
}


@pytest.mark.parametrize("name", OPEN)
def test_a_transaction_left_open_is_ended_and_named(case: Case, app: Session, name: str) -> None:
    for statement in OPEN[name]:
        app.execute(statement)
    report = case.bench.engine.reset()
    assert len(report.ended) == 1
    assert f"pid {app.pid}" in report.ended[0]
    with pytest.raises(ServerLost):
        app.execute("commit")
    case.assert_pristine()
    assert case.bench.engine.reset().strategy in ("nothing", "restore")
    case.assert_pristine()


def test_a_reader_of_the_old_state_is_ended(case: Case, app: Session) -> None:
    with case.bench.app() as writer:
        app.execute("begin isolation level repeatable read")
        writer.execute("insert into plain (v) values ('x')")
        app.rows("select * from seeded")
        report = case.bench.engine.reset()
    assert len(report.ended) == 1
    assert f"pid {app.pid}" in report.ended[0]
    case.assert_pristine()


def test_an_idle_transaction_that_only_read_is_kept(case: Case, app: Session) -> None:
    app.execute("begin")
    app.rows("select * from seeded")
    with case.bench.app() as writer:
        writer.execute("insert into seeded (v) values ('x')")
        assert case.bench.engine.reset().ended == ()
    assert app.value("select count(*) from seeded") == 100


def test_a_transaction_that_ends_in_time_is_waited_for(case: Case, app: Session) -> None:
    app.execute("begin")
    app.execute("insert into plain (v) values ('late')")
    timer = threading.Timer(0.1, lambda: app.execute("commit"))
    timer.start()
    report = case.bench.engine.reset()
    timer.join()
    assert report.ended == ()
    assert report.rows == 1
    case.assert_pristine()


# --- trap 2: where windows end -----------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["before-look", "looked", "before-lock"])
@pytest.mark.parametrize("table", ["plain", "seeded"])
def test_what_is_written_during_a_reset_is_found_by_it(
    case: Case, app: Session, stage: str, table: str
) -> None:
    app.execute("insert into plain (v) values ('first')")
    at(case, stage, lambda: app.execute(f"insert into {table} (v) values ('meanwhile')"))
    case.reset()
    case.assert_pristine()


def test_what_is_written_right_after_the_commit_is_found_by_the_next(case: Case, app: Session) -> None:
    app.execute("insert into plain (v) values ('first')")
    at(case, "committed", lambda: app.execute("insert into plain (v) values ('between')"))
    case.reset()
    assert app.value("select count(*) from plain") == 1
    case.reset()
    case.assert_pristine()


def test_an_empty_window_and_a_recycled_one(case: Case, app: Session) -> None:
    engine = case.bench.engine
    for _ in range(3):
        assert not engine.changes().table_names or engine.changes().table_names == ("fast",)
    app.execute("insert into plain (v) values ('x')")
    engine.limits = Limits(0.4, 2**60)
    admin = case.bench.admin
    try:
        # More than wal_keep_size; a switch without a record before it does nothing.
        for _ in range(6):
            admin.rows("select pg_switch_wal()")
            admin.execute("checkpoint")
        with pytest.raises(RecloneNeeded, match="recycled or cannot be read") as caught:
            case.reset()
    finally:
        engine.limits = Limits(0.4)
    assert "wal_keep_size" in caught.value.remedy
    case.bench.reclone()
    case.assert_pristine()


# --- traps 3, 4: no trace, and large tables ----------------------------------------------------------


def test_nothing_of_ours_is_in_the_database(case: Case, app: Session) -> None:
    app.execute("insert into plain (v) values ('x')")
    case.reset()
    with case.bench.superuser() as session:
        ours = session.rows("select proname from pg_proc where proname like 'pgh%%'")
        schemas = session.rows(
            "select nspname from pg_namespace where nspname !~ '^(pg_|information_schema$|public$)'"
        )
        assert (ours, schemas) == ([], [])
    assert case.bench.admin.value("select count(*) from pg_stat_activity where datname = 'traps_t'") == 0


@pytest.mark.parametrize(
    "statement",
    [
        "insert into wide (v) select 'new' from generate_series(1, 10)",
        "update wide set v = 'changed' where id in (5, 4000, 7999)",
        "delete from wide where id between 100 and 120",
        "update wide set v = v || 'x' where id < 300",
        "update wide set v = 'far apart' where id % 84 = 0",
        "delete from wide where id % 90 = 0",
    ],
)
def test_a_large_table_is_put_back_by_its_blocks(case: Case, app: Session, statement: str) -> None:
    for _ in range(3):
        app.execute(statement)
        report = case.bench.engine.reset()
        assert report.strategy == "restore"
        with case.bench.superuser() as session:
            found = session.row(
                "select count(*), min(id), max(id), md5(string_agg(wide::text, ',' order by id)) from wide"
            )
        with case.bench.server.session("traps_fresh") as session:
            assert found == session.row(
                "select count(*), min(id), max(id), md5(string_agg(wide::text, ',' order by id)) from wide"
            )


# --- trap 5: what a session keeps --------------------------------------------------------------------


def test_an_open_session_goes_on(case: Case, app: Session) -> None:
    app.execute("prepare p as select count(*) from plain")
    app.execute("create temp table mine (id integer)")
    app.execute("set my.setting = 'kept'")
    app.execute("insert into plain (v) values ('x')")
    assert app.value("execute p") == 1
    assert app.value("select nextval('cached')") == 1
    report = case.bench.engine.reset()
    assert (report.strategy, report.ended) == ("restore", ())
    assert app.value("execute p") == 0
    assert app.value("select nextval('cached')") == 1
    assert app.value("select current_setting('my.setting')") == "kept"
    assert app.value("select count(*) from mine") == 0


def test_sessions_end_on_request(case: Case, app: Session) -> None:
    app.execute("insert into plain (v) values ('x')")
    report = case.bench.engine.reset(sessions="end")
    assert f"pid {app.pid}" in "".join(report.ended)
    with pytest.raises(ServerLost):
        app.value("select 1")
    case.assert_pristine()


def test_a_session_with_an_advisory_lock_is_ended(case: Case, app: Session) -> None:
    app.execute("select pg_advisory_lock(1)")
    report = case.bench.engine.reset()
    assert f"pid {app.pid}" in "".join(report.ended)
    assert (
        case.bench.admin.value("select count(*) from pg_locks where locktype = 'advisory' and granted") == 0
    )


# --- trap 6: catalogs of the whole server ------------------------------------------------------------


def test_settings_of_the_database_are_put_back_and_others_are_noise(case: Case, app: Session) -> None:
    app.execute('alter database traps set search_path = "a b", public')
    app.execute("alter role app in database traps set work_mem = '7MB'")
    # By copied files: the 4 MB of log of the default may cost more to be read than a clone on a slow machine.
    case.bench.admin.execute("create database bystander strategy file_copy")
    case.bench.admin.execute("drop database bystander")
    assert case.bench.engine.reset().ended == ()
    case.assert_pristine()
    case.bench.admin.execute("alter database traps set work_mem = '8MB'")
    case.reset()
    case.assert_pristine()


def test_rights_on_the_database_need_a_clone(case: Case, app: Session) -> None:
    app.execute("revoke connect on database traps from public")
    with pytest.raises(RecloneNeeded, match="rights, owner or limits of the database changed"):
        case.reset()


# --- trap 7: triggers and rules ----------------------------------------------------------------------


def test_triggers_and_rules_stay_silent(case: Case, app: Session) -> None:
    app.execute("insert into guarded (v) values ('x')")
    app.execute("update guarded set v = 'y'")
    app.execute("insert into child (seeded_id) values (1)")
    assert case.bench.engine.reset().strategy == "restore"
    case.assert_pristine()


def test_a_trigger_that_always_fires_needs_a_clone(case: Case, app: Session) -> None:
    app.execute("insert into always (v) values ('x')")
    with pytest.raises(RecloneNeeded, match="trigger always is enabled ALWAYS"):
        case.reset()
    with pytest.raises(RecloneNeeded, match="not known"):
        case.reset()


# --- trap 8: undone DDL ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statements",
    [
        ["create temp table t (id serial primary key, v text unique)"],
        ["create temp table t (id serial primary key)", "drop table t"],
        ["begin", "create table t (id serial primary key)", "alter table plain add w integer", "rollback"],
        ["create temp view t as select 1"],
        ["analyze"],
        ["truncate plain, child restart identity"],
        ["create temp table t on commit drop as select * from seeded"],
    ],
    ids=["temporary", "dropped", "rolled back", "view", "analyze", "truncate", "on commit drop"],
)
def test_what_undoes_itself_needs_no_clone(case: Case, app: Session, statements: list[str]) -> None:
    for _ in range(3):
        for statement in statements:
            app.execute(statement)
        assert case.bench.engine.reset().ended == ()
        app.execute("discard temp")
        case.assert_pristine()


DDL = {
    "create table t (id integer primary key, v text default 'x')": ["table t was created"],
    "alter table plain add w integer": ["column plain.w was created"],
    "alter table plain drop v": ["column plain.v was dropped"],
    "create index ix on plain (v)": ["index ix was created"],
    "create function f() returns integer language sql as 'select 1'": ["function f() was created"],
    "comment on table plain is 'x'": ["a comment was created"],
    "grant select on plain to public": ["table plain was altered"],
    "create type e as enum ('a')": ["type e was created"],
    "drop table child": ["table child was dropped"],
    "alter sequence seeded_id_seq increment 3": ["pg_sequence was written"],
    "create schema s": ["schema s was created"],
    "alter table plain rename to other": ["table other was created", "table plain was dropped"],
    "alter table plain alter v set default 'x'": [
        "column plain.v was altered",
        "a default of plain was created",
    ],
    "create view w as select 1": ["view w was created"],
    "drop trigger no on guarded": ["trigger no on guarded was dropped"],
    "alter table guarded disable trigger no": ["trigger no on guarded was altered"],
    "create policy p on plain using (true)": ["policy p on plain was created"],
}
"""Statement → what is told of it."""


@pytest.mark.parametrize("statement", DDL)
def test_ddl_is_found_and_named(case: Case, app: Session, statement: str) -> None:
    app.execute(statement)
    assert list(case.bench.engine.changes().ddl) == DDL[statement]
    with pytest.raises(RecloneNeeded, match="schema differs") as caught:
        case.reset()
    assert DDL[statement][0] in caught.value.reason
    assert "needs no clone" in caught.value.reason
    case.bench.reclone()
    case.assert_pristine()


# --- trap 9, 10, and what is no change ---------------------------------------------------------------


def test_a_test_that_wrote_a_lot_gets_a_clone(case: Case, app: Session) -> None:
    app.execute("insert into plain (v) select repeat('x', 300) from generate_series(1, 80000)")
    with pytest.raises(RecloneNeeded, match="MB of log"):
        case.reset()


def test_rows_keep_their_order(case: Case, app: Session) -> None:
    for _ in range(5):
        app.execute("update seeded set v = 'changed' where id in (1, 2, 50)")
        app.execute("delete from seeded where id in (3, 99)")
        assert case.bench.engine.reset().strategy == "restore"
        assert app.rows("select id from seeded limit 3") == [(1,), (2,), (3,)]
        case.assert_pristine()


def test_what_changes_no_row_is_no_change(case: Case, app: Session) -> None:
    app.rows("select * from wide")
    app.execute("begin")
    app.execute("lock table plain in exclusive mode")
    app.rows("select * from seeded for update")
    app.execute("commit")
    with case.bench.superuser() as session:
        session.execute("vacuum (freeze, analyze) seeded, wide")
        session.execute("checkpoint")
    found = case.bench.engine.changes()
    assert set(found.table_names) <= {"fast"}
    assert found.ddl == ()
    case.reset()
    case.assert_pristine()


def test_unlogged_tables_and_sequences(case: Case, app: Session) -> None:
    app.execute("insert into fast (v) values ('x')")
    app.execute("update fast set v = 'y' where id = 1")
    case.reset()
    case.assert_pristine()
    app.execute("delete from fast")
    case.reset()
    case.assert_pristine()


# --- trap 13 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [[], ["commit prepared 'g'"]])
def test_prepared_transactions_are_rolled_back(case: Case, app: Session, end: list[str]) -> None:
    for statement in ["begin", "insert into plain (v) values ('x')", "prepare transaction 'g'", *end]:
        app.execute(statement)
    report = case.bench.engine.reset()
    assert bool(report.ended) == (not end)
    case.assert_pristine()


# --- bad input ---------------------------------------------------------------------------------------


def test_a_row_that_cannot_be_put_back_means_a_clone_and_no_half_restore_that_passes(
    case: Case, app: Session
) -> None:
    app.execute("delete from doubtful where v = -1")
    app.execute("insert into plain (v) values ('x')")
    with pytest.raises(RecloneNeeded, match="cannot be put back"):
        case.reset()
    assert app.value("select count(*) from doubtful where v = -1") == 0
    with pytest.raises(RecloneNeeded, match="not known"):
        case.reset()
    case.bench.reclone()
    case.assert_pristine()


@pytest.mark.parametrize("stage", ["looked", "before-lock", "locked", "before-commit"])
@pytest.mark.parametrize("which", ["reader", "restorer"])
def test_a_session_of_ours_that_is_killed_means_a_clone(
    case: Case, app: Session, stage: str, which: str
) -> None:
    app.execute("insert into plain (v) values ('x')")
    engine = case.bench.engine
    reader, restorer = engine.ours
    pid = reader if which == "reader" else restorer
    at(case, stage, lambda: case.bench.admin.rows("select pg_terminate_backend(%s, 5000)", (pid,)))
    try:
        assert case.bench.engine.reset().strategy == "restore"
        # The reader is not needed any more once the locks are held, where nobody else wrote.
        assert which == "reader"
        assert stage in ("locked", "before-commit")
    except RecloneNeeded as error:
        assert "lost" in error.reason  # noqa: PT017
        case.bench.reclone()
    case.assert_pristine()
    app.close()


def test_a_foreign_key_that_another_session_holds(case: Case, app: Session) -> None:
    with case.bench.app() as holder:
        holder.execute("begin")
        holder.execute("insert into child (seeded_id) values (1)")
        app.execute("update seeded set v = 'x' where id = 2")
        assert len(case.bench.engine.reset().ended) == 1
    case.assert_pristine()


def test_two_resets_at_once(case: Case, app: Session) -> None:
    app.execute("insert into plain (v) values ('x')")
    problems: list[HarnessError] = []

    def reset() -> None:
        try:
            case.reset()
        except HarnessError as error:
            problems.append(error)

    threads = [threading.Thread(target=reset) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert problems == []
    case.assert_pristine()


def test_resets_while_the_application_writes(case: Case) -> None:
    stop = threading.Event()

    def write() -> None:
        with case.bench.app() as session:
            while not stop.is_set():
                # Its sequence may be set back between its nextval and its insert.
                with suppress(ServerRefused):
                    session.execute("insert into plain (v) values ('busy')")
                session.execute("update seeded set v = 'busy' where id = 7")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            case.reset()
    finally:
        stop.set()
        writer.join(30)
    case.reset()
    case.assert_pristine()


# --- bounded -----------------------------------------------------------------------------------------


def test_tables_do_not_grow(case: Case, app: Session) -> None:
    sizes = []
    for round_ in range(260):
        app.execute("insert into plain (v) select 'x' from generate_series(1, 10)")
        app.execute("update seeded set v = 'y' where id = 3")
        app.execute("create temp table t (id integer)")
        app.execute("drop table t")
        assert case.bench.engine.reset().strategy == "restore"
        if round_ in (129, 259):
            sizes.append(app.row(
                "select pg_relation_size('plain'), pg_relation_size('seeded'), pg_relation_size('pg_class')"
            ))  # fmt: skip
    half, full = sizes
    assert half is not None
    assert full is not None
    assert all(later <= 1.3 * earlier + 16384 for earlier, later in zip(half, full, strict=True)), sizes
    case.assert_pristine()
