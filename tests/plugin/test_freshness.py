"""Every test starts from the same state, and what wider fixtures wrote is part of it."""

from __future__ import annotations

import time

import pytest
from fix_plugin import Folder, Place

from harness.databases import freshness
from harness.postgres import names

WIDER = """
    import pytest, unittest, psycopg, os

    def names(conn):
        # Autocommit: a transaction left open would keep the TRUNCATE below waiting.
        conn.rollback()
        conn.autocommit = True
        return [n for (n,) in conn.execute("select name from users order by name").fetchall()]

    def write(name):
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
            conn.execute("insert into users (name) values (%s)", (name,))

    @pytest.fixture(scope="session")
    def in_session(seeded): pass

    @pytest.fixture(scope="module")
    def in_module(in_session):
        write("module")
        yield
        write("left by the module")

    @pytest.fixture(scope="module", params=["a", "b"])
    def in_param(request, in_module): write(f"param {request.param}")

    @pytest.fixture(autouse=True)
    def dirt():
        yield
        write("dirt of the teardown")

    def test_before(pg_conn):
        assert names(pg_conn) == []
        write("dirt")

    def test_module(in_module, pg_conn):
        assert names(pg_conn) == ["module", "session"]
        write("dirt")
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
            conn.execute("delete from kinds; truncate users")

    def test_module_again(in_module, pg_conn):
        assert names(pg_conn) == ["module", "session"]
        assert pg_conn.execute("select count(*) from kinds").fetchone() == (2,)
        assert pg_conn.execute("insert into users (name) values ('next') returning id").fetchone() == (3,)

    def test_param(in_param, request, pg_conn):
        assert names(pg_conn) == ["module", f"param {request.node.callspec.params['in_param']}", "session"]
        write("dirt")

    class TestXunit:
        @classmethod
        def setup_class(cls): write("class")
        def test_one(self, pg_conn):
            assert names(pg_conn) == ["class", "module", "param b", "session"]
            write("dirt")
        def test_two(self, pg_conn): assert len(names(pg_conn)) == 4

    class TestUnit(unittest.TestCase):
        @classmethod
        def setUpClass(cls): write("unit")
        def count(self):
            with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
                return conn.execute("select count(*) from users").fetchone()[0]
        def test_one(self):
            self.assertEqual(self.count(), 4)
            write("dirt")
        def test_two(self): self.assertEqual(self.count(), 4)
"""

SESSION = """
    import os, psycopg, pytest

    @pytest.fixture(scope="session")
    def seeded():
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
            conn.execute("insert into users (name) values ('session')")
"""

AFTER = """
    import psycopg, os
    def test_other_module(seeded, pg_conn):
        assert pg_conn.execute("select name from users").fetchall() == [("session",)]
"""


def test_wider_fixtures(folder: Folder) -> None:
    folder.write(conftest=SESSION, test_a=WIDER, test_b=AFTER)
    result = folder.pytest().ok(10)
    assert "put back" in result.text or "rewound" in result.text
    assert "a new clone was needed" not in result.text
    folder.pytest("-n", "2", "--dist", "loadfile").ok(10)


def test_what_cannot_be_told_is_said(folder: Folder) -> None:
    folder.write(
        test_a="""
        import pytest
        def write(conn, name):
            conn.execute("insert into users (name) values (%s)", (name,)); conn.commit()

        @pytest.fixture(scope="session")
        def late(pg):
            with pg.connect() as conn: conn.execute("insert into kinds values (3, 'late')")

        def test_late(request, pg_conn):
            write(pg_conn, "before")
            request.getfixturevalue("late")

        def test_next(pg_conn):
            assert pg_conn.execute("select count(*) from kinds").fetchone() == (2,)
        """,
        test_b="""
        import pytest
        @pytest.fixture(scope="module")
        def table(pg):
            with pg.connect() as conn: conn.execute("create table made_late (id int)")
            yield
            with pg.connect() as conn: conn.execute("drop table made_late")
        def test_one(table, pg_conn):
            pg_conn.execute("insert into made_late values (1)"); pg_conn.commit()
        def test_two(table, pg_conn):
            assert pg_conn.execute("select count(*) from made_late").fetchone() == (1,)
        """,
        test_c="""
        def test_three(pg_conn): assert pg_conn.execute("select to_regclass('made_late')").fetchone() == (None,)
        """,
    )
    # A mark of pages would hold the table.
    result = folder.pytest(env={"PGHARNESS_ENGINE": "rows"}).ok(5)
    assert "the session fixture 'late' was first set up inside test_a.py::test_late" in result.text
    assert "kinds: 1 inserted" in result.text
    assert "the module fixture 'table' has written what cannot be marked" in result.text


