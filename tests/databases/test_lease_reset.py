"""A lease's own reset: by the engine where it can, by a clone where it must, marks through both."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from fix_rewind import FOLDERS, REQUIRED
from fix_servers import OWNER

from harness.databases.changed import TableChanges, for_json, from_json
from harness.databases.clones import Claim, Clones
from harness.databases.lease import Lease
from harness.databases.resetting import ensure_baseline, open_baseline
from harness.databases.template import Template
from harness.errors import ConfigError, LeaseClosed, LeaseError
from harness.postgres import databases
from harness.postgres.admin import Link
from harness.postgres.session import Session, ident
from harness.reset.changes import RecloneNeeded
from harness.reset.engine import ResetEngine
from harness.reset.rewind import module
from harness.servers.port import ServerInfo
from harness.servers.process.backend import ProcessBackend

KEPT = ("rewind", "restore")
"""Strategies that keep the application's sessions."""


@pytest.fixture(params=["rows", "rewind"])
def clones(
    request: pytest.FixtureRequest, link: Link, checkout: str, server: ServerInfo, folders: tuple[Path, Path]
) -> Clones:
    """Clones that are reset by either engine: what a lease promises is the same."""
    if request.param == "rows":
        return Clones(link, checkout, OWNER, connections=5)
    state, cache = folders
    backend = ProcessBackend(dict(os.environ), state=state, cache=cache, binaries=None)
    found = module.prepare(link.session, backend.shelf(server), project=checkout, places=FOLDERS)
    if isinstance(found, str):
        if REQUIRED:
            pytest.fail(found)
        pytest.skip(found)
    return Clones(link, checkout, OWNER, connections=5, rewinds=lambda: found.schema)


def of_ddl(clones: Clones) -> str:
    """What undoes a change of the schema."""
    return "rewind" if clones.rewinds() else "clone"


@pytest.fixture
def watched(lease_of: Callable[[str], Lease]) -> Iterator[Lease]:
    with lease_of("1") as lease:
        lease.watch()
        assert lease.reset_problem == ""
        yield lease


