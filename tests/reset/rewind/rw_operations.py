"""What the workloads of a rewind hold beside those of ``diff_workloads``: everything that a reset by rows has no rule for.

Each operation may be refused by the server; what it did until then is undone all the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from diff_schemas import SETTLE, Schema, Table
from diff_workloads import CONNECTIONS, OPERATIONS, Maker, Operation

SUPERUSER = CONNECTIONS
"""The number of the one session that is a superuser's."""

ZOO = """
;create table zoo (id serial primary key, t text, n integer, p point, a integer[], r int4range, i inet, d date, body text,
    g bigint generated always as (n::bigint * 2) stored);
insert into zoo (t, n, p, a, r, i, d, body)
  select 'animal ' || i, i % 700, point(i % 37, i % 41), array[i % 13, i % 17], int4range(i % 50, i % 50 + 9),
         ('10.0.' || i % 200 || '.0/24')::inet, date '2026-01-01' + i, repeat('b' || i, i % 20)
    from generate_series(1, 1200) i;
create index zoo_n on zoo (n); create index zoo_t on zoo using hash (t); create index zoo_p on zoo using gist (p);
create index zoo_q on zoo using spgist (p); create index zoo_a on zoo using gin (a); create index zoo_r on zoo using gist (r);
create index zoo_i on zoo using spgist (i inet_ops); create index zoo_d on zoo using brin (d) with (pages_per_range = 2);
create index zoo_e on zoo (lower(t)) where n > 100; create unique index zoo_u on zoo (t, id);
create unlogged table loose (id serial primary key, v text, n integer);
insert into loose (v, n) select 'loose ' || i, i from generate_series(1, 150) i; create index loose_v on loose using hash (v);
create table toasty (id integer primary key, v text); alter table toasty alter v set storage external;
insert into toasty select i, (select string_agg(md5(i::text || g), '') from generate_series(1, 150) g) from generate_series(1, 25) i;
create table filled (id serial primary key, v text, n integer) with (fillfactor = 60);
insert into filled (v, n) select 'f' || i, i from generate_series(1, 300) i;
create materialized view zoo_seen as select n % 10 as k, count(*) as c from zoo group by 1;
create unique index zoo_seen_k on zoo_seen (k);
create function counted() returns bigint language plpgsql as $$ begin return (select count(*) + sum(n) from uniq); end $$;
create function stamped() returns trigger language plpgsql as $$ begin new.v := coalesce(new.v, 'stamped'); return new; end $$;
create trigger stamp before insert on filled for each row execute function stamped();
"""


def enlarged(schema: Schema) -> Schema:
    """With tables of every kind of index, storage and persistence, and sequences as a template's."""
    if schema.seed % 8:
        # Values that sessions fetch in advance are not the server's to put back: where such a sequence moved, rows decide.
        schema.sql = schema.sql.replace("cached_seq cache 10", "cached_seq cache 1")
    schema.sql += ZOO + ";" + SETTLE
    schema.tables += [
        Table("zoo", {"t": "text", "n": "integer", "a": "integer[]", "r": "int4range", "p": "point"}, "id"),
        Table("loose", {"v": "text", "n": "integer"}, "id"),
        Table("filled", {"v": "text", "n": "integer"}, "id"),
    ]
    return schema


def _name(m: Maker) -> str:
    return m.fresh("w")


