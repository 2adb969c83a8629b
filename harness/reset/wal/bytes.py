"""Reading the log's own bytes: from its files or through the session, :mod:`harness.reset.wal.records` takes them apart.

One call does all of a look: has anything moved, flush, who holds advisory locks, and the bytes. It is a temporary
procedure in the maintenance database, because before PostgreSQL 17 only a COMMIT flushes, and only a
procedure can go on after one.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from functools import partial

from harness.errors import ServerRefused
from harness.postgres import sqlstate
from harness.postgres.activity import in_progress
from harness.postgres.session import Session, translated
from harness.reset.wal import records as wal_records
from harness.reset.wal.files import LogFiles
from harness.reset.wal.reader import (
    NEW_ROWS,
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
from harness.reset.wal.records import PAGE, Named

_FLUSH_17 = "stop := pg_logical_emit_message(false, 'pg-harness', note, true);"
_FLUSH_15 = "stop := pg_logical_emit_message(true, 'pg-harness', note); commit;"

_PROCEDURE = """
create or replace procedure pg_temp.pgh_bytes(
    start pg_lsn, seen pg_lsn, db oid, most int8, ours int[], watchers int[], force bool, brief bool, inline int8, note text,
    inout stop pg_lsn, inout snapshot text, inout advisory text[], inout busy text[], inout someone bool, inout data bytea)
language plpgsql as $look$
declare
    place int8; size int8;
begin
    if not brief then
        {presence}
    end if;
    if not force and pg_current_wal_insert_lsn() = seen then
        return;
    end if;
    {flush}
    if stop - start > most then
        return;
    end if;
    place := (start - '0/0'::pg_lsn)::int8 / {page} * {page};
    size := (stop - '0/0'::pg_lsn)::int8 - place;
    if size <= inline and place / {segment} = (place + size - 1) / {segment} then
        data := pg_read_binary_file({file}, place % {segment}, size);
    end if;
    snapshot := pg_current_snapshot();
end $look$
"""

_FILE = (
    "'pg_wal/{timeline}' || lpad(upper(to_hex(place / 4294967296)), 8, '0')"
    " || lpad(upper(to_hex(place % 4294967296 / {segment})), 8, '0')"
)

# Rows of 64 kB: 2 MB took 2 ms, as one value 8.
_PIECES = """
select pg_read_binary_file({file}, place % {segment}, least({stop} - place, {piece} - place % {piece}))
  from (select greatest(g, {first}) as place from generate_series({first} / {piece} * {piece}, {stop} - 1, {piece}) g) pieces
 order by place
"""

_PIECE = 65536
"""Bytes of log that come in one row. Segments are of whole megabytes: no piece lies in two."""

FASTEST = 1 << 20
"""Bytes of log that can be fetched in a millisecond, at the very best."""

AGAIN = 1.0
"""Seconds after which it is asked again who watches over the server, where somebody seems to be in a transaction."""

_INLINE = 131072
"""Bytes of log that come with the answer; more are asked for again, in rows."""

_CALL = (
    "call pg_temp.pgh_bytes('{start}', '{seen}', {db}, {most}, '{ours}', '{watchers}', {force}, {brief}, {inline}, '{note}'"
    + (", null" * 6 + ")")
)

_FACTS = """
select pg_size_bytes(current_setting('wal_segment_size')),
       current_setting('wal_block_size')::int, substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8),
       case when pg_has_role('pg_read_all_settings', 'usage') then current_setting('data_directory') else '' end
