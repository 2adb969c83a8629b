"""Company between the two transactions of a reset: what the first has deleted comes back, whatever happens to the second."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fix_reset_case import Case
from fix_reset_servers import Server, dispose

from harness.catalog.session import Session

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
