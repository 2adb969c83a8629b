"""Connections: what each worker may open, what leaks, and who is told."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fix_plugin import Folder

from harness.config.load import load
from harness.config.project import Project
from harness.servers import inventory


@pytest.fixture
def small(folder: Folder) -> Iterator[Folder]:
    """A server with 67 connections, and nobody has set a budget."""
    text = (folder.place.root / "pg-harness.toml").read_text()
    text = text.replace("connections_per_worker = 10\n", "").replace(
        "max_connections = 200", "max_connections = 67"
    )
    (folder.path / "pg-harness.toml").write_text(text.replace('"sql:migrations"', '"sql:../migrations"'))
    yield folder
    inventory.stop(Project.of(load(folder.place.environ, start=folder.path), folder.place.environ))


def test_what_fits_is_shared_out(small: Folder) -> None:
    small.write(
        test_a="""
        import pytest
        @pytest.mark.parametrize("i", range(8))
        def test_it(i, pg_conn, pg_harness, pg):
            limit = "select datconnlimit - 3 from pg_database where datname = current_database()"
            assert pg_conn.execute(limit).fetchone() == (pg_harness.settings.connections_per_worker,)
            pg_conn.close()
            pg.renew()
            with pg.connect() as conn: assert conn.execute(limit).fetchone() == (EACH[pg.worker],)
        EACH = {"main": 50, "gw0": 8, "gw1": 8, "gw2": 8, "gw3": 8}
        """
    )
    small.pytest().ok(8)
    result = small.pytest("-n", "4").ok(8)
    assert "each of the 4 workers could have 8 connections only: the server has 67" in result.text
    result = small.pytest("-n", "64")
    assert result.code == 4, result.text
    assert "Use fewer workers" in result.text
    # What somebody has set is never lowered.
    result = small.pytest("-n", "4", env={"PGHARNESS_CONNECTIONS_PER_WORKER": "9"})
    assert result.code == 4, result.text
    assert "Set connections_per_worker = 8 (or less)" in result.text


LEAKING = """
    import gc, os, threading, warnings, pytest, psycopg

    @pytest.fixture(scope="session", autouse=True)
    def no_collector():
        gc.disable()
        yield
        with warnings.catch_warnings():
            # pytest itself complains at its end about what the last tests have left.
            warnings.simplefilter("ignore")
            gc.collect()
        gc.enable()

    @pytest.mark.parametrize("i", range(12))
    def test_threads(i):
        def work():
            conn = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
            conn.execute("insert into users (name) values ('x')")
            # As an ORM's thread-local handlers do: a cycle that only the collector breaks.
            conn.itself = conn
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
            assert conn.execute("select count(*) from users").fetchone() == (3,)
"""


def test_what_only_the_collector_closes(folder: Folder) -> None:
    folder.write(test_a=LEAKING)
    result = folder.pytest("-W", "error").ok(12)
    assert "did not close were left to the garbage collector" in result.text
    folder.pytest("-n", "2", "--pg-harness-fresh=clone").ok(12)


def test_a_leak_fails_where_it_is(folder: Folder) -> None:
    folder.write(
        test_a="""
        import os, time, pytest, psycopg
        HELD = []
        def wait_for(name):
            end = time.time() + 30
            while not os.path.exists(name):
                assert time.time() < end
                time.sleep(0.02)
        def test_leaks():
            try:
                for _ in range(40):
                    HELD.append(psycopg.connect(os.environ["DATABASE_URL"], application_name="the leak"))
            finally:
                open("full", "w").close()
                wait_for("done")
        """,
        test_b="""
        import psycopg, os
        from test_a import wait_for
        def test_beside():
            wait_for("full")
            held = [psycopg.connect(os.environ["DATABASE_URL"]) for _ in range(10)]
            assert held[-1].execute("select count(*) from users").fetchone() == (0,)
            for conn in held: conn.close()
            open("done", "w").close()
        """,
    )
    result = folder.pytest("-n", "2", "--dist", "loadfile")
    assert (result["passed"], result["failed"]) == (1, 1), result.text

    assert "too many connections for database" in result.text
    assert re.search(r"sessions \(1[0-3] of 10\)", result.text)
    # Who holds them is one line with a count: they are all the same.
    assert re.search(r"1\d sessions: pids \d+, \d+, \d+ and \d+ more, the leak, role", result.text)
