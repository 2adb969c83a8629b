"""Random writes and DDL, rewound without an engine: after each rewind every page is the baseline's, byte by byte.

``PGHARNESS_TEST_REWINDS`` says how many rounds for each version, ``PGHARNESS_TEST_REWINDS_17`` how many for that one,
``PGHARNESS_TEST_SEED`` where to begin. What is read
beside the pages: the same statements in sessions that were kept and in new ones, amcheck, the next test's first rows.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_reset_servers import VERSIONS, Server, running
from fix_rewind import count_on
from fix_rewind_module import need_compiler
from rw_company import company
from rw_operations import KINDS, generate
from rw_runner import Rounds

LONG = os.environ.get("PGHARNESS_TEST_LONG") == "1"
REWINDS = int(os.environ.get("PGHARNESS_TEST_REWINDS", "1000" if LONG else "60"))
SEED = int(os.environ.get("PGHARNESS_TEST_SEED", "1"))
PER_SCHEMA = 30
FURTHER_VERSION = 16
ENOUGH = 150
"""From so many rounds on it is asked whether all kinds of operations were among them."""


def rewinds(version: int) -> int:
    return count_on(version, "PGHARNESS_TEST_REWINDS", REWINDS)


def search(server: Server, first: int, count: int) -> Counter[str]:
    """So many rounds; fails at the first difference, with the smallest workload that shows it. Returns the answers."""
    answers: Counter[str] = Counter()
    done: Counter[str] = Counter()
    for schema in range(first, first + count, PER_SCHEMA):
        rounds = Rounds(server, schema)
        try:
            for seed in range(schema, min(schema + PER_SCHEMA, first + count)):
                operations = generate(seed, rounds.schema)
                differences = rounds.round(seed, operations)
                if differences:
                    shrunk = rounds.shrink(seed, operations)
                    found = "\n  ".join(differences[:10])
                    steps = "\n  ".join(str(operation) for operation in shrunk)
                    pytest.fail(
                        f"PostgreSQL {server.version}, schema {schema}, round {seed}: not as the baseline:\n  {found}\n"
                        f"Smallest workload:\n  {steps}"
                    )
            answers += rounds.answers
            done += rounds.done
        finally:
            rounds.close()
    print(f"\nPostgreSQL {server.version}: {dict(answers)}\n{dict(done)}")
    missing = [kind for kind in KINDS if not done[kind]]
    assert count < ENOUGH or not missing, f"operations that never ran: {missing}"
    rows = sum(number for answer, number in answers.items() if answer.startswith("rows"))
    # A module that leaves all to the rows is never wrong, and useless.
    assert answers["rewound"] > 3 * rows, dict(answers)
    return answers


@pytest.mark.timeout(120 + 2 * REWINDS)
def test_every_page_is_the_baselines_again(reset_server: Server) -> None:
    need_compiler(reset_server.version)
    search(reset_server, SEED, rewinds(reset_server.version))


@pytest.mark.timeout(120 + 2 * REWINDS)
@pytest.mark.server
def test_on_a_version_that_no_other_test_has() -> None:
    """It has a module, and is installed less often: a part of the search has to do."""
    need_compiler(FURTHER_VERSION)
    with running(FURTHER_VERSION) as server:
        search(server, SEED + 600_000, max(PER_SCHEMA, REWINDS // 3))


MOSTLY = [pytest.param(v, marks=pytest.mark.slow) if v == 17 else v for v in VERSIONS]
"""17 shares each of the module's version gates with 16 or with 18: the further searches on it are among the long ones."""

HOSTILE = {
    "everything is evicted": (
        {"shared_buffers": "128kB", "bgwriter_delay": "10ms", "bgwriter_lru_maxpages": "1000"}, [], ["checkpoints", "reads"],
    ),
    "checksums, images of pages": ({"full_page_writes": "on", "wal_compression": "on"}, ["--data-checksums"], ["checkpoints", "writes"]),
    "wal_level minimal": ({"wal_level": "minimal", "max_wal_senders": "0", "wal_keep_size": "0"}, [], ["files", "writes"]),
    "wal_level logical": ({"wal_level": "logical", "shared_buffers": "1MB"}, [], ["checkpoints", "files"]),
}  # fmt: skip
"""Settings, words for initdb, company on the same server."""


BY_TURNS = [
    pytest.param(version, hostile, marks=() if version == (15, 18)[number % 2] else pytest.mark.slow)
    for number, hostile in enumerate(HOSTILE)
    for version in VERSIONS
]
"""Each on one version, because this takes as long as all the rest of the search; the others are among the long ones."""


@pytest.mark.parametrize(("version", "hostile"), BY_TURNS)
@pytest.mark.timeout(180 + 2 * REWINDS)
@pytest.mark.server
def test_on_servers_with_other_settings_and_in_company(version: int, hostile: str) -> None:
    need_compiler(version)
    settings, initdb, kinds = HOSTILE[hostile]
    with running(version, settings, initdb) as server, company(server, *kinds):
        search(server, SEED + 100_000 * list(HOSTILE).index(hostile), max(PER_SCHEMA, rewinds(version) // 4))


HUGE = Path("/proc/sys/vm/nr_hugepages")


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """512 MB of them, where the kernel gives them: servers beside this one take some as well (``huge_pages = try``)."""
    try:
        before = HUGE.read_text()
        HUGE.write_text(str(int(before) + 256))
    except OSError as error:
        pytest.skip(f"huge pages cannot be had here: {error}")
    try:
        if int(HUGE.read_text()) < int(before) + 256:
            pytest.skip("the kernel has no memory left for huge pages")
        yield
    finally:
        HUGE.write_text(before)


@pytest.mark.parametrize("version", MOSTLY)
@pytest.mark.timeout(180 + 2 * REWINDS)
@pytest.mark.server
def test_in_huge_pages(version: int, huge_pages: None) -> None:
    need_compiler(version)
    with (
        running(version, {"huge_pages": "on", "shared_buffers": "16MB"}) as server,
        company(server, "checkpoints", "reads"),
    ):
        search(server, SEED + 500_000, max(PER_SCHEMA, rewinds(version) // 4))