@pytest.fixture
def application(watched: Lease) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A connection that stays open through resets."""
    with psycopg.connect(watched.url, autocommit=True) as connection:
        yield connection


def state(connection: psycopg.Connection[tuple[object, ...]]) -> tuple[object, ...] | None:
    return connection.execute(
        "select (select count(*) from users), (select count(*) from colours)"
    ).fetchone()


def test_connections_are_kept(watched: Lease, application: psycopg.Connection[tuple[object, ...]]) -> None:
    pid = application.info.backend_pid
    for _ in range(3):
        application.execute("insert into users (name) values ('Ada')")
        application.execute("delete from colours where name = 'red'")
        assert watched.changes()
        assert "users" in str(watched.changes())
        report = watched.reset()
        assert report.strategy in KEPT
        assert any("users" in table for table in report.tables)
        assert state(application) == (0, 3)
        assert application.execute("select nextval('users_id_seq')").fetchone() == (1,)
        watched.reset()
    assert application.info.backend_pid == pid
    assert watched.reset().strategy == "nothing"
    assert not watched.changes()


def test_ddl_needs_a_clone_by_rows_and_says_why(
    watched: Lease, application: psycopg.Connection[tuple[object, ...]], clones: Clones
) -> None:
    application.execute("create table extra (id int)")
    report = watched.reset()
    assert report.strategy == of_ddl(clones)
    assert ("extra" in report.reason) == (report.strategy == "clone")
    with watched.connect() as connection:
        assert connection.execute("select to_regclass('extra')").fetchone() == (None,)
        connection.execute("insert into users (name) values ('after')")
    assert watched.reset().strategy in KEPT


def test_marks_stack_and_survive_a_clone(
    watched: Lease, application: psycopg.Connection[tuple[object, ...]], clones: Clones
) -> None:
    application.execute("insert into users (name) values ('module')")
    outer = watched.mark()
    application.execute("insert into users (name) values ('class')")
    inner = watched.mark()
    application.execute("insert into users (name) values ('test')")
    watched.reset()
    assert state(application) == (2, 3)
    application.execute("create table extra (id int)")
    assert watched.reset().strategy == of_ddl(clones)
    assert watched.renew().strategy == "clone"
    with watched.connect() as connection:
        assert state(connection) == (2, 3)
    inner.release()
    assert inner.released
    watched.reset()
    with watched.connect() as connection:
        assert state(connection) == (1, 3)
    outer.release()
    watched.reset()
    with watched.connect() as connection:
        assert state(connection) == (0, 3)


def test_marks_by_name(watched: Lease, application: psycopg.Connection[tuple[object, ...]]) -> None:
    application.execute("insert into users (name) values ('lower')")
    lower = watched.mark("lower")
    application.execute("insert into users (name) values ('upper')")
    upper = watched.mark()
    assert (lower.name, upper.name, list(watched.marks)) == ("lower", "1", ["lower", "1"])
    assert repr(upper) == "<LeaseMark 1>"
    with pytest.raises(LeaseError, match="there is a mark 'lower' already"):
        watched.mark("lower")
    with pytest.raises(ConfigError, match="no mark is called so"):
        watched.mark("template")
    with pytest.raises(ConfigError, match="the lease has no mark 'other'; it has lower, 1"):
        watched.reset(to="other")
    assert state(application) == (2, 3)
    watched.reset(to="lower")
    assert upper.released
    assert state(application) == (1, 3)
    watched.reset(to="template")
    assert (state(application), dict(watched.marks), lower.released) == ((0, 3), {}, True)
    assert watched.mark().name == "2"


def test_changes_are_told_by_names(
    watched: Lease, application: psycopg.Connection[tuple[object, ...]], clones: Clones
) -> None:
    assert repr(watched.changes()) == "<LeaseChanges nothing changed>"
    application.execute("insert into users (name) values ('Ada')")
    application.execute("delete from colours where name = 'red'")
    changes = watched.changes()
    assert changes["default"].tables == {
        "colours": TableChanges(deleted=1), "users": TableChanges(inserted=1),
    }  # fmt: skip
    assert changes["default"].sequences == ("users_id_seq",)
    assert (
        repr(changes) == "<LeaseChanges colours: 1 deleted; users: 1 inserted; users_id_seq: sequence moved>"
    )
    assert from_json(json.loads(json.dumps(for_json(changes["default"])))) == changes["default"]
    application.execute("alter table colours add column code text")
    changed = watched.changes()["default"]
    assert any("colours" in line for line in changed.schema), changed


def test_without_watching_a_reset_is_a_clone_and_a_mark_is_refused(lease: Lease) -> None:
    report = lease.reset()
    assert (report.strategy, report.reason) == (
        "clone",
        "nothing was watched since the database was pristine",
    )
    with pytest.raises(LeaseError, match=r"lease\.watch\(\)"):
        lease.mark()
    with pytest.raises(LeaseError):
        lease.changes()


def test_a_server_that_was_lost_is_noticed(lease_of: Callable[[str], Lease], link: Link) -> None:
    """The engine's sessions are killed under it: what it knew is worth nothing, a clone is."""
    with lease_of("1") as lease:
        lease.watch()
        with lease.connect() as connection:
            connection.execute("insert into users (name) values ('x')")
        assert lease.changes()
        link.session.rows(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
            "where datname = %s or (application_name = 'pg-harness' and pid <> pg_backend_pid() "
            "and datname = current_database() and backend_start > now() - interval '1 minute' "
            "and query not like '%%advisory%%')",
            (lease.dsn.database,),
        )
        report = lease.reset()
        assert report.strategy == "clone"
        with lease.connect() as connection:
            assert connection.execute("select count(*) from users").fetchone() == (0,)


def test_the_baseline_is_made_once_and_nobody_enters(
    clones: Clones, made: Template, link: Link, lease: Lease
) -> None:
    """Neither a test, nor a superuser, nor what goes through all databases: pages are compared with its pages."""
    name = ensure_baseline(clones, made)
    assert ensure_baseline(clones, made) == name
    with open_baseline(clones, made, {}) as inside:
        assert inside.value("select current_database()") == name
        for dsn in (lease.dsn, link.dsn):
            with pytest.raises(psycopg.OperationalError, match="not currently accepting connections"):
                psycopg.connect(dsn.with_database(name).url)
    found = databases.find(link.session, name)
    assert found is not None
    assert not found.allows_connections


