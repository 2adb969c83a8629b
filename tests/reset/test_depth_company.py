"""Company between the two transactions of a reset: what the first has deleted comes back, whatever happens to the second."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest
from fix_reset_case import Case
from fix_reset_servers import Server, dispose

from harness.errors import LeaseError, ServerLost
from harness.postgres.session import Session
from harness.reset import vacuum
from harness.reset.changes import RecloneNeeded
from harness.reset.engine import ResetEngine

SCHEMA = """
create table seeded (id serial primary key, v text);
insert into seeded (v) select 'row ' || i from generate_series(1, 1500) i;
create table few (id serial primary key, v text);
insert into few (v) values ('a'), ('b');
create table plain (id serial primary key, v text);
"""


@pytest.fixture(scope="module")
def shared(reset_server: Server) -> Iterator[Case]:
    case = Case(reset_server, "between", SCHEMA)
    yield case
    dispose(case.bench)


@pytest.fixture
def other(case: Case) -> Iterator[Session]:
    with case.bench.app(lock_timeout="50ms") as session:
        yield session


def when(case: Case, acts: dict[tuple[str, int], Callable[[], object]]) -> list[str]:
    """Do something when a stage is reached for the n-th time; the list of stages grows with the reset."""
    seen: list[str] = []

    def reached(stage: str) -> None:
        seen.append(stage)
        if act := acts.pop((stage, seen.count(stage)), None):
            act()

    case.bench.engine._stage = reached
    return seen


def test_rows_that_were_all_to_be_written_again_come_back_where_no_lock_is_to_be_had(
    case: Case, app: Session, other: Session
) -> None:
    """All rows were deleted, because somebody's row took a free place; and then somebody holds the table."""
    app.execute("update seeded set v = 'changed' where id = 500")
    acts: dict[tuple[str, int], Callable[[], object]] = {
        ("before-commit", 1): lambda: other.execute("insert into seeded (v) values ('came between')"),
        ("before-vacuum", 2): lambda: app.script("begin; insert into seeded (v) values ('holds it')"),
    }
    seen = when(case, acts)
    report = case.reset()
    assert not acts, seen
    assert report.strategy == "restore"
    case.assert_pristine()
    case.reset()
    case.assert_pristine()


def test_rows_of_several_tables_are_known_where_they_lie_after_a_writer_that_goes_on(
    case: Case, app: Session, other: Session
) -> None:
    """With the locks first all tables are written again in one transaction: each of them is told where its rows are."""
    app.script("update seeded set v = 'changed' where id < 9; update few set v = 'changed'")
    acts: dict[tuple[str, int], Callable[[], object]] = {
        ("before-vacuum", 1): lambda: other.execute("insert into plain (v) values ('came between')"),
        ("before-look", 2): lambda: other.execute("update plain set v = 'and again'"),
    }
    when(case, acts)
    case.reset()
    case.assert_pristine()
    for _ in range(3):
        app.script("insert into seeded (v) values ('x'); insert into few (v) values ('y')")
        case.reset()
        case.assert_pristine()


def test_a_writer_between_the_two_transactions_is_found(case: Case, app: Session, other: Session) -> None:
    app.execute("delete from few where id = 1")
    acts: dict[tuple[str, int], Callable[[], object]] = {
        ("before-vacuum", 1): lambda: other.script(
            "insert into plain (v) values ('came between'); delete from few where id = 2"
        )
    }
    when(case, acts)
    case.reset()
    assert not acts
    case.assert_pristine()


def test_new_files_of_a_first_transaction_are_remembered_where_the_second_fails(
    case: Case, app: Session, other: Session
) -> None:
    """A TRUNCATE of ours was committed, and the rows of another table could not be put back."""
    app.script("insert into plain (v) select 'x' from generate_series(1, 6000); update few set v = 'changed'")
    acts: dict[tuple[str, int], Callable[[], object]] = {
        ("before-vacuum", 1): lambda: other.script("begin; lock table few in row exclusive mode"),
        ("before-look", 2): lambda: other.execute("rollback"),
    }
    when(case, acts)
    case.reset()
    case.assert_pristine()
    with case.bench.superuser() as session:
        known = case.bench.engine._tracker.files
        oids = [
            oid
            for oid, r in case.bench.engine.store.relations.items()
            if r.name in ("plain", "few", "seeded")
        ]
        for oid in oids:
            assert known[oid] == session.value("select pg_relation_filenode(%s::oid)::int8", (oid,))