def test_modes(folder: Folder) -> None:
    folder.write(
        test_a="""
        import pytest, psycopg, os
        POOL = []
        def count():
            with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as c:
                c.execute("insert into users (name) values ('x')")
                return c.execute("select count(*) from users").fetchone()[0]
        def test_1(): assert count() == 1
        @pytest.mark.pg(fresh="none")
        def test_2(): assert count() == 2
        def test_3(): assert count() == 1
        def test_4():
            POOL.append(psycopg.connect(os.environ["DATABASE_URL"], autocommit=True))
            assert count() == 1
        def test_5(): POOL[0].execute("select 1")
        @pytest.mark.pg(fresh="clone")
        def test_6():
            with pytest.raises(psycopg.OperationalError): POOL[0].execute("select 1")
            assert count() == 1
        @pytest.mark.pg(fresh="often", speed=11)
        def test_7(): assert count() == 1
        """
    )
    result = folder.pytest().ok(7)
    words = freshness.in_words(freshness.STRATEGIES)
    assert f"pytest.mark.pg knows fresh={words}, and not speed=…, fresh='often'" in result.text
    folder.write(
        test_a="""
        def test_1(pg_conn): pg_conn.execute("insert into users (name) values ('x')"); pg_conn.commit()
        def test_2(pg_conn): assert pg_conn.execute("select count(*) from users").fetchone() == (1,)
        """
    )
    result = folder.pytest("--pg-harness-fresh=none").ok(2)
    assert "what the last one left" in result.text
    assert "resets" not in result.text


COUNTED = """
    import sys, pytest
    sys.path.insert(0, {here!r})

    @pytest.fixture(scope="session", autouse=True)
    def counter(pg_harness):
        import psycopg
        statements = []
        for cls in (psycopg.Connection, psycopg.Cursor):
            original = cls.execute
            def execute(self, query, *args, _original=original, **kw):
                statements.append(query)
                return _original(self, query, *args, **kw)
            cls.execute = execute
        # Below all of psycopg: what goes over any connection.
        import psycopg.generators as generators
        yield statements

    @pytest.mark.parametrize("i", range(20))
    def test_nothing(i, counter):
        SEEN.append(len(counter))
        if i == 19:
            sent = counter[SEEN[2]:SEEN[19]]
            turns = [query for query in sent if b"pg_advisory" in (query if type(query) is bytes else query.encode())]
            # Each is seen twice: a connection executes by a cursor.
            assert (len(sent), len(turns)) == ({each} * 17 * 2, {each} * 17 * 2), (SEEN, counter)
    SEEN = []
"""


def test_a_passing_test_without_freshness_sends_nothing(folder: Folder) -> None:
    folder.write(test_a=COUNTED.format(here=str(folder.path), each=0))
    folder.pytest("--pg-harness-fresh=none").ok(20)
    folder.pytest("--pg-harness-fresh=none", "-n", "1").ok(20)
    # With a serial test in the run, its turn alone: taken, and given back.
    folder.write(test_a=COUNTED.format(here=str(folder.path), each=2))
    folder.write(test_b="import pytest\n@pytest.mark.serial_only\ndef test_alone(): pass\n")
    folder.pytest("--pg-harness-fresh=none", "-n", "1").ok(21)


