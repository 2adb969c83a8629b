"""What a lease gives of a streaming standby, and how its resets reach it: a real one, in which a test's sessions stay open."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psycopg
import pytest
from fix_replicas import names_in, pid_of, replica_of, write
from fix_servers import binaries_of

from harness.databases.lease import Lease
from harness.runs.run import Run

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(binaries_of("15") is None, reason="PostgreSQL 15 is not installed"),
]

# --- what a lease gives ------------------------------------------------------------------------------------


def test_a_standby_shows_what_was_committed_and_takes_no_writes(lease: Lease) -> None:
    replica = replica_of(lease)
    assert names_in(replica) == ["first"]
    write(lease)
    lease.wait_for_replica()
    assert names_in(replica) == ["first", "new"]
    with replica.connect() as connection, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        connection.execute("insert into users (name) values ('there')")
    assert replica.dsn == lease["default"].replicas[0].dsn
    assert (replica.dsn.database, replica.dsn.user) == (lease.dsn.database, lease.dsn.user)
    assert replica.dsn.port != lease.dsn.port
    assert str(lease.dsn.password) not in repr(replica)
    assert "***" in repr(replica)
    analytics = lease["analytics"].replica
    assert analytics is not None
    assert analytics.dsn.database == lease["analytics"].dsn.database


def test_its_addresses_are_in_the_environment(run: Run, lease: Lease) -> None:
    values = run.variables(lease)
    analytics = lease["analytics"].replica
    assert analytics is not None
    assert values["DATABASE_REPLICA_URL"] == replica_of(lease).url == values["READ_URL"]
    assert values["ANALYTICS_READ"] == analytics.dsn.sqlalchemy
    assert values["ANALYTICS_OTHER"] == analytics.dsn.host
    assert "DATABASE_REPLICA2_URL" not in values


def test_no_password_is_in_a_command_line(run: Run) -> None:
    words = Path(f"/proc/{pid_of(run)}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    assert "primary_conninfo" in words
    assert str(run.server.info.dsn.password) not in words


def test_resets_are_by_rows_and_it_is_said(run: Run) -> None:
    assert run.reset_told == "rows (replicas = 1)"


# --- resets ------------------------------------------------------------------------------------------------


def test_a_reset_reaches_it_before_the_next_test(lease: Lease) -> None:
    replica = replica_of(lease)
    with replica.connect(autocommit=True) as pooled:
        pid = pooled.info.backend_pid
        for _ in range(5):
            write(lease)
            lease.wait_for_replica()
            assert pooled.execute("select count(*) from users").fetchone() == (2,)
            assert lease.reset().strategy != "clone"
            assert pooled.execute("select count(*) from users").fetchone() == (1,)
        # An application's pool keeps its connections.
        assert pooled.info.backend_pid == pid
        assert not pooled.closed
        assert lease.reset().strategy == "nothing"


def test_a_clone_reaches_it_too(lease: Lease) -> None:
    replica = replica_of(lease)
    with replica.connect(autocommit=True) as before:
        before.execute("select 1")
        write(lease, "alter table users add column age int")
        report = lease.reset()
        assert report.strategy == "clone"
        # It would go on seeing the database that was renamed away.
        with pytest.raises(psycopg.OperationalError):
            before.execute("select age from users")
        assert any("on the standby" in line for line in report.ended)
    assert names_in(replica) == ["first"]
    with replica.connect() as connection, pytest.raises(psycopg.errors.UndefinedColumn):
        connection.execute("select age from users")


def test_a_transaction_there_that_sees_what_was_before_is_ended_and_named(lease: Lease) -> None:
    with replica_of(lease).connect() as left:
        left.execute("set transaction isolation level repeatable read")
        assert left.execute("select count(*) from users").fetchone() == (1,)
        write(lease)
        report = lease.reset()
        assert len(report.ended) == 1
        assert "on the standby, idle in transaction" in report.ended[0]
        with pytest.raises(psycopg.OperationalError):
            left.execute("select 1")
    assert names_in(replica_of(lease)) == ["first"]


def test_a_lock_there_does_not_hold_a_reset_up(lease: Lease) -> None:
    with replica_of(lease).connect() as left:
        left.execute("select count(*) from users")
        write(lease, "truncate users")
        began = time.monotonic()
        report = lease.reset()
        assert time.monotonic() - began < 10
        assert len(report.ended) == 1
        assert "select count(*) from users" in report.ended[0]
        with pytest.raises(psycopg.OperationalError):
            left.execute("select 1")
    assert names_in(replica_of(lease)) == ["first"]


def test_a_transaction_that_ends_in_time_is_waited_for(lease: Lease) -> None:
    with replica_of(lease).connect() as working:
        working.execute("set transaction isolation level repeatable read")
        working.execute("select 1")
        write(lease)
        timer = threading.Timer(0.1, working.rollback)
        timer.start()
        assert lease.reset().ended == ()
        timer.join()
        assert working.execute("select count(*) from users").fetchone() == (1,)


def test_sessions_there_do_not_keep_a_lease_from_going(run: Run) -> None:
    lease = run.lease("going", watch=True)
    with replica_of(lease).connect() as left:
        left.execute("select 1")
        lease.release()
        with run.lease("going", watch=True) as again:
            assert names_in(replica_of(again)) == ["first"]
        with pytest.raises(psycopg.OperationalError):
            left.execute("select 1")


def test_a_mark_is_come_back_to_there(lease: Lease) -> None:
    write(lease, "insert into users (name) values ('marked')")
    lease.mark("m")
    write(lease)
    lease.reset()
    assert names_in(replica_of(lease)) == ["first", "marked"]
