"""What a reset need not do: for rolled-back work, a job queue's lock, a statement that matched nothing, after a TRUNCATE."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import pytest
from fix_reset_between import watched
from fix_reset_case import Case, at
from fix_reset_servers import Server, dispose

from harness.errors import ServerLost, ServerRefused
from harness.postgres.session import Session
from harness.reset.changes import RecloneNeeded
from harness.reset.engine import Limits

SCHEMA = """
create table plain (id bigint generated always as identity primary key, v text);
create table seeded (id serial primary key, v text);
insert into seeded (v) select 'row ' || i from generate_series(1, 100) i;
create table middling (id serial primary key, v text);
insert into middling (v) select 'row ' || i from generate_series(1, 3000) i;
create table long (id serial primary key, v text);
create sequence cached cache 20;
create unlogged table fast (id serial primary key, v text); insert into fast (v) values ('kept');
"""

PATIENCE = 5.0


@pytest.fixture(scope="module")
def shared(reset_server: Server) -> Iterator[Case]:
    # Without an unlogged table: for its sake every reset would look and write.
    case = Case(reset_server, "cheap", SCHEMA.replace("create unlogged", "create"), reset_timeout=PATIENCE)
    yield case
    dispose(case.bench)


@pytest.fixture(scope="module")
def unlogged(reset_server: Server) -> Iterator[Case]:
    case = Case(reset_server, "cheapunlogged", SCHEMA, reset_timeout=PATIENCE)
    yield case
    dispose(case.bench)


@pytest.fixture(autouse=True)
def without_marks(shared: Case) -> Iterator[None]:
    yield
    while shared.bench.engine._marks.top is not None:
        shared.bench.engine._marks.pop()
    shared.bench.engine.limits = Limits(PATIENCE)


def run(app: Session, statements: Sequence[str]) -> None:
    for statement in statements:
        app.execute(statement)


# --- transactions that were rolled back --------------------------------------------------------------

UNDONE = {
    "rows": ["begin", "insert into plain (v) values ('x')", "update seeded set v = 'x' where id < 9",
             "delete from middling where id = 7", "rollback"],
    "savepoint kept": ["begin", "savepoint a", "insert into plain (v) values ('x')", "release a",
                       "update seeded set v = 'x'", "rollback"],
    "many savepoints": ["begin", *(part for i in range(80) for part in
                                   (f"savepoint s{i}", f"insert into plain (v) values ('{i}')", f"release s{i}")), "rollback"],
    "long values": ["begin", "insert into long (v) select string_agg(md5(i::text), '') from generate_series(1, 2000) i", "rollback"],
    "row locks": ["begin", "select * from seeded for update", "insert into plain (v) values ('x')", "rollback"],
    "cached sequence": ["begin", "select nextval('cached')", "insert into plain (v) values ('x')", "rollback"],
}  # fmt: skip


@pytest.mark.parametrize("name", UNDONE)
def test_only_sequences_are_put_back_after_a_rollback(case: Case, app: Session, name: str) -> None:
    sequences = {"plain_id_seq", "long_id_seq", "cached"}
    for _ in range(3):
        run(app, UNDONE[name])
        report = case.reset()
        assert (set(report.tables) - sequences, report.rows, report.ended) == (set(), 0, ())
        case.assert_pristine()
    # What came back is what counts from here on.
    assert app.value("insert into plain (v) values ('x') returning id") == 1
    assert app.value("select nextval('cached')") == 1
    case.reset()
    case.assert_pristine()
    assert case.reset().strategy == "nothing"


def test_a_rollback_that_the_log_tells_on_another_page(case: Case, app: Session) -> None:
    """Of the pages of the log, only those that name the database are looked at, and those with the ends of its transactions."""
    for _ in range(3):
        run(app, ["begin", "update seeded set v = 'x' where id < 9"])
        case.bench.admin.execute("select pg_logical_emit_message(false, 'other', repeat('x', 8192))")
        run(app, ["rollback"])
        report = case.reset()
        assert (report.strategy, report.rows) == ("nothing", 0)
        case.assert_pristine()


def test_a_rollback_pages_after_a_row_that_ends_where_its_page_does(case: Case, app: Session) -> None:
    """By chance a row's record does, one time in a hundred: the page of the next record need not be that of the ROLLBACK."""
    admin = case.bench.admin
    # As long as a record of a row that is deleted: one of them ends at the end of a page.
    for first in range(0, 8192, 40):
        run(app, ["begin"])
        here = int(admin.value("select (pg_current_wal_insert_lsn() - '0/0')::int8"))
        admin.execute("select pg_logical_emit_message(false, '', repeat('x', %s))", ((first - here) % 8192,))
        run(app, ["delete from seeded where id = 9"])
        admin.execute("select pg_logical_emit_message(false, 'other', repeat('x', 20000))")
        run(app, ["rollback"])
        report = case.reset()
        assert (report.strategy, report.rows) == ("nothing", 0), first
    case.assert_pristine()


