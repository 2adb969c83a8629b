"""The two ways to read the log tell the same, over everything that the random workloads write."""

from __future__ import annotations

import os
from dataclasses import replace

import fix_reset_servers
import pytest
from diff_schemas import generate as generate_schema
from diff_workloads import generate as generate_workload
from fix_reset_servers import VERSIONS, Server, running
from test_differential import Runner

from harness.postgres.session import Session
from harness.reset.wal.bytes import ByteReader
from harness.reset.wal.inspect import InspectReader
from harness.reset.wal.reader import NOISE, WalQuery, WalWindow

WORKLOADS = 200 if os.environ.get("PGHARNESS_TEST_LONG") == "1" else 25

# Names that the parser of bytes does not know: numbers there.
KNOWN = ("Heap/", "Heap2/", "XLOG/FPI", "Sequence/")


def told(window: WalWindow) -> dict[tuple[int, bool, bool], tuple[dict[str, int], frozenset[int]]]:
    """What a window says about rows, comparable."""
    found: dict[tuple[int, bool, bool], tuple[dict[str, int], frozenset[int]]] = {}
    for relation in window.relations:
        # Which of them were rolled back only the reader of bytes tells apart.
        key = (relation.filenode, relation.shared, relation.own)
        kinds, blocks = found.get(key, ({}, frozenset()))
        for kind, count in relation.records.items():
            if kind not in NOISE:
                name = kind if kind.startswith(KNOWN) else kind.split("/")[0]
                kinds[name] = kinds.get(name, 0) + count
        if kinds:
            found[key] = (kinds, blocks | relation.blocks)
    return found


class BothReaders:
    """Looks twice, and compares."""

    def __init__(self, one: Session, two: Session) -> None:
        self.session = one
        self.bytes, self.inspect = ByteReader(one), InspectReader(two)
        self.compared = 0

    def position(self) -> str:
        return self.bytes.position()

    def read(self, asked: WalQuery) -> WalWindow:
        asked = replace(asked, ours=[*asked.ours, self.inspect.session.pid])
        one = self.bytes.read(asked)
        if one.moved and not one.too_much:
            two = self.inspect.read(replace(asked, most=asked.most + 65536, seen=None))
            assert told(one) == told(two)
            assert set(one.unfinished) == set(two.unfinished)
            if not asked.brief:
                assert one.advisory == two.advisory
            self.compared += 1
        # The second look wrote into the log: what the first says of the insert position holds no more.
        return WalWindow(**{**one._asdict(), "seen": ""})


def agree(server: Server, seeds: range, *, checkpoint: bool) -> None:
    runner = Runner(server, generate_schema(11))
    both = BothReaders(server.session(), server.session())
    try:
        runner.bench.engine._connections.wal.session.close()
        runner.bench.engine._connections._reader = both
        runner.bench.reclone()
        for seed in seeds:
            if checkpoint and seed % 3 == 0:
                runner.bench.admin.execute("checkpoint")  # the next write of each page carries all of it
            assert runner.run(generate_workload(seed, runner.schema)) == []
        assert both.compared > len(seeds)
    finally:
        both.inspect.session.close()
        runner.close()


@pytest.mark.timeout(900)
def test_bytes_and_walinspect_agree(reset_server: Server) -> None:
    agree(reset_server, range(9000, 9000 + WORKLOADS), checkpoint=False)


@pytest.mark.server
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", VERSIONS, ids=lambda v: f"pg{v}")
def test_they_agree_where_everything_is_logged(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of pages, compressed, hints, top-level transactions, as other people's servers write them."""
    wanted = {"wal_level": "logical", "full_page_writes": "on", "wal_compression": "on", "wal_log_hints": "on",
              "wal_keep_size": "256MB"}  # fmt: skip
    for name, value in wanted.items():
        monkeypatch.setitem(fix_reset_servers.SETTINGS, name, value)
    with running(version) as server:
        agree(server, range(9500, 9500 + WORKLOADS), checkpoint=True)
