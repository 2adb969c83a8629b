"""The warm server that a host has from an earlier run: replaced where its migrations are others, and nobody is in it."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from fix_fleets import Estate

from harness.config.project import Project
from harness.runs import per_host
from harness.servers import acquire, inventory
from harness.servers.handshake import life_key
from harness.servers.port import ServerInfo
from harness.servers.process.backend import ProcessBackend

PURPOSE = per_host.purpose_on("local")


def test_a_server_of_other_migrations_ends_before_anybody_else_is_let_in(
    new_estate: Callable[..., Estate], monkeypatch: pytest.MonkeyPatch
) -> None:
    estate = new_estate(backend="process")
    project = Project.of(estate.settings(isolation="database"), estate.environ)
    first = acquire.ensure(project, purpose=PURPOSE)
    with acquire.ensure(project, purpose=PURPOSE) as other:
        assert other.info.server_id == first.info.server_id
        first.close()
        # Somebody uses it.
        assert per_host._outdated(project, PURPOSE, rebuild=False)
    asked: list[bool] = []
    stop = ProcessBackend.stop

    def watched(self: ProcessBackend, info: ServerInfo) -> None:
        dsn = info.dsn
        with psycopg.connect(dsn.url, autocommit=True) as someone:
            query = "select pg_try_advisory_lock_shared(%s)"
            asked.append(someone.execute(query, [life_key(info)]).fetchone() == (True,))
        stop(self, info)

    monkeypatch.setattr(ProcessBackend, "stop", watched)
    # Another version stands beside it, and what is kept in it stays.
    beside = project.having(pg_version="9.6")
    assert per_host._outdated(beside, PURPOSE, rebuild=True)
    assert [info.purpose for info in inventory.servers(project)] == [PURPOSE]
    assert not per_host._outdated(project, PURPOSE, rebuild=False)
    assert asked == [False]
    assert inventory.servers(project) == []
    assert PURPOSE not in inventory.noted_purposes(project)
