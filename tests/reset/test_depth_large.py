"""A large table of which scattered rows were written: what is read is what was touched, not what lies between."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_reset_case import Case
from fix_reset_servers import Server, dispose

from harness.postgres.session import Session

ROWS = 200_000

# 5,400 blocks; of 200 scattered rows each lies in a block of its own.
SCHEMA = f"""
create table big (id integer primary key, n integer, v text);
insert into big select i, 0, repeat('v', 170) || i from generate_series(1, {ROWS}) i;
create table small (id serial primary key, v text); insert into small (v) values ('s');
"""

PICTURE = "select count(*), min(id), max(id), sum(hashtextextended(big::text, 3)) from big"

MOST_MEMORY = 50 * 2**20

TIMES_READ = 12
"""How often a block that was touched may be looked up: for its rows, to delete and to insert them."""


@pytest.fixture(scope="module")
def shared(reset_server: Server) -> Iterator[Case]:
    made = Case(reset_server, "depthlarge", SCHEMA)
    yield made
    dispose(made.bench)


@pytest.fixture
def wanted(case: Case) -> tuple[object, ...]:
    with case.bench.superuser() as session:
        return session.row(PICTURE) or ()


def scattered(count: int, offset: int = 0) -> str:
    return f"(select {offset} + i * {ROWS // count} from generate_series(1, {count}) i)"


WRITES = {
    "update": "update big set n = n + 1 where id in {}",
    "delete": "delete from big where id in {}",
    "both": "update big set v = v || 'x' where id in {0} and id % 3 <> 0; delete from big where id in {0} and id % 3 = 0",
}


class Memory:
    """How far this process grew, at its highest, since this was made."""

    def __init__(self) -> None:
        # 5: forget the peak (proc(5)); a peak of the process's whole life would hide what comes below it.
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._of("VmRSS")

    @staticmethod
    def _of(name: str) -> int:
        found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        assert found
        return int(found[1]) * 1024

    def grown(self) -> int:
        return self._of("VmHWM") - self._before


def looked_up(case: Case) -> tuple[int, int]:
    """Blocks of the table that were looked up so far, in the lease and in the baseline."""
    query = "select heap_blks_read + heap_blks_hit from pg_statio_user_tables where relname = 'big'"
    engine = case.bench.engine
    ours = engine._connections
    for session in (ours._restorer, ours._store._session if ours._store else None):
        if session is not None and not session.closed:
            session.rows("select pg_stat_force_next_flush()")
    found = []
    for database in (case.bench.name, f"{case.bench.name}_z"):
        with case.bench.server.session(database) as session:
            found.append(int(session.value(query)))
    return found[0], found[1]


def write(app: Session, statements: str) -> None:
    app.script(statements)
    # Otherwise it would tell of its own reads later.
    app.rows("select pg_stat_force_next_flush()")


@pytest.mark.parametrize("count", [60, 66, 70, 200])
@pytest.mark.parametrize("what", WRITES)
def test_scattered_rows_are_put_back_by_reading_what_was_touched(
    case: Case, app: Session, wanted: tuple[object, ...], what: str, count: int
) -> None:
    # Facts of the table are read once, and are not counted.
    write(app, "update big set n = 1 where id = 1")
    case.reset()
    for offset in (0, -1, -2):
        write(app, WRITES[what].format(scattered(count, offset)))
        before, memory = looked_up(case), Memory()
        report = case.reset()
        grown, after = memory.grown(), looked_up(case)
        assert app.row(PICTURE) == wanted
        assert (report.strategy, report.tables, report.ended) == ("restore", ("big",), ())
        # An update touches the block in which the new row lies, too; they are all in the last ones.
        assert [b - a < TIMES_READ * count + 200 for a, b in zip(before, after, strict=True)] == [
            True,
            True,
        ], (
            before,
            after,
        )
        assert grown < MOST_MEMORY
        write(app, "select 1")
    assert case.reset().strategy == "nothing"


def test_a_thousand_rows_are_put_back_or_cloned(case: Case, wanted: tuple[object, ...]) -> None:
    for what in WRITES.values():
        with case.bench.app() as app:
            write(app, what.format(scattered(1000)))
            write(app, "update small set v = 'x'")
            memory = Memory()
            case.reset_or_clone()
            assert memory.grown() < MOST_MEMORY
        with case.bench.superuser() as session:
            assert session.row(PICTURE) == wanted
            assert session.rows("select v from small") == [("s",)]
        assert case.reset_or_clone() == "nothing"


@pytest.mark.parametrize("count", [66, 200])
def test_under_a_mark_too(case: Case, app: Session, wanted: tuple[object, ...], count: int) -> None:
    """The rows below the mark lie elsewhere afterwards, in many blocks."""
    app.execute("insert into small (v) values ('marked')")
    mark = case.bench.engine.mark()
    for what in WRITES.values():
        write(app, what.format(scattered(count)))
        memory = Memory()
        case.reset()
        assert memory.grown() < MOST_MEMORY
        assert app.row(PICTURE) == wanted
        assert app.value("select count(*) from small") == 2
    mark.release()
    case.reset()
    assert app.row(PICTURE) == wanted
    assert app.value("select count(*) from small") == 1


@pytest.mark.parametrize("share", [1.0, 0.92, 0.3])
def test_most_rows_of_a_middling_table(reset_server: Server, share: float) -> None:
    """Beyond what is read for a reset at most: right in either way."""
    made = Case(reset_server, "depthmiddling", SCHEMA.replace(str(ROWS), "6000"))
    try:
        with made.bench.app() as app:
            wanted = app.row(PICTURE)
            app.execute("delete from big where id <= %s", (round(6000 * share),))
            memory = Memory()
            made.reset_or_clone()
            assert memory.grown() < MOST_MEMORY
        with made.bench.superuser() as session:
            assert session.row(PICTURE) == wanted
    finally:
        dispose(made.bench)
