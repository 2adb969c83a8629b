"""The control interface over other ways to have databases: clones, a server for each worker, an old server of somebody else's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_control import Run, project_in, serve
from fix_reset_servers import Server, running

from harness.config.project import Project
from harness.runs.run import Run as Opened
from harness.servers.external import OLDEST

pytestmark = pytest.mark.server


@pytest.fixture
def run_with(tmp_path: Path, folders: tuple[Path, Path]) -> Iterator[Any]:
    """A run with other settings, served."""
    with project_in(tmp_path, folders) as project:

        def make(**settings: Any) -> Any:
            changed: Project = project.having(**settings)
            harness = Opened.open_project(changed, workers=2)
            leases = harness.leases(2, watch=None, apart=True)
            return harness, leases

        yield make


def test_a_reset_is_a_clone_where_the_settings_say_so(run_with: Any) -> None:
    harness, leases = run_with(fresh="clone")
    with harness, serve(harness, leases) as run:
        for _ in range(2):
            run.add("dirt")
            assert run.client.ok("POST", "/v1/reset/1")["strategy"] == "clone"
            assert run.rows() == ["seed"]
        problem = run.client.refused(409, "POST", "/v1/mark/1")
        assert "fresh" in problem["detail"]
        run.add("left", 2)
        assert run.client.ok("POST", "/v1/lease")["id"] == 2
        assert run.rows(2) == ["seed"]


def test_each_worker_has_its_own_server(run_with: Any) -> None:
    harness, leases = run_with(isolation="server")
    with harness, serve(harness, leases) as run:
        ports = {lease.dsn.port for lease in leases}
        assert len(ports) == 2

        def work(number: int) -> None:
            client = run.another()
            for _ in range(5):
                run.add("dirt", number)
                assert client.ok("POST", f"/v1/reset/{number}")["strategy"] in ("restore", "rewind")
                assert run.rows(number) == ["seed"]

        with ThreadPoolExecutor() as pool:
            list(pool.map(work, (1, 2)))
        run.client.ok("POST", "/v1/mark/2")
        # Given back to the run, which goes on: its server stays.
        run.add("dirt", 2)
        run.client.ok("POST", "/v1/release/2")
        assert run.client.ok("POST", "/v1/lease", {"worker": "b"})["url"] == leases[1].url
        assert run.rows(2) == ["seed"]


def test_where_nothing_is_undone_a_reset_that_is_asked_for_is_made(run_with: Any) -> None:
    harness, leases = run_with(fresh="none")
    with harness, serve(harness, leases) as run:
        run.add("dirt")
        report = run.client.ok("POST", "/v1/reset/1")
        assert (report["strategy"], bool(report["reason"])) == ("clone", True)
        assert run.rows() == ["seed"]


@pytest.fixture(scope="module")
def old() -> Iterator[Server]:
    with running(OLDEST) as server:
        yield server


def test_a_server_that_can_only_clone_says_so(old: Server, run_with: Any) -> None:
    harness, leases = run_with(server_url=old.dsn().url, allow_foreign=True, backend="external")
    with harness, serve(harness, leases) as run:
        assert_clones(run)
        with psycopg.connect(leases[1].url) as connection:
            connection.execute("insert into users (name) values ('open')")
            run.client.ok("POST", "/v1/reset/2")
            with pytest.raises(psycopg.OperationalError):
                connection.execute("select 1")
        assert run.rows(2) == ["seed"]


def assert_clones(run: Run) -> None:
    run.add("dirt")
    report = run.client.ok("POST", "/v1/reset/1")
    assert report["strategy"] == "clone"
    assert "PostgreSQL 14" in report["reason"]
    assert run.rows() == ["seed"]
    assert run.client.refused(409, "GET", "/v1/changes/1")["detail"]
