"""One workload for each thing that a test can do to rows, on every version: all comes back, without a clone.

The random workloads of ``tests/reset/differential`` combine what is here; this says of each alone that it works.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fix_reset_case import Case
from fix_reset_servers import Server, dispose

EXTENSIONS = """
do $$ declare e text; begin
  foreach e in array array['citext', 'hstore', 'ltree', 'bloom', 'cube', 'vector'] loop
    if exists (select from pg_available_extensions where name = e) then execute 'create extension ' || e; end if;
  end loop;
  if (select count(*) from pg_extension where extname in ('citext', 'hstore', 'ltree', 'bloom', 'cube')) = 5 then
    create table extended (c citext, h hstore, l ltree, u cube, n integer);
    insert into extended values ('CaSe', '"a b"=>"1,\\"", n=>NULL', 'top.a_b', '(1,2),(3,4.5)', 1);
    create index on extended using bloom (n);
    alter table extended owner to app;
  end if;
end $$;
"""
"""Types and indexes of extensions, where the server has them: contrib and pgvector may not be there."""

SCHEMA = """
create table always_id (id bigint generated always as identity (start 7 increment 5), v text);
insert into always_id (v) values ('a'), ('b');
create table stored (a integer, b integer generated always as (a * 2) stored, c text generated always as ('c' || a) stored);
insert into stored (a) values (1), (null), (3);
create table toasted (id integer primary key, small text, big text, raw bytea);
insert into toasted select i, 's', (select string_agg(md5(n::text || i), '') from generate_series(1, 200) n),
  decode(repeat('00ff', 3000), 'hex') from generate_series(1, 3) i;
create domain evens as integer[] check (array_length(value, 1) % 2 = 0);
create domain word as text check (value <> '');
create type mood as enum ('sad', 'it''s', 'ünï"x');
create type nested as (m mood, w word, list text[]);
create table typed (e evens, r int4range, m nummultirange, k mood, ks mood[], n nested, ns nested[], x bytea, ts tsrange,
                    t time[], j jsonb, f float8, i interval);
insert into typed values ('{1,2}', '(,5)', '{[1,2),(7,)}', 'it''s', '{sad,NULL,"ünï\\"x"}', '(sad,"w, \\"x","{a,NULL}")',
  array[null, row('it''s', 'z', '{}')::nested], '\\x000102005c27', '[2026-01-01 00:00,infinity)', '{00:00,24:00}',
  '{"a": null, "n": 1.500}', '-0', '-1 mons +2 days -00:00:00.000001');
insert into typed default values;
create table spread (k integer, v text) partition by range (k);
create table spread_low partition of spread for values from (minvalue) to (10);
create table spread_high partition of spread for values from (10) to (maxvalue);
insert into spread select i, 'v' || i from generate_series(1, 20) i;
create table parent (id serial, v text);
create table heir (w integer) inherits (parent);
insert into parent (v) values ('p'); insert into heir (v, w) values ('h', 1);
create table hen (id integer primary key, egg integer); create table egg (id integer primary key, hen integer references hen);
alter table hen add foreign key (egg) references egg deferrable initially deferred;
begin; insert into hen values (1, 1); insert into egg values (1, 1); commit;
create table tree (id integer primary key, up integer references tree on delete cascade);
insert into tree values (1, null), (2, 1), (3, 2);
create table booked (during int4range, exclude using gist (during with &&) deferrable initially deferred);
insert into booked values ('[1,5)'), ('[5,9)');
create table ruled (id integer, v text); insert into ruled values (1, 'r');
create rule no_insert as on insert to ruled where new.id > 99 do instead nothing;
create rule also_update as on update to ruled do also delete from tree;
create rule no_delete as on delete to ruled do instead nothing;
create table forced (id integer, v text); insert into forced values (1, 'mine');
alter table forced enable row level security, force row level security;
create policy own on forced using (v = 'mine') with check (v = 'mine');
create table identified (id integer not null unique, v text); insert into identified values (1, 'i');
alter table identified replica identity using index identified_id_key;
create table whole (v text); insert into whole values ('w'); alter table whole replica identity full;
create publication seen for table identified, whole;
create table frozen (id integer, v text); insert into frozen values (1, 'f');
create table bare (); insert into bare default values; insert into bare default values;
create table nulls (a integer, b text, c bytea, d integer[], e mood); insert into nulls default values; insert into nulls (b) values ('');
create unlogged table fast (id serial, v text); insert into fast (v) values ('u');
create table indexed (id integer, t text, p point, a integer[]);
insert into indexed select i, 't' || i, point(i, i), array[i, i + 1] from generate_series(1, 50) i;
create index on indexed using gin (a); create index on indexed using gist (p); create index on indexed using brin (id);
create index on indexed using hash (t); create index on indexed using spgist (t); create index on indexed (lower(t)) where id > 10;
create unique index on indexed (id) include (t);
create schema "Ünï ""s"" {} %s";
create table "Ünï ""s"" {} %s"."select" (id serial primary key, "{}%s" text, "an ""end"" x" integer default 3, "ctid " integer);
insert into "Ünï ""s"" {} %s"."select" ("{}%s") values ('x');
create sequence "Ünï ""s"" {} %s"."seq %" start 5;
select lo_from_bytea(77001, 'seeded'), lo_from_bytea(77002, '\\x00');
do $$ begin execute (select 'create table broad (' || string_agg(format('c%s %s', i, case i % 3 when 0 then 'integer' else 'text' end), ', ') || ')'
  from generate_series(1, 1600) i); end $$;
