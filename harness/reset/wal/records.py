"""Bytes of the write-ahead log → which relations of one database they name. Pure: no server is asked.

The layout is PostgreSQL's own (access/xlog_internal.h: pages; access/xlogrecord.h: records and their block
references), the same from 15 to 18 but for the magic number. Nothing is believed: each page says who it is
and where its first record begins, and the records of a page must end exactly there. What does not fit is
:class:`Unreadable`, and read another way.

Why not in the server: ``pg_walinspect`` describes every record as text before it can be filtered, 27 ms a
megabyte on 18 and 95 on 15, in every worker for all workers. Here a page that never names the database is
passed over at the speed of a search, and the rest costs a quarter of a microsecond to one for each record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from math import inf
from time import thread_time

PROBE = 64
"""Pages after which the time that all will take is estimated, again and again."""

MOST_SOUGHT = 8
"""Transactions whose end is looked for on pages that do not name the database: one that is not found costs a comparison."""

MOST_WALKED = 8
"""Pages that are taken apart for each of them."""

PAGE = 8192
"""Bytes of a page of the log (``wal_block_size``)."""

MAGIC = {15: 0xD110, 16: 0xD113, 17: 0xD116, 18: 0xD118}
"""Major version → ``XLOG_PAGE_MAGIC``: it changes whenever the format of the log does."""

_PAGE_HEAD = struct.Struct("<HHIQI")  # magic, flags, timeline, address, bytes left of the last page's record
_SHORT_HEAD, _LONG_HEAD = 24, 40
_IS_LONG, _OVERWRITTEN = 0x0002, 0x0008
_RECORD = struct.Struct("<II8xBB6xBB6x12sB")
"""Length, transaction, flags and manager of a record (the one before it and the checksum left out); and where it names
one block, without an image of it: number and flags of that reference, its address (the tablespace left out), and how the
record's own data begin."""

_RECORD_HEAD = 24
_ADDRESS = struct.Struct("<III")  # database, file, block
_NUMBER = struct.Struct("<I")
_SHORT = struct.Struct("<H")
_HAS_IMAGE, _HAS_DATA, _SAME_RELATION = 0x10, 0x20, 0x80
_OTHERWISE = _HAS_IMAGE | _SAME_RELATION  # the address lies elsewhere
_HOLE, _COMPRESSED = 0x01, 0x04 | 0x08 | 0x10  # since 15
_MAIN_SHORT, _MAIN_LONG, _ORIGIN, _TOP_LEVEL = 255, 254, 253, 252
_LAST_BLOCK = 32
_GLOBAL = 1664
"""The tablespace of the shared catalogs (``GLOBALTABLESPACE_OID``)."""

TRANSACTION, HEAP2, HEAP = 1, 9, 10
_SKIPPED = frozenset({2, 3, 6, 8, 11, 12, 13, 14, 16, 17, 18, 19, 21})
"""Managers that name no block of a table: of indexes, and the server's own book-keeping (access/rmgrlist.h)."""

_SWITCH = 0x40  # XLOG_SWITCH
_ABORT = 0x20
_ENDS = frozenset({0x00, _ABORT})  # XLOG_XACT_COMMIT, XLOG_XACT_ABORT
_HAS_INFO = 0x80  # XLOG_XACT_HAS_INFO
_HAS_DATABASE, _HAS_CHILDREN = 0x01, 0x02  # XACT_XINFO_HAS_DBINFO, XACT_XINFO_HAS_SUBXACTS
_MANAGERS = {
    0: "XLOG", 1: "Transaction", 2: "Storage", 4: "Database", 5: "Tablespace", 7: "RelMap", 9: "Heap2", 10: "Heap",
    15: "Sequence", 20: "Generic",
}  # fmt: skip
_KINDS = {
    (0, 0xA0): "FPI_FOR_HINT", (0, 0xB0): "FPI", (15, 0x00): "LOG",
    (10, 0x00): "INSERT", (10, 0x10): "DELETE", (10, 0x20): "UPDATE", (10, 0x30): "TRUNCATE",
    (10, 0x40): "HOT_UPDATE", (10, 0x50): "HEAP_CONFIRM", (10, 0x60): "LOCK", (10, 0x70): "INPLACE",
    # 0x10 to 0x30 were PRUNE, VACUUM and FREEZE_PAGE before 17 and are kinds of PRUNE since: none changes a row.
    (9, 0x00): "REWRITE", (9, 0x10): "PRUNE", (9, 0x20): "VACUUM", (9, 0x30): "FREEZE_PAGE", (9, 0x40): "VISIBLE",
    (9, 0x50): "MULTI_INSERT", (9, 0x60): "LOCK_UPDATED", (9, 0x70): "NEW_CID",
}  # fmt: skip


