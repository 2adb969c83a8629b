"""Who is in the way of a rewind: waited for, named and ended as by rows; and where nobody can be, rows are put back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from fix_reset_case import at
from fix_reset_servers import Server, dispose, drop, make_databases
from fix_rewind import RewindCase
from fix_rewind_module import Rewinder

from harness.errors import HarnessError, ServerRefused
from harness.postgres.session import Session
from harness.reset.changes import RecloneNeeded

SCHEMA = """
create table people (id serial primary key, v text);
insert into people (v) select 'row ' || i from generate_series(1, 30) i;
create table others (id serial primary key, v text);
create table never (id serial primary key, v text);
"""


@pytest.fixture(scope="module")
def shared(reset_server: Server, rewind_schema: Callable[[Server], str]) -> Iterator[RewindCase]:
    case = RewindCase(reset_server, "rewindway", SCHEMA, module=rewind_schema(reset_server))
    yield case
    dispose(case.bench)


@pytest.mark.parametrize("left", ["begin", "begin; select * from never", "begin; select * from others"])
def test_who_idles_in_a_transaction_and_only_read_stays(case: RewindCase, app: Session, left: str) -> None:
    """He holds locks on what he has read, and looks at it again as if nothing had been."""
    with case.bench.app() as idle:
        idle.script(left)
        for _ in range(2):
            app.execute("insert into others (v) select 'x' from generate_series(1, 1000)")
            case.rewound("others")
            assert idle.rows("select v from others") == []
        idle.execute("commit")


def test_who_still_sees_what_was_before_is_ended(case: RewindCase, app: Session) -> None:
    with case.bench.app() as reader:
        reader.script("begin isolation level repeatable read; select * from never")
        app.execute("insert into others (v) values ('x')")
        report = case.reset()
        assert report.strategy == "rewind"
        assert len(report.ended) == 1
    case.assert_exact()


def test_who_wrote_and_idles_is_ended_and_then_pages_are_put_back(case: RewindCase) -> None:
    with case.bench.app() as idle:
        idle.script("begin; insert into people (v) values ('never committed'); create index on people (v)")
        report = case.reset()
    assert report.strategy == "rewind"
    assert ["idle in transaction" in session for session in report.ended] == [True]
    case.assert_exact()


def test_a_statement_that_runs_is_waited_for(case: RewindCase) -> None:
    with case.bench.app() as busy:
        writer = threading.Thread(
            target=lambda: busy.script("select pg_sleep(0.2); insert into people (v) values ('late')")
        )
        writer.start()
        while not case.bench.admin.rows("select from pg_stat_activity where query like 'select pg_sleep%%'"):
            time.sleep(0.005)
        report = case.reset()
        writer.join()
    assert (report.strategy, report.tables, report.ended) == ("rewind", ("people", "people_id_seq"), ())
    case.assert_exact()


def test_new_advisory_locks_are_waited_for_and_their_session_is_ended(case: RewindCase, app: Session) -> None:
    with case.bench.app() as locked:
        locked.rows("select pg_advisory_lock(42)")
        app.execute("insert into people (v) values ('x')")
        report = case.reset()
        assert report.strategy == "rewind"
        assert len(report.ended) == 1
        with pytest.raises(HarnessError):
            locked.rows("select 1")
    assert app.rows("select 1") == [(1,)]
    case.assert_exact()


def test_advisory_locks_from_before_stay(case: RewindCase, app: Session) -> None:
    app.rows("select pg_advisory_lock(7), pg_advisory_lock_shared(8, 9)")
    case.bench.engine.changes()
    for _ in range(2):
        app.execute("insert into people (v) values ('x')")
        assert case.rewound("people").ended == ()
    assert app.rows("select pg_advisory_unlock(7)") == [(True,)]


def test_prepared_transactions_are_rolled_back(case: RewindCase, app: Session) -> None:
    app.script("begin; insert into people (v) values ('x'); prepare transaction 'two'")
    report = case.reset()
    assert (report.strategy, report.ended) == ("rewind", ('prepared transaction "two"',))
    case.assert_exact()


def test_somebody_who_comes_between_the_reading_and_the_report_is_for_the_next_reset(
    case: RewindCase,
) -> None:
    with case.bench.app() as app:
        app.execute("insert into people (v) values ('before')")
        at(case, "rewound", lambda: app.execute("insert into people (v) values ('after')"))
        assert case.reset().strategy == "rewind"
        case.bench.engine._stage = lambda name: None
        assert app.rows("select v from people where id > 30") == [("after",)]
        case.rewound("people")


def test_who_writes_without_a_pause_never_makes_it_wrong(case: RewindCase) -> None:
    """Whatever becomes of each reset: in a table that he leaves alone nothing is left, and once he is gone all is as it was."""
    stop = threading.Event()

    def write() -> None:
        with case.bench.app() as writer:
            try:
                while not stop.is_set():
                    writer.execute("insert into others (v) values ('again')")
            except HarnessError:
                return  # ended

    with case.bench.app() as app:
        writers = [threading.Thread(target=write) for _ in range(2)]
        for writer in writers:
            writer.start()
        try:
            for _ in range(10):
                try:
                    app.script("insert into people (v) values ('x'); insert into never (v) values ('y')")
                    case.reset()
                    assert app.rows("select v from people where id > 30 union all select v from never") == []
                except RecloneNeeded:
                    stop.set()
                    for writer in writers:
                        writer.join()
                    case.bench.reclone()
                    break
        finally:
            stop.set()
            for writer in writers:
                writer.join()
    with case.bench.app() as app:
        # Both writers may have ended before they wrote any more: then there was nothing to do.
        app.execute("insert into people (v) values ('x')")
    case.rewound()


def test_two_workers_on_one_server_do_not_see_each_other(
    reset_server: Server, rewind_schema: Callable[[Server], str]
) -> None:
    cases = [
        RewindCase(reset_server, f"rewindtwo{n}", SCHEMA, module=rewind_schema(reset_server))
        for n in range(2)
    ]

    def work(case: RewindCase) -> None:
        with case.bench.app() as app:
            for turn in range(10):
                app.script(f"insert into people (v) select 'x' from generate_series(1, {10 * turn + 1})")
                if turn % 3 == 0:
                    app.script("create table t (id serial); alter table others add column more text")
                case.rewound("people")

    try:
        with ThreadPoolExecutor() as workers:
            assert list(workers.map(work, cases)) == [None, None]
    finally:
        for case in cases:
            dispose(case.bench)


def test_who_is_in_the_way_of_what_would_be_a_clone_is_ended_alone(case: RewindCase, app: Session) -> None:
    """Rows cannot undo DDL. A clone would have ended all sessions, not only the one that still sees what was before."""
    with case.bench.app() as reader:
        reader.script("begin isolation level repeatable read; select * from never")
        app.script("alter table people add column extra text; create index on others (v)")
        report = case.reset()
    assert report.strategy == "rewind"
    assert ["idle in transaction" in session for session in report.ended] == [True]
    assert app.rows("select count(*) from people") == [(30,)]
    case.assert_exact()


def test_readers_without_a_pause_are_no_reason_for_a_clone(case: RewindCase, app: Session) -> None:
    stop = threading.Event()

    def read() -> None:
        with case.bench.app() as reader:
            while not stop.is_set():
                reader.rows("select * from people")

    with ThreadPoolExecutor(2) as readers:
        found = [readers.submit(read) for _ in range(2)]
        try:
            for _ in range(10):
                app.script("alter table people add column extra text; create index on others (v)")
                assert case.reset().strategy == "rewind"
        finally:
            stop.set()
        for reader in found:
            reader.exception()
    case.reset()
    case.assert_exact()


def test_who_reads_what_is_to_be_cut_off_and_does_not_fetch_on_is_an_error(reset_server: Server) -> None:
    """Whoever idles in his transaction may read on at any moment; a page that he holds could be waited for without an end."""
    admin = make_databases(reset_server, "rewindpins", SCHEMA)
    rewinder = Rewinder(reset_server, "rewindpins", "rewindpins_z", ("SLOW_CUT",))
    try:
        with (
            Session.connect(reset_server.dsn("rewindpins", "app")) as reader,
            Session.connect(reset_server.dsn("rewindpins", "app")) as writer,
            ThreadPoolExecutor() as threads,
        ):
            reader.script("begin; select * from others")
            writer.execute("insert into others (v) select repeat('x', 1000) from generate_series(1, 5000)")
            rewind = threads.submit(rewinder.rewind)
            while (
                admin.value("select state from pg_stat_activity where pid = %s", (rewinder.admin.pid,))
                != "active"
            ):
                time.sleep(0.005)
            time.sleep(0.3)
            reader.execute("declare c cursor for select id from others where id > 4000")
            reader.rows("fetch 1 from c")
            began = time.monotonic()
            with pytest.raises(ServerRefused, match="went on before pages were cut off"):
                rewind.result()
            assert time.monotonic() - began < 5
            assert len(reader.rows("fetch all from c")) == 999
    finally:
        rewinder.admin.close()
        for suffix in ("", "_t", "_z"):
            drop(admin, f"rewindpins{suffix}")
        admin.close()
