"""Marks: a stack of states to come back to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fix_reset_picture import Picture, difference
from fix_reset_servers import Bench, Server, dispose, make

from harness.errors import LeaseError
from harness.postgres.session import Session
from harness.reset.changes import RecloneNeeded

SCHEMA = """
create table a (id serial primary key, v text);
create table b (id serial primary key, v text); insert into b (v) select 'b' || i from generate_series(1, 50) i;
create table big (id serial primary key, v text);
"""


@pytest.fixture(scope="module")
def shared(reset_server: Server) -> Iterator[Bench]:
    bench = make(reset_server, "marks", SCHEMA, reset_timeout=0.4)
    yield bench
    dispose(bench)


@pytest.fixture
def bench(shared: Bench) -> Iterator[Bench]:
    while shared.engine._marks.top is not None:
        shared.engine._marks.pop()
    shared.reclone()
    return shared


@pytest.fixture
def app(bench: Bench) -> Iterator[Session]:
    with bench.app() as session:
        yield session


def state(bench: Bench) -> dict[str, object]:
    with bench.superuser() as session:
        return Picture(session).take(session)


def test_a_reset_goes_to_the_mark_and_below_it_after_release(bench: Bench, app: Session) -> None:
    pristine = state(bench)
    app.execute("insert into a (v) values ('marked')")
    app.execute("update b set v = 'marked' where id = 7")
    mark = bench.engine.mark()
    marked = state(bench)
    for _ in range(3):
        app.execute("insert into a (v) values ('test')")
        app.execute("delete from b where id in (7, 8)")
        assert bench.engine.reset().strategy == "restore"
        assert difference(state(bench), marked) == []
    mark.release()
    assert mark.released
    mark.release()
    bench.engine.reset()
    assert difference(state(bench), pristine) == []
    with pytest.raises(LeaseError, match="released"):
        bench.engine.reset(to=mark)
    assert bench.engine.reset().strategy == "nothing"


def test_marks_are_a_stack(bench: Bench, app: Session) -> None:
    app.execute("insert into a (v) values ('one')")
    one = bench.engine.mark()
    first = state(bench)
    app.execute("insert into a (v) values ('two')")
    app.execute("delete from b")
    bench.engine.mark()
    second = state(bench)
    app.execute("truncate a, b")
    bench.engine.reset()
    assert difference(state(bench), second) == []
    app.execute("insert into b (v) values ('x')")
    bench.engine.reset(to=one)
    assert difference(state(bench), first) == []
    assert bench.engine._marks.top is one


def test_a_mark_survives_a_new_clone(bench: Bench, app: Session) -> None:
    app.execute("insert into a (v) values ('marked')")
    app.execute("insert into big (v) select 'x' || i from generate_series(1, 7000) i")
    bench.engine.mark()
    marked = state(bench)
    app.execute("create table ddl (id integer)")
    with pytest.raises(RecloneNeeded):
        bench.engine.reset()
    bench.reclone()
    assert difference(state(bench), marked) == []


def test_a_large_mark_is_put_back_by_its_blocks(bench: Bench, app: Session) -> None:
    app.execute("insert into big (v) select 'x' || i from generate_series(1, 20000) i")
    bench.engine.mark()
    wanted = app.row("select count(*), md5(string_agg(big::text, ',' order by id)) from big")
    for statement in ("update big set v = 'y' where id in (1, 9000, 20000)", "delete from big where id = 5"):
        app.execute(statement)
        report = bench.engine.reset()
        assert report.rows < 50
        assert app.row("select count(*), md5(string_agg(big::text, ',' order by id)) from big") == wanted
    app.execute("truncate big")
    bench.engine.reset()
    assert app.row("select count(*), md5(string_agg(big::text, ',' order by id)) from big") == wanted


def test_a_mark_waits_for_open_transactions_and_refuses_ddl(bench: Bench, app: Session) -> None:
    app.execute("create table ddl (id integer)")
    with pytest.raises(LeaseError, match="schema"):
        bench.engine.mark()
    app.execute("drop table ddl")
    app.execute("begin")
    app.execute("insert into a (v) values ('never')")
    bench.engine.mark()
    with bench.superuser() as session:
        assert session.value("select count(*) from a") == 0


def test_changes_tell_what_a_test_wrote(bench: Bench, app: Session) -> None:
    assert str(bench.engine.changes()) == "nothing changed"
    app.execute("insert into a (v) values ('x'), ('y')")
    app.execute("update b set v = 'z' where id = 1")
    found = bench.engine.changes()
    assert found.table_names == ("a", "b")
    assert found.sequence_names == ("a_id_seq",)
    assert "a: 2 inserted" in str(found)
    assert "b: 1 updated" in str(found)
    assert bench.engine.reset().tables == ("a", "a_id_seq", "b")


def test_a_reset_under_two_marks_keeps_what_the_lower_one_holds(bench: Bench, app: Session) -> None:
    """The upper reset writes rows of the lower mark to other places: they must not pass for strangers there."""
    app.execute("insert into a (v) select 'one ' || i from generate_series(1, 5) i")
    bench.engine.mark()
    first = state(bench)
    app.execute("insert into a (v) values ('two')")
    inner = bench.engine.mark()
    second = state(bench)
    for statement in ("update a set v = 'test' where id = 2", "delete from a", "truncate a"):
        app.execute(statement)
        assert bench.engine.reset().strategy == "restore"
        assert difference(state(bench), second) == []
    inner.release()
    # Only an insert since: what tells that the old rows were written again is what the marks remember.
    app.execute("insert into a (v) values ('three')")
    bench.engine.reset()
    assert difference(state(bench), first) == []
    app.execute("insert into a (v) values ('four')")
    bench.engine.reset()
    assert difference(state(bench), first) == []


def test_a_mark_of_marks_released_in_any_order(bench: Bench, app: Session) -> None:
    pristine = state(bench)
    wanted = []
    marks = []
    for number in range(4):
        app.execute("insert into b (v) values (%s)", (f"level {number}",))
        app.execute("update b set v = v || %s where id = %s", (str(number), number + 1))
        app.execute("select nextval('a_id_seq')")
        marks.append(bench.engine.mark())
        wanted.append(state(bench))
    for level in (3, 2, 1, 0):
        app.execute("delete from b where id % 2 = 0")
        app.execute("insert into a (v) values ('x')")
        bench.engine.reset()
        assert difference(state(bench), wanted[level]) == []
        marks[level].release()
    bench.engine.reset()
    assert difference(state(bench), pristine) == []


def test_a_mark_puts_back_sequences_and_copies_only_what_changed(bench: Bench, app: Session) -> None:
    app.execute("insert into a (v) values ('x')")
    bench.engine.mark()
    layer = bench.engine._marks._layers[-1]
    assert [base.relation.name for base in layer.tables.values()] == ["a"]
    app.execute("insert into b (v) values ('y')")
    inner = bench.engine.mark()
    layer = bench.engine._marks._layers[-1]
    assert [base.relation.name for base in layer.tables.values()] == ["b"]
    app.execute("select setval('b_id_seq', 900)")
    bench.engine.reset()
    assert app.value("select nextval('b_id_seq')") == 52
    inner.release()
    bench.engine.reset()
    assert app.value("select nextval('b_id_seq')") == 51


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("alter database marks set work_mem = '7MB'", "ALTER DATABASE"),
        ("alter role app in database marks set work_mem = '7MB'", "ALTER DATABASE"),
        ("select lo_from_bytea(0, 'large')", "large objects"),
        ("comment on table a is 'x'", "schema"),
    ],
)
def test_what_a_mark_does_not_hold_is_refused(
    bench: Bench, app: Session, statement: str, reason: str
) -> None:
    """Accepted, it would be lost without a word at the first reset."""
    app.execute("insert into a (v) values ('x')")
    app.execute(statement)
    with pytest.raises(LeaseError, match=reason):
        bench.engine.mark()
    # Nothing is set, and the next reset goes to the template as ever.
    assert not bench.engine.marked
    try:
        bench.engine.reset()
    except RecloneNeeded:
        bench.reclone()
    with bench.superuser() as session:
        assert session.value("select count(*) from a") == 0
