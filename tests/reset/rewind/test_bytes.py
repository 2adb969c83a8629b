"""The comparison that judges a rewind: it sees every byte that counts, and no other."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from fix_reset_bytes import BLOCK, Files, Relation, compare_files, compare_page, folder, relations
from fix_reset_servers import Server, drop, make_databases
from fix_rewind_module import Rewinder, need_compiler

from harness.postgres.session import Session

SCHEMA = """
create table kept (id serial primary key, v text, n integer) with (fillfactor = 50);
insert into kept (v, n) select 'k' || i, i from generate_series(1, 500) i;
create index kept_hash on kept using hash (v); create index kept_gin on kept using gin ((array[n]));
create index kept_gist on kept using gist (point(n, n)); create index kept_brin on kept using brin (n);
create table long (v text); alter table long alter v set storage external;
insert into long select string_agg(md5(i::text), '') from generate_series(1, 200) i;
create unlogged table loose (id serial primary key); insert into loose select from generate_series(1, 10);
create sequence counter; select nextval('counter');
delete from kept where id between 100 and 140;
"""


@dataclass
class Pair:
    """A lease and its baseline, as they lie on disk."""

    lease: dict[str, bytes]
    baseline: Files
    known: dict[int, Relation]

    def file(self, name: str, fork: str = "") -> str:
        node = next(node for node, relation in self.known.items() if relation.name == name)
        return f"{node}_{fork}" if fork else str(node)

    def doctored(self, name: str, offset: int, value: int) -> list[str]:
        """What is reported when one byte of the lease is another one."""
        content = bytearray(self.lease[name])
        content[offset] = value if content[offset] != value else value ^ 0xFF
        changed = {**self.lease, name: bytes(content)}
        return [str(difference) for difference in compare_files(changed, self.baseline, self.known)]


@pytest.fixture(scope="module")
def pair(reset_server: Server) -> Iterator[Pair]:
    admin = make_databases(reset_server, "bytes", SCHEMA)
    oids = dict(
        admin.rows("select datname, oid::int8 from pg_database where datname in ('bytes', 'bytes_z')")
    )
    with reset_server.session("bytes_z") as session:
        known = relations(session)
    admin.execute("checkpoint")
    found = Pair(
        dict(folder(admin, reset_server.data, oids["bytes"])),
        folder(admin, reset_server.data, oids["bytes_z"]),
        known,
    )
    yield found
    for suffix in ("", "_t", "_z"):
        drop(admin, f"bytes{suffix}")
    admin.close()


def test_two_clones_are_equal(pair: Pair) -> None:
    assert compare_files(pair.lease, pair.baseline, pair.known) == []


def test_what_is_read_through_sql_is_what_lies_on_disk(pair: Pair, reset_server: Server) -> None:
    """As it is done for servers in containers."""
    with reset_server.session() as admin:
        oid = admin.value("select oid::int8 from pg_database where datname = 'bytes_z'")
        assert folder(admin, None, oid) == pair.baseline


@pytest.mark.parametrize(
    ("name", "fork"),
    [
        ("kept", ""), ("kept", "fsm"), ("kept", "vm"), ("kept_pkey", ""), ("kept_hash", ""), ("kept_gin", ""), ("kept_gist", ""),
        ("kept_brin", ""), ("long", ""), ("counter", ""), ("kept_id_seq", ""), ("loose", "init"), ("pg_class", ""), ("pg_attribute", "vm"),
    ],
)  # fmt: skip
def test_every_byte_that_counts_is_seen(pair: Pair, name: str, fork: str) -> None:
    """Single bytes at random, in every page: behind LSN and checksum, and no hint bits."""
    rng = random.Random(f"{name} {fork}")
    file = pair.file(name, fork)
    content = pair.lease[file]
    heap = not fork and pair.known[int(file)].kind == "r"
    tried = 0
    for start in range(0, len(content), BLOCK):
        page = content[start : start + BLOCK]
        hints = {o + d for o in _tuples(page) for d in (20, 21)} if heap else set()
        for offset in [10, 12, 16, BLOCK - 1, *rng.sample(range(10, BLOCK), 25)]:
            if offset in hints:
                continue
            found = pair.doctored(file, start + offset, rng.randrange(256))
            assert found, f"byte {offset} of block {start // BLOCK} of {file}"
            assert f"block {start // BLOCK}:" in found[0]
            assert len(found) == 1
            tried += 1
    assert tried or not content


def _tuples(page: bytes) -> list[int]:
    """Where the tuples of a heap's page begin."""
    lower, upper, special = struct.unpack_from("<HHH", page, 12)
    if not lower:
        return []
    assert 24 <= lower <= upper <= special <= BLOCK
    words = struct.unpack_from(f"<{(lower - 24) // 4}I", page, 24)
    return [word & 0x7FFF for word in words if word >> 15 & 3 == 1]


def test_lsn_checksum_and_hint_bits_do_not_count(pair: Pair) -> None:
    file = pair.file("kept")
    for offset in range(10):
        assert pair.doctored(file, BLOCK + offset, 0x55) == []
    page = pair.lease[file][:BLOCK]
    for start in _tuples(page):
        infomask = start + 21  # the upper byte: xmin and xmax, each committed or invalid
        assert pair.doctored(file, infomask, page[infomask] ^ 0x0F) == []
        assert pair.doctored(file, infomask, page[infomask] ^ 0x10) != []
        assert pair.doctored(file, start + 20, page[start + 20] ^ 0x01) != []


