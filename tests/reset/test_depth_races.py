"""Somebody who goes on during a reset: whatever commits, and whenever, the next reset finds it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from fix_reset_between import watched
from fix_reset_case import Case, at
from fix_reset_servers import Server, dispose

from harness.errors import LeaseError, ServerLost, ServerRefused
from harness.postgres.session import Session
from harness.reset.changes import Changes
from harness.reset.engine import Limits

SCHEMA = """
create table plain (id bigint generated always as identity primary key, v text);
create table seeded (id serial primary key, v text);
insert into seeded (v) select 'row ' || i from generate_series(1, 100) i;
create table other (id serial primary key, v text); insert into other (v) values ('kept');
create table held (id serial primary key, v text);
insert into held (v) select 'row ' || i from generate_series(1, 3000) i;
"""

# What the test had written: nothing, rows, and what names pg_class in the log.
DIRTY = {
    "nothing": "select 1",
    "rows": "insert into plain (v) values ('x')",
    "rows of the same": "update seeded set v = 'x' where id < 4; insert into plain (v) values ('x')",
    "a new file": "truncate other; insert into plain (v) values ('x')",
    "a temporary table": "create temp table if not exists mine (id integer); insert into plain (v) values ('x'); drop table mine",
    "a new file of the same": "truncate seeded; insert into seeded (v) values ('x')",
}

ACTS = {
    "truncate": "truncate seeded",
    "truncate and insert": "truncate seeded; insert into seeded (v) values ('after')",
    "truncate both": "truncate plain, seeded restart identity",
    "truncate a larger one": "truncate held",
    "truncate, rolled back": "begin; truncate seeded; rollback",
    "a new file with the same rows": "vacuum full seeded",
    "insert": "insert into seeded (v) values ('meanwhile'); insert into plain (v) values ('meanwhile')",
    "delete": "delete from seeded where id = 9; delete from held where id = 9",
}


@pytest.fixture(scope="module")
def shared(reset_server: Server) -> Iterator[Case]:
    case = Case(reset_server, "depthraces", SCHEMA, reset_timeout=5)
    yield case
    dispose(case.bench)


@pytest.fixture
def clean(case: Case) -> Iterator[Case]:
    """Without marks, and as patient as the module's one."""
    while case.bench.engine._marks.top is not None:
        case.bench.engine._marks.pop()
    case.bench.engine._tracker.pending = Changes()
    case.bench.reclone()
    yield case
    case.bench.engine.limits = Limits(5)


def differences(case: Case) -> list[str]:
    """From a fresh clone; of the table that is put back by its blocks the rows and not their order."""
    query = "select count(*), sum(hashtextextended(t::text, 5)) from held t"
    found = [line for line in case.differences() if not line.startswith("rows of held:")]
    with case.bench.superuser() as session, case.bench.server.session("depthraces_fresh") as fresh:
        rows, wanted = session.row(query), fresh.row(query)
    return found if rows == wanted else [*found, f"held: {rows} instead of {wanted}"]


