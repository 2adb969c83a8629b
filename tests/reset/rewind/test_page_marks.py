"""Marks of pages: states with all that a schema can be made of, on a stack, in a clone, and with others in the way."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from fix_reset_servers import Server, dispose
from fix_rewind import RewindCase, count_on, exactly, module_on
from fix_rewind_hurt import hurt, log_of

from harness.errors import LeaseError, ServerLost, ServerRefused
from harness.postgres.session import Session
from harness.reset.changes import RecloneNeeded
from harness.reset.marks import Mark
from harness.reset.rewind.module import Prepared

SCHEMA = """
create table people (id serial primary key, v text);
insert into people (v) select 'row ' || i from generate_series(1, 300) i;
create table others (id serial primary key, person integer references people (id), v text);
create table doomed (id serial primary key, v text unique);
insert into doomed (v) select 'd' || i from generate_series(1, 50) i;
create unlogged table scratch (id integer primary key, v text);
insert into scratch select i, 'u' from generate_series(1, 20) i;
create materialized view counted as select count(*) from people;
"""

FAR = (
    "insert into others (person, v) select 1 + i % 300, repeat('o', i % 700) from generate_series(1, 3000) i;"
    "drop table doomed; truncate scratch; alter table people add column born date default '2001-01-01';"
    "create table late (id serial primary key, v text); insert into late (v) select repeat('l', 3000) from generate_series(1, 20);"
    "refresh materialized view counted; create index people_v on people (v); update people set v = v || '!' where id % 3 = 0;"
    "create type mood as enum ('fine'); select lo_from_bytea(4711, 'large'); comment on table people is 'marked'"
)

FURTHER = (
    "drop table late; create table doomed (id integer); alter table people drop column born; delete from others where id % 2 = 0;"
    "insert into scratch values (1, 'x'), (500, 'y'); vacuum full people; alter type mood add value 'sad';"
    "select lo_unlink(4711); select nextval('others_id_seq') from generate_series(1, 7); reindex table others; drop index people_v"
)

ROUNDS = int(os.environ.get("PGHARNESS_TEST_REWINDS", "20"))


def run(session: Session, statements: str) -> None:
    for statement in statements.split(";"):
        session.execute(statement)


@pytest.fixture(scope="module")
def shared(reset_server: Server, rewind_schema: Callable[[Server], str]) -> Iterator[RewindCase]:
    case = RewindCase(reset_server, "pagemarks", SCHEMA, module=rewind_schema(reset_server))
    yield case
    dispose(case.bench)


@pytest.fixture(autouse=True)
def nothing_left(case: RewindCase) -> Iterator[None]:
    yield
    engine = case.bench.engine
    while engine._marks.top is not None:
        engine._marks.top.release()
    case.reset_or_clone()
    case.assert_exact()
    assert files(case) == []


def files(case: RewindCase) -> list[str]:
    with case.bench.server.session() as session:
        return session.column("select pg_ls_dir('pgh_marks', true, false)")


def look(case: RewindCase) -> dict[str, str]:
    with case.bench.superuser() as session:
        return exactly(session)


def different(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [name for name in {*one, *other} if one.get(name) != other.get(name)]


def mark(case: RewindCase) -> tuple[Mark, dict[str, str]]:
    """A mark, which must be one of pages, and what it looks like."""
    above = len(case.bench.engine._marks.pages)
    set_ = case.bench.engine.mark()
    assert len(case.bench.engine._marks.pages) == above + 1, case.rewinder
    return set_, look(case)


def test_a_schema_that_was_changed_is_a_state_to_come_back_to(case: RewindCase, app: Session) -> None:
    run(app, FAR)
    _, marked = mark(case)
    for _ in range(3):
        run(app, FURTHER)
        assert case.reset().strategy == "rewind"
        assert different(look(case), marked) == []
        assert app.value("select count(*) from others") == 3000
        app.execute("insert into late (v) values ('x')")
        app.execute("update people set born = now() where id = 7")
    assert case.reset().strategy == "rewind"
    assert different(look(case), marked) == []


def test_marks_are_a_stack(case: RewindCase, app: Session) -> None:
    run(app, FAR)
    first, one = mark(case)
    run(app, FURTHER)
    second, two = mark(case)
    run(app, "insert into doomed values (1); drop table others")
    case.reset()
    assert different(look(case), two) == []
    run(app, "drop table people cascade")
    second.release()
    case.reset()
    assert different(look(case), one) == []
    run(app, FURTHER)
    third, three = mark(case)
    run(app, "insert into doomed values (1)")
    case.reset(to=third)
    assert different(look(case), three) == []
    case.reset(to=first)
    assert different(look(case), one) == []
    first.release()
    assert case.reset().strategy == "rewind"
    case.assert_exact()


POOL = [
    *FAR.split(";"),
    *FURTHER.split(";"),
    "delete from people where id % 4 = 0",
    "insert into people (v) select repeat('p', i) from generate_series(1, 900) i",
    "truncate others",
    "vacuum people",
    "cluster people using people_pkey",
    "create table if not exists late (id serial primary key, v text)",
    "insert into late (v) select 'x' from generate_series(1, 400)",
    "drop table if exists late",
    "update others set v = 'short'",
    "alter table scratch set logged",
    "alter table others set unlogged",
    "begin; drop table people cascade; rollback",
    "begin; insert into others (v) values ('undone'); rollback",
    "analyze",
    "create sequence if not exists more cache 7",
    "select nextval('more')",
    "alter sequence people_id_seq restart with 5000",
]


@pytest.mark.timeout(120 + 2 * ROUNDS)
def test_any_states_come_back(case: RewindCase, app: Session) -> None:
    """Marks set, come back to and released at random, between statements of all kinds, and through clones."""
    chance = random.Random(case.bench.server.version)
    engine = case.bench.engine
    states: list[tuple[Mark, dict[str, str]]] = []
    story: list[str] = []
    for _ in range(count_on(case.bench.server.version, "PGHARNESS_TEST_REWINDS", ROUNDS)):
        for statements in chance.sample(POOL, chance.randrange(1, 6)):
            story.append(statements)
            with suppress(ServerRefused, ServerLost), case.bench.app() as session:
                run(session, statements)
        dice = chance.random()
        if dice < 0.3 and len(states) < 4:
            states.append(mark(case))
            story.append(f"-- mark {len(states)}")
        elif dice < 0.4 and states:
            states.pop()[0].release()
            story.append("-- released")
        elif dice < 0.5 and states:
            del states[chance.randrange(len(states)) + 1 :]
            case.reset(to=states[-1][0])
        elif dice < 0.6:
            case.bench.reclone()
            story.append("-- cloned")
        case.reset_or_clone()
        wanted = states[-1][1] if states else case.exact
        assert different(look(case), wanted) == [], story
    assert len(engine._marks.pages) == len(states)


def test_a_fresh_clone_becomes_the_marked_state(case: RewindCase, app: Session) -> None:
    run(app, FAR)
    mark(case)
    run(app, FURTHER)
    _, marked = mark(case)
    case.bench.reclone()
    assert different(look(case), marked) == []
    with case.bench.app() as other:
        run(other, "drop table people cascade; insert into doomed values (3)")
    case.reset()
    assert different(look(case), marked) == []


def test_a_mark_in_place_of_one_that_was_released_without_a_reset(case: RewindCase, app: Session) -> None:
    run(app, FAR)
    first, _ = mark(case)
    run(app, FURTHER)
    first.release()
    _, marked = mark(case)
    run(app, "insert into doomed values (1)")
    case.reset()
    assert different(look(case), marked) == []


def test_sequences_go_on_from_the_mark(case: RewindCase, app: Session) -> None:
    """A sequence that was logged ahead moves 32 times without a word in the log."""
    app.execute("insert into others (v) values ('x')")
    mark(case)
    for _ in range(3):
        assert app.value("select nextval('others_id_seq')") == 2
        case.reset()
    app.execute("insert into others (v) values ('y')")
    assert app.value("select max(id) from others") == 2


def test_the_session_that_set_it_may_be_gone(case: RewindCase, app: Session) -> None:
    run(app, FAR)
    _, marked = mark(case)
    run(app, FURTHER)
    with case.bench.server.session() as session:
        for pid in case.bench.engine.ours:
            session.execute("select pg_terminate_backend(%s, 2000)", (pid,))
    with pytest.raises(RecloneNeeded):
        case.reset()
    case.bench.reclone()
    assert different(look(case), marked) == []


def test_nothing_above_a_mark_of_pages_is_put_back_by_rows(case: RewindCase, app: Session) -> None:
    run(app, FAR)
    mark(case)
    run(app, "insert into late (v) values ('x')")
    case.rewinder.off = "for this test"
    with pytest.raises(RecloneNeeded, match="for this test"):
        case.reset()
    case.bench.reclone()
    with case.bench.superuser() as session:
        assert session.value("select count(*) from late") == 20


def test_whoever_writes_is_waited_for_and_then_ended(case: RewindCase, app: Session) -> None:
    run(app, FAR)
    _, marked = mark(case)
    with case.bench.app() as other:
        other.execute("begin")
        other.execute("insert into late (v) values ('not committed')")
        threading.Timer(0.1, lambda: other.execute("commit")).start()
        began = time.monotonic()
        report = case.reset()
        assert (report.strategy, report.ended) == ("rewind", ())
        assert time.monotonic() - began >= 0.09
        other.execute("begin")
        other.execute("insert into late (v) values ('never committed')")
        assert len(case.reset().ended) == 1
    assert different(look(case), marked) == []


def test_a_reader_that_idles_in_its_transaction_stays(case: RewindCase, app: Session) -> None:
    run(app, FAR)
    _, marked = mark(case)
    with case.bench.app() as reader:
        reader.execute("begin")
        assert reader.value("select count(*) from late") == 20
        app.execute("insert into late (v) select repeat('m', 3000) from generate_series(1, 200)")
        report = case.reset()
        assert (report.strategy, report.ended) == ("rewind", ())
        assert reader.value("select count(*) from late") == 20
        reader.execute("commit")
    assert different(look(case), marked) == []


def test_settings_of_the_database_are_not_held(case: RewindCase, app: Session) -> None:
    with case.bench.superuser() as session:
        session.execute(f"alter database {session.dsn.database} set work_mem = '7MB'")
    with pytest.raises(LeaseError, match="does not hold ALTER DATABASE"):
        case.bench.engine.mark()
    assert case.bench.engine._marks.top is None


def test_one_that_cannot_be_written_leaves_nothing(case: RewindCase, app: Session) -> None:
    """A file in the place of the folder: the disk says no."""
    if case.bench.server.data is None:
        pytest.skip("the server is in a container")
    folder = case.bench.server.data / "pgh_marks"
    for path in folder.glob("*"):
        path.unlink()
    if folder.exists():
        folder.rmdir()
    folder.write_text("")
    try:
        app.execute("insert into others (v) values ('x')")
        with pytest.raises((RecloneNeeded, LeaseError), match="pgh_marks"):
            case.bench.engine.mark()
    finally:
        folder.unlink()
    case.reset_or_clone()


def test_a_server_that_is_lost_when_all_but_one_question_is_done_leaves_no_mark(
    case: RewindCase, app: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody was given it, and every later reset went back to it. The moment was met once in 40 kills."""
    case.bench.admin.execute("create role passing; drop role passing")
    run(app, FAR)

    def lost(*_: object) -> None:
        raise ServerLost("just now")

    with monkeypatch.context() as patched:
        patched.setattr("harness.reset.sql.shared.shared", lost)
        with pytest.raises(RecloneNeeded, match="just now"):
            case.bench.engine.mark()
    case.bench.reclone()
    assert different(look(case), case.exact) == []
    case.assert_exact()


