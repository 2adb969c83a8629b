"""Locks and sessions that never give way: a reset waits as long as it is told to, names them, and ends them or takes a clone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from fix_reset_servers import Server, dispose
from fix_rewind import RewindCase

from harness.errors import HarnessError, ServerLost, ServerRefused
from harness.postgres.session import Session
from harness.reset.changes import RecloneNeeded

SCHEMA = """
create table people (id serial primary key, v text);
insert into people (v) select 'row ' || i from generate_series(1, 300) i;
create table others (id serial primary key, v text);
"""

PATIENT = 0.4
"""Seconds that a reset of these waits for others."""

BOUND = 8.0
"""Seconds after which it must have decided, on a loaded machine: what it waits, and what an ended session may take to go."""


@pytest.fixture(scope="module")
def shared(reset_server: Server, rewind_schema: Callable[[Server], str]) -> Iterator[RewindCase]:
    case = RewindCase(
        reset_server, "rewindnever", SCHEMA, module=rewind_schema(reset_server), reset_timeout=PATIENT
    )
    yield case
    dispose(case.bench)


MODES = [
    "row share", "row exclusive", "share update exclusive", "share", "share row exclusive", "exclusive", "access exclusive",
]  # fmt: skip

DIRTY = {
    "a row": "insert into people (v) values ('x')",
    "ddl": "alter table people add column more text; create index on people (v)",
}


@pytest.mark.parametrize("dirty", DIRTY.values(), ids=list(DIRTY))
@pytest.mark.parametrize("mode", MODES)
def test_whoever_keeps_a_lock_stays_or_is_ended(
    case: RewindCase, app: Session, mode: str, dirty: str
) -> None:
    for statement in dirty.split(";"):
        app.execute(statement)
    with case.bench.app() as holder:
        holder.script(f"begin; lock table people in {mode} mode")
        began = time.monotonic()
        report = case.reset()
        assert time.monotonic() - began < BOUND
        if report.ended:
            assert ["idle in transaction" in one and f"pid {holder.pid}" in one for one in report.ended] == [
                True
            ]
        else:
            # He may go on, and sees what is there now.
            assert holder.value("select count(*) from people") == 300
            holder.execute("commit")
    case.reset()
    case.assert_pristine()


def test_a_prepared_transaction_that_locks_is_rolled_back(case: RewindCase, app: Session) -> None:
    app.execute("alter table people add column more text")
    with case.bench.app() as other:
        other.script(
            "begin; lock table people in share mode; insert into others (v) values ('x'); prepare transaction 'stays'"
        )
    began = time.monotonic()
    report = case.reset()
    assert time.monotonic() - began < BOUND
    assert report.ended == ('prepared transaction "stays"',)
    case.assert_exact()


def test_an_advisory_lock_is_waited_for_and_its_holder_named(case: RewindCase, app: Session) -> None:
    app.execute("alter table people add column more text")
    with case.bench.app() as other:
        other.rows("select pg_advisory_lock(4711)")
        began = time.monotonic()
        report = case.reset()
        assert time.monotonic() - began < BOUND
        assert [f"pid {other.pid}" in one for one in report.ended] == [True]
    case.assert_exact()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("dirty", ["insert into people (v) values ('x')", "truncate people"])
def test_a_process_that_does_not_answer_is_named_and_all_is_well_once_it_does(
    case: RewindCase, app: Session, dirty: str
) -> None:
    """Stopped in the middle of a statement, as by a debugger, or a machine that hangs: it ends only when it runs again."""
    if case.bench.server.data is None:
        pytest.skip("its processes are in a container")
    with case.bench.app() as stopped:
        runs = threading.Thread(target=_run, args=(stopped,))
        runs.start()
        while not case.bench.admin.rows(
            "select from pg_stat_activity where query like 'select pg_sleep(2%%'"
        ):
            time.sleep(0.005)
        os.kill(stopped.pid, signal.SIGSTOP)
        try:
            app.execute(dirty)
            began = time.monotonic()
            with pytest.raises(RecloneNeeded, match=rf"1 session does not end: .*pid {stopped.pid}"):
                case.reset()
            assert time.monotonic() - began < PATIENT + BOUND
        finally:
            os.kill(stopped.pid, signal.SIGCONT)
            runs.join()
    case.bench.reclone()
    case.assert_exact()
    with case.bench.app() as again:
        again.execute(dirty)
        case.rewound("people")


def _run(session: Session) -> None:
    try:
        session.rows("select pg_sleep(20)")
    except (ServerLost, ServerRefused):
        return


@pytest.mark.timeout(120)
def test_a_process_of_another_database_that_does_not_answer_is_no_reason_to_wait_for_ever(
    case: RewindCase, app: Session
) -> None:
    """Where files were dropped, every process has to close them: one that hangs is waited for, and then it is a clone."""
    if case.bench.server.data is None:
        pytest.skip("its processes are in a container")
    with case.bench.server.session() as stopped:
        os.kill(stopped.pid, signal.SIGSTOP)
        try:
            app.execute("truncate people")
            began = time.monotonic()
            with pytest.raises(RecloneNeeded, match="statement timeout"):
                case.reset()
            assert time.monotonic() - began < PATIENT + BOUND
            app.execute("select 1")
        finally:
            os.kill(stopped.pid, signal.SIGCONT)
    case.bench.reclone()
    with case.bench.app() as again:
        again.execute("truncate people")
        case.rewound("people")


def test_who_writes_without_a_pause_in_another_session(case: RewindCase) -> None:
    """At the deadline he is ended; what is reported as pristine is so at that moment in what he leaves alone."""
    stop = threading.Event()

    def write(session: Session) -> None:
        try:
            while not stop.is_set():
                session.execute("insert into others (v) values ('again')")
        except HarnessError:
            return

    with case.bench.app() as app, case.bench.app() as writing:
        writer = threading.Thread(target=write, args=(writing,))
        writer.start()
        try:
            for number in range(6):
                app.script(
                    f"create table t{number} (id serial primary key); insert into people (v) values ('x')"
                )
                began = time.monotonic()
                report = case.reset()
                assert time.monotonic() - began < 2 * BOUND
                assert app.rows("select v from people where id > 300") == []
                assert app.value(f"select to_regclass('t{number}')") is None
                assert report.strategy == "rewind"
        finally:
            stop.set()
            writer.join()
    # He may have been ended by the last reset, and nothing have been written since.
    with case.bench.app() as app:
        app.execute("insert into people (v) values ('x')")
    case.rewound()