insert into broad (c1, c3, c1600) values ('first', 3, 'last'); insert into broad default values;
create table many (id serial, v text);
create table plainly (v text); alter table plainly alter v set storage plain;
do $$ begin
  if exists (select from pg_extension where extname = 'vector') then
    execute 'create table vectors (id serial, v vector(3)); insert into vectors (v) values (''[1,2,3]''), (null);
             create index on vectors using hnsw (v vector_l2_ops)';
  end if;
  if current_setting('server_version_num')::int >= 180000 then
    execute 'alter table stored add d integer generated always as (a + 1) virtual';
  end if;
end $$;
"""
UNI = '"Ünï ""s"" {} %s"'
SAVEPOINTS = [s for i in range(80) for s in (f"savepoint s{i}", f"insert into many (v) values ('{i}')")]

WORKLOADS: dict[str, list[str]] = {
    "identity always": ["insert into always_id (v) values ('c')", "insert into always_id overriding system value values (1, 'd')",
                        "update always_id set id = default where v = 'a'", "delete from always_id where v = 'b'"],
    "generated": ["update stored set a = 9 where a = 1", "insert into stored (a) values (4)", "delete from stored where a is null"],
    "toast alone": ["update toasted set big = repeat(big, 2) where id = 1", "update toasted set big = big || 'x' where id = 2"],
    "beside toast": ["update toasted set small = 'changed'", "update toasted set raw = raw || '\\x00' where id = 3"],
    "toast gone": ["delete from toasted where id = 2", "update toasted set big = null, raw = null where id = 1"],
    "types": ["update typed set x = '\\x00'", "delete from typed where k is not null", "insert into typed (k) values ('sad')"],
    "rows between partitions": ["update spread set k = 30 - k where k in (3, 12, 15)"],
    "default of a parent": ["update parent set v = v || '!'", "delete from only parent", "insert into heir (v, w) values ('x', 2)"],
    "cycle": ["begin", "insert into hen values (2, 2)", "insert into egg values (2, 2)", "update hen set egg = 2 where id = 1", "commit"],
    "itself": ["update tree set up = null where id = 3", "delete from tree where id = 1"],
    "excluded": ["begin", "update booked set during = '[5,9)' where lower(during) = 1", "delete from booked where lower(during) = 5", "commit"],
    "rules": ["insert into ruled values (2, 'x')", "insert into ruled values (100, 'x')", "update ruled set v = 'y'", "delete from ruled"],
    "policies": ["insert into forced values (2, 'mine')", "update forced set id = 3", "delete from forced where id = 3"],
    "published": ["update identified set v = 'x'", "delete from whole", "insert into identified values (2, 'y')"],
    "no columns": ["delete from bare", "insert into bare default values"],
    "nulls": ["update nulls set a = 1, b = 'NULL', d = '{NULL}' where b is null", "delete from nulls where b = ''"],
    "unlogged": ["update fast set v = 'x'", "truncate fast restart identity", "insert into fast (v) values ('y')"],
    "indexes": ["update indexed set t = t || 'x', a = a || 1, p = point(0, 0) where id % 3 = 0", "delete from indexed where id = 50",
                "insert into indexed values (99, null, null, null)"],
    "extensions": [("do $$ begin if to_regclass('extended') is not null then update extended set c = 'case', h = h || 'k=>v', n = 2; "
                   "insert into extended (c, l) values ('', 'z'); end if; update many set v = v; end $$"), "select nextval('many_id_seq')"],
    "vectors": [("do $$ begin if to_regclass('vectors') is not null then update vectors set v = '[0,0,0]'; "
                "insert into vectors (v) values ('[9,9,9]'); end if; end $$"), "select nextval('many_id_seq')"],
    "names": [f'update {UNI}."select" set "{{}}%s" = \'y\', "an ""end"" x" = 1', f'insert into {UNI}."select" ("ctid ") values (1)',
              f"select nextval('{UNI}.\"seq %\"')"],
    "1600 columns": ["update broad set c2 = 'x' where c1 = 'first'", "delete from broad where c1 is null"],
    "1600 columns more": ["insert into broad (c1599) values (1)"],
    "80 savepoints": ["begin", *SAVEPOINTS, "commit"],
    "80 savepoints undone": ["begin", *SAVEPOINTS, "rollback to s40", "insert into many (v) values ('last')", "commit"],
    "80 savepoints aborted": ["begin", *SAVEPOINTS, "rollback"],
    "column undone": ["begin", "alter table many add n serial", "insert into many (v) values ('x')", "drop table bare", "rollback"],
    "table undone": ["create table mayfly (id serial primary key, v text)", "insert into mayfly (v) values ('x')", "drop table mayfly"],
    "large objects": ["select lo_put(77001, 3, 'changed and longer')", "select lo_from_bytea(0, '\\x00ff')",
                      "select lo_put(77002, 5000000, 'far')"],
    "two phases": ["begin", "insert into many (v) values ('x')", "prepare transaction 'it''s \"one\"'",
                   "commit prepared 'it''s \"one\"'", "begin", "update ruled set v = 'z'", "prepare transaction 'left ''open'"],
    "defaults of types": ["set datestyle = 'SQL, DMY'", "set intervalstyle = 'iso_8601'", "set timezone = 'Asia/Tokyo'",
                          "set bytea_output = 'escape'", "update typed set f = 1 where f is not null"],
    "one by one": [f"insert into many (v) values ('{i}')" for i in range(40)],
    "triggers off": ["set session_replication_role = replica", "delete from hen", "set session_replication_role = origin"],
}  # fmt: skip
SUPERUSERS = ("triggers off",)


@pytest.fixture(scope="module")
def shared(reset_server: Server) -> Iterator[Case]:
    case = Case(reset_server, "audit", SCHEMA, as_admin=EXTENSIONS, reset_timeout=0.05)
    yield case
    dispose(case.bench)


@contextmanager
def going_on(case: Case) -> Iterator[None]:
    """Each goes on where the last one ended, as a suite does; after a failure in a new clone."""
    try:
        yield
    except BaseException:
        case.bench.reclone()
        raise


@pytest.mark.parametrize("name", WORKLOADS)
def test_it_comes_back_without_a_clone(shared: Case, name: str) -> None:
    with going_on(shared), shared.bench.superuser() if name in SUPERUSERS else shared.bench.app() as session:
        # Twice: the second time rows lie where the first reset has put them.
        for _ in range(2):
            for statement in WORKLOADS[name]:
                session.execute(statement)
            report = shared.reset()
            assert report.strategy == "restore"
            assert [text for text in report.ended if not text.startswith("prepared")] == []
        shared.assert_pristine()


def test_rows_that_copy_froze(shared: Case) -> None:
    with going_on(shared), shared.bench.app() as app:
        for _ in range(2):
            app.execute("begin")
            app.execute("truncate frozen")
            with app.connection.cursor() as cursor, cursor.copy("copy frozen from stdin (freeze)") as copy:
                copy.write("1\tf\n2\tx\n")
            app.execute("commit")
            assert shared.reset().strategy == "restore"
        shared.assert_pristine()


def test_a_held_cursor_goes_on(shared: Case) -> None:
    """It holds rows of before the reset, in its session's own memory, and nothing of the database."""
    with going_on(shared), shared.bench.app() as app:
        app.execute("begin")
        app.execute("insert into many (v) values ('seen by the cursor')")
        app.execute("declare held cursor with hold for select v from many")
        app.execute("commit")
        assert shared.reset().ended == ()
        assert app.rows("fetch all from held") == [("seen by the cursor",)]
        assert app.value("select count(*) from many") == 0
        shared.assert_pristine()


