"""Every way in which xdist hands tests out, and what a run says of itself."""

from __future__ import annotations

import os
import re

import pytest
from fix_plugin import Folder, Place

MIXED = """
    import os, pytest, psycopg

    @pytest.fixture(scope="module")
    def wide():
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
            conn.execute("insert into users (name) values ('wide')")

    def check(conn):
        assert conn.execute("select name from users").fetchall() == [("wide",)]
        conn.execute("insert into users (name) values ('dirt')"); conn.commit()

    @pytest.mark.parametrize("i", range(4))
    def test_it(i, wide, pg_conn): check(pg_conn)

    class TestClass:
        @pytest.mark.xdist_group("one")
        def test_one(self, wide, pg_conn): check(pg_conn)
        @pytest.mark.xdist_group("one")
        def test_two(self, wide, pg_conn): check(pg_conn)

    @pytest.mark.serial_only
    def test_alone(wide, pg_conn): check(pg_conn)
"""

MODES = {
    "no xdist": ("-p", "no:xdist"),
    "-n 0": ("-n", "0"),
    "-n auto": ("-n", "auto", "--maxprocesses", "3"),
    "-n logical": ("-n", "logical", "--maxprocesses", "2"),
    **{dist: ("-n", "2", "--dist", dist) for dist in ("loadscope", "loadgroup", "worksteal")},
    "--tx": ("--tx", "2*popen", "--dist", "load"),
    "--max-worker-restart": ("-n", "2", "--max-worker-restart", "0", "--dist", "loadfile"),
}


@pytest.mark.parametrize("mode", MODES)
def test_ways_of_distributing(mode: str, folder: Folder, place: Place) -> None:
    folder.write(test_a=MIXED, test_b=MIXED)
    plugins = ("pg_harness_pytest",) if mode == "no xdist" else ("pg_harness_pytest", "xdist")
    result = folder.pytest(*MODES[mode], plugins=plugins, env={"PYTEST_XDIST_AUTO_NUM_WORKERS": "3"}).ok(14)
    assert "a new clone was needed" not in result.text
    assert place.leases() == []


def test_package_fixtures(folder: Folder) -> None:
    tests = """
    def names(conn): return sorted(n for (n,) in conn.execute("select name from users").fetchall())
    def dirty(conn): conn.execute("insert into users (name) values ('dirt')"); conn.commit()
    def test_one(pg_conn, of_package):
        assert names(pg_conn) == EXPECTED
        dirty(pg_conn)
    def test_two(pg_conn):
        assert names(pg_conn) == EXPECTED
        dirty(pg_conn)
    """
    fixture = """
    import os, psycopg, pytest
    @pytest.fixture(scope="package")
    def of_package():
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
            conn.execute("insert into users (name) values ('package')")
    """
    (folder.path / "inner").mkdir()
    folder.write(
        **{
            "inner/__init__": "",
            "inner/conftest": fixture,
            "inner/test_a": 'EXPECTED = ["package"]\n' + tests.replace("\n    ", "\n"),
            "inner/test_b": 'EXPECTED = ["package"]\n' + tests.replace("\n    ", "\n"),
            "test_c": "EXPECTED = []\n" + tests.replace("\n    ", "\n").replace(", of_package", ""),
        }
    )
    folder.pytest("inner", "test_c.py").ok(6)


SUBTESTS = """
    def count(conn): return conn.execute("select count(*) from users").fetchone()[0]

    def test_subtests(subtests, pg_conn):
        for i in range(3):
            with subtests.test(i=i):
                pg_conn.execute("insert into users (name) values ('x')"); pg_conn.commit()
                assert count(pg_conn) == i + 1
                assert i != 1, "the second fails"

    def test_after(pg_conn): assert count(pg_conn) == 0
"""


def test_built_in_subtests(folder: Folder) -> None:
    if int(pytest.__version__.split(".")[0]) < 9:
        pytest.skip("pytest has subtests since 9")
    folder.write(test_a=SUBTESTS)
    for arguments in ((), ("-n", "1")):
        result = folder.pytest(*arguments)
        # The part that failed, and the test that holds it.
        assert (result.code, result["failed"], result["passed"]) == (1, 2, 1), result.text
        assert "the second fails" in result.text
        # The failed part is described as it was then.
        assert "users: 2 inserted" in result.text
        assert "test_after" not in result.text.split("short test summary")[-1]


def test_what_the_header_says(folder: Folder, place: Place) -> None:
    folder.write(test_a="def test_it(pg_conn): pg_conn.execute('select 1')")
    text = folder.pytest("--pg-harness-fresh=clone", env={"PGHARNESS_SERIAL_TIMEOUT": "9s"}).ok(1).text
    assert re.search(
        r"pg-harness: PostgreSQL \d+\.\d+, process(, in memory|, on disk), (warm, ready|started) in", text
    )
    assert (
        "template found; each test starts from a new clone; connections that the application pools are ended"
        in text
    )
    assert "fresh = clone (a pytest option" in text
    assert "serial_timeout = 9.0 (the variable PGHARNESS_SERIAL_TIMEOUT)" in text
    text = folder.pytest("--pg-harness-rebuild").ok(1).text
    assert re.search(r"sql:migrations, template built in \d+\.\d s", text)
    # One line of numbers about resets, none with -q.
    folder.write(test_b="def test_more(): pass")
    assert re.search(r"1 resets, \d+ ms the first of each process \(", folder.pytest().text)
    text = folder.pytest("-q", "-n", "2").text
    assert "resets" not in text
    assert "pg-harness" not in text


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals")
def test_progress_on_a_terminal(folder: Folder) -> None:
    import subprocess

    (folder.path / "slow").mkdir()
    for number in range(1, 6):
        (folder.path / "slow" / f"{number:03}.sql").write_text(
            f"create table t{number} (id int); select pg_sleep(0.15);"
        )
    folder.write(test_a="def test_it(pg_conn): pg_conn.execute('select * from t5')")
    ours, theirs = os.openpty()
    env = folder.env({"PGHARNESS_MIGRATIONS": f"sql:{folder.path.name}/slow"})
    process = subprocess.Popen(
        folder.command(), cwd=folder.path, env=env, stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 4096):
            seen += piece
    except OSError:
        pass  # Linux: the other end is closed
    finally:
        os.close(ours)
    assert process.wait(timeout=60) == 0, seen
    assert re.search(rb"\rpg-harness: |pg-harness: \d+/5 ", seen), seen


def test_a_migration_that_fails_says_where_its_database_is(folder: Folder) -> None:
    """What is found out after the failure is a note of the error, and printed with it."""
    folder.write(test_a="def test_it(): pass")
    result = folder.pytest(env={"PGHARNESS_MIGRATIONS": "command:echo no such luck; exit 3"})
    assert "no such luck" in result.text
    assert "The half-migrated database is kept: postgresql://" in result.text
    assert "Traceback" not in result.text
