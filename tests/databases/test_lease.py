"""Leases: pristine, apart from each other, and taken back whatever the application does."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable

import psycopg
import pytest

from harness.config import environment
from harness.databases.address import Address
from harness.databases.clones import Clones
from harness.databases.lease import Lease
from harness.databases.template import Template
from harness.dsn import FORMS
from harness.errors import ConfigError, LeaseClosed, ServerLost, ServerRefused
from harness.postgres import databases, names
from harness.postgres.admin import Link
from harness.postgres.session import Session


def names_in(lease: Lease) -> list[str]:
    with lease.connect() as connection:
        return [name for (name,) in connection.execute("select name from users order by id")]


def add(lease: Lease, name: str) -> None:
    with lease.connect() as connection:
        connection.execute("insert into users (name) values (%s)", (name,))


def test_workers_do_not_see_each_other(lease_of: Callable[[str], Lease]) -> None:
    with lease_of("1") as one, lease_of("gw2") as two:
        add(one, "Ada")
        assert (names_in(one), names_in(two)) == (["Ada"], [])
        assert one.url != two.url


def test_a_reset_brings_back_the_template_under_the_same_url(lease: Lease) -> None:
    url = lease.url
    add(lease, "Ada")
    with lease.connect() as connection:
        connection.execute("delete from colours")
        connection.execute("create table extra (id int)")
    report = lease.reset()
    assert report.strategy == "clone"
    assert (lease.url, names_in(lease)) == (url, [])
    with lease.connect() as connection:
        assert connection.execute("select count(*), to_regclass('extra') from colours").fetchone() == (
            3,
            None,
        )
        assert connection.execute("select nextval('users_id_seq')").fetchone() == (1,)


def _two_statements(lease: Lease) -> None:
    with lease.connect() as undone:
        undone.execute("insert into users (name) values ('Eve')")
        undone.execute("select 1 / 0")


def test_connect_gives_a_connection_of_psycopg(lease: Lease) -> None:
    """Not a context manager that makes one: whoever wants no block had no connection."""
    connection = lease.connect(autocommit=True)
    assert isinstance(connection, psycopg.Connection)
    assert connection.execute("select current_user").fetchone() == (lease.dsn.user,)
    connection.close()
    with lease["default"].connect() as committed:
        committed.execute("insert into users (name) values ('Ada')")
    assert committed.closed
    with pytest.raises(psycopg.errors.DivisionByZero):
        _two_statements(lease)
    assert names_in(lease) == ["Ada"]


@pytest.mark.parametrize("bending", ["", "PGTZ"])
def test_connections_for_asyncio(lease: Lease, bending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two log-ins at once: where each hid libpq's variables for itself, the second waited for the first for ever."""
    if bending:
        monkeypatch.setenv(bending, "Asia/Tokyo")

    async def zone(at: Address) -> object:
        async with await at.aconnect() as connection:
            assert isinstance(connection, psycopg.AsyncConnection)
            await connection.execute("insert into users (name) values ('Ada')")
            return await (await connection.execute("show timezone")).fetchone()

    async def both() -> set[object]:
        return set(await asyncio.gather(zone(lease), zone(lease["default"])))

    zones = asyncio.run(asyncio.wait_for(both(), 20))
    assert len(zones) == 1
    assert zones != {("Asia/Tokyo",)}
    assert os.environ.get("PGTZ", "") == ("Asia/Tokyo" if bending else "")
    assert names_in(lease) == ["Ada", "Ada"]


def test_every_form_of_an_address(lease: Lease) -> None:
    """One table of forms: what the settings' templates know, a lease has."""
    for form in FORMS:
        name = "url" if form == "url" else f"{form}_url"
        expected = environment.render(f"{{{form}}}", "default", lease.dsns, environment.Slot(), "X")
        assert getattr(lease, name) == getattr(lease["default"], name) == expected
    with psycopg.connect(lease.sqlalchemy_url.replace("+psycopg", "")):
        assert "+asyncpg://" in lease.asyncpg_url


def test_release_drops_and_says_so_afterwards(lease_of: Callable[[str], Lease], link: Link) -> None:
    lease = lease_of("1")
    database = lease.dsn.database
    lease.release()
    lease.release()
    assert databases.find(link.session, database) is None
    assert lease.released
    for act in (lease.reset, lease.connect, lease.keep):
        with pytest.raises(LeaseClosed, match="worker 1 was released"):
            act()


def test_an_unknown_database_lists_the_choices(lease: Lease) -> None:
    with pytest.raises(ConfigError, match="no database 'analytics'; it has 'default'"):
        lease["analytics"]


def test_the_repr_shows_the_state_and_no_password(lease_of: Callable[[str], Lease]) -> None:
    lease = lease_of("gw0")
    assert repr(lease) == f"<Lease worker gw0: {lease.dsn.masked}>"
    assert "s3cret" not in repr(lease)
    lease.release()
    assert repr(lease).endswith(" released>")


