"""Random workloads: lists of operations, each of which says what it is and on which connection it runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from diff_schemas import Schema, Table, values

CONNECTIONS = 3


@dataclass(frozen=True)
class Operation:
    """One thing that a test might do.

    Attributes:
        kind: what it is counted as.
        connection: which of the application's sessions runs it.
        statements: run one after the other; the first that fails ends the operation.
        ddl: it changes the schema for good, so a clone may be needed.
        copy: a COPY … FROM STDIN statement and its data, instead of statements.
    """

    kind: str
    connection: int
    statements: tuple[str, ...] = ()
    ddl: bool = False
    copy: tuple[str, str] | None = None

    def __str__(self) -> str:
        body = "; ".join(self.statements) if self.copy is None else f"{self.copy[0]} <- {self.copy[1]!r}"
        return f"[{self.connection}] {self.kind}: {body[:400]}"


class Maker:
    """Makes operations for one schema."""

    def __init__(self, rng: random.Random, schema: Schema) -> None:
        self.rng = rng
        self.schema = schema
        self.number = 0

    def table(self, *, delete: bool = False) -> Table:
        usable = [t for t in self.schema.tables if not (delete and t.no_delete)]
        return self.rng.choice(usable)

    def insert(self, table: Table | None = None, rows: int | None = None) -> str:
        table = table or self.table()
        names = [name for name in table.columns if name != "parent"]
        count = rows or self.rng.randint(1, 5)
        listed = ", ".join(f"({values(self.rng, table, names)})" for _ in range(count))
        return f"insert into {table.name} ({', '.join(names)}) values {listed}"

    def update(self, table: Table | None = None) -> str:
        table = table or self.table()
        name = self.rng.choice([name for name in table.columns if name != "parent"])
        value = values(self.rng, table, [name])
        return f"update {table.name} set {name} = {value} where {self.some(table)}"

    def delete(self, table: Table | None = None) -> str:
        table = table or self.table(delete=True)
        return f"delete from {table.name} where {self.some(table)}"

    def some(self, table: Table) -> str:
        limit = self.rng.randint(1, 12)
        order = self.rng.choice(["", f" order by {table.key}", f" order by {table.key} desc"])
        return f"{table.key} in (select {table.key} from {table.name}{order} limit {limit})"

    def write(self) -> str:
        return self.rng.choice([self.insert, self.update, self.delete])()

    def fresh(self, prefix: str) -> str:
        self.number += 1
        return f"{prefix}_{self.number}"


Make = Callable[[Maker], Operation]


def _operations() -> dict[str, tuple[int, Make]]:
    """Kind → weight and maker."""

    def simple(kind: str, build: Callable[[Maker], list[str]], *, ddl: bool = False) -> Make:
        def make(m: Maker) -> Operation:
            return Operation(kind, m.rng.randrange(CONNECTIONS), tuple(build(m)), ddl)

        return make

    def copy(m: Maker) -> Operation:
        rows = "".join(f"{m.rng.randint(0, 9)}\tv{i}\n" for i in range(m.rng.randint(1, 30)))
        return Operation("copy", m.rng.randrange(CONNECTIONS), copy=("copy part (k, v) from stdin", rows))

    def truncate(m: Maker) -> list[str]:
        table = m.table()
        restart = m.rng.choice(["", " restart identity"])
        return [f"truncate {table.name}{restart}{'' if table.truncatable else ' cascade'}"]

    def subtransactions(m: Maker) -> list[str]:
        return ["begin", m.write(), "savepoint a", m.insert(), "savepoint b", m.write(), "rollback to b", m.insert(),
                "release a", "commit"]  # fmt: skip

    def prepared(m: Maker) -> list[str]:
        gid = m.fresh("gid")
        end = m.rng.choice([[f"commit prepared '{gid}'"], [f"rollback prepared '{gid}'"], []])
        return ["begin", m.insert(), m.insert(), f"prepare transaction '{gid}'", *end]

    def large_object(m: Maker) -> list[str]:
        choice = m.rng.randrange(4)
        if choice == 0 and m.schema.large_objects:
            return [
                f"select lo_put({m.rng.choice(m.schema.large_objects)}, {m.rng.randint(0, 3000)}, 'changed')"
            ]
        if choice == 1:
            return ["begin", "select lo_from_bytea(0, 'rolled back')", "rollback"]
        return [f"select lo_from_bytea(0, repeat('x', {m.rng.randint(1, 5000)})::bytea)"]

    def temporary(m: Maker) -> list[str]:
        name = m.fresh("temp")
        end = m.rng.choice([[f"drop table {name}"], []])
        return [f"create temp table {name} (id serial primary key, v text default 'x', unique (v))",
                f"insert into {name} default values", *end]  # fmt: skip

    def setting(m: Maker) -> list[str]:
        what = m.rng.choice(["database {db}", "role app in database {db}"])
        return [f"alter {what} set work_mem = '{m.rng.randint(1, 9)}MB'"]

    def ddl(m: Maker) -> list[str]:
        name = m.fresh("d")
        table = m.table()
        return [m.rng.choice([
            f"create table {name} (id serial primary key, v text)",
            f"alter table {table.name} add {name} integer default 7",
            f"create index {name} on {table.name} ({table.key})",
            f"create function {name}() returns integer language sql as 'select 1'",
            f"comment on table {table.name} is '{name}'",
            f"grant select on {table.name} to public",
            "drop view shown",
            f"alter table {table.name} rename to {name}",
            "alter sequence plain_seq increment 5",
            "alter type mood add value 'new'",
            f"create schema {name}",
            f"alter table {table.name} alter column {table.key} set statistics 50",
            f"alter table {table.name} replica identity nothing",
            f"create statistics {name} on n, m from uniq",
            f"create rule {name} as on update to cat do also select 1",
            f"create policy {name} on cat using (true)",
            f"create publication {name} for table cat",
            f"alter default privileges grant select on tables to public /* {name} */",
            f"create domain {name} as integer",
            f"create table {name} partition of nested for values from (100) to (200)",
            "alter table nested detach partition nested_high",
            "revoke all on audit from public",
            "comment on column audit.what is 'seen'",
            "vacuum full uniq",
            "alter table player drop constraint player_captain_fkey",
            "alter table uniq alter m set default 3",
            "select lo_unlink(oid) from pg_largeobject_metadata limit 1",
        ])]  # fmt: skip

    def cascade(m: Maker) -> list[str]:
        number = m.rng.randint(1, 3)
        return [m.rng.choice([
            f"delete from team where id = {number}",
            f"update team set id = id + 100 where id = {number}",
            f"insert into player (team_id, captain, v) values ({number}, {number}, 'new')",
            "truncate team cascade",
        ])]  # fmt: skip

    def block(m: Maker) -> list[str]:
        return [
            (
                f"do $do$ begin {m.insert()}; begin {m.write()}; perform 1 / 0; exception when others then {m.insert()}; "
                "end; end $do$"
            )
        ]

    def truncated(m: Maker) -> list[str]:
        table = m.table()
        cut = f"truncate {table.name}{'' if table.truncatable else ' cascade'}"
        return m.rng.choice([
            ["begin", m.write(), cut, m.insert(table), "commit"],
            ["begin", cut, m.insert(table), "rollback"],
            ["begin", "savepoint a", cut, m.insert(table), "rollback to a", m.insert(table), "commit"],
            ["begin", cut, cut, "commit"],
        ])  # fmt: skip

    def reordered(m: Maker) -> list[str]:
        return ["begin", "create temp table kept on commit drop as select id, n, m from uniq", "delete from uniq",
                "insert into uniq (id, n, m) select id, n, m from kept order by id desc", "commit"]  # fmt: skip

    def undone(m: Maker) -> list[str]:
        name = m.fresh("u")
        return ["begin", f"create table {name} (id serial primary key, v text)", m.insert(),
                f"alter table {m.table().name} add {name} integer", "rollback"]  # fmt: skip

    return {
        "insert": (10, simple("insert", lambda m: [m.insert()])),
        "insert many": (3, simple("insert many", lambda m: [m.insert(rows=60)])),
        "update": (8, simple("update", lambda m: [m.update()])),
        "delete": (6, simple("delete", lambda m: [m.delete()])),
        "transaction": (6, simple("transaction", lambda m: ["begin", m.write(), m.write(), "commit"])),
        "rolled back": (5, simple("rolled back", lambda m: ["begin", m.write(), m.write(), "rollback"])),
        "failed": (4, simple("failed", lambda m: ["begin", m.write(), "select 1/0"])),
        "subtransactions": (5, simple("subtransactions", subtransactions)),
        "copy": (4, copy),
        "truncate": (4, simple("truncate", truncate)),
        "upsert": (4, simple("upsert", lambda m: [
            f"insert into uniq (id, m) values ({m.rng.randint(1, 40)}, 5) on conflict (id) do update set m = uniq.m + 1"])),
        "cycle": (3, simple("cycle", lambda m: [
            "begin", "insert into cat (id, name, dog_id) values (1000, 'c', 1000)",
            "insert into dog (id, cat_id) values (1000, 1000)", "commit"])),
        "sequence": (5, simple("sequence", lambda m: [
            f"select nextval('{m.rng.choice(m.schema.sequences)}') from generate_series(1, {m.rng.randint(1, 40)})"])),
        "setval": (3, simple("setval", lambda m: [f"select setval('plain_seq', {m.rng.randint(1, 999)})"])),
        "lock rows": (3, simple("lock rows", lambda m: [f"select * from {m.table().name} for update"])),
        "read": (3, simple("read", lambda m: [f"select * from {m.table().name}"])),
        "vacuum": (2, simple("vacuum", lambda m: [f"vacuum {m.rng.choice(['', 'analyze '])}{m.table().name}"])),
        "toast": (3, simple("toast", lambda m: [
            "insert into cat (name) select string_agg(md5(i::text), '') from generate_series(1, 300) i"])),
        "large object": (4, simple("large object", large_object)),
        "prepared": (3, simple("prepared", prepared)),
        "open transaction": (2, simple("open transaction", lambda m: ["begin", m.insert(), m.write()])),
        "open snapshot": (1, simple("open snapshot", lambda m: [
            "begin isolation level repeatable read", "select * from cat"])),
        "open savepoint": (1, simple("open savepoint", lambda m: ["begin", "savepoint s", m.insert()])),
        "temporary": (4, simple("temporary", temporary)),
        "undone ddl": (3, simple("undone ddl", undone)),
        "advisory": (1, simple("advisory", lambda m: ["select pg_advisory_lock(7)"])),
        "setting": (2, simple("setting", setting)),
        "serializable": (2, simple("serializable", lambda m: [
            "begin isolation level serializable", m.write(), m.write(), "commit"])),
        "cascade": (4, simple("cascade", cascade)),
        "merge": (2, simple("merge", lambda m: [
            (f"merge into uniq using (values ({m.rng.randint(1, 30)}), (5000)) s (id) on uniq.id = s.id when matched then "
            "update set m = 2 when not matched then insert (id, m) values (s.id, 3)")])),
        "exception block": (3, simple("exception block", block)),
        "truncate in a transaction": (3, simple("truncate in a transaction", truncated)),
        "reordered": (2, simple("reordered", reordered)),
        "moved rows": (2, simple("moved rows", lambda m: [
            ("with gone as (delete from base where id in (select id from base limit 3) returning v) "
            "insert into base (v) select v || '!' from gone"),
            f"update nested set k = (k + {m.rng.randint(30, 60)}) % 100"])),
        "through a view": (2, simple("through a view", lambda m: [
            "insert into shown (name) values ('seen')", "update shown set name = 'v' where id = 1"])),
        "no columns": (1, simple("no columns", lambda m: [m.rng.choice([
            "insert into bare default values", "delete from bare", "truncate bare"])])),
        "restarted sequence": (2, simple("restarted sequence", lambda m: [
            f"alter sequence {m.rng.choice(m.schema.sequences)} restart"])),
        "kept statement": (4, simple("kept statement", lambda m: [f"execute put('{m.rng.randint(1, 9)}')", "execute look"])),
        "held cursor": (2, simple("held cursor", lambda m: [
            "begin", f"declare {m.fresh('held')} cursor with hold for select * from cat", m.insert(), "commit"])),
        "listen": (2, simple("listen", lambda m: ["listen told", m.insert(), "notify told, 'x'"])),
        "reindex": (1, simple("reindex", lambda m: [f"reindex table {m.rng.choice(['uniq', 'cat', 'audit'])}"])),
        "many rows": (2, simple("many rows", lambda m: [
            f"insert into base (v) select 'many' || i from generate_series(1, {m.rng.randint(300, 900)}) i"])),
        "prepared truncate": (1, simple("prepared truncate", lambda m: [
            "begin", "truncate uniq", "select nextval('plain_seq')", f"prepare transaction '{m.fresh('cut')}'"])),
        "prepared ddl": (1, simple("prepared ddl", lambda m: [
            "begin", f"create table {m.fresh('never')} (id serial primary key)", f"prepare transaction '{m.fresh('pddl')}'"])),
        "refresh": (1, simple("refresh", lambda m: ["refresh materialized view seen"], ddl=True)),
        "cluster": (1, simple("cluster", lambda m: ["cluster uniq using uniq_pkey"], ddl=True)),
        "ddl": (4, simple("ddl", ddl, ddl=True)),
    }  # fmt: skip


OPERATIONS = _operations()


def some_of(
    kinds: Collection[str], rng: random.Random, maker: Maker, count: int, connection: int | None = None
) -> list[Operation]:
    """Operations of these kinds only, all on one connection where that is given."""
    chosen = rng.choices(list(kinds), [OPERATIONS[kind][0] for kind in kinds], k=count)
    made = [OPERATIONS[kind][1](maker) for kind in chosen]
    return made if connection is None else [replace(one, connection=connection) for one in made]


def generate(seed: int, schema: Schema) -> list[Operation]:
    """The workload of a seed: one to ten operations, in about two of three without DDL."""
    rng = random.Random(seed)
    maker = Maker(rng, schema)
    kinds = list(OPERATIONS)
    with_ddl = rng.random() < 0.3
    weights = [OPERATIONS[k][0] * (3 if with_ddl and k in DDL else 0 if k in DDL else 1) for k in kinds]
    return [OPERATIONS[kind][1](maker) for kind in rng.choices(kinds, weights, k=rng.randint(1, 10))]


DDL = ("ddl", "refresh", "cluster")


def smaller(operations: list[Operation]) -> Iterator[list[Operation]]:
    """Workloads with something left out, the boldest cuts first."""
    half = len(operations) // 2
    if half:
        yield operations[half:]
        yield operations[:half]
    for i in range(len(operations)):
        if len(operations) > 1:
            yield operations[:i] + operations[i + 1 :]
