"""The table of ``bench reset`` with both engines: which row is compared with which, and what is said of the limits."""

from __future__ import annotations

import io

import pytest

from harness.bench import limits
from harness.bench.measuring import READ_ONLY, REWIND, ROWS, SELECT, Row, Table, done

INSERT = "reset, one insert"


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def table(out: io.StringIO) -> Table:
    made = Table("PostgreSQL 15.0", out=out)
    made.add(done(SELECT, [0.2]))
    for engine, read, insert in ((ROWS, 1.0, 2.0), (REWIND, 0.4, 1.0)):
        made.add(done(READ_ONLY, [read], engine=engine))
        made.add(done(INSERT, [insert], engine=engine))
    return made


def row(table: Table, name: str, engine: str) -> Row:
    found = table.row(name, engine)
    assert found is not None
    return found


def test_each_engine_is_compared_with_its_own_read(table: Table) -> None:
    assert table.ratio(row(table, INSERT, ROWS), READ_ONLY) == pytest.approx(2)
    assert table.ratio(row(table, INSERT, REWIND), READ_ONLY) == pytest.approx(2.5)
    assert table.ratio(row(table, INSERT, REWIND), SELECT) == pytest.approx(5)


def test_limits_are_told_of_rewind_alone(table: Table, out: io.StringIO) -> None:
    limits.judge(table)
    told = {(each["name"], each["engine"]): each for each in table.told()["rows"]}
    assert (told[READ_ONLY, REWIND]["at_most"], told[READ_ONLY, REWIND]["met"]) == (3, True)
    assert (told[INSERT, REWIND]["at_most"], told[INSERT, REWIND]["met"]) == (4, False)
    assert not any("met" in told[name, engine] for name, engine in told if engine != REWIND)
    limits.tell(table)
    *_, read, insert, last = out.getvalue().splitlines()
    assert read.split()[-9:-3] == ["5.00", "5.00", "2.00", "2.00", "3", "kept"]
    assert "MORE" in insert
    assert "10.00" in insert
    assert last == "1 of 2 limits are kept"


def test_a_crowd_is_compared_with_servers_apart(table: Table) -> None:
    crowd = done("the same, 8 busy workers on one server", [2.4], engine=REWIND)
    crowd.more["of_apart"] = 1.2
    table.add(crowd)
    limits.judge(table)
    assert (crowd.more["at_most"], crowd.more["met"]) == (1.15, False)


def test_nothing_is_told_where_rewind_was_not_measured(out: io.StringIO) -> None:
    made = Table("PostgreSQL 15.0", out=out)
    made.add(done(SELECT, [0.2]))
    made.add(done(INSERT, [1.0], engine=ROWS))
    before = out.getvalue()
    limits.judge(made)
    limits.tell(made)
    assert out.getvalue() == before


def test_a_round_tells_the_log_and_the_pages_of_its_act() -> None:
    ends = iter([100, 350, 400, 800])
    pages = iter([(4, 3), None])
    measured = Row(INSERT, rounds=2, engine=REWIND, position=lambda: next(ends), pages=lambda: next(pages))
    for _ in range(2):
        measured.once(None, counts=True)
    assert (measured.logged, measured.compared, measured.written) == ([250, 400], [4], [3])
