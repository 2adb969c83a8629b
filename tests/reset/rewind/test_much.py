"""Very much of everything: blocks, tables, columns. A rewind in little time and memory, or an answer that makes it a clone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_reset_servers import VERSIONS, Server, dispose, make, running
from fix_rewind import module_on

from harness.reset.changes import RecloneNeeded
from harness.reset.rewind.module import Prepared
from harness.reset.rewind.rewinder import Rewinder

LONG = os.environ.get("PGHARNESS_TEST_LONG") == "1"

BLOCKS = 100_000 if LONG else 6_000
TABLES = 10_000 if LONG else 2_000
SEGMENT = 131_072
"""Blocks of a file, of which PostgreSQL begins another one then: 1 GB."""

SCHEMA = """
create table large (id integer primary key, v text) with (fillfactor = 10, autovacuum_enabled = off);
insert into large select i, repeat('x', 600) from generate_series(1, {blocks}) i;
create table people (id serial primary key, v text);
insert into people (v) select 'row ' || i from generate_series(1, 30) i;
"""

SCHEMAS = 20
MANY = (
    "do $$ begin for i in 0..{last_schema} loop execute format('create schema s%s', i); end loop; for i in 1..{tables} loop "
    "execute format('create table s%s.t%s (id integer primary key, v integer)', i % {schemas}, i); end loop; end $$"
)


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda v: f"pg{v}")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One that holds as many locks as a schema of many tables needs."""
    settings = {
        "shared_buffers": "128MB",
        "max_locks_per_transaction": "256" if LONG else "64",
        "max_wal_size": "1GB",
    }
    with running(request.param, settings) as found:
        yield found


@pytest.fixture(scope="module")
def schema(server: Server) -> str:
    if server.data is None:
        pytest.skip("the server is in a container")
    found = module_on(server)
    if not isinstance(found, Prepared):
        pytest.skip(found)
    return found.schema