EXCEPTION = """
do $$ begin
    begin insert into plain (v) values ('x'); raise exception 'no';
    exception when others then insert into seeded (v) values ('kept'); end;
end $$
"""

PARTLY = {
    "rolled back to a savepoint": ["begin", "insert into plain (v) values ('kept')", "savepoint a",
                                   "update seeded set v = 'x' where id = 3", "rollback to a",
                                   "update seeded set v = 'kept' where id = 4", "commit"],
    "all of it in a savepoint that was kept": ["begin", "savepoint a", "delete from seeded where id = 5", "release a", "commit"],
    "the same rows before": ["update seeded set v = 'kept' where id = 6", "begin", "update seeded set v = 'x' where id = 6", "rollback"],
    "the same rows after": ["begin", "update seeded set v = 'x' where id = 6", "rollback", "update seeded set v = 'kept' where id = 6"],
    "an exception block": [EXCEPTION],
    "prepared and rolled back": ["begin", "insert into plain (v) values ('x')", "prepare transaction 'undone'",
                                 "rollback prepared 'undone'", "delete from seeded where id = 8"],
    "prepared and committed": ["begin", "insert into plain (v) values ('x')", "savepoint a", "delete from seeded where id = 8",
                               "prepare transaction 'done'", "commit prepared 'done'"],
    "truncated and rolled back": ["begin", "truncate seeded, plain restart identity", "insert into seeded (v) values ('x')", "rollback"],
    "truncated before": ["truncate seeded", "begin", "insert into seeded (v) values ('x')", "rollback"],
    "a table that never was": ["begin", "create table never (id serial primary key)", "insert into never default values",
                               "insert into plain (v) values ('x')", "rollback"],
    "a large object": ["begin", "select lo_from_bytea(0, 'large')", "rollback"],
}  # fmt: skip


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("name", PARTLY)
def test_what_was_committed_beside_it_is_put_back(case: Case, app: Session, name: str, marked: bool) -> None:
    wanted: list[str] = []
    if marked:
        run(app, ["insert into seeded (v) values ('marked')"])
        case.bench.engine.mark()
        wanted = case.differences()
    for _ in range(2):
        run(app, PARTLY[name])
        assert case.reset().ended == ()
        assert case.differences() == wanted


def test_a_transaction_whose_session_was_ended(case: Case, app: Session) -> None:
    with case.bench.app() as other:
        run(other, ["begin", "insert into plain (v) values ('x')", "delete from seeded"])
        case.bench.admin.rows("select pg_terminate_backend(%s, 5000)", (other.pid,))
        with pytest.raises(ServerLost):
            other.execute("commit")
    case.reset()
    case.assert_pristine()
    assert app.value("insert into plain (v) values ('x') returning id") == 1


def test_unlogged_rows_that_were_rolled_back(unlogged: Case) -> None:
    with unlogged.bench.app() as app:
        run(app, ["begin", "insert into fast (v) values ('x')", "delete from fast where id = 1", "rollback"])
        unlogged.reset()
        unlogged.assert_pristine()


def test_dead_rows_of_rolled_back_transactions_do_not_pile_up(case: Case, app: Session) -> None:
    """Nobody else would clean them up here: 600 times 50 rows are 170 pages, and as many of an UPDATE's."""
    for _ in range(600):
        run(app, [
            "begin", "insert into plain (v) select 'row that was rolled back' from generate_series(1, 50)",
            "update seeded set v = 'x'", "rollback",
        ])  # fmt: skip
        assert case.reset().ended == ()
    with case.bench.superuser() as session:
        pages = session.row("select pg_relation_size('plain') / 8192, pg_relation_size('seeded') / 8192")
    assert pages is not None
    assert max(pages) <= 60, pages
    case.assert_pristine()


