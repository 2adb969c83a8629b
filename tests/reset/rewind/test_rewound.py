"""Whatever a test does, its pages go back: each kind of change by itself, with one application session that is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fix_reset_servers import Server, dispose
from fix_rewind import RewindCase

from harness.postgres.session import Session

SCHEMA = """
create table people (id serial primary key, name text not null, score integer default 0);
insert into people (name) select 'seed ' || i from generate_series(1, 60) i;
create index on people (name);
create table thousand (id bigint primary key, name text not null, amount numeric(12, 2) default 0);
insert into thousand select i, 'seed ' || i, i from generate_series(1, 1000) i;
create table orders (id bigserial primary key, person integer references people, what text);
insert into orders (person, what) select i, 'order ' || i from generate_series(1, 20) i;
create table lines (id bigserial primary key, "order" bigint references orders on delete cascade, n integer);
create table empty (id bigint generated always as identity primary key, v text);
create table wide (id integer primary key, v text);
insert into wide select i, (select string_agg(md5(i::text || g), '') from generate_series(1, 100) g) from generate_series(1, 30) i;
create unlogged table scratch (id serial primary key, v text);
insert into scratch (v) select 'u' || i from generate_series(1, 50) i;
create materialized view counted as select count(*) as n from thousand;
create view named as select name from people;
create sequence plain;
create type mood as enum ('sad', 'happy');
create table moods (m mood primary key, at timestamptz default now());
create function twice(n integer) returns integer language sql as 'select 2 * n';
"""

CHANGES = {
    "insert": "insert into people (name) values ('x')",
    "insert 10,000": "insert into empty (v) select 'new ' || g from generate_series(1, 10000) g",
    "seeded rows changed": "update people set name = 'changed' where id % 7 = 0; update thousand set amount = 1 where id = 500",
    "seeded rows deleted": "delete from thousand where id % 3 = 0; delete from people where id > 50",
    "every seeded row": "update thousand set name = name || '!'",
    "rolled back": "begin; insert into people (name) select 'x' from generate_series(1, 500); delete from thousand; rollback",
    "savepoints": "begin; insert into empty (v) values ('a'); savepoint s; insert into empty (v) values ('b'); rollback to s; commit",
    "truncate of five": "truncate people, orders, lines, empty, scratch restart identity cascade",
    "refresh": "insert into thousand values (5000, 'x'); refresh materialized view counted",
    "temporary table": "create temporary table t (id serial, v text); insert into t (v) values ('x'); drop table t",
    "created and dropped": "create table t (id serial primary key, v text); insert into t (v) values ('x'); drop table t",
    "created": "create table t (id serial primary key, v text); insert into t (v) select 'x' from generate_series(1, 1000)",
    "alter table": "alter table people add column age integer default 5; alter table orders drop column what",
    "alter type": "alter table thousand alter column id type integer",
    "create index": "create index extra on thousand (name); create unique index on people (score, id)",
    "drop table": "drop table people cascade",
    "drop and create": "drop table lines; create table lines (other text); insert into lines values ('x')",
    "types and functions": "alter type mood add value 'bored'; create function f() returns int language sql as 'select 1'; "
    "drop function twice; comment on table people is 'c'; grant select on people to public",
    "views": "create or replace view named as select name || '!' as name from people",
    "vacuum full": "vacuum full thousand",
    "cluster": "cluster thousand using thousand_pkey",
    "reindex": "reindex table people",
    "vacuum": "delete from thousand where id > 100; vacuum thousand",
    "analyze": "insert into people (name) select 'x' from generate_series(1, 100); analyze",
    "large objects": "select lo_from_bytea(0, 'abc')",
    "unlogged": "update scratch set v = 'z'; insert into scratch (v) values ('q'); delete from scratch where id < 9",
    "unlogged truncate": "truncate scratch restart identity",
    "sequences": "select nextval('plain') from generate_series(1, 40); select setval('people_id_seq', 999); "
    "alter sequence orders_id_seq restart with 7",
    "toast": "update wide set v = v || 'x'; delete from wide where id = 3",
    "on conflict": "insert into thousand values (1, 'a') on conflict (id) do update set name = 'b'; merge into moods m "
    "using (select 'sad'::mood s) x on m.m = x.s when not matched then insert values (x.s)",
    "select for update": "begin; select * from people for update; commit",
    "constraints": "alter table moods add check (m <> 'sad') not valid; alter table orders drop constraint orders_person_fkey",
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(reset_server: Server, rewind_schema: Callable[[Server], str]) -> Iterator[RewindCase]:
    case = RewindCase(reset_server, "rewound", SCHEMA, module=rewind_schema(reset_server))
    yield case
    dispose(case.bench)


@pytest.fixture
def kept(case: RewindCase) -> Iterator[Session]:
    """A session of the application that lives through the resets, and has read what it could."""
    with case.bench.app() as session:
        session.rows("select * from people, named where score = 1")
        yield session


def run(session: Session, statements: str) -> None:
    """One by one: VACUUM does not run with others."""
    for statement in statements.split(";"):
        session.execute(statement)


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_rewound(case: RewindCase, kept: Session, change: str) -> None:
    for _ in range(2):
        run(kept, change)
        case.rewound()
        assert kept.value("select count(*) from people where name like 'seed%%'") == 60
        assert kept.value("select sum(n) from counted") == 1000
    # Who looked at the catalogs has pruned their pages.
    case.reset()
    assert case.reset().strategy == "nothing"


def test_only_read_is_nothing(case: RewindCase, kept: Session) -> None:
    case.reset()
    kept.rows("select * from people")
    report = case.reset()
    assert (report.strategy, report.tables) == ("nothing", ())


def test_what_was_counted_for_a_tests_tables_goes_with_them(case: RewindCase, kept: Session) -> None:
    """Else each table that any test makes stays in the server's memory until the database is dropped."""
    ask = "select pg_stat_have_stats('relation', (select oid from pg_database where datname = current_database()), {})"
    # One that stays until the reset, one that the test drops while its counters are still held, and one that was rewritten.
    run(
        kept,
        "create table made (id int); insert into made values (1); create table brief (id int); insert into brief values (1)",
    )
    run(kept, "alter table made alter column id type bigint; insert into made values (2)")
    oids = [kept.value(f"select '{name}'::regclass::oid::int8") for name in ("made", "brief")]
    run(kept, "select count(*) from made; drop table brief")
    with case.bench.superuser() as admin:
        assert admin.value(ask.format(oids[0])) is True
        case.rewound()
        assert [admin.value(ask.format(oid)) for oid in oids] == [False, False]
        # What the baseline has goes on being counted.
        run(kept, "insert into people (name) values ('x')")
        assert admin.value(ask.format(kept.value("select 'people'::regclass::oid::int8"))) is True
    case.reset()
