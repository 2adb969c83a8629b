"""Random schemas for the differential test: every kind of table that a reset has to put back."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

SLOT = "int4range /* of one */"
"""Ranges that seldom overlap, for an exclusion constraint."""

TYPES = {
    "integer": lambda r: str(r.randint(-(10**6), 10**6)),
    "bigint": lambda r: str(r.randint(-(10**15), 10**15)),
    "text": lambda r: quoted(
        r.choice(["", "x", "a'b\\c\"d", "ünïcødé {},\t\n", "NULL", "long " * r.randint(1, 9)])
    ),
    "numeric(12,3)": lambda r: f"{r.uniform(-1e6, 1e6):.3f}",
    "double precision": lambda r: repr(r.choice([0.1, -0.0, 1e300, r.random()])),
    "boolean": lambda r: r.choice(["true", "false"]),
    "timestamptz": lambda r: quoted(
        f"2026-0{r.randint(1, 9)}-1{r.randint(0, 9)} 0{r.randint(0, 9)}:30:00.123456+02"
    ),
    "date": lambda r: quoted(f"{r.randint(1, 2999):04d}-02-0{r.randint(1, 9)}"),
    "interval": lambda r: quoted(
        f"{r.randint(-5, 5)} mons {r.randint(-40, 40)} days {r.randint(0, 99999)} secs"
    ),
    "uuid": lambda r: quoted(f"{r.getrandbits(128):032x}"),
    "jsonb": lambda r: quoted(r.choice(['{"a": [1, null, "x\\"y"]}', "[]", "null", '{"n": 1.50}'])),
    "json": lambda r: quoted(r.choice(['{"b" : 1,  "a":2}', "[1 ,2]"])),
    "bytea": lambda r: quoted("\\x" + r.randbytes(r.randint(0, 20)).hex()),
    "integer[]": lambda r: quoted(r.choice(["{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[2:3]={7,8}"])),
    "text[]": lambda r: quoted(r.choice(["{}", '{"a,b","c\\"d",NULL}', '{"NULL"}'])),
    "int4range": lambda r: quoted(f"[{r.randint(0, 50)},{r.randint(51, 99)})"),
    "char(6)": lambda r: quoted(r.choice(["a", "ab  ", "abcdef"])),
    "bit varying(9)": lambda r: f"B'{r.randint(0, 255):08b}'",
    "inet": lambda r: quoted(f"10.0.{r.randint(0, 255)}.0/24"),
    "tsvector": lambda r: quoted("'cat':3 'fat':2,4A"),
    "mood": lambda r: quoted(r.choice(["sad", "ok", "happy"])),
    "positive": lambda r: str(r.randint(1, 99)),
    "pair": lambda r: quoted(f'({r.randint(0, 9)},"x, y")'),
    "positive[]": lambda r: quoted(f"{{{r.randint(1, 9)},{r.randint(1, 9)}}}"),
    '"odd ""type"': lambda r: quoted(r.choice(["one", "t wo"])),
    "mood[]": lambda r: quoted(r.choice(["{}", "{sad,happy}", "{NULL,ok}"])),
    "pair[]": lambda r: quoted('{"(1,\\"a b\\")",NULL}'),
    "list_of": lambda r: quoted(f"{{{r.randint(1, 9)},{r.randint(1, 9)}}}"),
    "floats": lambda r: quoted(f"[{r.random():.6f},9.5)"),
    "int4multirange": lambda r: quoted(f"{{[1,{r.randint(2, 5)}),[7,{r.randint(8, 12)})}}"),
    "timestamp": lambda r: quoted(r.choice(["2026-01-01 00:00:00.5", "infinity", "4713-01-01 00:00:00 BC"])),
    "timetz": lambda r: quoted("12:34:56.789+05:30"),
    "real": lambda r: r.choice(["1.1", "'NaN'", "'-Infinity'", "3.4e38"]),
    "smallint": lambda r: str(r.randint(-32768, 32767)),
    "point": lambda r: quoted(f"({r.random()},{r.random()})"),
    "macaddr": lambda r: quoted(f"08:00:2b:01:02:{r.randint(0, 255):02x}"),
    '"char"': lambda r: quoted(r.choice("abc")),
    "varchar(9)": lambda r: quoted(r.choice(["", "tab\there", "new\nline"])),
    "jsonpath": lambda r: quoted("$.a[*] ? (@ > 1)"),
    SLOT: lambda r: quoted(f"[{(n := r.randint(10, 900))},{n + 1})"),
}
"""Type → a literal of it."""

PRELUDE = """
create type mood as enum ('sad', 'ok', 'happy');
create domain positive as integer check (value > 0);
create type pair as (n integer, t text);
create type "odd ""type" as enum ('one', 't wo');
create domain list_of as positive[];
create type floats as range (subtype = float8);
create function quiet() returns trigger language plpgsql as $$ begin return coalesce(new, old); end $$;
create function loud() returns trigger language plpgsql as $$ begin raise exception 'no delete'; end $$;
create table audit (id bigserial primary key, what text);
create function audited() returns trigger language plpgsql as
  $$ begin insert into audit (what) values (tg_op); return null; end $$;