def _alter(m: Maker) -> list[str]:
    t, n, k = (
        m.table(),
        _name(m),
        m.rng.choice(["uniq", "booking", "filled", "zoo", "base", "loose", "cat", "player"]),
    )
    return [m.rng.choice([
        f"alter table {t.name} add {n} integer default 7",
        f"alter table {t.name} add {n} double precision default random()",
        f"alter table {t.name} add {n} serial",
        f"alter table {t.name} add {n} bigint generated always as identity",
        f"alter table {t.name} add {n} text default 'x' not null",
        f"alter table {t.name} drop {t.written} cascade",
        f"alter table {t.name} rename to {n}",
        f"alter table {t.name} rename {t.written} to {n}",
        f"alter table {t.name} alter {t.written} set not null",
        f"alter table {t.name} alter {t.written} set default null",
        f"alter table {t.name} alter {t.written} set statistics 7",
        f"alter table {t.name} set (fillfactor = 33, autovacuum_enabled = off)",
        f"alter table {t.name} add constraint {n} check ({t.key} is not null) not valid",
        f"alter table {t.name} add constraint {n} check ({t.key} is not null)",
        f"alter table {t.name} disable trigger all",
        f"alter table {t.name} enable row level security",
        f"alter table {t.name} replica identity full",
        f"alter table {t.name} set without oids",
        "alter table uniq alter n type bigint",
        "alter table uniq alter n type text using n::text || '!'",
        "alter table zoo alter t type varchar(400)",
        "alter table zoo alter n type bigint",
        "alter table zoo drop column g",
        "alter table zoo alter g drop expression",
        "alter table zoo add h integer generated always as (n + 1) stored",
        "alter table player alter v set storage external, alter v set compression pglz",
        "alter table filled set unlogged",
        "alter table booking set unlogged",
        "alter table loose set logged",
        "alter table team drop constraint team_name_key",
        "alter table player drop constraint player_captain_fkey, add constraint again foreign key (captain) references team not valid",
        "alter table player validate constraint player_team_id_fkey",
        f"alter table {k} add unique using index zoo_u",
        f"alter table {k} inherit base",
        "alter table child no inherit base",
        "alter table nested detach partition nested_high",
        "alter table part detach partition part1",
        f"create table {n} (like part including all); alter table part attach partition {n} for values in (77)",
        f"create table {n} partition of part for values in (78, 79)",
        f"create table {n} partition of nested for values from (100) to (200) partition by list (k)",
        "drop table part0", "drop table nested_low cascade",
        f"alter table {k} cluster on {k}_pkey", f"alter index {k}_pkey rename to {n}", f"alter index {k}_pkey set (fillfactor = 50)",
        f"alter table {k} alter id add generated always as identity",
        "alter table part alter id restart with 9000", "alter table part alter id drop identity",
        f"alter table {k} alter id drop default", f"alter table {k} set schema \"odd schema\"",
        f"alter table {k} add primary key (id)", f"alter table {k} drop constraint {k}_pkey cascade",
        "alter materialized view zoo_seen rename to zoo_looked", "alter view shown rename to seen_again",
        "alter view shown alter name set default 'n'",
    ])]  # fmt: skip


