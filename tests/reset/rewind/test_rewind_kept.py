"""What sessions of the application keep through a rewind: plans, prepared statements, cursors, fetched values, temporary tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from fix_reset_case import Case
from fix_reset_servers import Server, dispose
from fix_rewind import RewindCase

SCHEMA = """
create type mood as enum ('sad', 'happy');
create table people (id serial primary key, m mood, v text);
insert into people (m, v) select 'happy', 'row ' || i from generate_series(1, 30) i;
create table grows (id integer primary key, v text);
create sequence fetched cache 10;
create table tickets (id bigint primary key default nextval('fetched'), v text);
create function counted() returns bigint language plpgsql as $$ begin return (select count(*) from people); end $$;
"""


@pytest.fixture(scope="module")
def shared(reset_server: Server, rewind_schema: Callable[[Server], str]) -> Iterator[RewindCase]:
    case = RewindCase(reset_server, "rewindkept", SCHEMA, module=rewind_schema(reset_server))
    yield case
    dispose(case.bench)


@pytest.fixture
def kept(case: Case) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with psycopg.connect(case.bench.server.dsn(case.bench.name, "app").url, autocommit=True) as connection:
        yield connection


def test_prepared_statements_plans_and_oids_go_on_working_through_ddl(
    case: RewindCase, kept: psycopg.Connection[tuple[object, ...]]
) -> None:
    """Each change is one that invalidates plans, or gives a table another file."""
    oid = kept.execute("select 'mood'::regtype::oid::int8").fetchone()
    for change in (
        "insert into people (m) values ('sad')",
        "alter table people add column extra integer",
        "truncate people",
        "drop function counted(); create function counted() returns bigint language sql as 'select 7::bigint'",
        "alter table people rename column v to w",
        "drop table people",
        "alter type mood rename value 'happy' to 'glad'",
    ):
        for _ in range(2):
            assert kept.execute("select counted()", prepare=True).fetchone() == (30,)
            found = kept.execute(
                "select count(*), max(m::text), max(v) from people where m = %s::mood and id < %s",
                ("happy", 99),
                prepare=True,
            ).fetchone()
            assert found == (30, "happy", "row 9")
            kept.execute(change.encode())
            case.rewound()
    assert kept.execute("select 'mood'::regtype::oid::int8").fetchone() == oid


def test_an_index_that_grew_is_searched_from_its_root_again(
    case: RewindCase, kept: psycopg.Connection[tuple[object, ...]]
) -> None:
    """Sessions keep the root of an index, and the page on which they inserted last."""
    for _ in range(3):
        kept.execute("insert into grows select i, repeat('x', 50) from generate_series(1, 5000) i")
        assert kept.execute("select v from grows where id = 4999").fetchone() == ("x" * 50,)
        case.rewound("grows")
        assert kept.execute("select v from grows where id = 4999").fetchone() is None
        kept.execute("insert into grows values (1, 'first')")
        assert kept.execute("select ctid::text, v from grows").fetchone() == ("(0,1)", "first")
        case.rewound("grows")


def test_a_cursor_with_hold_keeps_its_rows(
    case: RewindCase, kept: psycopg.Connection[tuple[object, ...]]
) -> None:
    kept.execute("insert into people (v) values ('only in this test')")
    kept.execute("declare c cursor with hold for select v from people where id > 30")
    case.rewound("people")
    assert kept.execute("fetch all from c").fetchall() == [("only in this test",)]
    kept.execute("close c")


def test_values_that_a_session_has_fetched_are_forgotten(
    case: RewindCase, kept: psycopg.Connection[tuple[object, ...]]
) -> None:
    """It fetched ten, and would go on with the second; resets without any use of it in between do not change that."""
    for _ in range(2):
        for _ in range(3):
            assert kept.execute("insert into tickets (v) values ('x') returning id").fetchone() == (1,)
            report = case.reset()
            assert (report.strategy, report.ended) == ("rewind", ())
            assert {"tickets", "fetched"} <= set(report.tables)
            case.assert_pristine()
        for _ in range(3):
            kept.execute("insert into people (v) values ('x')")
            case.reset()


def test_values_that_a_session_has_fetched_are_forgotten_above_a_mark(
    case: RewindCase, kept: psycopg.Connection[tuple[object, ...]]
) -> None:
    kept.execute("insert into tickets (v) values ('a'), ('b')")
    # Another session: this one gives what it has fetched, whatever state is marked.
    with case.bench.app() as other:
        other.execute("alter sequence fetched restart with 100")
        mark = case.bench.engine.mark()
        for _ in range(3):
            assert kept.execute("insert into tickets (v) values ('x') returning id").fetchone() == (100,)
            assert case.reset().strategy == "rewind"
            assert other.rows("select id from tickets order by id") == [(1,), (2,)]
    mark.release()
    assert case.reset().strategy == "rewind"
    case.assert_pristine()
    assert kept.execute("insert into tickets (v) values ('x') returning id").fetchone() == (1,)


def test_channels_are_kept(case: RewindCase, kept: psycopg.Connection[tuple[object, ...]]) -> None:
    kept.execute("listen news")
    kept.execute("insert into people (v) values ('x')")
    case.rewound("people")
    assert kept.execute("select pg_listening_channels()").fetchall() == [("news",)]
    with case.bench.app() as other:
        other.execute("notify news, 'after'")
    assert [notice.payload for notice in kept.notifies(timeout=5, stop_after=1)] == ["after"]


def test_temporary_tables_that_are_kept_are_left_to_the_way_by_rows(
    case: RewindCase, kept: psycopg.Connection[tuple[object, ...]]
) -> None:
    """Their rows in the catalogs are no part of the baseline's pages."""
    kept.execute("create temporary table mine (v text)")
    kept.execute("insert into mine values ('kept')")
    kept.execute("insert into people (v) values ('x')")
    report = case.reset()
    assert (report.strategy, report.ended) == ("restore", ())
    assert kept.execute("select count(*) from people").fetchone() == (30,)
    assert kept.execute("select v from mine").fetchall() == [("kept",)]
    # Rows that were put back by rows lie elsewhere: the next rewind takes that for what it is, another change.
    kept.execute("drop table mine")
    case.rewound("people")


def test_a_temporary_namespace_that_the_template_does_not_have_is_kept(
    reset_server: Server, rewind_schema: Callable[[Server], str]
) -> None:
    case = RewindCase(
        reset_server, "rewindbare", SCHEMA, module=rewind_schema(reset_server), spare_namespaces=False
    )
    try:
        with case.bench.app() as app:
            for _ in range(2):
                app.script("create temporary table mine (v text)")
                app.script("drop table mine; insert into people (v) values ('x')")
                report = case.reset()
                assert (report.strategy, report.ended) == ("restore", ())
                case.assert_pristine()
        # It is gone with its session, which takes a moment to go.
        while case.reset().strategy != "rewind":
            time.sleep(0.005)
        case.assert_exact()
    finally:
        dispose(case.bench)
