"""The order in which rows come without ORDER BY, after the next test's own writes: that of a fresh clone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import pytest
from fix_reset_case import Case, at
from fix_reset_servers import Server, dispose

from harness.postgres.session import Session

SIZES = (1, 10, 100, 1000)

SCHEMA = (
    "create table e (id bigint generated always as identity primary key, v text);"
    "create table e2 (id serial primary key, v text not null, n integer); create index on e2 (n);"
    "create table uneven (id serial primary key, v text);"
    "insert into uneven (v) select repeat('v', 1 + i * 37 % 200) from generate_series(1, 400) i;"
    "create table long (id serial primary key, v text);"
    "insert into long (v) select 'row ' || i from generate_series(1, 3000) i;"
) + "".join(
    f"create table s{size} (id serial primary key, v text, n integer);"
    f"insert into s{size} (v, n) select 'row ' || i, i from generate_series(1, {size}) i;"
    for size in SIZES
)

ROUNDS = 30
"""Resets in a row: what is cleaned up only now and then comes in between."""

Statements = Sequence[str]


@pytest.fixture(scope="module")
def shared(reset_server: Server) -> Iterator[Case]:
    made = Case(reset_server, "depthorder", SCHEMA)
    yield made
    dispose(made.bench)


def seen(app: Session, statements: Statements) -> list[object]:
    """What a test that runs these sees: of each query its rows, as they come."""
    found: list[object] = []
    for statement in statements:
        if statement.startswith("select"):
            found.append(app.rows(statement))
        else:
            app.execute(statement)
    return found


def in_a_fresh_clone(case: Case, statements: Statements) -> list[object]:
    name = case.bench.clone_fresh()
    with Session.connect(case.bench.server.dsn(name, "app"), application_name="app") as app:
        return seen(app, statements)


def first_difference(one: Sequence[object], two: Sequence[object]) -> str:
    """For the message: the rows in full are many."""
    for number, (a, b) in enumerate(zip(one, two, strict=True)):
        if a != b:
            assert isinstance(a, list)
            assert isinstance(b, list)
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            return f"query {number}, row {at} of {len(b)}: {a[at : at + 2]} instead of {b[at : at + 2]}"
    return ""


def alike(case: Case, dirty: Callable[[int], Statements], after: Statements, *, sessions: int) -> list[str]:
    """A test that writes and one that reads, in turn: in which rounds the second saw another order."""
    wanted = in_a_fresh_clone(case, after)
    apps = [case.bench.app() for _ in range(sessions)]
    differences = []
    try:
        for number in range(ROUNDS):
            seen(apps[number % sessions], dirty(number))
            assert case.reset().ended == ()
            # Not always the one that wrote: each session remembers where it last found room.
            found = seen(apps[(number // 2) % sessions], after)
            if difference := first_difference(found, wanted):
                differences.append(f"round {number}: {difference}")
            assert case.reset().ended == ()
    finally:
        for app in apps:
            app.close()
    return differences


def then(table: str, *writes: str) -> Statements:
    """The writes of the next test, with a read after each."""
    read = f"select * from {table}"
    return [read, *(part for write in writes for part in (write.format(table), read))]


INSERT = "insert into {} (v) values ('next')"
UPDATE = "update {} set v = 'next' where id = 1"


@pytest.mark.parametrize("sessions", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_one_row_updated(case: Case, size: int, sessions: int) -> None:
    table = f"s{size}"

    def dirty(number: int) -> Statements:
        return [f"update {table} set v = 'x' where id = {number * 7 % size + 1}", f"select * from {table}"]

    assert alike(case, dirty, then(table, INSERT, INSERT, UPDATE, INSERT), sessions=sessions) == []


def test_rows_of_the_first_page_after_one_of_the_last_are_not_a_reason_to_write_all(case: Case) -> None:
    """The session that puts rows back would go on in the last page, which has room."""
    read = "select ctid, id from s1000"
    wanted = in_a_fresh_clone(case, [read])
    with case.bench.app() as app:
        case.reset()
        for number in range(12):
            for changed in (1000 - number, 1 + number):
                app.execute(f"update s1000 set v = 'x' where id = {changed}")
                assert case.reset().rows < 12
                assert seen(app, [read]) == wanted


def test_a_short_row_does_not_go_to_a_page_that_was_filled_again(case: Case) -> None:
    """The free space map was told of its room when the rows of that page were away."""

    def dirty(number: int) -> Statements:
        return [f"update uneven set v = v || 'x' where id = {number * 37 % 400 + 1}", "select * from uneven"]

    # Each length comes to the end of a page: there the map is asked for room.
    writes = [
        f"insert into {{}} (v) select repeat('w', {length}) from generate_series(1, 150)"
        for length in range(201, 0, -8)
    ]
    assert alike(case, dirty, then("uneven", *writes), sessions=1) == []


@pytest.mark.parametrize("table", ["s100", "long"])
def test_rows_that_were_locked_go_back_to_their_places(case: Case, table: str) -> None:
    """A lock that is not to be had at first is no reason to hold it before rows are put back: they would lie behind."""
    read = f"select ctid, id from {table}"
    wanted = in_a_fresh_clone(case, [read])
    with case.bench.app() as app, case.bench.app() as other:

        def hold() -> None:
            other.script(
                f"begin; insert into e (v) values ('held'); lock table {table} in row exclusive mode"
            )

        app.execute(f"update {table} set v = 'x' where id < 4")
        at(case, "before-lock", hold)
        report = case.reset()
        assert (report.strategy, len(report.ended)) == ("restore", 1)
        assert seen(app, [read]) == wanted


@pytest.mark.parametrize("sessions", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_rows_deleted(case: Case, size: int, sessions: int) -> None:
    table = f"s{size}"

    def dirty(number: int) -> Statements:
        few = f"delete from {table} where id % 10 = {number % 10} and id <= 100"
        return [few if number % 5 else f"delete from {table}", f"select * from {table}"]

    assert alike(case, dirty, then(table, INSERT, UPDATE, INSERT), sessions=sessions) == []


@pytest.mark.parametrize("sessions", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_rows_inserted_and_a_mix(case: Case, size: int, sessions: int) -> None:
    table = f"s{size}"
    rng = random.Random(size)

    def dirty(number: int) -> Statements:
        changes = [
            f"insert into {table} (v) select 'x' || i from generate_series(1, {rng.randint(1, 40)}) i",
            f"update {table} set v = v || ' longer than it was' where id = {rng.randint(1, size)}",
            f"update {table} set n = n + 1 where id = {rng.randint(1, size)}",
            f"delete from {table} where id = {rng.randint(1, size)}",
            f"select * from {table}",
        ]
        return [rng.choice(changes) for _ in range(rng.randint(1, 6))]

    writes = [
        INSERT,
        "update {} set n = n + 1 where id in (1, 2)",
        INSERT,
        "delete from {} where id = 1",
        INSERT,
    ]
    assert alike(case, dirty, then(table, *writes), sessions=sessions) == []


BULK = "insert into {} (v) select 'bulk ' || i from generate_series({}, {}) i"
INTERLEAVED = [BULK.format("{}", first, first + 24) for first in range(0, 300, 25)]


@pytest.mark.parametrize("sessions", [1, 2])
@pytest.mark.parametrize("rows", [50, 400, 1500, 5000])
@pytest.mark.parametrize("table", ["e", "e2"])
def test_several_pages_in_an_empty_table(case: Case, table: str, rows: int, sessions: int) -> None:
    def dirty(number: int) -> Statements:
        filled = [BULK.format(table, 1, rows), f"select * from {table}"]
        return [
            *filled,
            *([f"delete from {table} where id % 2 = 0", f"select * from {table}"] if number % 3 == 2 else []),
        ]

    assert alike(case, dirty, then(table, *INTERLEAVED), sessions=sessions) == []


@pytest.mark.parametrize("sessions", [1, 2])
@pytest.mark.parametrize("table", ["e", "e2", *(f"s{size}" for size in SIZES)])
def test_rolled_back(case: Case, table: str, sessions: int) -> None:
    """Its dead rows must not make room in front: the next test's own reads would find it."""

    def dirty(number: int) -> Statements:
        undone = ["begin", BULK.format(table, 1, (150, 300, 1500)[number % 3])]
        if number % 2:
            undone.append(f"update {table} set v = 'x' where id <= 20")
        return [*undone, f"select * from {table}", "rollback"]

    writes = INTERLEAVED if table in ("e", "e2") else [INSERT, UPDATE, INSERT, *INTERLEAVED[:4]]
    assert alike(case, dirty, then(table, *writes), sessions=sessions) == []


@pytest.mark.parametrize("sessions", [1, 2])
@pytest.mark.parametrize("table", ["e", "e2", *(f"s{size}" for size in SIZES)])
def test_a_few_rows_that_were_rolled_back_leave_the_next_inserts_in_order(
    case: Case, table: str, sessions: int
) -> None:
    """They may stay behind the last row: what is inserted comes after them, and after what is inserted before."""

    def dirty(number: int) -> Statements:
        return ["begin", BULK.format(table, 1, 5 + number % 7), f"select * from {table}", "rollback"]

    inserts = [INSERT, BULK.format("{0}", 1, 40), INSERT, BULK.format("{0}", 41, 700), INSERT]
    assert alike(case, dirty, then(table, *inserts), sessions=sessions) == []
