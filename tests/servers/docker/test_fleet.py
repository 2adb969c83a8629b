"""Servers on several Docker hosts: real daemons, each in a network namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fix_engines import Engine, Network
from fix_hosts import Site, baked, servers

pytestmark = pytest.mark.docker


@pytest.fixture
def site(tmp_path: Path, network: Network, engines: Sequence[Engine]) -> Iterator[Site]:
    """A checkout whose servers are on three engines."""
    yield Site.on(tmp_path / "site", network, engines)
    for engine in engines:
        engine.forget()


def test_a_server_for_each_worker_on_three_hosts(site: Site, engines: Sequence[Engine], caplog) -> None:
    caplog.set_level("INFO", "pg_harness")
    with site.open(workers=4, isolation="server") as run:
        leases = run.leases(4)
        hosts = [session.server.info.host for session in run.placement.members.values()]
        assert sorted({*hosts}) == [engine.tcp for engine in engines]
        assert max(hosts.count(host) for host in hosts) == 2
        assert sorted(len(servers(engine)) for engine in engines) == [1, 1, 2]
        for lease in leases:
            with lease.connect() as connection:
                assert connection.execute("select name from users").fetchall() == [("a",)]
        print([engine.docker("logs", servers(engine)[0])[:100] for engine in engines])
    print(caplog.text)
    assert [servers(engine) for engine in engines] == [[], [], []]
    # Migrated once: one image, the same on all.
    assert len({*baked(engines[0]), *baked(engines[1]), *baked(engines[2])}) == 1
    assert caplog.text.count("baked in") == 1
    assert caplog.text.count("takes the migrated server from") == 2


def test_try(site: Site, engines: Sequence[Engine], caplog) -> None:
    caplog.set_level("INFO", "pg_harness")
    with site.open(workers=4) as run:
        leases = run.leases(4)
        print(run, run.placement.members)
        assert sorted(len(servers(engine)) for engine in engines) == [1, 1, 1]
        for lease in leases:
            with lease.connect() as connection:
                assert connection.execute("select name from users").fetchall() == [("a",)]
                connection.execute("delete from users")
            lease.reset()
    print(caplog.text)
    assert caplog.text.count("migrating") <= 1
    with site.open(workers=4) as run:
        leases = run.leases(4)
    assert sorted(len(servers(engine)) for engine in engines) == [1, 1, 1]
    print(*site.call("status"))
    print(*site.call("doctor"))
    print(*site.call("down", "--all"))
    assert sorted(len(servers(engine)) for engine in engines) == [0, 0, 0]