def test_the_names_may_be_overridden(folder: Folder) -> None:
    folder.write(
        conftest="""
        import pytest
        @pytest.fixture
        def pg(): return "mine"
        """,
        test_a="""
        import pytest
        def test_pg(pg, pg_url, pg_conn): assert pg == "mine" and pg_conn.info.dbname in pg_url
        class TestMore:
            @pytest.fixture
            def pg_url(self, pg_url): return pg_url + "?application_name=mine"
            @pytest.fixture
            def pg_conn(self, pg_url): return pg_url
            @pytest.fixture
            def pg_harness(self): return None
            def test_it(self, pg_conn, pg_harness):
                assert pg_conn.endswith("?application_name=mine") and pg_harness is None
        """,
    )
    folder.pytest().ok(2)


def test_what_cannot_be_brought_back_fails_the_test(folder: Folder) -> None:
    folder.write(
        conftest="""
        import pytest
        from harness.errors import LeaseLost
        @pytest.fixture(scope="session", autouse=True)
        def refuse_twice(pg):
            original, left = pg.reset, [1, 1]
            def reset(**options):
                if left:
                    left.pop()
                    raise LeaseLost("planted")
                return original(**options)
            pg.reset = reset
            yield
        """,
        test_a="""
        import pytest
        @pytest.fixture
        def noted(): open("set up", "a").write("x")
        @pytest.mark.parametrize("i", range(5))
        def test_it(i, noted, pg_conn):
            assert pg_conn.execute("insert into users (name) values ('x') returning id").fetchone() == (1,)
            pg_conn.commit()
        """,
    )
    result = folder.pytest()
    assert (result["passed"], result["error"]) == (3, 2), result.text
    assert result.text.count("could not be brought back after test_a.py::test_it[0]: planted") == 2
    # Nothing of the two has run.
    assert (folder.path / "set up").read_text() == "xxx"


CLONED = """
    import os, psycopg, pytest
    POOL = []
    @pytest.mark.parametrize("i", range(6))
    def test_it(i, pg_conn):
        POOL.append(psycopg.connect(os.environ["DATABASE_URL"], autocommit=True))
        assert pg_conn.execute("select count(*) from users").fetchone() == (0,)
        pg_conn.execute("insert into users (name) values ('dirt')"); pg_conn.commit()
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_new_clones_are_made_while_tests_run(workers: str, folder: Folder, place: Place) -> None:
    folder.write(
        conftest="""
            import pytest, threading
            @pytest.hookimpl(trylast=True)
            def pytest_sessionfinish(session):
                if not session.config.option.numprocesses or hasattr(session.config, "workerinput"):
                    print("THREADS", sorted(t.name for t in threading.enumerate()))
        """,
        test_a=CLONED,
    )
    began = time.monotonic()
    result = folder.pytest("-n", workers, "-s", "--pg-harness-fresh", "clone").ok(6)
    # A rename under the pool's idle connections would stall five seconds each time.
    assert time.monotonic() - began < 20
    if workers == "0":
        assert "pg-harness filler" in result.text, result.text
    assert "new clones" in result.text
    kinds = place.kinds()
    # What was retired is dropped at the end at the latest; what is ready is there for the next run.
    assert names.Kind.RETIRED not in kinds
    assert names.Kind.SPARE in kinds
    assert place.leases() == []


def test_a_slower_way_to_read_the_log_is_told_once(folder: Folder) -> None:
    folder.write(
        conftest="""
            from harness.reset.wal import records as wal_records

            def strange(*arguments, **options):
                raise wal_records.Unreadable("a strange page")

            wal_records.read = strange
        """,
        test_a=CLONED,
    )
    result = folder.pytest("-n", "2", "--dist", "loadscope", "-v").ok(6)
    assert (
        result.text.count("with pg_walinspect, which takes longer than reading its bytes: a strange page")
        == 1
    )
    quiet = folder.pytest().ok(6)
    assert quiet.text.count("a strange page") == 1
