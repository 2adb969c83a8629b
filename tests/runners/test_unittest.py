"""``unittest`` under `pg-harness run`, and the lease of the present process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from fix_cli import Project
from fix_snippets import files, runs

import harness

SUITE = """
import os, unittest
import psycopg
from harness.unittest import Pristine, PristineTestCase

CONNECTION = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
PIDS = set()

def add(name):
    CONNECTION.execute("insert into users (name) values (%s)", (name,))

def names():
    PIDS.add(CONNECTION.info.backend_pid)
    return [name for (name,) in CONNECTION.execute("select name from users order by id").fetchall()]

class TestPlain(PristineTestCase):
    def setUp(self):                       # without super(), as many have it
        add("of setUp")
    def test_one(self):
        self.assertEqual(names(), ["of setUp"]); add("x")
    def test_two(self):
        self.assertEqual(names(), ["of setUp"]); add("x")
    def test_three(self):
        with self.subTest("its rows are there"):
            add("y")
        with self.subTest("still"):
            self.assertEqual(names(), ["of setUp", "y"])

class TestClass(PristineTestCase):
    @classmethod
    def setUpClass(cls):                   # without super()
        assert names() == [], names()
        add("of the class")
    @classmethod
    def tearDownClass(cls):
        add("of the end")
    def test_one(self):
        self.assertEqual(names(), ["of the class"]); add("x")
    def test_two(self):
        self.assertEqual(names(), ["of the class"])
        CONNECTION.execute("delete from users")

class TestInherited(TestClass):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        add("of the subclass")
    def test_one(self):
        self.assertEqual(names(), ["of the class", "of the subclass"])
    def test_two(self):
        self.assertEqual(names(), ["of the class", "of the subclass"])

class TestAsync(Pristine, unittest.IsolatedAsyncioTestCase):
    async def test_one(self):
        self.assertEqual(names(), []); add("x")
    async def test_two(self):
        self.assertEqual(names(), []); add("x")

class TestZ(unittest.TestCase):
    def test_behind_them(self):
        self.assertEqual(names(), [])
        self.assertEqual(len(PIDS), 1)
"""

SCRIPT = """
import asyncio, os, psycopg, harness
lease = harness.current()
assert lease.url == os.environ["DATABASE_URL"], lease
assert lease.sqlalchemy_url == lease.url.replace("postgresql:", "postgresql+psycopg:", 1)
assert lease["default"].dsn == lease.dsn == lease.dsns["default"]
with lease.connect(autocommit=True) as connection:
    assert isinstance(connection, psycopg.Connection)
    assert not lease.changes()
    connection.execute("insert into users (name) values ('ada')")
    changes = lease.changes()
    assert isinstance(changes, harness.LeaseChanges) and changes["default"].tables["users"].inserted == 1, changes
    assert repr(changes) == "<LeaseChanges users: 1 inserted; users_id_seq: sequence moved>", changes
    lower, upper = lease.mark("lower"), lease.mark()
    assert (lower.name, upper.name, list(lease.marks)) == ("lower", "1", ["lower", "1"])
    connection.execute("insert into users (name) values ('eve')")
    report = lease.reset()
    assert report.strategy in ("rewind", "restore") and "users" in report.tables[0], report
    assert connection.execute("select name from users").fetchall() == [("ada",)]
    lease.reset(to=lower)
    assert upper.released and not lower.released
    lower.release()
    lower.release()
    lease.reset()
    assert connection.execute("select name from users").fetchall() == []
    try:
        lease.reset(to="lower")
    except harness.ConfigError as error:
        assert "the lease has no mark 'lower'; it has none" in str(error), error
    else:
        raise AssertionError("went to a mark that is gone")

async def asks():
    async with await lease.aconnect() as connection:
        assert isinstance(connection, psycopg.AsyncConnection)
        await connection.execute("insert into users (name) values ('bob')")
asyncio.run(asks())
assert "users" in lease.reset(to="template").tables
print("current", lease.number)
"""


@pytest.fixture(scope="module")
def mine(new_project: Callable[..., Project]) -> Project:
    project = new_project("unittest")
    (project.root / "test_suite.py").write_text(SUITE)
    (project.root / "script.py").write_text(SCRIPT)
    return project


def test_a_suite(mine: Project) -> None:
    done = mine.run("run", "--", sys.executable, "-m", "unittest", "-v")
    assert done.returncode == 0, done.stderr
    assert "Ran 10 tests" in done.stderr
    assert "OK" in done.stderr


def test_the_page(new_project: Callable[..., Project]) -> None:
    project = new_project("page")
    for name, text in files("unittest.md").items():
        (project.root / name).write_text(text)
    assert len(runs("unittest.md")) == 2
    for words in runs("unittest.md"):
        done = project.run(*[sys.executable if word == "python" else word for word in words])
        assert done.returncode == 0, done.stderr
    assert "Ran 3 tests" in done.stderr or "Ran 3 tests" in done.stdout


def test_outside_of_a_run_nothing_is_tested(mine: Project) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unittest", "test_suite.TestPlain", "test_suite.TestClass"],
        cwd=mine.root, env={**mine.environ, "DATABASE_URL": mine.ok("up").strip()}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("this process belongs to no run") == 2
    assert "Ran 0 tests" in done.stderr


def test_the_lease_of_this_process(mine: Project) -> None:
    assert mine.ok("run", "-n", "2", "--", sys.executable, "script.py") == "current 1\n"
    assert sorted(mine.ok("run", "--copies", "2", "--", sys.executable, "script.py").splitlines()) == [
        "[1] current 1",
        "[2] current 2",
    ]
    with pytest.raises(harness.LeaseError, match="start it by `pg-harness run -- COMMAND`"):
        harness.current({})
