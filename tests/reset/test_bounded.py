"""Thousands of resets leave nothing behind that grows: files, catalogs, log, memory of our sessions."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from fix_reset_case import Case
from fix_reset_servers import SETTINGS, Server, binaries, dispose, running

from harness.postgres.session import Session

LONG = os.environ.get("PGHARNESS_TEST_LONG") == "1"
RESETS = int(os.environ.get("PGHARNESS_TEST_RESETS", "10000" if LONG else "400"))

SCHEMA = """
create table plain (id bigint generated always as identity primary key, v text);
create table seeded (id serial primary key, v text, n integer);
insert into seeded (v, n) select 'row ' || i, i from generate_series(1, 100) i;
create index on seeded (n);
create table wide (id serial primary key, v text);
insert into wide (v) select repeat('w', 150) from generate_series(1, 8000) i;
create table parent (id serial primary key, v text);
create table child (id serial primary key, parent_id integer references parent on delete cascade, v text);
insert into parent (v) values ('p'); insert into child (parent_id, v) values (1, 'c');
create unlogged table fast (id serial primary key, v text);
create sequence cached cache 20;
"""

WRITES = (
    ("insert into plain (v) select 'x' from generate_series(1, 10)", "update seeded set v = 'y' where id < 4"),
    ("insert into seeded (v) values ('new')", "delete from child", "insert into parent (v) values ('q')"),
    ("update wide set v = 'changed' where id in (5, 4000)", "insert into fast (v) values ('x')"),
    ("begin", "create temp table t (id serial primary key) on commit drop", "select nextval('cached')", "commit"),
    ("begin", "insert into seeded (v) values ('never')", "rollback"),
    ("select lo_from_bytea(0, 'large')", "insert into plain (v) values ('x')"),
)  # fmt: skip


@dataclass
class Sizes:
    """Bytes, of everything that might grow."""

    database: int
    tables: dict[str, int]
    catalogs: int
    log: int
    restorer: int
    reader: int
    resident: int
    dead: int


@pytest.fixture(scope="module")
def case(reset_server: Server) -> Iterator[Case]:
    made = Case(reset_server, "bounded", SCHEMA)
    yield made
    dispose(made.bench)


def measure(case: Case) -> Sizes:
    admin = case.bench.admin
    admin.execute("checkpoint")
    with case.bench.superuser() as session:
        tables = dict(session.rows(
            "select relname, pg_total_relation_size(oid)::int8 from pg_class "
            "where relkind = 'r' and oid >= 16384 and relpersistence <> 't'"
        ))  # fmt: skip
        catalogs, dead = session.row(
            "select sum(pg_total_relation_size(oid)) filter (where relkind = 'r')::int8, "
            "(select coalesce(sum(n_dead_tup), 0)::int8 from pg_stat_user_tables) from pg_class where oid < 16384"
        ) or (0, 0)
        size = session.value("select pg_database_size(current_database())")
    log = admin.value("select sum(size)::int8 from pg_ls_waldir()")
    engine = case.bench.engine
    memory = "select sum(used_bytes)::int8 from pg_backend_memory_contexts"
    resident = 0
    if case.bench.server.data is not None:
        for pid in engine.ours:
            with open(f"/proc/{pid}/statm") as file:
                # Of its own: pages of shared_buffers are counted when they are first touched.
                _, all_pages, shared, *_ = map(int, file.read().split())
                resident += (all_pages - shared) * resource.getpagesize()
    return Sizes(
        size,
        tables,
        catalogs,
        log,
        _ask(engine._connections.lease, memory),
        _ask(engine._connections.wal.session, memory),
        resident,
        dead,
    )


def _ask(session: Session, query: str) -> int:
    return int(session.value(query))


@pytest.mark.timeout(600 if LONG else 120)
def test_thousands_of_resets_leave_nothing_that_grows(case: Case) -> None:
    app = case.bench.app()
    measured: list[Sizes] = []
    clones: list[str] = []
    # The first tenth fills what is allowed to be filled: caches, free space maps, recycled log.
    points = {RESETS // 4, RESETS // 2, RESETS}
    for number in range(1, RESETS + 1):
        for statement in WRITES[number % len(WRITES)]:
            app.execute(statement)
        outcome = case.reset_or_clone()
        if outcome not in ("restore", "nothing"):
            clones.append(outcome)
            app.close()
            app = case.bench.app()
        if number in points:
            case.assert_pristine()
            measured.append(measure(case))
    app.close()
    assert clones == []
    quarter, half, full = measured
    print(f"\nPostgreSQL {case.bench.server.version}, {RESETS} resets:\n{quarter}\n{half}\n{full}")
    for name, size in full.tables.items():
        assert size <= 1.25 * max(quarter.tables[name], half.tables[name]) + 65536, (name, measured)
    assert full.catalogs <= 1.15 * max(quarter.catalogs, half.catalogs) + 262144, measured
    assert full.database <= 1.15 * max(quarter.database, half.database) + 524288, measured
    # max_wal_size is a gigabyte; a checkpoint recycles what nobody needs.
    assert full.log <= 1.5 * max(quarter.log, half.log) + 64 * 2**20, measured
    for attribute in ("restorer", "reader", "resident"):
        before = max(getattr(quarter, attribute), getattr(half, attribute))
        assert getattr(full, attribute) <= 1.3 * before + 2 * 2**20, (attribute, measured)


AUTOVACUUM = {
    "autovacuum": "on", "autovacuum_naptime": "1s", "autovacuum_vacuum_threshold": "1",
    "autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_insert_threshold": "1", "autovacuum_analyze_threshold": "1",
}  # fmt: skip


@pytest.mark.server
@pytest.mark.parametrize("version", [15, 18])
def test_autovacuum_does_not_interfere(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is busy in the tables that are put back, and no reset waits for it, fails over it or takes a clone."""
    if binaries(version) is None:
        pytest.skip(f"the programs of PostgreSQL {version} are not here")
    for setting, value in AUTOVACUUM.items():
        monkeypatch.setitem(SETTINGS, setting, value)
    with running(version) as server:
        case = Case(server, "autovacuumed", SCHEMA)
        deadline = time.monotonic() + 30
        vacuumed = 0
        slowest = 0.0
        with case.bench.app() as app:
            while vacuumed < 3 and time.monotonic() < deadline:
                for number in range(60):
                    for statement in WRITES[number % 2]:
                        app.execute(statement)
                    report = case.reset()
                    assert (report.strategy, report.ended) == ("restore", ())
                    slowest = max(slowest, report.milliseconds)
                vacuumed = app.value(
                    "select sum(autovacuum_count + autoanalyze_count)::int8 from pg_stat_user_tables"
                )
        case.assert_pristine()
        dispose(case.bench)
    assert vacuumed >= 3
    # A lock that autovacuum holds is given up after deadlock_timeout, one second: none was waited for.
    assert slowest < 1000


def test_what_the_application_deletes_by_itself_is_cleaned_up(case: Case) -> None:
    """Nothing is left for the reset to delete: the dead rows are all the application's. By a mark, too."""
    case.bench.reclone()
    with case.bench.app() as app:
        for marked in (False, True):
            if marked:
                app.execute("insert into child (parent_id, v) values (1, 'marked')")
                mark = case.bench.engine.mark()
            for _ in range(200):
                app.execute("insert into child (parent_id) select 1 from generate_series(1, 4)")
                app.execute("delete from child")
                assert case.reset().strategy == "restore"
            # A page holds 291 rows at most, dead ones included: a thousand died.
            assert app.value("select pg_relation_size('child') / 8192") <= 3
        mark.release()
        case.reset()
    case.assert_pristine()