def _create(m: Maker) -> list[str]:
    t, n = m.table(), _name(m)
    return m.rng.choice([
        [f"create table {n} (id serial primary key, v text unique)", f"insert into {n} (v) select 'v' || i from generate_series(1, 300) i"],
        [f"create unlogged table {n} (id serial primary key, v text)", f"insert into {n} (v) values ('x')"],
        [f"create table {n} as select * from {t.name}", f"create index on {n} ({t.key})"],
        [f"select * into {n} from zoo where id < 100", f"drop table {n}"],
        [f"create table {n} (like zoo including all)", f"insert into {n} select * from zoo limit 0", f"vacuum {n}"],
        [f"create table {n} () inherits (base)", f"insert into {n} (v) values ('c')"],
        [f"create table {n} of pair"],
        [f"create view {n} as select * from {t.name}", f"comment on view {n} is 'v'"],
        [f"create materialized view {n} as select * from zoo where n < 50", f"create unique index on {n} (id)",
         f"refresh materialized view concurrently {n}", f"drop materialized view {n}"],
        [f"create recursive view {n} (a) as values (1) union all select a + 1 from {n} where a < 5"],
        [f"create function {n}() returns integer language sql as 'select 1'", f"create or replace function {n}() returns integer language sql as 'select 2'"],
        [f"create function {n}() returns trigger language plpgsql as $$ begin return new; end $$",
         f"create trigger {n} before insert or update on {t.name} for each row execute function {n}()", m.insert(t)],
        [f"create procedure {n}() language plpgsql as $$ begin insert into base (v) values ('p'); commit; insert into base (v) values ('q'); rollback; end $$",
         f"call {n}()", f"call {n}()"],
        ["create or replace function counted() returns bigint language sql as 'select 1::bigint'", "select counted()"],
        [f"create type {n} as enum ('a', 'b')", f"alter type {n} add value 'c'", f"create table {n}_t (v {n})", f"insert into {n}_t values ('c')"],
        ["alter type mood add value 'grim' before 'sad'"], ["alter type mood rename value 'sad' to 'blue'"],
        [f"create type {n} as (a integer, b text)", f"alter type {n} add attribute c integer"],
        ["alter type pair add attribute z integer"],
        [f"create type {n} as range (subtype = numeric)"],
        [f"create domain {n} as integer check (value > 0)", f"alter domain {n} add check (value < 100)"],
        ["alter domain positive add constraint small check (value < 100000)"],
        [f"create schema {n}", f"create table {n}.x (id serial primary key)", f"create view {n}.y as select * from {n}.x"],
        [f"create rule {n} as on insert to team do also insert into audit (what) values ('rule')", "insert into team (name) values ('by rule')"],
        [f"create policy {n} on team using (name <> 'b')", "alter table team enable row level security"],
        [f"create statistics {n} (ndistinct, dependencies, mcv) on t, n from zoo", "analyze zoo"],
        ["drop statistics numbers"], [f"create publication {n} for table cat, dog", f"alter publication {n} drop table dog"],
        [f"comment on table {t.name} is '{n}'", f"comment on column {t.name}.{t.key} is '{n}'"],
        [f"grant all on {t.name} to public", f"revoke all on {t.name} from app"],
        ["grant select (n) on zoo to public"], ["alter default privileges grant select on tables to public", f"create table {n} (a integer)"],
        [f"create sequence {n} cache 20", f"select nextval('{n}')", f"alter sequence {n} owned by uniq.n", f"drop sequence {n}"],
        ["drop view shown", "create view shown as select id, name, 1 as more from cat"],
        [f"create collation {n} (provider = libc, locale = 'C')"],
        [f"create aggregate {n} (integer) (sfunc = int4pl, stype = integer)"],
        [f"create operator === (leftarg = integer, rightarg = integer, function = int4eq) /* {n} */"],
        [f"create text search configuration {n} (copy = simple)"],
        ["drop function quiet()", "drop function audited() cascade"],
        ["drop table player", "drop table team cascade", "create table team (id integer)"],
        ["drop table zoo cascade"], ["drop type pair cascade"], ["drop domain positive cascade"],
        ["drop schema \"odd schema\" cascade"], ["drop sequence plain_seq cascade"], ["drop materialized view zoo_seen"],
        ["drop trigger stamp on filled", "insert into filled (n) values (1)"],
        [f"create extension {m.rng.choice(['hstore', 'citext', 'btree_gist', 'btree_gin', 'pg_trgm', 'intarray', 'cube', 'ltree'])}"],
        ["create extension hstore", f"create table {n} (h hstore)", f"insert into {n} values ('a=>1')", f"create index on {n} using gin (h)", "drop extension hstore cascade"],
    ])  # fmt: skip


def _index(m: Maker) -> list[str]:
    t, n = m.table(), _name(m)
    return m.rng.choice([
        [f"create index {n} on {t.name} ({t.key})", f"drop index {n}"],
        [f"create index {n} on {t.name} ({t.key})", m.write()],
        [f"create index concurrently {n} on zoo (n, id)", "update zoo set n = n + 1 where id < 20"],
        ["drop index concurrently zoo_n"], ["drop index zoo_t"], ["drop index zoo_a, zoo_p"],
        [f"create index {n} on zoo using {m.rng.choice(['hash (n)', 'brin (n)', 'gin (a)', 'gist (p)', 'spgist (t)', 'btree (t, n)'])}"],
        [f"create unique index {n} on uniq (m)"],
        [f"reindex index {m.rng.choice(['zoo_n', 'zoo_t', 'zoo_p', 'zoo_q', 'zoo_a', 'zoo_d', 'zoo_pkey', 'uniq_pkey'])}"],
        ["reindex index concurrently zoo_n"], ["reindex table concurrently uniq"], ["reindex table zoo"], ["reindex table part"],
        ["begin", "reindex table uniq", m.insert(), "rollback"],
        ["reindex schema public"],
        ["select brin_summarize_new_values('zoo_d')", "select brin_desummarize_range('zoo_d', 0)"],
        ["insert into zoo (a, n) select array[i, i + 1], i from generate_series(1, 200) i", "select gin_clean_pending_list('zoo_a')"],
        ["alter index zoo_a set (fastupdate = off)", "insert into zoo (a) values ('{1,2,3}')"],
        ["create unique index concurrently broken on zoo (n)"],
    ])  # fmt: skip


