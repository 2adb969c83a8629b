"""A program that a test starts asks for a reset: of that worker's databases, and no one else's."""

from __future__ import annotations

import subprocess
import sys

import pytest
from fix_plugin import Folder

pytestmark = pytest.mark.server

TESTS = """
    import os, subprocess, sys, threading
    import harness, psycopg, pytest

    def command(*words, **environ):
        return subprocess.run(
            [sys.executable, "-m", "harness", *words], env={**os.environ, **environ}, text=True, capture_output=True, timeout=60
        )

    def names():
        with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
            return [n for (n,) in conn.execute("select name from users order by name").fetchall()]

    def write(name):
        with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
            conn.execute("insert into users (name) values (%s)", (name,))

    @pytest.fixture(scope="module")
    def of_module():
        write("module")

    @pytest.mark.parametrize("turn", range(4))
    def test_a_child_resets_its_own_workers(turn, of_module):
        write("dirt")
        done = command("reset")
        assert done.returncode == 0, done.stderr
        # What the module's fixture wrote is part of the state that its tests begin from.
        assert names() == ["module"]
        url = command("url").stdout.strip()
        assert url == os.environ["DATABASE_URL"]
        assert command("reset", "2").returncode == 120

    def test_the_plugin_and_a_child_reset_at_once(pg):
        for turn in range(3):
            write("dirt")
            child = threading.Thread(target=lambda: command("reset"))
            child.start()
            pg.reset()
            child.join()
            assert names() == ["module"]

    def test_the_state_below_a_childs_marks_is_what_wider_fixtures_left(pg):
        lease = harness.current()
        write("dirt")
        mark = lease.mark()
        write("more")
        lease.reset(to="template")
        assert (names(), mark.released, len(pg.marks)) == (["module"], True, 1)

    def test_an_outer_run_is_none_of_a_tests_business():
        assert os.environ["PGHARNESS_RUN"] != "0123456789abcdef"
        assert command("status", PGHARNESS_LOG="error").returncode == 0
"""

OUTER = {
    "PGHARNESS_RUN": "0123456789abcdef",
    "PGHARNESS_CONTROL_URL": "http://127.0.0.1:1",
    "PGHARNESS_CONTROL_TOKEN": "outer",
    "PGHARNESS_LEASE": "7",
}


def test_children_of_a_test_mean_its_databases(folder: Folder) -> None:
    folder.write(test_a=TESTS).pytest(env=OUTER).ok(7)


def test_children_of_a_workers_test_mean_its_databases(folder: Folder) -> None:
    folder.write(test_a=TESTS, test_b=TESTS).pytest("-n", "2", env=OUTER).ok(14)


def test_what_was_there_before_is_there_again(folder: Folder) -> None:
    folder.write(
        test_a="def test(): pass",
        run="""
            import os, sys, pytest
            before = {n: v for n, v in os.environ.items() if n.startswith("PGHARNESS_")}
            pytest.main(sys.argv[1:])
            assert {n: v for n, v in os.environ.items() if n.startswith("PGHARNESS_")} == before
            print("as before")
        """,
    )
    words = [sys.executable, "run.py", "-p", "no:cacheprovider", "-p", "pg_harness_pytest"]
    done = subprocess.run(
        words, cwd=folder.path, env=folder.env(OUTER), capture_output=True, text=True, check=False
    )
    assert "as before" in done.stdout, done.stdout + done.stderr