class Quick:
    """A bench that is compared by what was changed: to read all of it takes longer than all the rest."""

    def __init__(self, server: Server, name: str, schema: str, *, module: str) -> None:
        self.bench = make(server, name, schema, module=module)

    @property
    def rewinder(self) -> Rewinder:
        found = self.bench.engine._pages.rewinder
        assert found is not None
        return found

    def reset_or_clone(self) -> str:
        """As a lease does."""
        try:
            return self.bench.engine.reset().strategy
        except RecloneNeeded as error:
            self.bench.reclone()
            return error.reason

    def rewound(self, most: float) -> None:
        """By pages, within so many seconds."""
        began = time.monotonic()
        report = self.bench.engine.reset()
        taken = time.monotonic() - began
        assert report.strategy == "rewind", self.rewinder
        answer = self.rewinder.last
        assert answer is not None
        assert taken < most, answer
        print(f"rewound in {1000 * taken:.1f} ms: {answer.work}")

    def size(self) -> int:
        with self.bench.superuser() as session:
            return int(session.value("select pg_relation_size('large') / 8192"))

    def assert_large(self, blocks: int) -> None:
        with self.bench.superuser() as session:
            assert self.size() == blocks
            question = (
                "select count(*), sum(id::int8), count(*) filter (where v <> repeat('x', 600)) from large"
            )
            assert session.row(question) == (blocks, blocks * (blocks + 1) // 2, 0)
            by_index = "select count(*) from (values (1), (%s), (%s)) v (n) join large on id = n"
            session.execute("set enable_seqscan = off")
            assert session.value(by_index, (blocks // 2, blocks)) == 3


@pytest.fixture(scope="module")
def large(server: Server, schema: str) -> Iterator[Quick]:
    case = Quick(server, "rewindlarge", SCHEMA.format(blocks=BLOCKS), module=schema)
    yield case
    dispose(case.bench)


def peak(pid: int) -> int:
    """Bytes of memory that are a process's own."""
    text = Path(f"/proc/{pid}/status").read_text()
    return sum(
        int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(("RssAnon", "VmSwap"))
    )


@pytest.mark.timeout(600)
def test_a_large_relation(large: Quick) -> None:
    """A few pages of it, of which the log tells; grown by as many blocks; and cut, or dropped, which is a clone where it is too much."""
    large.bench.reclone()
    reader = large.bench.engine.ours[0]
    with large.bench.app() as app:
        assert large.size() == BLOCKS
        for _ in range(3):
            app.execute(f"update large set v = 'changed' where id in (7, {BLOCKS // 2}, {BLOCKS})")
            large.rewound(5)
        large.assert_large(BLOCKS)
        before = peak(reader)
        app.execute(
            f"insert into large select i, repeat('x', 600) from generate_series({BLOCKS + 1}, {2 * BLOCKS}) i"
        )
        if LONG:
            # More log than a clone is worth.
            with pytest.raises(RecloneNeeded):
                large.bench.engine.reset()
            assert "of log were written" in large.rewinder.left
            large.bench.reclone()
        else:
            large.rewound(5)
        large.assert_large(BLOCKS)
    with large.bench.app() as app:
        app.execute(f"delete from large where id > {BLOCKS // 2}")
    with large.bench.superuser() as session:
        session.execute("vacuum (index_cleanup on) large")
        assert large.size() < BLOCKS
    if large.reset_or_clone() != "rewind":
        assert LONG, large.rewinder
    large.assert_large(BLOCKS)
    for statement in ("truncate large", "drop table large", "vacuum full large"):
        with large.bench.superuser() as session:
            session.execute(statement)
        if large.reset_or_clone() != "rewind":
            # More than max_wal_size allows to be written to the log at once.
            assert LONG, large.rewinder
        large.assert_large(BLOCKS)
    assert peak(large.bench.engine.ours[0]) - before < 64 * 1024**2


@pytest.mark.skipif(not LONG, reason="PGHARNESS_TEST_LONG=1: a relation of more than 1 GB, three times")
@pytest.mark.timeout(900)
def test_a_relation_of_more_than_one_file(server: Server, schema: str) -> None:
    """From below the border of a segment to beyond it, and back; and from beyond to below."""
    for blocks, grown in ((SEGMENT - 500, 1500), (SEGMENT + 500, 1500)):
        case = Quick(server, "rewindsegments", SCHEMA.format(blocks=blocks), module=schema)
        try:
            assert case.size() == blocks
            with case.bench.app() as app:
                for _ in range(2):
                    app.execute(
                        f"insert into large select i, repeat('x', 600) from generate_series({blocks + 1}, {blocks + grown}) i"
                    )
                    app.execute(f"update large set v = 'changed' where id in (1, {blocks - 1}, {blocks})")
                    assert case.size() > SEGMENT
                    case.rewound(20)
                    case.assert_large(blocks)
            with case.bench.superuser() as session:
                session.execute(f"delete from large where id > {SEGMENT - 3000}")
                session.execute("vacuum (index_cleanup on) large")
                assert case.size() == SEGMENT - 3000
            # Of one that was cut all pages are compared, and these are more than are worth it.
            case.reset_or_clone()
            case.assert_large(blocks)
        finally:
            dispose(case.bench)


@pytest.mark.timeout(900)
def test_many_tables(server: Server, schema: str) -> None:
    """A few of them changed; all dropped; as many made. Time and memory stay within bounds, and others get their locks."""
    made = MANY.format(tables=TABLES, schemas=SCHEMAS, last_schema=SCHEMAS - 1)
    case = Quick(server, "rewindmany", made, module=schema)
    many = "select count(*) from pg_class where relname ~ '^t[0-9]+$'"
    try:
        with case.bench.app() as app:
            for _ in range(3):
                app.script(
                    "insert into s1.t1 values (1); insert into s2.t2 values (1); alter table s3.t3 add column w text"
                )
                case.rewound(10)
                assert app.value("select count(*) from s1.t1") == 0
        with case.bench.superuser() as session:
            for number in range(SCHEMAS):
                session.execute(f"drop schema s{number} cascade")
            assert session.value(many) == 0
        case.rewound(60)
        with case.bench.app() as app:
            assert app.value(many) == TABLES
            app.execute("insert into s1.t1 values (1)")
            case.rewound(10)
            app.execute(made.replace("schema s", "schema more").replace("table s", "table more"))
            assert app.value(many) == 2 * TABLES
        case.reset_or_clone()
        with case.bench.app() as app:
            assert app.value(many) == TABLES
            app.execute("insert into s1.t1 values (1)")
            case.rewound(10)
        assert peak(case.bench.engine.ours[0]) < 256 * 1024**2
    finally:
        dispose(case.bench)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda v: f"pg{v}")
def test_more_locks_than_are_ours_are_left_to_others(version: int) -> None:
    """The table of locks is the server's: whoever finds it full gets an error."""
    with running(version, {"max_locks_per_transaction": "10", "max_prepared_transactions": "0"}) as server:
        if server.data is None:
            pytest.skip("the server is in a container")
        prepared = module_on(server)
        if not isinstance(prepared, Prepared):
            pytest.skip(prepared)
        case = Quick(server, "rewindlocks", "create table people (id integer)", module=prepared.schema)
        with server.session() as session:
            room = session.value(
                "select current_setting('max_locks_per_transaction')::int * current_setting('max_connections')::int"
            )
        with case.bench.app() as app:
            # In one transaction the application itself would have no room for its locks.
            for first in range(1, room + 500, 500):
                app.execute(
                    f"do $$ begin for i in {first}..{first + 499} loop "
                    "execute format('create table t%s (id integer)', i); end loop; end $$"
                )
        with pytest.raises(RecloneNeeded):
            case.bench.engine.reset()
        assert case.rewinder.left.endswith("relations would have to be locked")
        case.bench.reclone()
        with case.bench.app() as app:
            app.execute("create table t (id serial)")
            case.rewound(10)
        dispose(case.bench)
