"""Stacks of marks: what lies below each is the same when it is reached, whatever was moved above it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fix_reset_case import Case, at
from fix_reset_servers import Server, dispose

# Rows that are written again as a whole, rows that are held in memory and compared by blocks, and rows that are too
# many to be held: 240 pages.
SIZES = {"ten": 10, "middling": 4000, "many": 40000}

SCHEMA = "create table q (id serial primary key, v text);" + "".join(
    f"create table {name} (id serial primary key, v text);"
    f"insert into {name} (v) select 'row ' || i from generate_series(1, {count}) i;"
    for name, count in SIZES.items()
)

WRITES = {
    "insert": "insert into {} (v) values ('new')",
    "update": "update {} set v = v || ' changed' where id = 3",
    "delete": "delete from {} where id = 5",
    "elsewhere": "insert into q (v) values ('q')",
}

# What was written before each of the marks, the lowest first.
STACKS = [
    ("insert", "elsewhere"), ("update", "elsewhere"), ("delete", "elsewhere"), ("elsewhere", "elsewhere"),
    ("insert",), ("update",), ("delete",), ("elsewhere",),
    ("elsewhere", "insert"), ("elsewhere", "update"), ("insert", "delete"), ("update", "update"),
    ("elsewhere", "elsewhere", "elsewhere"), ("insert", "elsewhere", "update"),
]  # fmt: skip

TESTS = {
    "update": "update {} set v = 'test' where id = 7",
    "delete": "delete from {} where id = 9",
    "both": "update {0} set v = 'test' where id = 2; delete from {0} where id in (1, 10)",
    "insert": "insert into {} (v) values ('test')",
    "truncate": "truncate {}",
}


FOREIGN = "select pg_logical_emit_message(false, 'other', repeat('x', 8000)) from generate_series(1, 500)"
"""4 MB of log that concern nobody here."""


@pytest.fixture(scope="module")
def shared(reset_server: Server) -> Iterator[Case]:
    made = Case(reset_server, "depth", SCHEMA)
    yield made
    dispose(made.bench)


@pytest.fixture
def stack(shared: Case) -> Iterator[Case]:
    """The module's one, without marks and pristine."""
    while shared.bench.engine._marks.top is not None:
        shared.bench.engine._marks.pop()
    shared.bench.reclone()
    return shared


def rows(case: Case, table: str) -> list[tuple[object, ...]]:
    """A table's and q's, as sets."""
    with case.bench.superuser() as session:
        return [
            session.row(f"select count(*), min(id), max(id), sum(hashtextextended(t::text, 5)) from {name} t")
            or ()
            for name in (table, "q")
        ]