# --- advisory locks that were there before -----------------------------------------------------------

LOCKS = ("select pg_advisory_lock(1)", "select pg_advisory_lock_shared(1, 2)")


def based_anew(case: Case) -> None:
    """The database is pristine and somebody is in it already: a worker of the application's, started before the tests."""
    case.bench.engine.rebase()


def marked_anew(case: Case) -> None:
    with case.bench.app() as writer:
        writer.execute("insert into seeded (v) values ('marked')")
    case.bench.engine.mark()


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("begin", [based_anew, marked_anew])
def test_a_lock_that_was_there_stays(
    case: Case, app: Session, begin: Callable[[Case], None], lock: str
) -> None:
    with case.bench.app() as queue:
        queue.execute(lock)
        begin(case)
        for statement in ("select 1", "insert into plain (v) values ('x')", "select 1", "truncate plain"):
            app.execute(statement)
            with watched(case.bench.engine) as asked:
                report = case.reset()
            assert report.ended == (), statement
            # Nor is it waited for, asking again and again: a session's lock never goes by itself.
            assert statement != "select 1" or asked.count <= 4, asked.all
        held = "select count(*) from pg_locks where locktype = 'advisory' and granted and pid = %s"
        assert case.bench.admin.value(held, (queue.pid,)) == 1
        assert queue.value("select 1") == 1


@pytest.mark.parametrize("begin", [based_anew, marked_anew])
def test_a_lock_that_a_test_took_goes(case: Case, app: Session, begin: Callable[[Case], None]) -> None:
    with case.bench.app() as queue, case.bench.app() as test:
        queue.execute("select pg_advisory_lock(1)")
        begin(case)
        test.execute("select pg_advisory_lock(2)")
        report = case.reset()
        assert [f"pid {test.pid}" in line for line in report.ended] == [True]
        assert queue.value("select 1") == 1
        # Another lock of the same session is a test's own, like that of any other.
        queue.execute("select pg_advisory_lock(3)")
        report = case.reset()
        assert [f"pid {queue.pid}" in line for line in report.ended] == [True]
    assert app.value("select count(*) from pg_locks where locktype = 'advisory'") == 0


def test_a_lock_that_went_to_another_session_goes(case: Case) -> None:
    with case.bench.app() as queue, case.bench.app() as test:
        queue.execute("select pg_advisory_lock(1)")
        based_anew(case)
        queue.execute("select pg_advisory_unlock(1)")
        test.execute("select pg_advisory_lock(1)")
        report = case.reset()
        assert [f"pid {test.pid}" in line for line in report.ended] == [True]
        assert queue.value("select 1") == 1


# --- a statement that matched nothing ----------------------------------------------------------------

NOTHING = {
    "update": "update seeded set v = 'x' where id = -1",
    "delete": "delete from seeded where id = -1",
    "insert": "insert into seeded (v) select 'x' where false",
    "for update": "select * from seeded where id = -1 for update",
}


@pytest.mark.parametrize("statement", NOTHING)
@pytest.mark.parametrize(
    "dirty",
    [
        "select 1",
        "insert into plain (v) values ('x')",
        "insert into seeded (v) values ('x')",
        "update seeded set v = 'x' where id = 4",
    ],
)
def test_one_that_matched_nothing_and_idles_is_in_nobodys_way(
    case: Case, app: Session, statement: str, dirty: str
) -> None:
    """It holds a lock that keeps others from locking the table, and has written nothing."""
    with case.bench.app() as idle:
        idle.execute("begin")
        idle.execute(NOTHING[statement])
        app.execute(dirty)
        report = case.reset()
        assert report.ended == ()
        assert report.milliseconds < 1000 * PATIENCE / 2
        case.assert_pristine()
        # It goes on, and what it writes now is found by the next one.
        idle.execute("update seeded set v = 'late' where id = 2")
        idle.execute("commit")
        case.reset()
        case.assert_pristine()


