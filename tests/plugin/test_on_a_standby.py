"""pytest with a standby beside the server."""

from __future__ import annotations

import pytest
from fix_plugin import Folder

pytestmark = pytest.mark.server

REPLICA = {"PGHARNESS_REPLICAS": "1"}


def test_pytest_and_its_workers_read_from_it(folder: Folder) -> None:
    folder.write(
        test_read="""
        import os, psycopg, pytest

        @pytest.mark.parametrize("number", range(4))
        def test_it(number, pg, pg_replica):
            assert os.environ["DATABASE_REPLICA_URL"] == pg_replica.url == pg.replica.url
            with psycopg.connect(os.environ["DATABASE_REPLICA_URL"]) as reading:
                assert reading.execute("select count(*) from users where name = 'x'").fetchone() == (0,)
            with pg.connect() as connection:
                connection.execute("insert into users (name) values ('x')")
            pg.wait_for_replica()
            with pg_replica.connect() as reading:
                assert reading.execute("select count(*) from users where name = 'x'").fetchone() == (1,)
        """
    )
    folder.pytest("-n", "2", env=REPLICA).ok(4)
    folder.pytest(env={**REPLICA, "PGHARNESS_FRESH": "clone"}).ok(4)


def test_a_test_that_writes_there_is_told_where_it_wrote(folder: Folder) -> None:
    folder.write(
        test_write="""
        def test_it(pg_replica):
            with pg_replica.connect() as connection:
                connection.execute("insert into users (name) values ('x')")
        """
    )
    result = folder.pytest(env=REPLICA)
    assert result["failed"] == 1, result.text
    assert "cannot execute INSERT in a read-only transaction" in result.text
    assert "a standby can only be read from" in result.text


def test_without_one_the_fixture_says_what_to_set(folder: Folder) -> None:
    folder.write(test_none="def test_it(pg_replica): pass")
    result = folder.pytest()
    assert result["error"] == 1
    assert "pg_replica: the server has no standby: set `replicas = 1`" in result.text
