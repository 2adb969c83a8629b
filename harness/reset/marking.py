"""What a mark holds, copied from the lease while nobody may write to it."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import LeaseError, ServerRefused
from harness.reset.baseline import TableBase, room
from harness.reset.changes import SMALL, Changes
from harness.reset.connections import Connections
from harness.reset.sql import batch
from harness.reset.sql import relations as relations_sql
from harness.reset.sql import rows as rows_sql
from harness.reset.sql.catalogs import LARGE_OBJECTS, STATISTICS
from harness.reset.sql.relations import SequenceState
from harness.reset.tracker import Tracker

MOST_BYTES = 512 * 1024**2
"""Bytes of rows that one mark may hold in memory."""

NOT_SHARED = "a mark does not hold ALTER DATABASE or ALTER ROLE … SET, nor rights of the database"


@dataclass
class Copy:
    """Of what changed.

    Attributes:
        tables: OID → table with all its rows.
        sequences: OID → where it stands.
        position: the insert position once the locks were held.
        xid: id of the transaction that holds them.
    """

    tables: dict[int, TableBase]
    sequences: dict[int, SequenceState]
    position: str
    xid: int


def copy(connections: Connections, tracker: Tracker, found: Changes) -> Copy:
    """Copy the tables that changed; leaves a transaction open that keeps writers out of them.

    Args:
        found: what changed since the state below.

    Raises:
        LeaseError: what changed cannot be held by a mark; no transaction is open.
    """
    if differences := tracker.compare(found.catalogs):
        raise LeaseError(
            f"a mark holds rows, not a schema that differs from the template's ({'; '.join(differences)})"
        )
    if any(name in LARGE_OBJECTS for name in found.catalogs if name not in STATISTICS):
        raise LeaseError("a mark does not hold large objects")
    if found.shared and tracker.shared_changed:
        raise LeaseError(NOT_SHARED)
    store = connections.store
    relations = store.relations
    for oid in found.tables:
        if oid not in relations or relations[oid].kind != "r":
            raise LeaseError(
                f"a mark does not hold {relations.get(oid, oid)}: it is no table of the template"
            )
        if relations[oid].obstacle:
            raise LeaseError(f"a mark does not hold {relations[oid]}: {relations[oid].obstacle}")
    tables = [relations[oid] for oid in sorted(found.tables)]
    statements = ["begin"]
    if tables:
        listed = ", ".join("only " + table.sql for table in tables)
        statements.append(f"lock table {listed} in share row exclusive mode")
    statements.append("select pg_current_wal_insert_lsn(), pg_current_xact_id()")
    listed = "{" + ",".join(str(table.oid) for table in tables) + "}"
    statements.append(f"select sum(pg_table_size(oid)) from unnest('{listed}'::oid[]) oid")
    lease = connections.lease
    try:
        *_, places, sizes = batch.run(lease, statements)
        here = places.rows[0]
        position, xid = (here[0] or b"").decode(), int(here[1] or b"0")
        copied: dict[int, TableBase] = {}
        if int(sizes.rows[0][0] or b"0") > MOST_BYTES:
            raise LeaseError(
                f"the tables that changed hold more than {MOST_BYTES >> 20} MB: too much for a mark"
            )
        for table in tables:
            rows = rows_sql.read(lease, table, known=store.columns(table))
            copied[table.oid] = TableBase(
                table, rows, room(lease, table, rows), ordered=len(rows) <= SMALL, marked=True
            )
        wanted = [relations[oid] for oid in sorted(found.sequences)]
        caches = {oid: state.cache for oid, state in store.sequences.items()}
        states = relations_sql.sequences(lease, wanted, caches=caches)
    except ServerRefused as error:
        batch.rollback(lease)
        raise LeaseError(f"the mark cannot be set: {error}") from error
    except LeaseError:
        batch.rollback(lease)
        raise
    tracker.own.append(xid)
    return Copy(copied, states, position, xid)