def test_a_line_pointer_that_is_dead_is_seen(pair: Pair) -> None:
    """LP_DEAD, on a heap's page and on an index's: a hint for PostgreSQL, a lost row for whoever gets its page with a row that lives."""
    for name in ("kept", "kept_pkey", "kept_gist"):
        file = pair.file(name)
        block = len(pair.lease[file]) // BLOCK - 1
        page = bytearray(pair.lease[file])
        (word,) = struct.unpack_from("<I", page, block * BLOCK + 24)
        struct.pack_into("<I", page, block * BLOCK + 24, word | 3 << 15)
        found = compare_files({**pair.lease, file: bytes(page)}, pair.baseline, pair.known)
        assert [str(one) for one in found if "line pointer 1" in str(one)], name


def test_hint_bits_of_an_index_page_count(pair: Pair) -> None:
    """It has none: bits at that place of an item are of its key."""
    index = pair.lease[pair.file("kept_pkey")][BLOCK : 2 * BLOCK]
    changed = bytearray(index)
    changed[_tuples(index)[3] + 9] ^= 0x01
    assert compare_page(bytes(changed), index, kind="i", fork="main") != ""


def test_a_page_of_a_map_that_was_never_used_is_an_empty_one(pair: Pair) -> None:
    file = pair.file("kept", "vm")
    used = pair.lease[file][:BLOCK]
    fresh = struct.pack("<12xHHHH4x", 24, BLOCK, BLOCK, BLOCK | 4).ljust(BLOCK, b"\0")
    assert compare_page(bytes(BLOCK), fresh, kind="r", fork="vm") == ""
    assert compare_page(bytes(BLOCK), fresh, kind="r", fork="main") != ""
    assert compare_page(bytes(BLOCK), used, kind="r", fork="vm") != ""


def test_files_that_are_there_or_not(pair: Pair) -> None:
    main, fsm, init = pair.file("kept"), pair.file("kept", "fsm"), pair.file("loose", "init")

    def without(*names: str, **more: bytes) -> list[str]:
        left = {name: content for name, content in pair.lease.items() if name not in names}
        return [str(one) for one in compare_files({**left, **more}, pair.baseline, pair.known)]

    assert without(main) != []
    assert without(fsm) != []
    assert without(init) != []
    assert without("pg_filenode.map") != []
    assert without("PG_VERSION") != []
    assert without(**{"999999": b""}) == [], "an empty file waits for the next checkpoint"
    assert without(**{"999999": bytes(BLOCK)}) != []
    assert without(**{"999999_fsm": bytes(BLOCK)}) != []
    assert without(**{f"{main}_init": bytes(BLOCK)}) != []
    assert without(**{f"{main}.1": bytes(BLOCK)}) != []
    assert without(**{f"{main}.1": b""}) == []
    assert without(**{main: pair.lease[main] + bytes(BLOCK)}) != []
    assert without(**{main: pair.lease[main][:-BLOCK]}) != []
    # A fork of no blocks equals one that is not there.
    empty = pair.file("counter", "fsm")
    assert without(**{empty: b""}) == []
    smaller = {name: content for name, content in pair.baseline.items() if name != fsm}
    assert compare_files({**pair.lease, fsm: b""}, smaller, pair.known) == []
    assert without(t3_16999=bytes(BLOCK)) == [], "a temporary table of a session"
    vm = pair.file("counter", "vm")
    assert without(**{vm: bytes(BLOCK)}) == [], "a visibility map in which no bit is set"
    assert without(**{vm: pair.lease[pair.file("kept", "vm")]}) != []
    assert without(pair.file("kept", "vm")) != []
    mapped = bytearray(pair.lease["pg_filenode.map"])
    mapped[12] ^= 1
    assert without(**{"pg_filenode.map": bytes(mapped)}) != []


def test_pages_through_the_buffers_are_seen_before_they_are_flushed(reset_server: Server) -> None:
    """An update that nobody has written to disk, a page of a free space map that says it was never changed."""
    need_compiler(reset_server.version)
    admin = make_databases(reset_server, "buffers", SCHEMA)
    rewinder = Rewinder(reset_server, "buffers", "buffers_z")
    try:
        assert rewinder.differences() == []
        with Session.connect(reset_server.dsn("buffers", "app")) as app:
            app.execute("update kept set n = n where id = 7")
        found = [str(one) for one in rewinder.differences()]
        assert any(one.startswith("kept main block 0") for one in found), found
        with Session.connect(reset_server.dsn("buffers", "app")) as app:
            app.execute("insert into kept (v) select 'more' from generate_series(1, 3000)")
        found = [str(one) for one in rewinder.differences()]
        assert any(one.startswith("kept main: ") and "blocks instead of" in one for one in found), found
        assert any(one.startswith("kept fsm block") for one in found), found
        assert rewinder.rewind().status == "rewound"
        assert rewinder.differences() == []
    finally:
        rewinder.admin.close()
        for suffix in ("", "_t", "_z"):
            drop(admin, f"buffers{suffix}")
        admin.close()