"""


class ByteReader:
    """Looks at the log from one session of the maintenance database, and takes its bytes apart here.

    Not safe for use by several threads. The session gets a temporary procedure and keeps it.
    """

    def __init__(self, session: Session) -> None:
        """Prepare the session.

        Raises:
            ServerRefused: the server is too old or too new (``0A000``), or the rights are missing (``42501``).
        """
        check(session)
        version = session.server_version // 10000
        if version not in wal_records.MAGIC:
            raise ServerRefused(
                f"the log of PostgreSQL {version} is not known yet", sqlstate=sqlstate.FEATURE_NOT_SUPPORTED
            )
        self.session = session
        self._magic = wal_records.MAGIC[version]
        session.script("set synchronous_commit = on; set bytea_output = hex")
        segment, page, timeline, folder = session.row(_FACTS) or (0, 0, "", "")
        if page != PAGE:
            raise ServerRefused(
                f"the server's wal_block_size is {page}, not {PAGE}", sqlstate=sqlstate.FEATURE_NOT_SUPPORTED
            )
        self._segment: int = segment
        self._files = LogFiles(folder, timeline, segment)
        self._watchers = Watchers(session)
        self._watchers.ask()
        self._word, self._looks = secrets.token_hex(8), 0
        flush = _FLUSH_17 if version >= 17 else _FLUSH_15
        file = _FILE.format(timeline=timeline, segment=segment)
        session.execute(
            _PROCEDURE.format(presence=PRESENCE, flush=flush, segment=segment, page=PAGE, file=file)
        )
        self._pieces = partial(_PIECES.format, segment=segment, piece=_PIECE, file=file)
        self._commit_size = 0 if version >= 17 else measure_commit(session)
        # Fails now, and not at the first reset, where the rights are missing or the bytes are others.
        self.read(WalQuery(self.position(), most=1 << 20))

    def position(self) -> str:
        """The present end of the log; every later record comes after it."""
        return self.read(THE_END).stop

    def read(self, asked: WalQuery) -> WalWindow:
        """As :meth:`harness.reset.wal.reader.WalReader.read`.

        Raises:
            Unreadable: the bytes are not understood.
        """
        self._looks += 1
        note = f"{self._word}-{self._looks}"
        statement = _CALL.format(
            start=asked.start, seen=asked.seen or "0/0", db=int(asked.database),
            most=int(min(asked.most, FASTEST * asked.patience)),
            inline=0 if self._files.usable else _INLINE, note=note,
            ours="{" + ",".join(str(pid) for pid in asked.ours) + "}", force=str(asked.seen is None).lower(),
            brief=str(asked.brief).lower(), watchers=self._watchers,
        )  # fmt: skip
        with translated("look at the write-ahead log"):
            answer = self.session.connection.ask(statement.encode())[0]
        stop, snapshot, advisory, busy, someone, data = (answer.get_value(0, n) for n in range(6))
        if someone == b"t" and not busy:
            self._watchers.ask(AGAIN)
        if stop is None:
            return WalWindow(moved=False, advisory=_present(advisory), busy=_present(busy))
        begin, end = number(asked.start), number(stop.decode())
        too_much = WalWindow(moved=True, stop=stop.decode(), bytes=end - begin, too_much=True)
        if snapshot is None:
            return too_much
        first = begin // PAGE * PAGE
        log = bytes.fromhex(data[2:].decode()) if data is not None else None
        if log is None and self._files.usable:
            log = self._files.read(first, end, note.encode())
        if log is None:
            log = self._read(first, end)
        if asked.until:
            end = number(asked.until)
            stop, log = asked.until.encode(), log[: end - first]
        try:
            named = wal_records.read(
                log, first=first, start=begin, stop=end, magic=self._magic, segment=self._segment,
                database=asked.database,
                patience=asked.patience / 1000,
            )  # fmt: skip
        except wal_records.TooMuch:
            return too_much
        unfinished, unsettled = self._unfinished(named, snapshot.decode(), asked.own)
        _, following, running = snapshot.decode().split(":")
        return WalWindow(
            moved=True,
            stop=stop.decode(),
            seen=text(end + self._commit_size),
            bytes=end - begin,
            relations=relations(named, asked.own, unfinished),
            unfinished=unfinished,
            unsettled=unsettled,
            advisory=_present(advisory),
            busy=_present(busy),
            quiet=not asked.brief and someone != b"t",
            next_id=0 if running else int(following),
        )

    def _read(self, first: int, stop: int) -> bytes:
        statement = self._pieces(first=first, stop=stop)
        with translated("read the write-ahead log"):
            rows = self.session.connection.execute(statement.encode(), binary=True).fetchall()
        return b"".join(bytes(piece) for (piece,) in rows)

    def _unfinished(self, named: Named, snapshot: str, own: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Transactions of the records that had not ended when the snapshot was taken, after the flush: of this
        database, and of the shared catalogs.

        Not our own: a second look comes in the middle of ours, and asking for it would be a round trip more each time.
        """
        mine = {xid % 2**32 for xid in own}
        both = []
        for of_server in (False, True):
            ids = {xid for _, shared, xid, _, _ in named.records if xid and shared is of_server} - mine
            unknown = undecided(ids, named.ended, snapshot) if ids else ()
            both.append(tuple(in_progress(self.session, sorted(unknown))) if unknown else ())
        return tuple(both)