def test_a_baseline_whose_door_stood_open_is_made_anew(clones: Clones, made: Template, link: Link) -> None:
    """Of a process that was killed while it logged in, or opened by hand: who knows what was written there."""
    name = ensure_baseline(clones, made)
    before = databases.find(link.session, name)
    assert before is not None
    link.session.execute(f"alter database {name} with allow_connections true")
    with Session.connect(link.dsn.with_database(name)) as stranger:
        stranger.execute("create table stranger (id integer)")
    with open_baseline(clones, made, {}) as inside:
        assert inside.value("select to_regclass('stranger')") is None
    after = databases.find(link.session, name)
    assert after is not None
    assert after.oid != before.oid
    assert not after.allows_connections


def test_workers_that_log_in_to_the_baseline_at_once_all_get_in(
    clones: Clones, made: Template, link: Link
) -> None:
    def log_in(_: int) -> str:
        another = link.another()
        try:
            with open_baseline(
                Clones(another, clones.project, clones.owner, connections=5), made, {}
            ) as inside:
                return str(inside.value("select current_database()"))
        finally:
            another.close()

    with ThreadPoolExecutor(4) as threads:
        names = list(threads.map(log_in, range(8)))
    assert set(names) == {ensure_baseline(clones, made)}


def test_released_leases_leave_no_session(lease_of: Callable[[str], Lease], link: Link) -> None:
    lease = lease_of("1")
    database = lease.dsn.database
    lease.watch()
    lease.release()
    assert databases.find(link.session, database) is None
    assert databases.sessions_of(link.session, database) == []


def test_what_nobody_has_entered_needs_no_look(lease_of: Callable[[str], Lease], link: Link) -> None:
    """No session of ours, and no engine, before the first test that logs in; a quick visit is not missed."""
    with lease_of("1") as lease:
        lease.watch()
        assert lease.untouched
        assert lease.reset().strategy == "nothing"
        assert databases.sessions_of(link.session, lease.dsn.database) == []
        with lease.connect() as connection:
            connection.execute("insert into users (name) values ('x')")
        assert not lease.untouched
        assert lease.reset().strategy in KEPT
        with lease.connect() as connection:
            assert state(connection) == (0, 3)


def test_another_database_under_the_name_is_no_pristine_one(
    lease_of: Callable[[str], Lease], link: Link
) -> None:
    """Whoever owns a database may drop it and make another one, without ever entering it."""
    with lease_of("1") as lease:
        lease.watch()
        name = lease.dsn.database
        link.session.execute(f'drop database "{name}"')
        link.session.execute(f'create database "{name}" template template0')
        assert not lease.untouched
        assert lease.reset().strategy == "clone"
        with lease.connect() as connection:
            assert state(connection) == (0, 3)


def test_the_first_test_may_have_done_anything(lease_of: Callable[[str], Lease], clones: Clones) -> None:
    """The engine is opened after it: sequences, truncated tables and settings come back to what was noted."""
    with lease_of("1") as lease:
        lease.watch()
        with lease.connect() as connection:
            connection.execute("insert into users (name) values ('x')")
            connection.execute("truncate colours")
            connection.execute("select setval('users_id_seq', 1000)")
            connection.execute(f'alter database "{lease.dsn.database}" set search_path = elsewhere')
        assert lease.reset().strategy in KEPT
        with lease.connect() as connection:
            assert state(connection) == (0, 3)
            assert connection.execute("select nextval('users_id_seq')").fetchone() == (1,)
            assert connection.execute("show search_path").fetchone() == ('"$user", public',)
        lease.reset()
        with lease.connect() as connection:
            connection.execute("create table added (id int)")
        assert lease.reset().strategy == of_ddl(clones)


def test_a_schema_changed_by_the_first_test_is_one_clone_and_no_more(
    lease_of: Callable[[str], Lease], clones: Clones
) -> None:
    with lease_of("1") as lease:
        lease.watch()
        with lease.connect() as connection:
            connection.execute("create table added (id int)")
        assert lease.reset().strategy == of_ddl(clones)
        with lease.connect() as connection:
            connection.execute("insert into users (name) values ('x')")
        assert lease.reset().strategy in KEPT