class Unreadable(Exception):
    """The bytes are not what this module knows."""


class TooMuch(Exception):
    """Taking all of it apart would last longer than it is worth."""


@cache
def kind(manager: int, flags: int) -> str:
    """The name of a record as ``pg_walinspect`` prints it, for those that matter; a number for others."""
    # The highest bit of heap records only says that the page is new; the lowest four are not the manager's.
    operation = flags & (0x70 if manager in (HEAP, HEAP2) else 0xF0)
    name = _KINDS.get((manager, operation), f"{operation:#04x}")
    return f"{_MANAGERS.get(manager, f'custom{manager:03}')}/{name}"


@dataclass
class Named:
    """What the records say.

    Attributes:
        records: (file, shared, transaction, manager, flags) → block → how many records name it.
        sizes: the same key → bytes of these records, images of pages included.
        ended: transactions whose end is among the records (their sessions may still be about to say so).
        aborted: those of them, and their subtransactions, that were rolled back: their rows were never seen.
    """

    records: dict[tuple[int, bool, int, int, int], dict[int, int]] = field(default_factory=dict)
    sizes: dict[tuple[int, bool, int, int, int], int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    aborted: set[int] = field(default_factory=set)


def read(
    data: bytes,
    *,
    first: int,
    start: int,
    stop: int,
    magic: int,
    segment: int,
    database: int,
    patience: float = inf,
) -> Named:
    """What the records between two positions name.

    Args:
        data: the log from ``first`` to ``stop``, page headers included.
        first: position of the page that ``start`` lies in.
        start, stop: ends of records.
        magic: of the server's version.
        segment: size of a file of the log, in bytes.
        database: OID; only its relations and the shared catalogs are told.
        patience: seconds of a processor that this may take, on a busy machine too; what the first pages took tells what all will take.

    Raises:
        TooMuch: it would take longer.
        Unreadable: this is not the log that was asked for, or a kind that this module does not know.
    """
    if len(data) != stop - first:
        raise Unreadable(f"{len(data)} bytes of log instead of {stop - first}")
    try:
        stream, begins, length = _joined(
            data, first=first, start=start, stop=stop, magic=magic, segment=segment
        )
        named, seen = Named(), Seen()
        mine, shared = _NUMBER.pack(database), _NUMBER.pack(_GLOBAL) + _NUMBER.pack(0)
        next_mine, next_shared = _find(stream, mine, 0), _find(stream, shared, 0)
        began = thread_time()
        passed: list[tuple[int, int]] = []
        for page, (begin, end) in enumerate(zip(begins, [*begins[1:], length], strict=True)):
            if page % PROBE == PROBE - 1 and (thread_time() - began) * length > patience * begin:
                raise TooMuch
            if next_mine < begin:
                next_mine = _find(stream, mine, begin)
            if next_shared < begin:
                next_shared = _find(stream, shared, begin)
            if next_mine < end or next_shared < end:
                _walk(stream, begin, end, named, seen)
            elif seen:
                passed.append((begin, end))
        _name(seen, database, named)
        _find_ends(stream, passed, named)
        return named
    except (struct.error, IndexError) as error:
        raise Unreadable(f"a record goes on beyond the end: {error}") from error


def _find_ends(stream: bytes, passed: Iterable[tuple[int, int]], named: Named) -> None:
    """Where a transaction wrote last at the end of a page, its ROLLBACK lies on a later one, which need not name the database: that
    of the next record, or any after it, where others write a lot. Without it the rows would be taken for some that are there.

    Args:
        passed: begin and end of the pages that were passed over.
    """
    ended, aborted = named.ended, named.aborted
    sought = sorted({xid for _, _, xid, _, _ in named.records if xid and xid not in ended} - aborted)
    pages = dict.fromkeys(passed)
    # The latest first: a ROLLBACK lists all its subtransactions.
    for xid in sought[: -MOST_SOUGHT - 1 : -1] if pages else ():
        pattern, walked = _NUMBER.pack(xid), 0
        for begin, end in list(pages):
            if xid in ended or xid in aborted or walked == MOST_WALKED:
                break
            if stream.find(pattern, begin, end) >= 0:
                # Or what looks like it; what is found on the page counts either way.
                _walk(stream, begin, end, named, {})
                del pages[begin, end]
                walked += 1


def _find(stream: bytes, pattern: bytes, begin: int) -> int:
    found = stream.find(pattern, begin)
    return found if found >= 0 else len(stream)


def _joined(
    data: bytes, *, first: int, start: int, stop: int, magic: int, segment: int
) -> tuple[bytes, list[int], int]:
    """The records without page headers, where in them each page's first record begins, and how many bytes they are.

    Some zeros follow, so that the head of a short last record can be taken apart like any other.
    """
    parts: list[bytes] = []
    begins: list[int] = []
    length = 0
    address = first - PAGE
    while (address := address + PAGE) < stop:
        at = address - first
        found_magic, flags, _, found_address, rest = _PAGE_HEAD.unpack_from(data, at)
        if found_magic != magic or found_address != address or flags & _OVERWRITTEN:
            following = address - address % segment + segment
            if parts and following < stop and not data[at : following - first].strip(b"\0"):
                address = following - PAGE  # the rest of a segment that was left early (pg_switch_wal)
                continue
            raise Unreadable(
                f"the page at {address:X} is another one (magic {found_magic:X}, {found_address:X})"
            )
        head = _LONG_HEAD if flags & _IS_LONG else _SHORT_HEAD
        body = data[at + head : at + PAGE]
        if address == first and start > first:
            if start - first < head:
                raise Unreadable(f"no record begins at {start:X}")
            body, rest = data[start - first : PAGE], 0
        begin = length + (rest + 7 & ~7)
        length += len(body)
        parts.append(body)
        if begin < length:
            begins.append(begin)
    if not begins or begins[0] != 0:
        raise Unreadable(f"no record begins at {start:X}")
    return b"".join([*parts, bytes(64)]), begins, length


Seen = dict[tuple[int, int, int, int, bytes], int]
"""Transaction, flags, manager, fork and flags of the block, its address as bytes → how many records, and, above
``_COUNT`` bits, how many bytes they are."""

_COUNT = 24


def _walk(stream: bytes, position: int, end: int, named: Named, seen: Seen) -> None:
    """Every record between two places, which must be where records begin."""
    # Written for speed: a test that inserts 10,000 rows writes 30,000 records, two thirds of them of indexes.
    head, skipped, count = _RECORD.unpack_from, _SKIPPED, seen.get
    switched = False
    while position < end:
        length, xid, flags, manager, number, fork, address, main = head(stream, position)
        if length < _RECORD_HEAD:
            if switched and not stream[position:end].strip(b"\0"):
                return
            raise Unreadable(f"a record of {length} bytes")
        if manager in skipped:
            position += length + 7 & ~7
            continue
        if manager == TRANSACTION:
            if flags & 0x70 in _ENDS:
                named.ended.add(xid)
                if flags & 0x70 == _ABORT:
                    named.aborted.add(xid)
                    if flags & _HAS_INFO:
                        named.aborted.update(_children(stream, position, length))
        elif number == 0 and main == _MAIN_SHORT and not fork & _OTHERWISE:
            # By far the most frequent: one block, no image. Its tablespace does not matter.
            key = (xid, flags, manager, fork, address)
            seen[key] = count(key, 0) + 1 + (length << _COUNT)
        else:
            switched = manager == 0 and flags & 0xF0 == _SWITCH
            for address in _blocks(stream, position + _RECORD_HEAD, position + length):
                key = (xid, flags, manager, 0, address)
                seen[key] = count(key, 0) + 1 + (length << _COUNT)
        position += length + 7 & ~7
    if position != end:
        raise Unreadable(f"records end at {position}, and the page says {end}")


def _children(stream: bytes, position: int, length: int) -> tuple[int, ...]:
    """The subtransactions that a record of an ABORT lists (access/xact.h: xl_xact_abort); none where it lists none, or
    is not what it ought to be: what they wrote is then compared, as if nobody knew."""
    # No blocks: the record's data come at once, behind what replication and logical decoding put first.
    at = position + _RECORD_HEAD
    while stream[at] in (_ORIGIN, _TOP_LEVEL):
        at += 3 if stream[at] == _ORIGIN else 5
    at += 2 if stream[at] == _MAIN_SHORT else 5
    at += 8  # the time
    info = _NUMBER.unpack_from(stream, at)[0]
    at += 4 + (8 if info & _HAS_DATABASE else 0)
    if not info & _HAS_CHILDREN:
        return ()
    count = _NUMBER.unpack_from(stream, at)[0]
    at += 4
    if at + 4 * count > position + length:
        return ()
    return struct.unpack_from(f"<{count}I", stream, at)


def _name(seen: Seen, database: int, named: Named) -> None:
    """Sort what was seen by relation."""
    records, sizes = named.records, named.sizes
    for (xid, flags, manager, fork, address), count in seen.items():
        owner, file, block = _ADDRESS.unpack(address)
        if fork & 0x0F == 0 and (owner == database or owner == 0):
            key = (file, owner == 0, xid, manager, flags)
            number, size = count & (1 << _COUNT) - 1, count >> _COUNT
            if (blocks := records.get(key)) is None:
                records[key], sizes[key] = {block: number}, size
            else:
                blocks[block] = blocks.get(block, 0) + number
                sizes[key] += size


def _blocks(stream: bytes, at: int, end: int) -> Iterator[bytes]:
    """The address (database, file, block) of every reference to a main fork in one record."""
    payload = 0
    relation: bytes | None = None
    while end - at > payload:
        number = stream[at]
        if number == _MAIN_SHORT:
            payload += stream[at + 1]
            at += 2
        elif number == _MAIN_LONG:
            payload += _NUMBER.unpack_from(stream, at + 1)[0]
            at += 5
        elif number == _ORIGIN:
            at += 3
        elif number == _TOP_LEVEL:
            at += 5
        elif number <= _LAST_BLOCK:
            flags = stream[at + 1]
            size = _SHORT.unpack_from(stream, at + 2)[0]
            if bool(flags & _HAS_DATA) != bool(size):
                raise Unreadable("a block reference with and without data")
            payload += size
            at += 4
            if flags & _HAS_IMAGE:
                payload += _SHORT.unpack_from(stream, at)[0]
                image = stream[at + 4]
                at += 7 if image & _HOLE and image & _COMPRESSED else 5
            if not flags & _SAME_RELATION:
                relation = stream[at + 4 : at + 12]
                at += 12
            if relation is None:
                raise Unreadable("a block reference without a relation")
            if not flags & 0x0F:
                yield relation + stream[at : at + 4]
            at += 4
        else:
            raise Unreadable(f"a block reference of number {number}")
    if end - at != payload:
        raise Unreadable(f"a record with {end - at} bytes of data instead of {payload}")


__all__ = ["MAGIC", "PAGE", "Named", "TooMuch", "Unreadable", "kind", "read"]