def _maintenance(m: Maker) -> list[str]:
    t = m.table()
    words = m.rng.choice(["", "(freeze)", "(full)", "(analyze)", "(full, freeze, analyze)", "(truncate off)", "(index_cleanup off)",
                          "(index_cleanup on)", "(disable_page_skipping)"])  # fmt: skip
    return m.rng.choice([
        [f"vacuum {words} {t.name}"], [m.delete(), m.delete(), f"vacuum {words} {t.name}"],
        ["delete from zoo where id > 600", f"vacuum {words} zoo"], ["delete from zoo", "vacuum zoo", "insert into zoo (n) values (1)"],
        ["delete from loose where id > 3", f"vacuum {words} loose"],
        ["vacuum"], ["analyze"], [f"analyze {t.name}"], ["vacuum (freeze, analyze)"],
        ["cluster zoo using zoo_n"], ["cluster uniq using uniq_pkey", "cluster"], [f"cluster {t.name}"],
        ["refresh materialized view zoo_seen"], ["refresh materialized view concurrently zoo_seen"],
        ["update zoo set n = n + 1000 where id % 7 = 0", "refresh materialized view concurrently zoo_seen"],
        ["refresh materialized view zoo_seen with no data"],
        [f"truncate {t.name} cascade"], ["truncate zoo, loose, filled restart identity"], ["truncate toasty", "insert into toasty values (1, 'x')"],
        ["truncate loose", "insert into loose (v) values ('again')"],
        ["begin", "truncate zoo", "insert into zoo (n) values (1)", "savepoint a", "truncate zoo", "rollback to a", "commit"],
    ])  # fmt: skip


def _dead(m: Maker) -> list[str]:
    """Rows that are dead, and index scans over them: LP_DEAD and other hints that are not in the log."""
    first = m.rng.randint(1, 600)
    away = m.rng.choice([
        [f"delete from zoo where n between {first} and {first + 60}"],
        [f"update zoo set n = n where n between {first} and {first + 60}"],
        ["begin", f"update zoo set n = n + 1, t = t || '!' where n between {first} and {first + 60}", "rollback"],
        ["begin", f"delete from zoo where n between {first} and {first + 60}", "rollback"],
        ["begin", f"insert into zoo (n, t) select {first}, 'gone' from generate_series(1, 30)", "rollback"],
    ])  # fmt: skip
    scans = [
        f"select count(t) from zoo where n between {first} and {first + 60}",
        f"select count(*) from zoo where n between {first} and {first + 60}",
        f"select body from zoo where t = 'animal {first + 10}'",
        "select count(n) from zoo where p <@ box '(0,0),(20,20)'",
        "select count(n) from zoo where r && '[5,9)'",
        f"select count(n) from zoo where id between {first} and {first + 400}",
        f"select count(*) from zoo where lower(t) < 'animal {first}' and n > 100",
    ]
    return ["set enable_seqscan = off", "set enable_bitmapscan = off", *away, *scans, *scans, "reset enable_seqscan", "reset enable_bitmapscan"]  # fmt: skip


