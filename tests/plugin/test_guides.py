"""What guides tell their readers to do about parallel tests and one database: here it needs none of it, and works."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fix_plugin import Folder

from harness.config.load import load
from harness.config.project import Project
from harness.servers import inventory


@pytest.fixture
def usual(folder: Folder) -> Iterator[Folder]:
    """A server as users have it: 500 connections, and no number set for a worker."""
    text = (folder.place.root / "pg-harness.toml").read_text()
    text = text.replace("connections_per_worker = 10\n", "").replace("max_connections = 200\n", "")
    (folder.path / "pg-harness.toml").write_text(
        text.replace('"sql:migrations"', '"sql:../migrations"') + '[env]\nPG_POOL_SIZE = "{connections}"\n'
    )
    yield folder
    inventory.stop(Project.of(load(folder.place.environ, start=folder.path), folder.place.environ))


INTEGRATION = """
    import os, time, pytest, psycopg

    pytestmark = pytest.mark.integration

    def engine(size):
        return [psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) for _ in range(size)]

    @pytest.mark.serial_only
    class TestProvisioning:
        @pytest.mark.parametrize("i", range(2))
        def test_subscribers(self, i):
            # PG_POOL_SIZE=20 PG_MAX_OVERFLOW=20, all of them at once, in every worker.
            pool = engine(40)
            for number, conn in enumerate(pool):
                conn.execute("insert into users (name) values (%s)", (f"subscriber {number}",))
            assert pool[0].execute("select count(*) from users").fetchone() == (40,)
            for conn in pool: conn.close()

    @pytest.mark.parallel_safe
    @pytest.mark.xdist_group("one")
    @pytest.mark.parametrize("i", range(4))
    def test_interfaces(i):
        assert int(os.environ["PG_POOL_SIZE"]) >= 40
        pool = engine(40)
        time.sleep(0.1)
        # The same "unique" name as all others, and the same first id.
        assert pool[0].execute("insert into users (name) values ('acme') returning id").fetchone() == (1,)
        pool[1].execute("truncate users, kinds restart identity cascade")
        assert pool[2].execute("select count(*) from kinds").fetchone() == (0,)
        for conn in pool: conn.close()

    @pytest.mark.parametrize("i", range(4))
    def test_tenants(i):
        (conn,) = engine(1)
        # Children before parents, as they say; what is left out is gone all the same.
        conn.execute("insert into users (name) values ('tenant a'), ('tenant b')")
        assert conn.execute("select count(*), (select count(*) from kinds) from users").fetchone() == (2, 2)
        conn.close()
"""


def test_profiles_of_a_parallel_safety_guide(usual: Folder) -> None:
    usual.write(test_a=INTEGRATION)
    (usual.path / "pytest.ini").write_text("[pytest]\nmarkers = integration\naddopts = --strict-markers\n")
    assert usual.pytest("-m", "integration and serial_only")["passed"] == 2
    assert usual.pytest("-m", "integration and parallel_safe", "-n", "4")["passed"] == 4
    # One command instead of the two.
    for arguments in (("-n", "4"), ("-n", "4", "--dist", "loadgroup")):
        result = usual.pytest("-m", "integration", *arguments).ok(10)
        assert "a new clone was needed" not in result.text