"""

SETTLE = """
do $$ declare s record; begin
  for s in select seqrelid::regclass as name from pg_sequence loop
    execute format('select setval(%L, last_value, is_called) from %s', s.name, s.name);
  end loop;
end $$
"""
"""As a template's sequences are when it is made: none has values that are taken without a word in the log."""


def quoted(text: str) -> str:
    """A literal."""
    body = text.replace("'", "''")
    return f"E'{body.replace(chr(92), chr(92) * 2)}'" if "\\" in text else f"'{body}'"


@dataclass
class Table:
    """One table of a schema.

    Attributes:
        columns: name → type, of what a workload writes (keys and generated columns excluded).
        key: name of the column that picks rows; it has a default.
        always: whether the key is GENERATED ALWAYS.
        truncatable: whether TRUNCATE of it alone works.
        trigger: it has a trigger that raises on DELETE: workloads only insert and update.
    """

    name: str
    columns: dict[str, str]
    key: str
    always: bool = False
    truncatable: bool = True
    no_delete: bool = False

    @property
    def written(self) -> str:
        """A column that a workload may write."""
        return next(name for name in self.columns if name != "parent")


@dataclass
class Schema:
    """A schema, as SQL that the application's role runs, and what a workload may do to it."""

    seed: int
    sql: str
    tables: list[Table]
    sequences: list[str]
    views: list[str] = field(default_factory=list)
    large_objects: list[int] = field(default_factory=list)


def values(rng: random.Random, table: Table, names: list[str]) -> str:
    """Literals for these columns."""
    return ", ".join("null" if rng.random() < 0.1 else TYPES[table.columns[name]](rng) for name in names)


def generate(seed: int) -> Schema:
    """The schema of a seed."""
    rng = random.Random(seed)
    statements = [PRELUDE]
    tables: list[Table] = [Table("audit", {"what": "text"}, "id", truncatable=True)]
    for number in range(rng.randint(4, 7)):
        table, ddl = _table(rng, f"t{number}", tables)
        statements.append(ddl)
        tables.append(table)
        statements.extend(_seed_rows(rng, table))
    statements.extend(_special(rng, tables))
    sequences = ["plain_seq", "cached_seq", "down_seq", "small_seq"]
    statements.append(
        "create sequence plain_seq; create sequence cached_seq cache 10 start 5; "
        "create sequence down_seq increment -3 minvalue -90 maxvalue 0 start -3 cycle"
    )
    if rng.random() < 0.5:
        statements.append("select nextval('plain_seq') from generate_series(1, 7)")
        statements.append("select setval('down_seq', -30, false)")
    large = []
    if rng.random() < 0.4:
        large = [900001, 900002]
        statements.append(
            "select lo_from_bytea(900001, 'seeded'), lo_from_bytea(900002, repeat('big', 3000)::bytea)"
        )
    statements.append("comment on table audit is 'seen'; grant select on audit to public")
    return Schema(seed, ";\n".join(statements), tables, sequences, ["seen"], large)