def _large(m: Maker) -> list[str]:
    n = m.rng.randint(2000, 6000)
    return m.rng.choice([
        [f"insert into base (v) select repeat('r', 100) || i from generate_series(1, {n}) i"],
        [f"insert into zoo (n, t) select i, 'n' || i from generate_series(1, {n}) i", "delete from zoo where n % 2 = 0"],
        [f"insert into loose (n, v) select i, 'n' || i from generate_series(1, {n}) i"],
        [f"insert into toasty select 100 + i, (select string_agg(md5(i::text || g), '') from generate_series(1, 200) g) from generate_series(1, {n // 100}) i"],
        ["update toasty set v = v || 'x'"], ["update toasty set v = 'short'", "vacuum toasty"], ["delete from toasty where id % 2 = 0"],
        ["update zoo set body = body || 'y'"], ["update zoo set n = n + 1"], ["delete from zoo"],
        ["begin", f"insert into filled (v) select repeat('z', 500) from generate_series(1, {n // 4}) i", "rollback"],
    ])  # fmt: skip


def _undone(m: Maker) -> list[str]:
    """DDL that is rolled back, wholly or by a savepoint."""
    inner = m.rng.choice([_alter, _create, _index, _maintenance, _undone_small])(m)
    return m.rng.choice([
        ["begin", m.insert(), *inner, "rollback"],
        ["begin", "savepoint a", *inner, "rollback to a", m.insert(), "commit"],
        ["begin", *inner, "savepoint a", *_alter(m), "rollback to a", "commit"],
        ["begin", *inner, "select 1 / 0"],
    ])  # fmt: skip


def _undone_small(m: Maker) -> list[str]:
    n = _name(m)
    return [
        f"create table {n} (id serial primary key, v text)",
        f"insert into {n} (v) values ('x')",
        f"drop table {n}",
    ]


def _prepared(m: Maker) -> list[str]:
    gid = m.fresh("rp")
    inner = m.rng.choice([_alter, _create, _undone_small, _maintenance])(m)
    return ["begin", m.insert(), *inner, f"prepare transaction '{gid}'",
            *m.rng.choice([[f"commit prepared '{gid}'"], [f"commit prepared '{gid}'"], [f"rollback prepared '{gid}'"], []])]  # fmt: skip


def _large_object(m: Maker) -> list[str]:
    one = m.rng.choice([*m.schema.large_objects, 900001])
    return m.rng.choice([
        [f"select lo_unlink({one})"], [f"select lo_put({one}, {m.rng.randint(0, 9000)}, 'put')"],
        ["begin", f"select lo_truncate(lo_open({one}, 131072), 3)", "commit"],
        [f"select lo_from_bytea(0, repeat('L', {m.rng.randint(1, 60000)})::bytea)"],
        [f"comment on large object {one} is 'c'"], [f"grant select on large object {one} to public"],
        ["select lo_create(777001)", "select lo_unlink(777001)"],
    ])  # fmt: skip


def _temporary(m: Maker) -> list[str]:
    n = m.fresh("tt")
    return m.rng.choice([
        [f"create temp table {n} (id serial primary key, v text)", f"insert into {n} (v) values ('t')"],
        [f"create temp table {n} (id serial primary key, v text)", f"insert into {n} (v) values ('t')", f"drop table {n}"],
        ["begin", f"create temp table {n} on commit drop as select * from zoo limit 5", m.insert(), "commit"],
        [f"create temp table {n} (v text) on commit delete rows", f"insert into {n} values ('gone')", f"drop table {n}"],
        [f"create temp sequence {n}", f"select nextval('{n}')"], [f"create temp view {n} as select 1"],
        ["begin", f"create temp table {n} (v text)", "rollback"], ["discard temp"], ["discard plans"],
    ])  # fmt: skip


def _sequence(m: Maker) -> list[str]:
    s = m.rng.choice(m.schema.sequences)
    return m.rng.choice([
        [f"select nextval('{s}') from generate_series(1, {m.rng.randint(1, 80)})"], [f"select setval('{s}', 7)"],
        [f"alter sequence {s} restart"], [f"alter sequence {s} increment 2"], [f"alter sequence {s} cache 15", f"select nextval('{s}')"],
        [f"alter sequence {s} set unlogged"], [f"drop sequence {s}"], [f"alter sequence {s} rename to {_name(m)}"],
        ["select nextval('cached_seq')", "select setval('cached_seq', 500)", "select nextval('cached_seq')"],
        ["begin", f"select nextval('{s}') from generate_series(1, 40)", "rollback"],
        ["begin", f"alter sequence {s} restart", "rollback"],
    ])  # fmt: skip


