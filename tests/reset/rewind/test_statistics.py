"""What the server counts of tables: nothing of what a rewind has undone stays in its shared memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from fix_reset_servers import Server, dispose
from fix_rewind import RewindCase

from harness.postgres.session import Session

REWINDS = 2000 if os.environ.get("PGHARNESS_TEST_LONG") == "1" else 60

SCHEMA = """
create table people (id serial primary key, v text);
insert into people (v) select 'row ' || i from generate_series(1, 30) i;
"""

COUNTED = "select pg_stat_have_stats('relation', (select oid from pg_database where datname = current_database()), %s)"


@pytest.fixture(scope="module")
def shared(reset_server: Server, rewind_schema: Callable[[Server], str]) -> Iterator[RewindCase]:
    case = RewindCase(reset_server, "rewindstats", SCHEMA, module=rewind_schema(reset_server))
    yield case
    dispose(case.bench)


def count(session: Session) -> None:
    """What this session has counted is in shared memory at the end of the next transaction."""
    session.script("select pg_stat_force_next_flush()")
    session.rows("select 1")


@pytest.mark.timeout(60 + REWINDS / 2)
def test_of_a_table_that_was_made_and_is_no_more_nothing_stays(case: RewindCase, app: Session) -> None:
    made = []
    for number in range(REWINDS):
        app.script("create table made (id serial primary key, v text); insert into made (v) values ('x')")
        if number % 3 == 1:
            # Its file has another number than the table.
            app.execute("truncate made")
        if number < 20 or number % 500 == 0:
            count(app)
            oids = app.column("select oid::int8 from pg_class where relname ~ '^made'")
            with case.bench.superuser() as session:
                assert session.value(COUNTED, (oids[0],)), number
            made += oids
        assert case.reset().strategy == "rewind"
    with case.bench.superuser() as session:
        assert [oid for oid in made if session.value(COUNTED, (oid,))] == []


def test_what_was_rolled_back_is_counted_no_more_already(case: RewindCase, app: Session) -> None:
    """Its entry is dropped, and there as long as a session refers to it."""
    with case.bench.app() as other:
        for ending in ("rollback", "prepare transaction 'counted'; rollback prepared 'counted'"):
            app.script("begin; create table made (id serial primary key); insert into made values (1)")
            oid = app.value("select 'made'::regclass::oid::int8")
            other.rows("select pg_stat_get_live_tuples(%s)", (oid,))
            for statement in ending.split("; "):
                app.execute(statement)
            other.rows("select pg_stat_get_live_tuples(%s)", (oid,))
            case.rewound()
    app.rows("select 1")
    case.assert_exact()


def test_of_rows_that_are_undone_nothing_is_counted(case: RewindCase, app: Session) -> None:
    """As in a fresh clone; else autovacuum would come for what is not there any more."""
    counted = (
        "select n_live_tup, n_dead_tup, n_mod_since_analyze from pg_stat_user_tables where relname = 'people'"
    )
    app.execute("insert into people (v) select 'x' from generate_series(1, 5000)")
    app.execute("delete from people where id % 2 = 0")
    count(app)
    with case.bench.superuser() as session:
        assert session.row(counted) != (0, 0, 0)
        case.rewound("people")
        session.execute("select pg_stat_clear_snapshot()")
        assert session.row(counted) == (0, 0, 0)
