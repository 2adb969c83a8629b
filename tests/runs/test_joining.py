"""A worker whose Docker host dies while the worker begins: it has its databases on another one, and the run goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from fix_fleets import Estate

from harness.config.project import Project
from harness.errors import ServerLost
from harness.postgres import names
from harness.pytest_plugin import bootstrap
from harness.runs import joining, opening
from harness.runs.run import Run
from harness.runs.runfile import VARIABLE, Joined, RunFile

HOSTS = ("local", "tcp://127.0.0.1:1")


def test_a_server_that_is_lost_before_the_first_lease(
    new_estate: Callable[..., Estate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers of this machine stand for those of two hosts; the planned one ends right after the worker has logged in."""
    estate = new_estate(backend="process")
    project = Project.of(estate.settings(isolation="database"), estate.environ)
    run = names.run_id("joining")
    shared = {
        host: opening.shared(project, run, {"workers": 2}, server=f"run.{number}")
        for number, host in enumerate(HOSTS)
    }
    servers = {host: each.shared.server.info for host, each in shared.items()}
    file = RunFile(
        run,
        os.getpid(),
        project.having(hosts=HOSTS).settings,
        None,
        None,
        {},
        workers=2,
        places={"gw0": HOSTS[0]},
        hosts={
            host: Joined(servers[host], each.shared.owner, each.shared.templates)
            for host, each in shared.items()
        },
    )
    for variable, value in {**estate.environ, "PYTEST_XDIST_WORKER": "gw0"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv(VARIABLE, str(file.write(project.state / "runs")))
    join = Run.join
    joined: list[str] = []

    def dying(*args: Any, **options: Any) -> Run:
        found = join(*args, **options)
        joined.append(found.server.info.server_id)
        if len(joined) == 1:
            found.server.backend.stop(found.server.info)
        return found

    monkeypatch.setattr(Run, "join", dying)
    state = bootstrap._join()
    try:
        assert joined == [servers[host].server_id for host in HOSTS]
        assert state.lease is not None
        with state.lease.connect() as connection:
            assert connection.execute("select name from users").fetchall() == [("a",)]
        assert os.environ["DATABASE_URL"] == state.lease.url
    finally:
        state.undo()
        state.run.close()
        for each in shared.values():
            each.shared.abandon()


def test_hosts_that_all_die_are_not_tried_for_ever() -> None:
    tried: list[object] = []

    def lost(run: object) -> None:
        tried.append(run)
        raise ServerLost("it is gone")

    with pytest.raises(ServerLost, match="it is gone"):
        joining.surely(object, lost, 3)  # type: ignore[arg-type]  # nothing looks at it
    assert len(tried) == len(set(tried)) == 3