def _table(rng: random.Random, name: str, others: list[Table]) -> tuple[Table, str]:
    columns = {f"c{i}": rng.choice(list(TYPES)) for i in range(rng.randint(1, 5))}
    kind = rng.choice(["serial", "bigserial", "always", "by default", "uuid"])
    key = {
        "serial": "id serial", "bigserial": "id bigserial", "always": "id bigint generated always as identity",
        "by default": "id integer generated by default as identity", "uuid": "id uuid default gen_random_uuid()",
    }[kind]  # fmt: skip
    parts = [f"{key} primary key"] if rng.random() < 0.85 else [key]
    parts += [f"{column} {type_}" for column, type_ in columns.items()]
    integers = [column for column, type_ in columns.items() if type_ in ("integer", "bigint")]
    if integers and rng.random() < 0.6:
        parts.append(f"g bigint generated always as ({integers[0]}::bigint + 1) stored")
    table = Table(name, columns, "id", always=kind == "always")
    extra = []
    keyed = parts[0].endswith("primary key")
    if kind in ("serial", "by default") and keyed and rng.random() < 0.5:
        extra.append(f"alter table {name} add parent integer references {name} deferrable initially deferred")
        table.columns["parent"] = "integer"
    dice = rng.random()
    if dice < 0.15:
        extra.append(
            f"create trigger audited after insert or update on {name} for each row execute function audited()"
        )
    elif dice < 0.25:
        extra.append(f"create trigger loud before delete on {name} for each row execute function loud()")
        table.no_delete = True
    elif dice < 0.35:
        extra.append(f"create rule keep as on delete to {name} do instead nothing")
    elif dice < 0.45:
        extra.append(f"alter table {name} enable row level security, force row level security")
        extra.append(f"create policy all_rows on {name} using (true)")
    elif dice < 0.55:
        extra.append(f"alter table {name} replica identity full")
    if rng.random() < 0.4:
        column = rng.choice(list(columns))
        # A long text fits into no index.
        if columns[column] not in ("json", "text", "point", "jsonpath"):
            extra.append(f"create index on {name} ({column})")
    for column, type_ in columns.items():
        if (method := _METHODS.get(type_)) and rng.random() < 0.5:
            extra.append(f"create index on {name} using {method} ({column})")
    if rng.random() < 0.3:
        # A default that no old row has in its page, and a column that is not there any more.
        extra.append(f"alter table {name} add gone integer default 5, add late text default 'late'")
        extra.append(f"alter table {name} drop column gone")
    if rng.random() < 0.2:
        extra.append(f"alter table {name} set (fillfactor = 40)")
    referenced = [t for t in others if t.name.startswith("t") and "ref" not in t.columns and t.key == "id"]
    unlogged = "unlogged " if rng.random() < 0.12 else ""
    if unlogged:
        extra = [e for e in extra if "references" not in e and "(parent)" not in e]
        table.columns.pop("parent", None)
    del referenced
    return table, ";\n".join([f"create {unlogged}table {name} ({', '.join(parts)})", *extra])


_METHODS = {
    "text": "hash", "jsonb": "gin", "integer[]": "gin", "tsvector": "gin", "int4range": "gist", "point": "gist",
    "inet": "spgist", "integer": "brin", "date": "brin", "uuid": "hash",
}  # fmt: skip
"""Kinds of indexes beside B-trees: each has log records of its own."""


def _seed_rows(rng: random.Random, table: Table) -> list[str]:
    count = rng.choice([0, 0, 3, 20, 150, 400])
    names = [name for name in table.columns if name != "parent"]
    found = []
    for start in range(0, count, 50):
        rows = ", ".join(f"({values(rng, table, names)})" for _ in range(min(50, count - start)))
        found.append(f"insert into {table.name} ({', '.join(names)}) values {rows}")
    texts = [name for name in names if table.columns[name] == "text"]
    if count and texts and rng.random() < 0.5:
        # Values that do not fit into a page and do not compress go to a TOAST table.
        found.append(
            f"insert into {table.name} ({texts[0]}) "
            "select string_agg(md5(i::text), '') from generate_series(1, 400) i"
        )
    return found


