"""Reading the write-ahead log in SQL: which relations of one database changed between two positions.

``pg_walinspect`` decodes the WAL from a session in *any* database of the server, so everything here runs
in the maintenance database. ``pg_get_wal_block_info`` serves on 16 and later, the ``block_ref`` column
of ``pg_get_wal_records_info`` on 15 (PostgreSQL documentation, F.50).

One call does all of a look: has anything moved, flush, read, and who is busy. It is a temporary procedure,
because only a procedure can COMMIT between the flush and the read.
"""

from __future__ import annotations

import json
from time import perf_counter
from typing import Any

from harness.postgres import locks
from harness.postgres.session import Session, literal, translated
from harness.reset.wal.bytes import measure_commit
from harness.reset.wal.reader import (
    INDEX_MANAGERS,
    NOISE,
    PRESENCE,
    THE_END,
    RelationRecords,
    WalQuery,
    WalWindow,
    Watchers,
    check,
    presence,
)

_READ_16 = """
    select relfilenode::int8, reldatabase = 0, xid = any(v_own), relblocknumber, xid,
           resource_manager || '/' || split_part(record_type, '+', 1), count(*)
      from pg_get_wal_block_info(start, stop, false)
     where relforknumber = 0 and (reldatabase = db or reldatabase = 0)
       and resource_manager not in ({indexes})
     group by relfilenode, reldatabase, relblocknumber, xid, resource_manager, record_type
"""

# The text of 15: "blkref #0: rel 1663/16390/16391 fork main blk 0 blkref #1: …" (rmgrdesc_utils.c).
# Grouped before it is taken apart: a regular expression for each record cost 4 of 5 microseconds.
_READ_15 = r"""
    select m[2]::int8, m[1] = '0', xid = any(v_own), m[3]::int8, xid, kind, n
      from (select block_ref, xid, resource_manager || '/' || split_part(record_type, '+', 1) as kind, count(*) as n
              from pg_get_wal_records_info(start, stop)
             where resource_manager not in ({indexes}, 'Transaction', 'Standby') and block_ref <> ''
             group by block_ref, xid, resource_manager, record_type) refs,
           lateral regexp_matches(block_ref, 'rel \d+/(\d+)/(\d+) fork main blk (\d+)', 'g') m
     where m[1] = db::text or m[1] = '0'
"""

_FLUSH_17 = "stop := pg_logical_emit_message(false, 'pg-harness', '', true);"
# Before 17 only a commit flushes; the session runs with synchronous_commit=on, the server with off.
_FLUSH_15 = "stop := pg_logical_emit_message(true, 'pg-harness', ''); commit;"

_PROCEDURE = """
create or replace procedure pg_temp.pgh_look(
    start pg_lsn, seen pg_lsn, db oid, v_own xid[], most int8, ours int[], watchers int[], commit_size int8, force bool, inout answer json)
language plpgsql as $look$
declare
    stop pg_lsn; relations json; unfinished int8[]; unsettled int8[]; horizon int8; top int8;
    advisory text[]; busy text[]; someone bool;
begin
    {presence}
    if not force and pg_current_wal_insert_lsn() = seen then
        answer := json_build_object('moved', false, 'advisory', advisory, 'busy', busy);
        return;
    end if;
    {flush}
    if stop - start > most then
        answer := json_build_object('moved', true, 'stop', stop, 'bytes', stop - start, 'too_much', true);
        return;
    end if;
    horizon := pg_snapshot_xmin(pg_current_snapshot())::text::int8;
    top := pg_snapshot_xmax(pg_current_snapshot())::text::int8;
    with records(filenode, shared, own, block, xid, kind, n) as materialized ({read}),
    kinds as (
        select filenode, shared, own, kind, sum(n)::int8 n,
               array_agg(distinct block) filter (where kind <> all({noise})) blocks
          from records group by 1, 2, 3, 4),
    -- A 32-bit id of the log becomes the 64-bit one that is nearest to the snapshot's upper bound. It may lie above:
    -- that bound is the latest id that has ended, and a transaction that is open may be newer.
    ids as (
        select distinct shared, (top & ~4294967295) + x
               + case when x - (top & 4294967295) > 2147483648 then -4294967296
                      when x - (top & 4294967295) < -2147483648 then 4294967296 else 0 end as id
          from (select distinct shared, xid::text::int8 x from records where not own) r where x <> 0),
    open_ids as (select * from ids where id >= horizon and pg_xact_status(id::text::xid8) = 'in progress')
    select (select json_agg(json_build_array(filenode, shared, own, kind, n, blocks)) from kinds),
           (select array_agg(id) from open_ids where not shared), (select array_agg(id) from open_ids where shared)
      into relations, unfinished, unsettled;
    answer := json_build_object('moved', true, 'stop', stop, 'seen', stop + commit_size, 'bytes', stop - start,
        'relations', relations, 'unfinished', unfinished, 'unsettled', unsettled, 'advisory', advisory, 'busy', busy);
end $look$
"""

