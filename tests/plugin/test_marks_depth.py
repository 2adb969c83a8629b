"""Fixtures of several scopes above each other: what a test moved above them is there for every later test."""

from __future__ import annotations

import pytest
from fix_plugin import Folder

TOOLS = """
    import os, psycopg, pytest

    def write(*statements):
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
            for statement in statements:
                conn.execute(statement)

    def kinds():
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
            return conn.execute("select id, name from kinds order by id").fetchall()

    SEEDED = [(1, "seeded"), (2, "seeded too")]
    MODULE = [*SEEDED, (3, "module")]
"""

UPPER = """
    from tools import *

    @pytest.fixture(scope="module")
    def lower(pg): write("insert into kinds values (3, 'module')")

    @pytest.fixture(scope="class")
    def upper(lower): write("insert into users (name) values ('class')")

    class TestOne:
        def test_writes(self, upper):
            assert kinds() == MODULE
            write("{statement}")
        def test_next(self, upper): assert kinds() == MODULE

    class TestTwo:
        def test_without_the_class_of_the_first(self, lower): assert kinds() == MODULE
"""

NEXT = """
    from tools import *

    def test_the_next_module(pg): assert kinds() == SEEDED
    def test_and_once_more(pg): assert kinds() == SEEDED
"""

WRITES = {
    "update": "update kinds set name = 'test' where id = 1",
    "update all": "update kinds set name = 'test'",
    "delete": "delete from kinds where id = 2",
    "truncate": "truncate kinds",
}


@pytest.mark.parametrize("name", WRITES)
def test_seeded_rows_are_there_after_a_module_and_a_class_fixture(folder: Folder, name: str) -> None:
    folder.write(tools=TOOLS, test_a=UPPER.format(statement=WRITES[name]), test_b=NEXT)
    folder.pytest().ok(5)


MANY = """
    from tools import *

    def users():
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
            return conn.execute("select count(*), count(*) filter (where name like 'row %') from users").fetchone()

    @pytest.fixture(scope="session")
    def loaded(pg): write("insert into users (name) select 'row ' || i from generate_series(1, 4000) i")

    @pytest.fixture(scope="module")
    def lower(loaded): write("update users set name = 'module' where id = 9")

    @pytest.fixture(scope="class")
    def upper(lower): write("insert into kinds values (3, 'class')")
"""

MANY_A = """
    from conftest import users, write

    class TestOne:
        def test_writes(self, upper):
            assert users() == (4000, 3999)
            write("delete from users where id = 7", "update users set name = 'test' where id = 3000")
        def test_next(self, upper): assert users() == (4000, 3999)

    def test_module(lower):
        assert users() == (4000, 3999)
        write("delete from users where id in (1, 2000)")
"""

MANY_B = """
    from conftest import users, write

    def test_session(loaded): assert users() == (4000, 4000)
    def test_session_again(loaded): assert users() == (4000, 4000)
"""


def test_no_row_of_a_large_fixture_is_lost(folder: Folder) -> None:
    folder.write(tools=TOOLS, conftest=MANY, test_a=MANY_A, test_b=MANY_B)
    folder.pytest().ok(5)
