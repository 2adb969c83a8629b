"""What a passing test costs, counted on the wire: nothing with ``none``, and with ``reset`` the reset alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import psycopg
import pytest
from fix_counting_proxy import CountingProxy, counting_proxy
from fix_plugin import Folder, Place

from harness.runs.run import Run

TESTS = 12

WRITING = f"""
    import os, psycopg, pytest

    @pytest.mark.parametrize("i", range({TESTS}))
    def test_it(i):
        with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
            conn.execute("insert into users (name) values ('dirt')")
"""


@pytest.fixture
def proxy(place: Place) -> Iterator[CountingProxy]:
    """In front of the server of all these tests."""
    with place.harness() as harness:
        dsn = harness.link.dsn
    with counting_proxy(dsn.host, dsn.port) as proxy:
        place.environ["PGHARNESS_BACKEND"] = "external"
        place.environ["PGHARNESS_SERVER_URL"] = (
            f"postgresql://{dsn.user}:{dsn.password}@127.0.0.1:{proxy.port}/{dsn.database}"
        )
        yield proxy
        del place.environ["PGHARNESS_BACKEND"], place.environ["PGHARNESS_SERVER_URL"]


def usual(counts: list[int]) -> int:
    """What most tests cost: PostgreSQL's own writing may now and then make a reset look twice."""
    (number, times), *_ = Counter(counts).most_common(1)
    assert times > len(counts) // 2, counts
    return number


def test_without_freshness_a_test_asks_nothing(folder: Folder, proxy: CountingProxy) -> None:
    folder.write(test_a=WRITING).pytest("--pg-harness-fresh", "none").ok(TESTS)
    # The migration logs in as the application, too.
    assert proxy.between_log_ins()[-(TESTS - 1) :] == [0] * (TESTS - 1)


def test_with_reset_a_test_asks_what_the_reset_asks(
    folder: Folder, place: Place, proxy: CountingProxy
) -> None:
    folder.write(test_a=WRITING).pytest("--pg-harness-fresh", "reset").ok(TESTS)
    # The first reset gets ready what it needs.
    of_tests = usual(proxy.between_log_ins()[-(TESTS - 2) :])
    with (
        Run.open(root=place.root, environ=place.environ) as harness,
        harness.lease(watch=True) as lease,
    ):
        of_resets = []
        for _ in range(TESTS):
            with psycopg.connect(lease.url) as connection:
                connection.execute("insert into users (name) values ('dirt')")
            before = proxy.trips()
            assert lease.reset().strategy == "restore"
            of_resets.append(proxy.trips() - before)
    assert of_tests == usual(of_resets[1:])
    assert 0 < of_tests <= 6