@pytest.mark.parametrize(
    "stage", ["before-look", "looked", "before-lock", "locked", "before-commit", "committed"]
)
@pytest.mark.parametrize(
    "dirty", ["insert into seeded (v) values ('x')", "update seeded set v = 'x' where id = 4"]
)
def test_one_that_matched_nothing_goes_on_during_the_reset(
    case: Case, app: Session, stage: str, dirty: str
) -> None:
    """The lock that is not asked for must not be missing: its row is found by this reset or by the next."""
    with case.bench.app(lock_timeout="50ms") as idle:

        def go_on() -> None:
            # Where the row is locked by the reset, it fails: then there is nothing to be found.
            try:
                idle.execute("update seeded set v = 'late' where id in (2, 4)")
                idle.execute("insert into seeded (v) values ('late')")
                idle.execute("commit")
            except ServerRefused:
                idle.execute("rollback")

        idle.execute("begin")
        idle.execute(NOTHING["update"])
        app.execute(dirty)
        at(case, stage, go_on)
        case.reset()
        if not idle.closed:
            idle.execute("rollback")
        case.bench.engine._stage = lambda name: None
        case.reset()
        case.assert_pristine()


# --- after a TRUNCATE, and the end of a session ------------------------------------------------------

TRUNCATING = {
    "the reset's own": ["insert into plain (v) select 'x' from generate_series(1, 9000)"],
    "the application's": ["truncate seeded"],
    "both": ["truncate middling", "insert into plain (v) select 'x' from generate_series(1, 9000)"],
    "cached sequence": ["select nextval('cached')"],
}


@pytest.mark.parametrize("name", TRUNCATING)
def test_a_read_only_test_after_a_truncate_compares_no_catalogs(case: Case, app: Session, name: str) -> None:
    for _ in range(2):
        run(app, TRUNCATING[name])
        assert case.reset().strategy == "restore"
        app.rows("select * from seeded")
        with watched(case.bench.engine) as asked:
            report = case.reset()
        assert (report.strategy, report.rows) == ("nothing", 0)
        # Neither database is asked anything: the log says that nobody has written.
        assert (asked.lease, asked.baseline) == ([], [])
    case.assert_pristine()


@pytest.mark.parametrize(
    "stage", ["before-look", "looked", "before-lock", "before-commit", "committed", "after"]
)
@pytest.mark.parametrize("name", TRUNCATING)
def test_a_schema_that_changes_meanwhile_is_found_all_the_same(
    case: Case, app: Session, name: str, stage: str
) -> None:
    with case.bench.app(lock_timeout="50ms") as other:
        run(app, TRUNCATING[name])
        # Of the same catalogs, and of those that a TRUNCATE writes: pg_class.
        at(case, stage, lambda: other.execute("create table meanwhile (id integer)"))
        found = None
        try:
            case.reset()
            if stage == "after":
                other.execute("create table meanwhile (id integer)")
            case.reset()
        except RecloneNeeded as error:
            found = error
        # before-commit is reached only where rows were looked at first.
        made = other.value("select to_regclass('meanwhile') is not null")
    assert bool(found) == bool(made)


def test_a_session_is_ended_without_the_servers_slow_wait(case: Case) -> None:
    """``pg_terminate_backend(pid, timeout)`` looks once in 100 ms."""
    case.bench.engine.limits = Limits(0.05)
    held = [case.bench.app() for _ in range(3)]
    pids = [session.pid for session in held]
    for session in held:
        run(session, ["begin", "insert into plain (v) values ('x')"])
    with watched(case.bench.engine) as asked:
        report = case.reset()
    left = case.bench.admin.value("select count(*) from pg_stat_activity where pid = any(%s)", (pids,))
    for session in held:
        session.close()
    assert left == 0
    assert len(report.ended) == 3
    ending = [text for text in asked.all if "pg_terminate_backend" in text]
    assert ending
    assert [text for text in ending if re.search(r"pg_terminate_backend\([^()]*,", text)] == []
    case.assert_pristine()


def test_all_sessions_are_gone_when_their_end_was_asked_for(case: Case) -> None:
    held = [case.bench.app() for _ in range(5)]
    with watched(case.bench.engine) as asked:
        report = case.reset(sessions="end")
    query = "select count(*) from pg_stat_activity where datname = 'cheap' and application_name = 'app'"
    assert case.bench.admin.value(query) == 0
    for session in held:
        session.close()
    assert len(report.ended) == 5
    assert not [text for text in asked.all if re.search(r"pg_terminate_backend\([^()]*,", text)]
