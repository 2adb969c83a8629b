"""A thousand tables, and a template of a gigabyte: as true as with three tables of three rows."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_reset_case import Case
from fix_reset_servers import VERSIONS, Server, clone, dispose, drop, make

TABLES = 1000
LONG = os.environ.get("PGHARNESS_TEST_LONG") == "1"


def thousand() -> str:
    """A thousand tables that refer to each other; every third one has rows."""
    statements = []
    for number in range(TABLES):
        parent = f", parent_id integer references t{number // 7}" if number else ""
        statements.append(
            f"create table t{number} (id serial primary key, v text not null default 'new'{parent})"
        )
        if number % 3 == 0:
            statements.append(
                f"insert into t{number} (v) select 'row ' || i from generate_series(1, {number % 40 + 1}) i"
            )
    return ";\n".join(statements)


@pytest.fixture(scope="module")
def case(reset_server: Server) -> Iterator[Case]:
    if not LONG and reset_server.version != VERSIONS[-1]:
        pytest.skip("a thousand tables on one version only: PGHARNESS_TEST_LONG=1 takes all")
    made = Case(reset_server, "thousand", thousand())
    yield made
    dispose(made.bench)


@pytest.mark.timeout(120)
def test_a_thousand_tables(case: Case) -> None:
    rng = random.Random(5)
    with case.bench.app() as app:
        for dirty in (1, 3, 30, 200):
            chosen = rng.sample(range(TABLES), dirty)
            for number in chosen:
                app.execute(f"insert into t{number} default values")
                app.execute(f"update t{number} set v = 'changed' where id in (1, 2)")
            app.execute("create temp table mine (id serial primary key)")
            app.execute("drop table mine")
            report = case.reset()
            assert (report.strategy, report.ended) == ("restore", ())
            assert {f"t{number}" for number in chosen} <= set(report.tables)
            if dirty in (3, 200):
                case.assert_pristine()
        # All of them at once, seeded or not: other tables refer to every one.
        app.execute("truncate t0 restart identity cascade")
        assert app.value("select count(*) from t3") == 0
    assert case.reset_or_clone()
    case.assert_pristine()


GIGABYTE = """
create table big (id bigserial primary key, v text, n integer);
insert into big (v, n) select repeat('b', 950) || i, i from generate_series(1, 1000000) i;
create index on big (n);
create table small (id serial primary key, v text); insert into small (v) select 's' || i from generate_series(1, 50) i;
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_template_of_a_gigabyte(reset_server: Server) -> None:
    """Compared by hash, row by row. The template, its baseline, the lease: five gigabytes with indexes and log."""
    place = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")
    if shutil.disk_usage(place).free < 6e9:
        pytest.skip(f"{place} has less than 6 GB free")
    bench = make(reset_server, "gigabyte", GIGABYTE)
    picture = "select count(*), sum(hashtextextended(big::text, 3)), min(id), max(id) from big"
    try:
        with bench.superuser() as session:
            wanted = session.row(picture)
        with bench.app() as app:
            for statement in (
                "insert into big (v, n) select 'new', i from generate_series(1, 20) i",
                "update big set v = 'changed' where id in (1, 500000, 1000000)",
                "delete from big where id between 300000 and 300020",
                "update big set n = n + 1 where id % 20000 = 0",
            ):
                app.execute(statement)
                app.execute("update small set v = 'x'")
                report = bench.engine.reset()
                assert (report.strategy, report.ended) == ("restore", ()), statement
                assert app.row(picture) == wanted, statement
                assert app.value("select count(*) from small where v = 'x'") == 0
            # What no reset reads is cloned, and true again.
            app.execute("update big set n = -n where id % 100 = 0")
        drop(bench.admin, "gigabyte")
        clone(bench.admin, "gigabyte_t", "gigabyte")
        bench.engine.rebase()
        with bench.superuser() as session:
            assert session.row(picture) == wanted
    finally:
        dispose(bench)