def _special(rng: random.Random, tables: list[Table]) -> list[str]:
    statements = [
        "create table cat (id serial primary key, name text); insert into cat (name) values ('a'), ('b')",
        "create table dog (id serial primary key, cat_id integer references cat, name text)",
        "alter table cat add dog_id integer references dog deferrable initially deferred",
        (
            "create table booking (id serial primary key, room integer, during int4range, "
            "exclude using gist (during with &&))"
        ),
        "insert into booking (room, during) values (1, '[1,5)'), (2, '[5,9)')",
        (
            "create table part (id bigint generated always as identity, k integer, v text, primary key (id, k)) "
            "partition by list (k)"
        ),
        "create table part0 partition of part for values in (0)",
        "create table part1 partition of part for values in (1, 2)",
        "create table part_rest partition of part default",
        "insert into part (k, v) select i % 5, 'p' || i from generate_series(1, 40) i",
        "create table base (id serial primary key, v text); create table child (w integer) inherits (base)",
        "insert into base (v) values ('b'); insert into child (v, w) values ('c', 1)",
        (
            "create table uniq (id serial primary key, n integer unique deferrable initially immediate, "
            "m integer check (m < 1000))"
        ),
        "insert into uniq (n, m) select i, i from generate_series(1, 30) i",
        "create table team (id serial primary key, name text unique); insert into team (name) values ('a'), ('b'), ('c')",
        (
            "create table player (id serial primary key, team_id integer references team on delete cascade on update cascade, "
            "captain integer references team on delete set null, v text)"
        ),
        "insert into player (team_id, captain, v) select i % 3 + 1, i % 2 + 1, 'p' || i from generate_series(1, 12) i",
        'create schema "odd schema"',
        'create table "odd schema"."odd ""table" (id serial primary key, "the ""column" text, "select" integer)',
        """insert into "odd schema"."odd ""table" ("the ""column", "select") values ('x', 1), (E'y\\n', 2)""",
        "create table bare (); insert into bare default values; insert into bare default values",
        "create statistics numbers on n, m from uniq",
        "create table nested (id serial, k integer, v text) partition by range (k)",
        "create table nested_low partition of nested for values from (0) to (50) partition by hash (id)",
        "create table nested_low0 partition of nested_low for values with (modulus 2, remainder 0)",
        "create table nested_low1 partition of nested_low for values with (modulus 2, remainder 1)",
        "create table nested_high partition of nested for values from (50) to (100)",
        "insert into nested (k, v) select i * 9 % 100, 'n' || i from generate_series(1, 25) i",
        """do $$ begin if current_setting('server_version_num')::int >= 180000 then
             execute 'alter table base add virt text generated always as (upper(v)) virtual'; end if; end $$""",
        "create sequence small_seq as smallint minvalue -5 maxvalue 900 cycle",
        "create view shown as select id, name from cat",
        "create materialized view seen as select k, count(*) from part group by k order by k",
    ]
    tables += [
        Table("cat", {"name": "text"}, "id", truncatable=False),
        Table("dog", {"name": "text"}, "id", truncatable=False),
        Table("part", {"k": "positive", "v": "text"}, "id", always=True),
        Table("base", {"v": "text"}, "id"),
        Table("child", {"v": "text", "w": "integer"}, "id"),
        Table("uniq", {"n": "integer", "m": "positive"}, "id"),
        Table("booking", {"room": "integer", "during": SLOT}, "id"),
        Table("team", {"name": "text"}, "id", truncatable=False),
        Table("player", {"v": "text"}, "id"),
        Table("nested", {"k": "positive", "v": "text"}, "id"),
        Table('"odd schema"."odd ""table"', {'"the ""column"': "text", '"select"': "integer"}, "id"),
    ]
    if rng.random() < 0.3:
        # Larger than what is held in memory as a whole.
        statements.append("create table large (id serial primary key, v text, n integer)")
        statements.append(
            "insert into large (v, n) select repeat('x', 200), i from generate_series(1, 6000) i"
        )
        tables.append(Table("large", {"v": "text", "n": "integer"}, "id"))
    return statements