class Rival:
    """Another session of the application; opened again after a clone."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.session: Session | None = None

    def now(self, statements: str) -> bool:
        """Whether it got through: a reset that holds the locks is not waited for."""
        if self.session is None or self.session.closed:
            self.session = self.case.bench.app(lock_timeout="10ms")
        try:
            self.session.script(statements)
        except ServerRefused as error:
            if error.sqlstate != "55P03":
                raise
            self.session.execute("rollback")
            return False
        return True

    def close(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = None


@pytest.fixture
def rival(clean: Case) -> Iterator[Rival]:
    made = Rival(clean)
    yield made
    made.close()


@contextmanager
def written(case: Case, statements: str) -> Iterator[None]:
    """By a session that is there for the block."""
    with case.bench.app() as app:
        app.script(statements)
        yield


@pytest.mark.parametrize("stage", ["before-look", "looked", "before-lock", "committed"])
@pytest.mark.parametrize("act", ["truncate", "truncate both", "truncate a larger one"])
@pytest.mark.parametrize("dirty", DIRTY)
def test_what_commits_at_a_stage_of_a_reset_is_put_back(
    clean: Case, rival: Rival, dirty: str, act: str, stage: str
) -> None:
    rival.now("select 1")
    with written(clean, DIRTY[dirty]):
        at(clean, stage, lambda: rival.now(ACTS[act]))
        clean.reset_or_clone()
        rival.close()
        clean.reset_or_clone()
    assert differences(clean) == []


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dirty", ["rows", "a new file", "a temporary table", "a new file of the same"])
def test_what_commits_between_any_two_statements_of_a_reset_is_put_back(
    clean: Case, rival: Rival, dirty: str, act: str
) -> None:
    """After each statement that the reset sends in turn, until it sends no more."""
    for after in range(1, 100):
        rival.now("select 1")
        with written(clean, DIRTY[dirty]):
            with watched(clean.bench.engine, lambda: rival.now(ACTS[act]), after=after) as asked:
                if clean.reset_or_clone() not in ("restore", "nothing"):
                    rival.close()
            first = clean.reset_or_clone()
        assert (after, asked.fired[-200:], first, differences(clean)) == (
            after,
            asked.fired[-200:],
            first,
            [],
        )
        if not asked.fired:
            return
    pytest.fail("a reset of more than a hundred statements")


@pytest.mark.parametrize(
    "act", ["truncate", "truncate and insert", "truncate a larger one", "insert", "delete"]
)
@pytest.mark.parametrize("dirty", ["rows", "a new file", "a temporary table"])
def test_what_commits_between_any_two_statements_of_a_mark_is_in_it_or_put_back(
    clean: Case, rival: Rival, dirty: str, act: str
) -> None:
    for after in range(1, 100):
        rival.now("select 1")
        with (
            written(clean, DIRTY[dirty]),
            watched(clean.bench.engine, lambda: rival.now(ACTS[act]), after=after) as asked,
        ):
            try:
                mark = clean.bench.engine.mark()
            except LeaseError:
                mark = None  # it may refuse; it may not be wrong
        told = (after, asked.fired[-200:])
        if mark is not None:
            clean.reset_or_clone()
            marked = differences(clean)
            # What the mark holds is the same however it is come back to.
            with written(
                clean,
                "update held set v = 'x' where id < 3; delete from seeded; insert into plain (v) values ('y')",
            ):
                clean.reset_or_clone()
            assert (told, differences(clean)) == (told, marked)
            mark.release()
        rival.close()
        first = clean.reset_or_clone()
        assert (told, first, differences(clean)) == (told, first, [])
        clean.reset_or_clone()
        assert (told, differences(clean)) == (told, [])
        if not asked.fired:
            return
    pytest.fail("a mark of more than a hundred statements")


# --- statements that run and have not written yet ----------------------------------------------------


class InFlight:
    """A statement that runs in a thread."""

    def __init__(self, case: Case, statement: str, event: str = "PgSleep") -> None:
        self.case = case
        self.session = case.bench.app()
        self.lost = False
        self.refused = ""
        self.thread = threading.Thread(target=self._run, args=(statement,))
        self.thread.start()
        self.until(event)

    def _run(self, statement: str) -> None:
        try:
            self.session.script(statement)
        except ServerLost:
            self.lost = True
        except ServerRefused as error:
            self.refused = error.sqlstate

    def until(self, event: str) -> None:
        """Until the server says that it waits there: before its first write."""
        deadline = time.monotonic() + 10
        query = (
            "select state = 'active' and coalesce(wait_event, '') = %s from pg_stat_activity where pid = %s"
        )
        while not self.case.bench.admin.value(query, (event, self.session.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def end(self) -> None:
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.session.close()


LATE = {
    "do": "do $$ begin perform pg_sleep(0.4); insert into plain (v) values ('late'); end $$",
    "function": "select late()",
    "insert … select": "insert into seeded (v) select 'late' from pg_sleep(0.4)",
    "sequence": "select nextval('seeded_id_seq') from pg_sleep(0.4)",
    "in a transaction": "begin; select pg_sleep(0.4); update seeded set v = 'late'; commit",
    "truncate": "select pg_sleep(0.4); truncate seeded",
}


def _clean_log(case: Case) -> None:
    for _ in range(3):
        case.reset()


def _noise(case: Case) -> None:
    _clean_log(case)
    # In the log, and no change: the plan is to do nothing.
    with written(case, "begin; select * from seeded for update; commit"):
        pass


def _after_a_restore(case: Case) -> None:
    with written(case, "insert into plain (v) values ('x')"):
        case.reset()


BEFORE: dict[str, Callable[[Case], None]] = {
    "an unmoved log": _clean_log,
    "noise": _noise,
    "a restore": _after_a_restore,
}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("late", [name for name in LATE if name != "function"])
def test_a_statement_that_has_not_written_yet_is_waited_for(clean: Case, before: str, late: str) -> None:
    BEFORE[before](clean)
    flying = InFlight(clean, LATE[late])
    try:
        report = clean.reset()
        found = differences(clean)
    finally:
        flying.end()
    # Nothing of it may come later, either: in the next test.
    assert (found, differences(clean)) == ([], [])
    assert report.ended == ()
    assert (flying.lost, flying.refused) == (False, "")


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("late", ["do", "sequence"])
def test_one_that_takes_longer_than_the_patience_is_ended_and_named(
    clean: Case, before: str, late: str
) -> None:
    BEFORE[before](clean)
    clean.bench.engine.limits = Limits(0.1)
    flying = InFlight(clean, LATE[late].replace("0.4", "20"))
    pid = flying.session.pid
    try:
        report = clean.reset()
    finally:
        flying.session.connection.cancel()
        flying.end()
    assert [f"pid {pid}," in line for line in report.ended] == [True]
    assert flying.lost
    assert differences(clean) == []


def test_under_a_mark_it_is_waited_for_as_well(clean: Case) -> None:
    with written(clean, "insert into seeded (v) values ('marked'); update other set v = 'marked'"):
        clean.bench.engine.mark()
    _clean_log(clean)
    marked = differences(clean)
    flying = InFlight(clean, LATE["do"])
    try:
        clean.reset()
        found = differences(clean)
    finally:
        flying.end()
    assert (found, differences(clean)) == (marked, marked)


def test_a_mark_waits_for_it(clean: Case) -> None:
    """Written after the mark was set, it would be taken away by the first reset from the tests that follow."""
    _clean_log(clean)
    flying = InFlight(clean, LATE["do"])
    try:
        clean.bench.engine.mark()
    finally:
        flying.end()
    clean.reset()
    with clean.bench.superuser() as session:
        assert session.value("select count(*) from plain") == 1


def test_one_that_waits_for_a_lock_of_a_reader(clean: Case) -> None:
    _clean_log(clean)
    clean.bench.engine.limits = Limits(0.2)
    with clean.bench.app() as reader:
        reader.execute("begin")
        reader.execute("lock table seeded in share mode")
        flying = InFlight(clean, "update seeded set v = 'late'", event="relation")
        try:
            clean.reset()
            with suppress(ServerLost):
                reader.execute("commit")
        finally:
            flying.session.connection.cancel()
            flying.end()
    assert differences(clean) == []


def test_those_who_only_wait_between_statements_are_left_alone(clean: Case) -> None:
    """A pool's idle sessions, one that listens, one that is idle in a transaction and only read."""
    _clean_log(clean)
    sessions = [clean.bench.app() for _ in range(4)]
    sessions[1].execute("listen told")
    sessions[2].execute("begin")
    sessions[2].rows("select * from seeded")
    report = clean.reset()
    assert (report.strategy, report.ended) == ("nothing", ())
    assert report.milliseconds < 2000
    assert [session.value("select 1") for session in sessions] == [1] * 4
    for session in sessions:
        session.close()
