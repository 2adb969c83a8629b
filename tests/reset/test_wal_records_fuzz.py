"""Random logs, whole and damaged: what is whole is read as it was written, what is damaged is never a crash or a hang.

Checksums of records are not verified: the server's own are for what a disk lost, and these bytes come from the memory
of the machine that wrote them. What is verified (pages, and that records end where the next page says) is tested here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.reset.wal.records import PAGE, Named, Unreadable, read

MAGIC, MINE, OTHER = 0xD118, 16384, 16385
SEGMENT = 1 << 17
FIRST = 8 * SEGMENT
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

Answer = dict[tuple[int, bool, int, int, int], dict[int, int]]


@dataclass(frozen=True)
class Block:
    """A reference of a record to a block.

    Attributes:
        image: bytes of an image of the page; 0 for none.
        same: it names no relation: that of the reference before it.
    """

    database: int
    file: int
    number: int
    fork: int = 0
    data: int = 0
    image: int = 0
    packed: bool = False
    same: bool = False


@dataclass(frozen=True)
class Record:
    """One record as PostgreSQL lays it out (access/xlogrecord.h)."""

    manager: int
    flags: int
    xid: int
    blocks: tuple[Block, ...]
    main: int
    origin: bool

    def bytes(self) -> bytes:
        heads = b""
        for number, block in enumerate(self.blocks):
            flags = (
                block.fork
                | (0x20 if block.data else 0)
                | (0x10 if block.image else 0)
                | (0x80 if block.same else 0)
            )
            heads += struct.pack("<BBH", number, flags, block.data)
            if block.image:
                heads += struct.pack("<HHB", block.image, 24, 0x01 | (0x04 if block.packed else 0))
                heads += struct.pack("<H", 4000) if block.packed else b""
            if not block.same:
                # The server's own catalogs lie in a tablespace of their own.
                heads += struct.pack("<III", 1663 if block.database else 1664, block.database, block.file)
            heads += struct.pack("<I", block.number)
        if self.origin:
            heads += struct.pack("<BH", 253, 1) + struct.pack("<BI", 252, 699)
        if self.main > 255:
            heads += struct.pack("<BI", 254, self.main)
        elif self.main:
            heads += struct.pack("<BB", 255, self.main)
        size = sum(block.data + block.image for block in self.blocks) + self.main
        # Contents that look like heads, addresses and ends: nobody may believe them. Others have pages to pass over.
        pattern = struct.pack("<IIII", 24, MINE, 1664, 0) if self.flags & 0x10 else b"no address here."
        filler = (pattern * (size // 16 + 1))[:size]
        length = 24 + len(heads) + size
        head = struct.pack("<IIQBB2xI", length, self.xid, 0, self.flags, self.manager, 0)
        return (head + heads + filler).ljust(length + 7 & ~7, b"\0")


def _related(blocks: list[Block]) -> tuple[Block, ...]:
    """A reference that names no relation is one to that of the reference before it."""
    found: list[Block] = []
    for block in blocks:
        same = block.same and bool(found)
        database, file = (found[-1].database, found[-1].file) if same else (block.database, block.file)
        found.append(
            Block(database, file, block.number, block.fork, block.data, block.image, block.packed, same)
        )
    return tuple(found)


BLOCKS = st.builds(
    Block,
    st.sampled_from([MINE, OTHER, 0]),
    st.integers(16386, 16389),
    st.integers(0, 3),
    st.sampled_from([0, 0, 0, 1, 2, 3]),
    st.sampled_from([0, 0, 7, 200]),
    st.sampled_from([0, 0, 0, 900]),
    st.booleans(),
    st.booleans(),
)
RECORDS = st.builds(
    Record,
    st.sampled_from([0, 1, 4, 7, 9, 10, 10, 10, 10, 11, 15, 20]),
    st.sampled_from([0x00, 0x10, 0x20, 0x30, 0x60, 0x80, 0xA0]),
    st.integers(0, 5).map(lambda n: n and 700 + n),
    st.lists(BLOCKS, max_size=3).map(_related),
    st.sampled_from([0, 3, 8, 40, 300, 9000]),
    st.booleans(),
)
LOGS = st.lists(RECORDS, min_size=1, max_size=60)


def laid_out(records: list[Record]) -> tuple[bytes, list[int]]:
    """The records on pages, from the beginning of a segment, and where each ends."""
    out = bytearray()
    ends: list[int] = []
    for record in records:
        body = record.bytes()
        begun = False
        while body:
            if len(out) % PAGE == 0:
                address = FIRST + len(out)
                left = len(body) if begun else 0
                long = address % SEGMENT == 0
                out += struct.pack(
                    "<HHIQI4x", MAGIC, (1 if left else 0) | (2 if long else 0), 1, address, left
                )
                out += struct.pack("<QII", 1, SEGMENT, PAGE) if long else b""
            room = PAGE - len(out) % PAGE
            out += body[:room]
            body, begun = body[room:], True
        ends.append(FIRST + len(out))
    return bytes(out), ends


def answer(data: bytes, stop: int) -> Named:
    return read(data, first=FIRST, start=FIRST, stop=stop, magic=MAGIC, segment=SEGMENT, database=MINE)


def written(records: list[Record]) -> Answer:
    """What the records say of this database and of the shared catalogs, told by who wrote them."""
    found: Answer = {}
    for record in records:
        if record.manager in (1, 11):
            continue
        for block in record.blocks:
            if block.fork == 0 and block.database in (MINE, 0):
                key = (block.file, block.database == 0, record.xid, record.manager, record.flags)
                blocks = found.setdefault(key, {})
                blocks[block.number] = blocks.get(block.number, 0) + 1
    return found


@QUICK
@given(LOGS)
def test_a_whole_log_is_read_as_it_was_written(records: list[Record]) -> None:
    data, ends = laid_out(records)
    assert answer(data, ends[-1]).records == written(records)


@QUICK
@given(LOGS, st.data())
def test_a_reading_may_begin_after_any_record(records: list[Record], drawn: st.DataObject) -> None:
    data, ends = laid_out(records)
    skipped = drawn.draw(st.integers(0, len(records) - 1))
    start = ends[skipped - 1] if skipped else FIRST
    page = (start - FIRST) // PAGE * PAGE
    found = read(
        data[page:],
        first=FIRST + page,
        start=start,
        stop=ends[-1],
        magic=MAGIC,
        segment=SEGMENT,
        database=MINE,
    )
    assert found.records == written(records[skipped:])


@QUICK
@given(LOGS, st.data())
def test_less_than_was_asked_for_is_unreadable(records: list[Record], drawn: st.DataObject) -> None:
    data, ends = laid_out(records)
    cut = drawn.draw(st.integers(0, len(data) - 1))
    assert _or_none(data[:cut], ends[-1]) is None


@QUICK
@given(LOGS, st.data())
def test_an_end_in_the_middle_of_a_record_is_unreadable(records: list[Record], drawn: st.DataObject) -> None:
    data, ends = laid_out(records)
    cut = drawn.draw(st.integers(1, len(data)))
    found = _or_none(data[:cut], FIRST + cut)
    whole = [record for record, end in zip(records, ends, strict=True) if end <= FIRST + cut]
    if found is not None:
        # Page heads and nothing behind them belong to no record.
        assert found.records == written(whole)


@QUICK
@given(LOGS, st.data())
def test_damage_is_no_crash_and_damaged_pages_are_unreadable(
    records: list[Record], drawn: st.DataObject
) -> None:
    data, ends = laid_out(records)
    damaged = bytearray(data)
    at = drawn.draw(st.integers(0, len(data) - 1))
    damaged[at] ^= 1 << drawn.draw(st.integers(0, 7))
    found = _or_none(bytes(damaged), ends[-1])
    if at % PAGE in (0, 1, *range(8, 16)):  # the magic number and the address of a page
        assert found is None


@QUICK
@given(LOGS, st.data())
def test_a_page_that_was_lost_is_unreadable(records: list[Record], drawn: st.DataObject) -> None:
    data, ends = laid_out(records)
    page = drawn.draw(st.integers(0, (len(data) - 1) // PAGE)) * PAGE
    lost = data[:page] + bytes(len(data[page : page + PAGE])) + data[page + PAGE :]
    assert _or_none(lost, ends[-1]) is None


def _or_none(data: bytes, stop: int) -> Named | None:
    """What is read; None where it is said to be unreadable. Anything else is a failure."""
    try:
        return answer(data, stop)
    except Unreadable:
        return None