def test_many_savepoints_left_open_are_ended(shared: Case) -> None:
    """More than PostgreSQL lists of one transaction (64): whether the others have ended is asked by id."""
    with going_on(shared):
        app = shared.bench.app()
        for statement in ["begin", *SAVEPOINTS]:
            app.execute(statement)
        assert [f"pid {app.pid}" in text for text in shared.reset().ended] == [True]
        app.close()
        shared.assert_pristine()


def test_a_record_that_goes_on_in_the_next_segment(shared: Case) -> None:
    with going_on(shared), shared.bench.app() as app:
        admin = shared.bench.admin
        shared.reset()
        admin.value("select pg_switch_wal()")
        segment = 16 * 1024**2
        # Up to four kilobytes before the end; the row, which does not compress, is a record of more than that.
        left = segment - int(
            admin.value("select (pg_current_wal_insert_lsn() - '0/0')::int8 %% %s", (segment,))
        )
        while left > 4096:
            size = min(left - 3000, 1000000)
            admin.value(
                "select length(pg_logical_emit_message(false, 'filler', repeat('x', %s))::text)", (size,)
            )
            left = segment - int(
                admin.value("select (pg_current_wal_insert_lsn() - '0/0')::int8 %% %s", (segment,))
            )
        assert 0 < left <= 4096
        before = admin.value("select pg_walfile_name(pg_current_wal_insert_lsn())")
        app.execute(
            "insert into plainly values ((select string_agg(md5(n::text), '') from generate_series(1, 200) n))"
        )
        assert admin.value("select pg_walfile_name(pg_current_wal_insert_lsn())") > before
        shared.bench.engine.clone_ms = 60000
        assert shared.reset().strategy == "restore"
        assert repr(shared.bench.engine._connections.wal) == "<ChosenReader ByteReader>"
        shared.assert_pristine()