class Application:
    """A session that is kept, and opened again after a clone."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.session = case.bench.app()

    def write(self, statements: str) -> None:
        self.session.script(statements)

    def reset(self) -> None:
        if self.case.reset_or_clone() not in ("restore", "nothing"):
            self.session.close()
            self.session = self.case.bench.app()


@pytest.fixture
def writer(stack: Case) -> Iterator[Application]:
    made = Application(stack)
    yield made
    made.session.close()


@pytest.mark.parametrize("release", ["one by one", "at once"])
@pytest.mark.parametrize("below", STACKS, ids="-".join)
@pytest.mark.parametrize("table", SIZES)
def test_what_lies_below_a_mark_is_there_when_it_is_released(
    stack: Case, writer: Application, table: str, below: tuple[str, ...], release: str
) -> None:
    pristine = rows(stack, table)
    for name, statement in TESTS.items():
        marks, wanted = [], [pristine]
        for write in below:
            writer.write(WRITES[write].format(table))
            marks.append(stack.bench.engine.mark())
            wanted.append(rows(stack, table))
        for _ in range(2):
            writer.write(statement.format(table))
            writer.reset()
            assert rows(stack, table) == wanted[-1], f"{name}, at the top"
        if release == "at once":
            marks[0].release()
            del wanted[1:]
            writer.reset()
        while len(wanted) > 1:
            marks[len(wanted) - 2].release()
            wanted.pop()
            writer.reset()
            assert rows(stack, table) == wanted[-1], f"{name}, {len(wanted) - 1} marks below"
        # Nothing is dirty now, and nothing may be missing.
        assert rows(stack, table) == pristine, name
        writer.reset()
        assert rows(stack, table) == pristine, f"{name}, once more"


@pytest.mark.parametrize("table", SIZES)
def test_each_mark_of_a_stack_is_gone_back_to(stack: Case, writer: Application, table: str) -> None:
    """The tests write at every depth, and marks are set again on what is left of the stack."""
    pristine = rows(stack, table)
    marks, wanted = [], []
    for write in ("insert", "elsewhere", "update", "elsewhere"):
        writer.write(WRITES[write].format(table))
        marks.append(stack.bench.engine.mark())
        wanted.append(rows(stack, table))
        writer.write(TESTS["both"].format(table))
        writer.reset()
        assert rows(stack, table) == wanted[-1]
    for level in (2, 1, 0):
        writer.write(TESTS["update"].format(table))
        stack.reset(to=marks[level])
        assert rows(stack, table) == wanted[level], level
        writer.write(TESTS["delete"].format(table))
        again = stack.bench.engine.mark()
        writer.write(TESTS["update"].format(table))
        writer.reset()
        again.release()
        writer.reset()
        assert rows(stack, table) == wanted[level], level
    marks[0].release()
    writer.reset()
    assert rows(stack, table) == pristine
    writer.reset()
    assert rows(stack, table) == pristine


@pytest.mark.parametrize("table", SIZES)
def test_rows_below_a_mark_keep_their_note_through_many_tests(stack: Case, table: str) -> None:
    """Dead rows are cleaned up meanwhile, and their places are taken by others."""
    pristine = rows(stack, table)
    with stack.bench.app() as app:
        app.execute(WRITES["insert"].format(table))
        lower = stack.bench.engine.mark()
        first = rows(stack, table)
        app.execute(WRITES["elsewhere"])
        upper = stack.bench.engine.mark()
        for number in range(60):
            app.execute(f"update {table} set v = 'test' where id = {number % 10 + 1}")
            app.execute(f"delete from {table} where id = {(number + 5) % 10 + 1}")
            assert stack.reset().strategy == "restore"
        upper.release()
        assert stack.reset().ended == ()
        assert rows(stack, table) == first
        lower.release()
        stack.reset()
        assert rows(stack, table) == pristine
        stack.reset()
        assert rows(stack, table) == pristine


@pytest.mark.parametrize("stage", ["looked", "locked", "before-commit", "committed"])
@pytest.mark.parametrize("table", SIZES)
def test_the_marks_come_back_in_a_clone_while_others_fill_the_log(
    stack: Case, table: str, stage: str
) -> None:
    """Another clone is no way out there: what a look may cost to be better than one must not end the marks."""
    engine = stack.bench.engine
    pristine = rows(stack, table)
    with stack.bench.app() as app:
        app.execute(WRITES["update"].format(table))
    lower = engine.mark()
    first = rows(stack, table)
    with stack.bench.app() as app:
        app.execute(WRITES["elsewhere"])
    engine.mark()
    wanted = rows(stack, table)
    usual = engine.clone_ms
    # A look may take 10 kB of log by that.
    engine.clone_ms = 0.01
    try:
        at(stack, stage, lambda: stack.bench.admin.execute(FOREIGN))
        stack.bench.reclone()
        assert rows(stack, table) == wanted
    finally:
        engine.clone_ms = usual
        engine._stage = lambda name: None
    with stack.bench.app() as app:
        app.execute(WRITES["delete"].format(table))
    stack.reset_or_clone()
    assert rows(stack, table) == wanted
    for mark, below in ((engine._marks.top, first), (lower, pristine)):
        assert mark is not None
        mark.release()
        stack.reset_or_clone()
        assert rows(stack, table) == below


def test_rows_of_a_mark_that_find_no_place_in_their_order_are_put_back_all_the_same(
    reset_server: Server,
) -> None:
    """Row 4 was written while row 2 filled the first page: written again without it, it goes before row 3."""
    wide = Case(
        reset_server, "wide", "create table w (id int, v text); alter table w alter v set storage plain"
    )
    wanted = [(1, 5000), (3, 6000), (4, 3000)]

    def there() -> list[tuple[object, ...]]:
        with wide.bench.superuser() as session:
            return session.rows("select id, length(v) from w order by id")

    try:
        with wide.bench.app() as app:
            app.script(
                "insert into w select id, repeat('x', size) from (values (1, 5000), (2, 3000), (3, 6000), (4, 3000)) "
                "as v (id, size); delete from w where id = 2"
            )
            mark = wide.bench.engine.mark()
            for statement in ("delete from w", "update w set v = 'x' where id <> 3", "truncate w"):
                app.execute(statement)
                assert wide.reset().strategy == "restore"
                assert there() == wanted, statement
        wide.bench.reclone()
        assert there() == wanted
        mark.release()
        wide.reset()
        assert there() == []
    finally:
        dispose(wide.bench)