_CALL = "call pg_temp.pgh_look({start}, {seen}, {db}, '{own}'::xid[], {most}, '{ours}'::int[], '{watchers}'::int[], {commit}, {force}, null)"


MEASURED = 262144
"""Bytes of a window from which its decoding tells how quickly this server decodes."""


class InspectReader:
    """Looks at the log from one session of the maintenance database.

    Not safe for use by several threads. The session gets a temporary procedure and keeps it.
    """

    def __init__(self, session: Session) -> None:
        """Prepare the session.

        Raises:
            ServerRefused: the server has no pg_walinspect (``0A000``, ``58P01``), or the rights are
                missing (``42501``).
        """
        check(session)
        self.session = session
        self._watchers = Watchers(session)
        self._watchers.ask()
        self._rate = 36000.0 if session.server_version >= 160000 else 10500.0  # bytes in a millisecond
        session.execute("set synchronous_commit = on")
        session.execute("set client_min_messages = error")
        if not session.value("select exists (select from pg_extension where extname = 'pg_walinspect')"):
            # Two workers may do this at the same moment: the second must not fail over the first's row.
            with locks.exclusive(
                session,
                "extension",
                "pg_walinspect",
                timeout=30,
                waiting_for="making the extension pg_walinspect",
            ):
                session.execute("create extension if not exists pg_walinspect")
        read = (_READ_16 if session.server_version >= 160000 else _READ_15).format(
            indexes=", ".join(literal(name) for name in INDEX_MANAGERS)
        )
        noise = "array[" + ", ".join(literal(kind) for kind in sorted(NOISE)) + "]"
        flush = _FLUSH_17 if session.server_version >= 170000 else _FLUSH_15
        session.execute(_PROCEDURE.format(presence=PRESENCE, flush=flush, read=read, noise=noise))
        self._commit_size = 0 if session.server_version >= 170000 else measure_commit(session)

    def position(self) -> str:
        """The present end of the log; every later record comes after it."""
        return self.read(THE_END).stop

    def read(self, asked: WalQuery) -> WalWindow:
        """As :meth:`harness.reset.wal.reader.WalReader.read`.

        ``patience`` is reckoned at the rate that was measured so far; ``brief`` changes nothing: decoding takes
        longer than all the rest.
        """
        most = int(min(asked.most, self._rate * asked.patience))
        began = perf_counter()
        statement = _CALL.format(
            start=f"'{asked.start}'", seen=f"'{asked.seen or '0/0'}'", db=int(asked.database), most=most,
            own="{" + ",".join(str(x % 2**32) for x in asked.own) + "}",
            ours="{" + ",".join(str(pid) for pid in asked.ours) + "}",
            commit=self._commit_size, watchers=self._watchers, force=str(asked.seen is None).lower(),
        )  # fmt: skip
        with translated("look at the write-ahead log"):
            row = self.session.connection.execute(statement.encode()).fetchone()
        window = _window(row[0] if row else {})
        if window.bytes >= MEASURED and not window.too_much:
            rate = window.bytes / (1000 * (perf_counter() - began))
            self._rate += (rate - self._rate) / 4
        return window


def _window(found: Any) -> WalWindow:
    if isinstance(found, str):
        found = json.loads(found)
    merged: dict[tuple[int, bool, bool], tuple[dict[str, int], set[int]]] = {}
    for filenode, shared, own, kind, count, blocks in found.get("relations") or ():
        records, touched = merged.setdefault((filenode, shared, bool(own)), ({}, set()))
        records[kind] = records.get(kind, 0) + count
        touched.update(blocks or ())
    return WalWindow(
        moved=found["moved"],
        stop=found.get("stop", ""),
        seen=found.get("seen", ""),
        bytes=int(found.get("bytes", 0)),
        too_much=bool(found.get("too_much", False)),
        relations=tuple(
            RelationRecords(filenode, shared, own, records, frozenset(blocks))
            for (filenode, shared, own), (records, blocks) in merged.items()
        ),
        unfinished=tuple(found.get("unfinished") or ()),
        unsettled=tuple(found.get("unsettled") or ()),
        advisory=presence(found.get("advisory") or ()),
        busy=presence(found.get("busy") or ()),
    )