def test_sequences_of_a_template_are_settled(lease_of: Callable[[str], Lease]) -> None:
    """One that migrations moved would be logged 32 values ahead: a move by the first test alone went unseen."""
    with lease_of("1") as lease:
        lease.watch()
        for _ in range(2):
            with lease.connect() as connection:
                assert connection.execute("select nextval('numbers')").fetchone() == (2,)
            assert lease.reset().strategy in KEPT


def test_a_lease_that_was_released_is_not_reset(lease_of: Callable[[str], Lease]) -> None:
    lease = lease_of("1")
    lease.watch()
    mark = lease.mark()
    lease.release()
    calls: list[Callable[[], object]] = [lease.reset, lease.changes, lease.mark, lambda: lease.reset(to=mark)]
    for call in calls:
        with pytest.raises(LeaseClosed, match="worker 1 was released"):
            call()
    lease.release()


def test_a_reset_by_somebody_else_is_noticed(watched: Lease, clones: Clones, made: Template) -> None:
    """`pg-harness reset gw0` while its run goes on: another database has the name, and the run's next reset says so."""
    with watched.connect() as connection:
        connection.execute("insert into users (name) values ('x')")
    retired = clones.replace(made, Claim(watched.run, watched.worker))
    databases.drop_retired(clones.link.session, retired)
    with watched.connect() as connection:
        connection.execute("insert into users (name) values ('after')")
    report = watched.reset()
    assert report.strategy == "clone"
    with watched.connect() as connection:
        assert state(connection) == (0, 3)
        connection.execute("insert into users (name) values ('again')")
    assert watched.reset().strategy in KEPT


def test_several_threads_reset_one_lease(watched: Lease) -> None:
    with ThreadPoolExecutor(4) as threads:
        for _ in range(5):
            with watched.connect() as connection:
                connection.execute("insert into users (name) values ('x')")
            reports = [future.result(30) for future in [threads.submit(watched.reset) for _ in range(4)]]
            assert sorted(report.strategy in KEPT for report in reports) == [False] * 3 + [True]
    with watched.connect() as connection:
        assert state(connection) == (0, 3)


def test_a_role_and_settings_that_a_test_changed(watched: Lease, link: Link) -> None:
    """Of the whole server, but seen where it concerns the application: put back, by a clone where it must be."""
    link.session.execute(f"alter database {ident(watched.dsn.database)} set work_mem = '9MB'")
    assert watched.reset().strategy in ("nothing", *KEPT)
    link.session.execute("alter role app nocreatedb")
    report = watched.reset()
    assert (report.strategy, report.reason) == ("clone", "attributes of the application's role changed")
    assert link.session.value("select rolcreatedb from pg_roles where rolname = 'app'")
    with watched.connect() as connection:
        assert connection.execute("show work_mem").fetchone() != ("9MB",)


def test_the_report_of_a_clone_has_the_remedy(watched: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RecloneNeeded("the log was recycled", remedy="a larger wal_keep_size keeps more of it")

    with watched.connect() as connection:
        connection.execute("insert into users (name) values ('x')")
    monkeypatch.setattr(ResetEngine, "reset", refuse)
    report = watched.reset()
    assert report.strategy == "clone"
    assert report.reason == "the log was recycled. a larger wal_keep_size keeps more of it"
    assert str(report).startswith("fresh clone (the log was recycled. a larger wal_keep_size")


def test_who_is_in_a_new_clone_at_once_has_written_nothing_that_stays(
    watched: Lease, application: psycopg.Connection[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool that the clone has ended is back as soon as the name is: before anything else could be done there."""
    name, came = watched.dsn.database, []
    with watched.connect() as connection:
        connection.execute("insert into users (name) values ('before')")

    def and_come(real: Callable[..., None]) -> Callable[..., None]:
        def run(session: Session, statement: str) -> None:
            real(session, statement)
            if f'rename to "{name}"' in statement or f"rename to {name}" in statement:
                with watched.connect() as connection:
                    connection.execute("insert into users (name) values ('at once')")
                came.append(statement)

        return run

    for how in ("execute", "script"):
        monkeypatch.setattr(Session, how, and_come(getattr(Session, how)))
    assert watched.renew().strategy == "clone"
    assert came
    assert watched.reset().strategy in KEPT
    with watched.connect() as connection:
        assert state(connection) == (0, 3)
