"""An agent whose databases are on another machine: by TLS, and what it costs when the machine is gone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
from fix_cli import Project
from fix_engines import Engine, Network
from fix_hosts import Site
from fix_mcp import agent, tell

pytestmark = [pytest.mark.docker, pytest.mark.timeout(240)]


class Checkout:
    """What :func:`agent` takes of a project."""

    def __init__(self, site: Site) -> None:
        self.root, self.environ = site.root, site.environ

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "harness", *words]


def test_an_agents_databases_are_on_a_host_and_on_another_when_that_is_gone(
    tmp_path: Path, network: Network, engines: Sequence[Engine]
) -> None:
    site = Site.on(tmp_path / "site", network, engines)
    checkout = cast(Project, Checkout(site))

    async def story() -> None:
        async with agent(checkout) as me:
            await me.ok("create", name="a")
            (its,) = [engine for engine in engines if engine.containers()]
            where = await me.sql("a", "select ssl from pg_stat_ssl where pid = pg_backend_pid()")
            assert where == [[True]]
            await me.sql("a", "create table mine (id int); insert into mine values (1)")
            await me.ok("mark", database="a")
            await me.sql("a", "delete from mine")
            await me.ok("reset", database="a")
            assert await me.sql("a", "select count(*) from mine") == [[1]]
            await me.ok("fork", database="a", name="b")
            assert await me.sql("b", "select count(*) from mine") == [[1]]
            await me.ok("drop", database="b")
            await me.ok("logs", database="a")
            # The machine is gone, as by a power cut.
            its.unplug()
            try:
                said = await me.fails("run_sql", database="a", sql="select 1")
                assert len(said.splitlines()) < 30
                made = await me.ok("create", name="c")
                assert made["word"].endswith("/c")
                assert await me.sql("c", "select 1") == [[1]]
            finally:
                its.plug()

    try:
        tell(story)
    finally:
        for engine in engines:
            engine.forget()
