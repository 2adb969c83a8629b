"""Which transactions had not ended: both readers say the same, the newest one's included."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fix_reset_case import Case
from fix_reset_servers import Server, dispose

from harness.reset.wal.bytes import ByteReader
from harness.reset.wal.inspect import InspectReader
from harness.reset.wal.reader import WalQuery


@pytest.fixture(scope="module")
def case(reset_server: Server) -> Iterator[Case]:
    made = Case(reset_server, "unfinished", "create table a (id int); create table b (id int)")
    yield made
    dispose(made.bench)


@pytest.mark.parametrize("reader", [ByteReader, InspectReader], ids=["bytes", "inspect"])
def test_ids_above_the_snapshots_upper_bound(case: Case, reader: type[ByteReader | InspectReader]) -> None:
    """Its upper bound is the latest id that *ended*: a subtransaction of the newest transaction lies above it."""
    admin = case.bench.admin
    database = admin.value("select oid::int8 from pg_database where datname = 'unfinished'")
    with case.bench.server.session() as session:
        asking = reader(session)
        with case.bench.app() as first, case.bench.app() as second:
            begin = asking.position()
            for app, table in ((first, "a"), (second, "b")):
                app.execute("begin")
                app.execute("savepoint s")
                app.execute(f"insert into {table} values (1)")
            found = asking.read(WalQuery(begin, database=database, ours=[session.pid], most=1 << 20))
            # Two subtransactions wrote; their parents wrote no record of a row.
            assert len(found.unfinished) == 2
            first.execute("rollback")
            second.execute("commit")
            found = asking.read(WalQuery(begin, database=database, ours=[session.pid], most=1 << 20))
            assert found.unfinished == ()