def _locks(m: Maker) -> list[str]:
    t = m.table()
    return m.rng.choice([
        ["begin", f"select from {t.name} for share", m.write(), "commit"],
        ["begin", f"select from {t.name} for key share", "savepoint s", f"select from {t.name} for update", "commit"],
        ["begin", f"lock table {t.name}", "commit"], ["begin", "select from team for share"],
        ["begin isolation level serializable read only deferrable", "select count(*) from zoo", "commit"],
    ])  # fmt: skip


def _superuser(m: Maker) -> list[str]:
    t, n = m.table(), _name(m)
    return m.rng.choice([
        ["checkpoint"], ["checkpoint"], ["checkpoint"],
        [f"create function {n}() returns event_trigger language plpgsql as $$ begin perform 1; end $$",
         f"create event trigger {n} on ddl_command_end execute function {n}()", f"create table {n} (a integer)"],
        [f"create publication {n} for all tables"], [f"create extension {m.rng.choice(['pageinspect', 'bloom', 'amcheck', 'pgstattuple'])}"],
        ["create extension bloom", f"create index {n} on zoo using bloom (n)", "insert into zoo (n) values (5)"],
        ["create extension file_fdw", f"create server {n} foreign data wrapper file_fdw",
         f"create foreign table {n}_f (v text) server {n} options (filename '/dev/null')"],
        [f"alter table {t.name} owner to postgres"], [f"alter function counted() owner to postgres /* {n} */"],
        ["vacuum full pg_attribute"], ["vacuum pg_class", "vacuum pg_depend"], ["vacuum (freeze, analyze)"],
        ["analyze pg_class"], ["reindex table pg_depend"], ["reindex table pg_description"],
        ["create table heaped (a integer)", "alter table heaped alter a set storage plain", "drop table heaped", "vacuum pg_attribute"],
        [f"do $$ begin for i in 1..60 loop execute 'create table {n}_' || i || ' (id serial primary key, v text)'; end loop; end $$"],
        ["drop schema public cascade"],
    ])  # fmt: skip


Build = Callable[[Maker], list[str]]

KINDS: dict[str, tuple[int, Build]] = {
    "alter": (10, _alter), "create": (10, _create), "index": (7, _index), "maintenance": (7, _maintenance), "dead rows": (5, _dead),
    "large": (3, _large), "undone": (7, _undone), "prepared with ddl": (3, _prepared), "large object more": (2, _large_object),
    "temporary more": (3, _temporary), "sequence more": (4, _sequence), "locks": (2, _locks), "superuser": (4, _superuser),
}  # fmt: skip
"""Kind → how often, and what it runs."""

LEFT_OUT = ("setting",)
"""Operations on catalogs of the whole server: the engine's, not the module's."""


def generate(seed: int, schema: Schema) -> list[Operation]:
    """The workload of a seed: one to eight operations, old and new ones alike."""
    rng = random.Random(seed)
    maker = Maker(rng, schema)
    maker.number = seed * 1000
    old = [kind for kind in OPERATIONS if kind not in LEFT_OUT]
    share = rng.choice([0.2, 0.5, 0.9])
    operations = []
    for _ in range(rng.choice([1, 1, 2, 3, 4, 6, 8])):
        if rng.random() < share:
            kind = rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
            connection = SUPERUSER if kind == "superuser" else rng.randrange(CONNECTIONS)
            operations.append(Operation(kind, connection, tuple(KINDS[kind][1](maker)), ddl=True))
        else:
            kind = rng.choices(old, [OPERATIONS[kind][0] for kind in old])[0]
            operations.append(OPERATIONS[kind][1](maker))
    return operations
