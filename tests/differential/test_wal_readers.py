"""The two ways to read the log tell the same, over everything that the random workloads write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
from diff_schemas import generate as generate_schema
from diff_workloads import generate as generate_workload
from fix_reset_servers import Server
from test_differential import Runner

from harness.catalog.session import Session
from harness.catalog.wal import NOISE, Window
from harness.catalog.wal_bytes import ByteReader
from harness.catalog.wal_inspect import InspectReader

WORKLOADS = 200 if os.environ.get("PGHARNESS_TEST_LONG") == "1" else 25

# Names that the parser of bytes does not know: numbers there.
KNOWN = ("Heap/", "Heap2/", "XLOG/FPI", "Sequence/")


def told(window: Window) -> dict[tuple[int, bool, bool], tuple[dict[str, int], frozenset[int]]]:
    """What a window says about rows, comparable."""
    found = {}
    for relation in window.relations:
        kinds: dict[str, int] = {}
        for kind, count in relation.records.items():
            if kind not in NOISE:
                name = kind if kind.startswith(KNOWN) else kind.split("/")[0]
                kinds[name] = kinds.get(name, 0) + count
        if kinds:
            found[relation.filenode, relation.shared, relation.own] = (kinds, relation.blocks)
    return found


class BothReaders:
    """Looks twice, and compares."""

    def __init__(self, one: Session, two: Session) -> None:
        self.session = one
        self.bytes, self.inspect = ByteReader(one), InspectReader(two)
        self.compared = 0

    def position(self) -> str:
        return self.bytes.position()

    def look(self, start: str, *, ours: Sequence[int], most: int, seen: str | None, **options: Any) -> Window:
        everybody = [*ours, self.inspect.session.pid]
        one = self.bytes.look(start, ours=everybody, most=most, seen=seen, **options)
        if one.moved and not one.too_much:
            two = self.inspect.look(start, ours=everybody, most=most + 65536, seen=None, **options)
            assert told(one) == told(two)
            assert set(one.unfinished) == set(two.unfinished)
            assert (one.writers, one.prepared, one.advisory) == (two.writers, two.prepared, two.advisory)
            self.compared += 1
        # The second look wrote into the log: what the first says of the insert position holds no more.
        return Window(**{**vars(one), "seen": ""})


@pytest.mark.timeout(900)
def test_bytes_and_walinspect_agree(reset_server: Server) -> None:
    runner = Runner(reset_server, generate_schema(11))
    both = BothReaders(reset_server.session(), reset_server.session())
    try:
        runner.bench.engine._wal.session.close()
        runner.bench.engine._reader = both
        runner.bench.reclone()
        for seed in range(9000, 9000 + WORKLOADS):
            assert runner.run(generate_workload(seed, runner.schema)) == []
        assert both.compared > 2 * WORKLOADS
    finally:
        both.inspect.session.close()
        runner.close()
