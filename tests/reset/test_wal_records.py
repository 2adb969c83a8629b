"""Taking the log's bytes apart, alone. That real logs are read rightly is tested against pg_walinspect."""

from __future__ import annotations

import struct

import pytest

from harness.reset.wal import records as wal_records
from harness.reset.wal.bytes import number, text, undecided, widened
from harness.reset.wal.records import PAGE, TooMuch, Unreadable, kind, read

MAGIC = 0xD118
FIRST = 0x1000000 + PAGE
MINE = 16384
ROOM = PAGE - 24
"""Bytes of records on a page."""


def record(
    manager: int, flags: int, *, xid: int = 700, block: bytes = b"", main: int = 8, data: bytes = b""
) -> bytes:
    body = block + bytes([255, main]) + data + bytes(main)
    head = struct.pack("<IIQBB2xI", 24 + len(body), xid, 0, flags, manager, 0)
    return (head + body).ljust(24 + len(body) + 7 & ~7, b"\0")


def reference(file: int, block: int, *, database: int = MINE, fork: int = 0, space: int = 1663) -> bytes:
    return struct.pack("<BBHIIII", 0, fork, 0, space, database, file, block)


def pages(records: bytes) -> tuple[bytes, int]:
    """The records on pages, and where they end."""
    out, rest, address = b"", b"", FIRST
    ends, position = set(), 0
    while position < len(records):
        ends.add(position)
        position += struct.unpack_from("<I", records, position)[0] + 7 & ~7
    position = 0
    while position < len(records):
        later = min((end for end in ends if end >= position), default=len(records))
        left = later - position
        out += struct.pack("<HHIQI4x", MAGIC, 1 if left else 0, 1, address, left)
        out += records[position : position + PAGE - 24]
        position, address = position + PAGE - 24, address + PAGE
    del rest
    return out, FIRST + len(out)


def named(records: bytes, **options: float) -> dict[tuple[int, bool, int, int, int], dict[int, int]]:
    data, stop = pages(records)
    found = read(
        data, first=FIRST, start=FIRST + 24, stop=stop, magic=MAGIC, segment=1 << 24, database=MINE, **options
    )  # type: ignore[arg-type]
    return found.records


def test_records_of_other_databases_and_of_indexes_are_passed_over() -> None:
    log = (
        record(10, 0x00, block=reference(500, 3))
        + record(11, 0x00, block=reference(501, 1))
        + record(10, 0x00, block=reference(600, 1, database=99))
        + record(10, 0x80, block=reference(500, 3))
        + record(10, 0x10, block=reference(1262, 0, database=0, space=1664))
        + record(10, 0x00, block=reference(500, 0, fork=2))
        + record(21, 0x00)
    )
    assert named(log) == {
        (500, False, 700, 10, 0x00): {3: 1},
        (500, False, 700, 10, 0x80): {3: 1},
        (1262, True, 700, 10, 0x10): {0: 1},
    }


