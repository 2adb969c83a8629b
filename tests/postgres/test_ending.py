"""Sessions and prepared transactions that are in the way of a database: named, ended, and gone when it returns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.errors import ServerLost
from harness.postgres import databases, ending, names
from harness.postgres.admin import Link
from harness.postgres.session import Session


@pytest.fixture
def database(link: Link, checkout: str) -> Iterator[str]:
    name = names.lease(checkout, names.run_id(), "1", 0)
    databases.create_empty(link.session, name, owner=link.dsn.user, locale="")
    yield name
    databases.drop(link.session, name, checkout)


def connected(link: Link, database: str) -> Session:
    return Session.connect(link.dsn.with_database(database), application_name="a test")


def test_end_these(link: Link, database: str) -> None:
    with connected(link, database) as one, connected(link, database) as other:
        # A pid that is nobody's is no warning in the server's log.
        assert ending.end(link.session, [one.pid, 2**31 - 1]) == []
        with pytest.raises(ServerLost):
            one.value("select 1")
        # What it told at its log-in is known all the same: headers and messages tell it.
        one.close()
        assert one.server_version == other.server_version
        assert other.value("select 1") == 1


def test_end_all_but_one(link: Link, database: str) -> None:
    with connected(link, database) as stays, connected(link, database), connected(link, database):
        assert len(databases.sessions_of(link.session, database)) == 3
        assert ending.end_all(link.session, database, but=(stays.pid,)) == []
        assert stays.value("select 1") == 1
        assert len(databases.sessions_of(link.session, database)) == 1
        # The asking session is no obstacle to itself.
        assert ending.end_all(stays, database) == []
        assert stays.value("select 1") == 1


def test_what_is_prepared_is_rolled_back_from_inside(link: Link, database: str) -> None:
    gid = "left over, it's"
    with connected(link, database) as session:
        session.execute("create table t (id int)")
        session.script("begin; insert into t values (1); prepare transaction 'left over, it''s'")
        oid = session.value("select oid::int8 from pg_database where datname = current_database()")
        assert ending.prepared(link.session, oid) == ending.prepared_by_name(link.session, database) == [gid]
        assert ending.prepared_by_name(link.session, "postgres") == []
        ending.roll_back(session, gid)
        assert ending.prepared(link.session, oid) == []
        assert session.value("select count(*) from t") == 0