def _present(array: bytes | None) -> tuple[tuple[int, str], ...]:
    """``{"1 some text","2 more"}`` → pids and texts."""
    return presence(array.decode()[2:-2].split('","')) if array else ()


def undecided(ids: Iterable[int], ended: Iterable[int], snapshot: str) -> set[int]:
    """64-bit ids of transactions that a snapshot (``xmin:xmax:xip,…``) does not prove to have ended.

    A snapshot lists no subtransactions: what is younger than its oldest running transaction has ended for
    certain only where its own end was read in the log *and* the snapshot does not list it (a session writes
    its COMMIT before it takes itself off the list).
    """
    low, high, running = snapshot.split(":")
    xmin, xmax = int(low), int(high)
    listed = {int(xid) for xid in running.split(",") if xid}
    seen = set(ended)
    found = set()
    for short in ids:
        xid = widened(short, xmax)
        if xid >= xmax or xid in listed or (xid >= xmin and short not in seen):
            found.add(xid)
    return found


def widened(xid: int, near: int) -> int:
    """The 64-bit form of a 32-bit transaction id: the one that is nearest to a present id."""
    return near + ((xid - near + 2**31) % 2**32 - 2**31)


def relations(
    named: Named, own: Sequence[int], unfinished: Iterable[int] = ()
) -> tuple[RelationRecords, ...]:
    """What was named, by file; ours, what was rolled back, and what has not ended, apart."""
    mine, still = {xid % 2**32 for xid in own}, {xid % 2**32 for xid in unfinished}
    aborted, kind = named.aborted, wal_records.kind
    merged: dict[tuple[int, bool, bool, bool, bool], tuple[dict[str, int], set[int]]] = {}
    sizes: dict[tuple[int, bool, bool, bool, bool], int] = {}
    for each, blocks in named.records.items():
        file, shared, xid, manager, flags = each
        name = kind(manager, flags)
        key = (file, shared, xid in mine, xid in aborted, xid in still)
        if (found := merged.get(key)) is None:
            merged[key] = found = ({}, set())
            sizes[key] = 0
        records, touched = found
        records[name] = records.get(name, 0) + sum(blocks.values())
        if name not in NOISE:
            touched.update(blocks)
            if name in NEW_ROWS:
                sizes[key] += named.sizes[each]
    return tuple(
        [
            RelationRecords(key[0], key[1], key[2], records, frozenset(touched), key[3], sizes[key], key[4])
            for key, (records, touched) in merged.items()
        ]
    )


def measure_commit(session: Session) -> int:
    """Bytes between the end of our message and the insert position, where nobody else writes.

    Before 17 the commit that flushes our message is itself a record, of always the same length.
    """
    # The smallest of several: another session may write in between, and then it is only longer.
    sizes: list[int] = []
    for _ in range(5):
        stop = session.value("select pg_logical_emit_message(true, 'pg-harness', '')")
        sizes.append(int(session.value("select pg_current_wal_insert_lsn() - %s::pg_lsn", (stop,))))
    return min(sizes)


def number(position: str) -> int:
    """``1/2A`` → a number of bytes."""
    high, _, low = position.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def text(position: int) -> str:
    """The opposite of :func:`number`."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"
