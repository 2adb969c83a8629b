"""A suite over three engines, one of which loses power in the middle."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fix_backends import until
from fix_engines import Engine, Network
from fix_hosts import Site, servers

pytestmark = [pytest.mark.docker, pytest.mark.timeout(240)]

SUITE = """
import os, time
from pathlib import Path
import psycopg, pytest

HERE = Path(__file__).parent
HOST = psycopg.conninfo.conninfo_to_dict(os.environ["DATABASE_URL"])["host"]


def killed():
    file = HERE / "killed"
    return file.read_text() if file.exists() else ""


@pytest.mark.parametrize("number", range(24))
def test_one(number):
    with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=5) as connection:
        assert connection.execute("select name from users").fetchall() == [("a",)]
        connection.execute("insert into users (name) values (%s)", [str(number)])
        connection.commit()
        (HERE / f"at-{os.environ['PYTEST_XDIST_WORKER']}").write_text(HOST)
        deadline = time.monotonic() + 60
        # Queries until the host is killed; on that one until they fail.
        while killed() in ("", HOST) and time.monotonic() < deadline:
            connection.execute("select 1")
            time.sleep(0.02)
"""


@pytest.fixture
def site(tmp_path: Path, network: Network, engines: Sequence[Engine]) -> Iterator[Site]:
    """A checkout whose servers are on three engines."""
    yield Site.on(tmp_path / "site", network, engines)
    for engine in engines:
        engine.forget()


@pytest.mark.parametrize("isolation", ["server", "database"])
def test_one_of_three_loses_power_in_the_middle(
    site: Site, engines: Sequence[Engine], isolation: str
) -> None:
    tests = site.root / "tests"
    tests.mkdir()
    (tests / "test_suite.py").write_text(SUITE)
    environ = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PGHARNESS_ISOLATION": isolation}
    words = ["-p", "no:cacheprovider", "-p", "pg_harness_pytest", "-p", "xdist", "-n", "4", "-v", "tests"]
    child = site.start("pytest", *words, **environ)
    try:
        until(
            lambda: len(list(tests.glob("at-*"))) == 4, seconds=120, what="four workers in their first test"
        )
        at = {path.name.removeprefix("at-"): path.read_text() for path in tests.glob("at-*")}
        assert sorted(set(at.values())) == sorted(engine.address for engine in engines), at
        # The one with two workers.
        doomed = max(engines, key=lambda engine: list(at.values()).count(engine.address))
        (tests / "killed").write_text(doomed.address)
        doomed.kill()
        out, err = child.communicate(timeout=150)
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()
        if not doomed.running:
            doomed.start()
    # What ran there just then fails, and is told why; all else passes, what those workers had not begun too.
    ran_there = [worker for worker, host in at.items() if host == doomed.address]
    assert len(ran_there) == 2
    last = out.strip().splitlines()[-1]
    assert re.search(r"\b2 failed, 22 passed\b", last), out + err
    assert child.returncode == 1
    for worker in ran_there:
        told = f"the server of worker {worker} on the Docker host {doomed.tcp} does not answer any more"
        assert out.count(told) == 1, out + err
        assert f"worker {worker} leaves" in err
    assert out.count("What was tried:") == 2
    assert f"docker -H {doomed.tcp} info" in out
    assert "INTERNALERROR" not in out
    assert "Traceback" not in err
    # Nothing is left on the others: a worker's own servers ended with it; shared ones stay warm, with no lease.
    others = [engine for engine in engines if engine is not doomed]
    if isolation == "server":
        assert [servers(engine) for engine in others] == [[], []]
    else:
        assert [len(servers(engine)) for engine in others] == [1, 1]
        assert "left over" not in site.ok("status")[0]
        assert "worker" not in site.ok("status")[0]
    # The host is back: what was in memory there is gone, and nothing of ours is left.
    until(lambda: servers(doomed) == [], seconds=30, what="nothing left on the host that was killed")
    assert list((site.root / ".state" / "runs").iterdir()) == []