KILLS = int(
    os.environ.get("PGHARNESS_TEST_MARK_KILLS", "40" if os.environ.get("PGHARNESS_TEST_LONG") == "1" else "3")
)


@pytest.mark.timeout(60 + 10 * KILLS)
@pytest.mark.parametrize("what", ["set", "gone back to"])
def test_whoever_is_killed_while_a_mark_is_set_or_gone_back_to(
    reset_server: Server, rewind_schema: Callable[[Server], str], what: str
) -> None:
    """The server recovers; the state is that of the mark, or of the baseline, or an error: half of it never passes for it."""
    if reset_server.data is None:
        pytest.skip("its processes are in a container")
    with hurt(reset_server.version) as found:
        assert found.server.data is not None
        prepared = module_on(found.server)
        if not isinstance(prepared, Prepared):
            pytest.skip(prepared)
        # A crash empties unlogged tables, in the template too: that is tried elsewhere.
        case = RewindCase(found.server, "markkilled", SCHEMA.replace("unlogged ", ""), module=prepared.schema)
        chance = random.Random(reset_server.version)
        folder = found.server.data / "pgh_marks"
        for number in range(KILLS):
            with case.bench.app() as session:
                run(session, FAR)
            marked = look(case)
            if what == "gone back to":
                mark_, marked = mark(case)
                with case.bench.app() as session:
                    run(session, FURTHER)
            victim = chance.choice([*case.bench.engine.ours, _checkpointer(case)])
            killer = threading.Timer(chance.random() * 0.03, os.kill, (victim, signal.SIGKILL))
            killer.start()
            try:
                if what == "set":
                    mark_ = case.bench.engine.mark()
                else:
                    case.reset(to=mark_)
            except (RecloneNeeded, LeaseError, ServerLost, ServerRefused, ProcessLookupError):
                mark_ = None if what == "set" else mark_
            finally:
                killer.join()
            found.come_back()
            _recovered(case)
            # As a lease does after a crash: a clone, which becomes the marked state by the mark's file.
            case.bench.reclone()
            states = {"marked": marked, "baseline": case.exact}
            wanted = "marked" if mark_ is not None else "baseline"
            # What sequences have logged in advance is settled where a mark is set.
            wrong = {
                state: [name for name in different(seen, exact) if what != "set" or not name.endswith("_seq")]
                for seen in [look(case)]
                for state, exact in states.items()
            }
            assert wrong[wanted] == [], (number, wanted, victim, wrong)
            if mark_ is not None:
                mark_.release()
            case.reset_or_clone()
            case.assert_exact()
            left = [path.name for path in folder.glob("*")]
            # One that was cut off has no seal, and nobody knows its name: it goes with its database.
            assert len(left) <= number + 1
        assert re.search(r"PANIC|TRAP|invalid page|WAL contains references", log_of(found.server)) is None
        case.bench.engine.close()
        case.bench.admin.close()


def _checkpointer(case: RewindCase) -> int:
    return int(case.bench.admin.value("select pid from pg_stat_activity where backend_type = 'checkpointer'"))


def _recovered(case: RewindCase) -> None:
    """Sessions of before the crash are gone."""
    with suppress(ServerLost, ServerRefused):
        for _ in range(100):
            case.bench.admin.rows("select pg_sleep(0.01)")
    case.bench.admin.close()
    deadline = time.monotonic() + 60
    while True:
        try:
            case.bench.admin = case.bench.server.session()
            case.bench.admin.rows("select 1")
            return
        except (ServerLost, ServerRefused):
            assert time.monotonic() < deadline
            time.sleep(0.02)