def test_a_session_that_holds_a_lock_and_writes_at_the_last_moment_is_found(
    case: Case, app: Session, other: Session
) -> None:
    """No lock keeps it out: so the log is read up to a position behind our COMMIT, also where one transaction did it all."""
    other.script("begin; update plain set v = v where false")
    app.execute("insert into plain (v) values ('x')")
    when(
        case,
        {
            ("before-lock", 2): lambda: other.script("insert into plain (v) values ('late'); commit"),
            ("before-commit", 1): lambda: other.script("insert into plain (v) values ('later'); commit"),
        },
    )
    case.reset()
    case.assert_pristine()


def test_a_prepared_transaction_that_has_written_nothing_is_rolled_back(case: Case, app: Session) -> None:
    app.script("begin; update plain set v = v where false; prepare transaction 'empty'")
    report = case.reset()
    assert report.ended == ('prepared transaction "empty"',)
    app.execute("truncate plain")


def test_rolled_back_rows_beside_an_idle_reader_cost_no_wait_for_its_lock(
    case: Case, app: Session, other: Session
) -> None:
    """A VACUUM waits 5 s for the lock to make a file shorter; nobody asks it to while somebody may hold one."""
    asked: list[str] = []
    execute = vacuum.free_places

    def noted(session: Session, tables: Sequence[str], *, truncate: bool) -> None:
        asked.append(f"{tables} {truncate}")
        execute(session, tables, truncate=truncate)

    other.script("begin; select * from plain")
    app.script("begin; insert into plain (v) select 'x' from generate_series(1, 900); rollback")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vacuum, "free_places", noted)
        assert case.reset().ended == ()
    assert asked == ['[\'"public"."plain"\'] False']


def test_a_restore_that_is_not_worth_it_without_a_truncate_is_a_clone(
    case: Case, app: Session, other: Session
) -> None:
    app.script(
        "insert into plain (v) select 'x' from generate_series(1, 20000); update seeded set v = v || '!' where id < 900"
    )
    other.script("begin; select * from plain")
    with pytest.MonkeyPatch.context() as patched:
        # More than the rows take, and less than 20,000 deletions besides.
        patched.setattr(ResetEngine, "_worth", 50.0)
        # After a checkpoint there are whole pages in the log, which then is too much to read.
        with pytest.raises(RecloneNeeded, match=r"a clone is worth|cost more than a clone"):
            case.reset()
    case.bench.reclone()


def test_the_settings_of_an_open_transaction_are_not_forgotten_where_changes_are_asked_for(
    case: Case,
) -> None:
    with case.bench.server.session() as elsewhere:
        elsewhere.script("begin; alter role app set work_mem = '123kB'")
        case.reset()
        elsewhere.execute("commit")
        case.bench.engine.changes()
        case.reset()
        found = elsewhere.value(
            "select count(*) from pg_db_role_setting where setconfig::text like '%%work_mem=123kB%%'"
        )
        elsewhere.execute("alter role app reset work_mem")
    assert found == 0


def test_a_mark_beside_a_writer_that_goes_on_ends(case: Case) -> None:
    stop = threading.Event()

    def write() -> None:
        with suppress(ServerLost), case.bench.app() as session:
            while not stop.is_set():
                session.execute("update few set v = v where id = 1")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with suppress(LeaseError):
            case.bench.engine.mark().release()
    finally:
        stop.set()
        writer.join(20)
    assert not writer.is_alive()
    case.reset_or_clone()
    case.assert_pristine()


def test_a_table_that_was_made_and_dropped_before_a_mark_costs_no_clone_after_it(
    case: Case, app: Session
) -> None:
    app.script(
        "create table gone (i integer); insert into gone values (1); insert into plain (v) values ('marked')"
    )
    app.execute("drop table gone")
    mark = case.bench.engine.mark()
    case.reset()
    mark.release()
    assert case.reset().strategy == "restore"
    case.assert_pristine()