def test_a_pool_that_reconnects_in_a_loop_does_not_stop_a_reset_or_a_release(
    lease_of: Callable[[str], Lease], link: Link
) -> None:
    """Trap 13: between terminate and rename a pool comes back; a rename with one idle client stalls 5 s and fails."""
    lease = lease_of("1")
    url, database = lease.url, lease.dsn.database
    stop = threading.Event()
    logins = [0]

    def hammer() -> None:
        while not stop.is_set():
            try:
                with psycopg.connect(url, connect_timeout=2) as connection:
                    logins[0] += 1
                    connection.execute("select pg_sleep(0.01)")
            except psycopg.Error:
                continue

    threads = [threading.Thread(target=hammer, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    for _ in range(5):
        lease.reset()
    lease.release()
    seconds = time.monotonic() - began
    stop.set()
    for thread in threads:
        thread.join(timeout=20)
    assert logins[0] > 0
    assert databases.find(link.session, database) is None
    assert seconds < 20, "a stalled rename takes five seconds each"


def test_a_prepared_transaction_does_not_outlive_its_database(lease: Lease, link: Link) -> None:
    with psycopg.connect(lease.url, autocommit=True) as connection:
        connection.execute("begin")
        connection.execute("insert into users (name) values ('prepared')")
        connection.execute("prepare transaction 'left over, it''s'")
    lease.reset()
    assert names_in(lease) == []
    assert (
        link.session.value(
            "select count(*) from pg_prepared_xacts where database = %s", (lease.dsn.database,)
        )
        == 0
    )


def test_a_session_in_a_transaction_with_locks_is_ended(lease: Lease) -> None:
    holder = psycopg.connect(lease.url)
    holder.execute("lock table users in access exclusive mode")
    lease.reset()
    assert names_in(lease) == []
    with pytest.raises(psycopg.OperationalError):
        holder.execute("select 1")
    holder.close()


def test_a_logical_slot_and_a_subscription_do_not_keep_a_database(lease: Lease, link: Link) -> None:
    with Session.connect(link.dsn.with_database(lease.dsn.database)) as inside:
        inside.execute("create publication p for all tables")
        inside.execute(
            f"create subscription {names.retired('0123456789')} connection 'host=127.0.0.1 dbname=nowhere' "
            "publication p with (connect = false)"
        )
        if link.session.value("show wal_level") == "logical":
            inside.rows("select pg_create_logical_replication_slot('pgh_test_slot', 'test_decoding')")
    lease.reset()
    assert names_in(lease) == []
    assert (
        link.session.value(
            "select count(*) from pg_replication_slots where database = %s", (lease.dsn.database,)
        )
        == 0
    )


def test_the_budget_is_enforced_by_the_database(lease: Lease) -> None:
    """CONNECTION LIMIT counts every session of the database; a leak fails in the worker that leaks."""
    held = [psycopg.connect(lease.url) for _ in range(5 + 3)]
    with pytest.raises(psycopg.OperationalError, match="too many connections for database"):
        psycopg.connect(lease.url)
    for connection in held:
        connection.close()


def test_the_application_is_no_superuser_and_may_create_databases(
    lease: Lease, clones: Clones, link: Link
) -> None:
    with psycopg.connect(lease.url, autocommit=True) as connection:
        row = connection.execute(
            "select rolsuper, rolcreatedb from pg_roles where rolname = current_user"
        ).fetchone()
        assert row == (False, True)
        connection.execute("create database made_by_a_test")
    assert clones.drop_created_by_tests() == ["made_by_a_test"]
    assert databases.find(link.session, "made_by_a_test") is None


def test_what_a_test_does_to_its_role_is_put_right(lease: Lease, clones: Clones) -> None:
    with psycopg.connect(lease.url, autocommit=True) as connection:
        connection.execute("alter role current_user password 'changed'")
        connection.execute("alter role current_user set search_path = nowhere")
    with pytest.raises(ServerRefused, match="password"), lease.connect():
        pass
    clones.restore_role(lease.dsn.user)
    with lease.connect() as connection:
        assert connection.execute("show search_path").fetchone() == ('"$user", public',)


def test_a_database_that_a_test_dropped_comes_back(lease: Lease) -> None:
    with psycopg.connect(lease.dsn.with_database("postgres").url, autocommit=True) as connection:
        connection.execute(f'drop database "{lease.dsn.database}" with (force)')
    with pytest.raises(ServerRefused, match="does not exist"), lease.connect():
        pass
    lease.reset()
    assert names_in(lease) == []


def test_keep_renames_it_for_people(lease_of: Callable[[str], Lease], link: Link) -> None:
    lease = lease_of("1")
    add(lease, "evidence")
    kept = lease.keep("a test failed")["default"]
    assert lease.released
    with Session.connect(link.dsn.with_database(kept)) as inside:
        assert inside.rows("select name from users") == [("evidence",)]
    found = databases.find(link.session, kept)
    assert found is not None
    assert found.label.kind == "kept"
    assert found.label.why == "a test failed"


def test_no_trace_of_ours_is_in_the_database(lease: Lease) -> None:
    """Schema-diff tools see what the migrations made, and nothing else."""
    with lease.connect() as connection:
        schemas = connection.execute(
            "select nspname from pg_namespace where nspname !~ '^pg_' order by 1"
        ).fetchall()
        tables = connection.execute(
            "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' order by 1"
        ).fetchall()
        rest = connection.execute(
            "select (select count(*) from pg_event_trigger), (select count(*) from pg_trigger where not tgisinternal), "
            "(select string_agg(extname, ',') from pg_extension)"
        ).fetchone()
    assert schemas == [("information_schema",), ("public",)]
    assert tables == [("colours",), ("orders",), ("users",)]
    assert rest == (0, 0, "plpgsql")


def test_nothing_but_this_checkouts_own_is_ever_dropped(
    lease: Lease, made: Template, clones: Clones, link: Link
) -> None:
    with Session.connect(link.dsn) as session:
        session.execute("create database somebody_elses")
    try:
        assert clones.drop_created_by_tests() == []
        assert databases.find(link.session, "somebody_elses") is not None
    finally:
        link.session.execute("drop database somebody_elses")


def test_a_server_that_is_another_is_not_believed(link: Link) -> None:
    with pytest.raises(ServerLost, match="another PostgreSQL server"):
        Link(link.dsn, "00000000-not-this-one").session.value("select 1")