def test_records_over_many_pages() -> None:
    log = b"".join(record(10, 0x00, block=reference(500, n // 100), main=n % 200) for n in range(5000))
    found = named(log + record(1, 0x00, xid=700))
    assert sum(found[500, False, 700, 10, 0].values()) == 5000
    assert len(found[500, False, 700, 10, 0]) == 50


def test_a_rollback_on_a_page_that_does_not_name_the_database() -> None:
    """The last row lies at the end of a page, and others write behind it."""
    other = record(10, 0x00, xid=701, block=reference(600, 1, database=99))
    written = record(10, 0x00, block=reference(500, 3))
    log = written + other * (PAGE // len(other)) + record(1, 0x20) + other * 300
    data, stop = pages(log)
    found = read(data, first=FIRST, start=FIRST + 24, stop=stop, magic=MAGIC, segment=1 << 24, database=MINE)
    assert (found.aborted, found.ended) == ({700}, {700})
    assert found.records == {(500, False, 700, 10, 0x00): {3: 1}}


def others(size: int) -> bytes:
    """Records that name no database: so many bytes of them, a multiple of 8, from 32."""
    found = b""
    while size - len(found) >= 256:
        found += record(21, 0x00, xid=0, main=198)
    return found + record(21, 0x00, xid=0, main=size - len(found) - 26)


@pytest.mark.parametrize("between", [0, 40, ROOM - 8, ROOM, ROOM + 40, 40 * ROOM + 40])
def test_a_rollback_however_many_pages_later(between: int) -> None:
    """The last row ends where its page does, so the next page begins with what others wrote in between."""
    written = record(10, 0x00, block=reference(500, 3))
    log = others(ROOM - len(written)) + written + (others(between) if between else b"") + record(1, 0x20)
    data, stop = pages(log + others(3 * ROOM))
    found = read(data, first=FIRST, start=FIRST + 24, stop=stop, magic=MAGIC, segment=1 << 24, database=MINE)
    assert (found.aborted, found.ended) == ({700}, {700})


def test_the_rollback_of_many_subtransactions_pages_later() -> None:
    """Only its list names them."""
    log = b"".join(record(10, 0x00, xid=xid, block=reference(500, 3)) for xid in range(710, 740))
    children = struct.pack("<QII30I", 0, 2, 30, *range(710, 740))
    end = (
        struct.pack("<IIQBB2xI", 26 + len(children), 709, 0, 0xA0, 1, 0)
        + bytes([255, len(children)])
        + children
    )
    log += others(3 * ROOM) + end.ljust(len(end) + 7 & ~7, b"\0")
    data, stop = pages(log)
    found = read(data, first=FIRST, start=FIRST + 24, stop=stop, magic=MAGIC, segment=1 << 24, database=MINE)
    assert found.aborted == {*range(709, 740)}


def test_what_does_not_fit_is_unreadable() -> None:
    data, stop = pages(record(10, 0x00, block=reference(500, 3)) * 400)
    options = {
        "first": FIRST,
        "start": FIRST + 24,
        "stop": stop,
        "magic": MAGIC,
        "segment": 1 << 24,
        "database": MINE,
    }
    read(data, **options)  # type: ignore[arg-type]
    for broken in (
        data[:-8],
        data[:PAGE] + bytes(PAGE) + data[2 * PAGE :],
        data[:24] + b"\x00" + data[25:],
        data[:48] + b"\x25" + data[49:],
    ):
        with pytest.raises(Unreadable):
            read(broken, **options)  # type: ignore[arg-type]
    with pytest.raises(Unreadable):
        read(data, **{**options, "magic": 0xD116})  # type: ignore[arg-type]


def test_a_long_log_is_given_up_early() -> None:
    log = record(10, 0x00, block=reference(500, 3)) * 40000
    with pytest.raises(TooMuch):
        named(log, patience=0.0001)


@pytest.mark.parametrize(
    ("manager", "flags", "name"),
    [
        (10, 0x00, "Heap/INSERT"), (10, 0x80, "Heap/INSERT"), (10, 0x70, "Heap/INPLACE"), (9, 0x50, "Heap2/MULTI_INSERT"),
        (0, 0xA0, "XLOG/FPI_FOR_HINT"), (0, 0xB0, "XLOG/FPI"), (15, 0x00, "Sequence/LOG"), (130, 0x10, "custom130/0x10"),
    ],
)  # fmt: skip
def test_kinds_are_named_as_postgresql_names_them(manager: int, flags: int, name: str) -> None:
    assert kind(manager, flags) == name


def test_ids_grow_beyond_32_bits() -> None:
    near = (3 << 32) + 100
    assert widened(90, near) == (3 << 32) + 90
    assert widened(110, near) == (3 << 32) + 110
    assert widened(2**32 - 5, near) == (3 << 32) - 5


def test_a_transaction_has_ended_only_where_it_is_proven() -> None:
    snapshot = "100:200:120,130"
    assert undecided([99], [], snapshot) == set()
    assert undecided([120], [120], snapshot) == {120}, "its COMMIT is in the log, and it still runs"
    assert undecided([125], [125], snapshot) == set()
    assert undecided([125], [], snapshot) == {125}, "perhaps a subtransaction of 120"
    assert undecided([200, 201], [200], snapshot) == {200, 201}, "younger than the snapshot"


def test_positions() -> None:
    assert number("1/2A") == (1 << 32) + 42
    assert text((1 << 32) + 42) == "1/2A"
    assert wal_records.PAGE == 8192
