"""Databases are taken out of use while others enter and prepare; a fallback clone is quick, and leaves nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import psycopg
import pytest
from fix_reset_servers import Server
from fix_servers import OWNER

from harness.databases.clones import Claim, Clones
from harness.databases.lease import Lease, LeasedDatabase
from harness.databases.pool import MOST_BYTES, Filler
from harness.databases.template import Template
from harness.dsn import Dsn
from harness.errors import LeaseInUse
from harness.postgres import databases, ending, names
from harness.postgres.admin import Link
from harness.postgres.names import Kind
from harness.postgres.session import Session, ident

PATIENCE = 30.0


@pytest.fixture
def link(reset_server: Server) -> Iterator[Link]:
    """The admin's way to a server of each version."""
    found = Link(reset_server.dsn(), "")
    yield found
    found.close()


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def names_in(lease: Lease) -> list[str]:
    with lease.connect() as connection:
        return [name for (name,) in connection.execute("select name from users order by id")]


def prepared_in(link: Link, database: str) -> int:
    return int(
        link.session.value("select count(*) from pg_prepared_xacts where database = %s", (database,)) or 0
    )


def prepare(dsn: Dsn, gid: str) -> None:
    with Session.connect(dsn, application_name="app") as session:
        session.script("begin; insert into users (name) values ('prepared')")
        session.execute(f"prepare transaction '{gid}'")


@contextmanager
def busy(dsn: Dsn) -> Iterator[list[int]]:
    """Pools that come back in a loop, and others that prepare in a loop; how often they succeeded."""
    stop, done = threading.Event(), [0, 0]

    def hammer(number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            try:
                # Half of them keep their connection, as a pool does.
                with psycopg.connect(dsn.url, connect_timeout=2, autocommit=True) as connection:
                    done[0] += 1
                    if number % 2:
                        connection.execute("select pg_sleep(0.2)")
                        continue
                    connection.execute("begin")
                    connection.execute("insert into users (name) values ('prepared')")
                    connection.execute(f"prepare transaction 'in a loop {number} {turn}'")
                    done[1] += 1
            except psycopg.Error:
                continue

    threads = [threading.Thread(target=hammer, args=(number,), daemon=True) for number in range(6)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)


@pytest.fixture(params=["app", "superuser"])
def intruder(request: pytest.FixtureRequest, lease: Lease, link: Link) -> Dsn:
    """Who enters the lease in a loop: CONNECTION LIMIT keeps no superuser out."""
    return lease.dsn if request.param == "app" else link.dsn.with_database(lease.dsn.database)


# --- I: obstacles are looked for behind a closed door ------------------------------------------------


@pytest.mark.parametrize("act", ["reset", "keep", "release", "gc"])
def test_what_is_prepared_at_the_last_moment_is_no_obstacle(
    act: str, lease: Lease, clones: Clones, link: Link, checkout: str
) -> None:
    """The routine is held up between its first look and the closing of the door, and then somebody prepares."""
    with Session.connect(link.dsn, application_name="holder") as holder:
        holder.execute("begin")
        holder.execute(f"alter database {ident(lease.dsn.database)} connection limit 50")
        failed: list[BaseException] = []
        own = Link(link.dsn, "")
        other = Clones(own, checkout, OWNER, connections=5)

        def run() -> None:
            try:
                name = lease.dsn.database
                if act == "reset":
                    lease.reset()
                elif act == "keep":
                    other.keep(name, names.run_id(), "a test")
                elif act == "release":
                    other.release(name)
                else:
                    databases.drop(own.session, name, checkout)
            except BaseException as error:  # noqa: BLE001 - shown by the test, in its own thread
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        with Session.connect(link.dsn) as watcher:
            until(
                lambda: watcher.value("select exists (select from pg_locks where not granted)"),
                "nobody waits for the holder",
            )
        prepare(lease.dsn, "at the last moment")
        holder.execute("rollback")
        thread.join(PATIENCE)
        own.close()
    assert not failed, failed
    assert prepared_in(link, lease.dsn.database) == 0
    if act == "reset":
        assert names_in(lease) == []
    else:
        assert databases.find(link.session, lease.dsn.database) is None


def test_pools_and_preparers_in_a_loop_stop_no_reset(intruder: Dsn, lease: Lease, link: Link) -> None:
    with busy(intruder) as done:
        for _ in range(6):
            until(lambda: prepared_in(link, lease.dsn.database), "nobody prepares")
            assert lease.reset().strategy == "clone"
        assert min(done) > 0
    lease.reset()
    assert names_in(lease) == []


def test_pools_and_preparers_in_a_loop_stop_no_keep_and_no_release(
    intruder: Dsn, lease: Lease, clones: Clones, made: Template, link: Link
) -> None:
    claim, name = lease.databases["default"].claim, lease.dsn.database
    with busy(intruder):
        for act in ("keep", "release", "keep", "release"):
            until(lambda: prepared_in(link, lease.dsn.database), "nobody prepares")
            if act == "keep":
                kept = clones.keep(name, claim.run, "a test")
                found = databases.find(link.session, kept)
                assert found is not None
                assert (found.allows_connections, found.connection_limit) == (True, 8)
            else:
                clones.release(name)
            assert databases.find(link.session, name) is None
            clones.claim(made, claim)


def test_a_database_that_cannot_be_had_is_given_up_with_the_reason(
    lease: Lease, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "RETIRE_PATIENCE", 0.5)
    name = lease.dsn.database
    with Session.connect(link.dsn, application_name="holder") as holder:
        # No session is in it, but its name cannot change before this is over.
        holder.execute("begin")
        holder.execute(f"comment on database {ident(name)} is 'held'")
        with pytest.raises(LeaseInUse, match=f"{name} could not be taken out of use"):
            lease.reset()
    lease.reset()
    assert names_in(lease) == []


# --- sessions ended ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5])
def test_ended_sessions_are_not_waited_for_longer_than_they_take(
    count: int, lease: Lease, link: Link
) -> None:
    taken = []
    for _ in range(9):
        sessions = [Session.connect(lease.dsn, application_name="app") for _ in range(count)]
        pids = [session.pid for session in sessions]
        began = time.monotonic()
        ending.end(link.session, pids)
        taken.append(time.monotonic() - began)
        left = link.session.rows("select pid from pg_stat_activity where pid = any(%s)", (pids,))
        for session in sessions:
            session.close()
        assert left == []
    # 2 ms on a machine that has nothing else to do; pg_terminate_backend's own waiting takes 100 for each.
    assert median(taken) < 0.05


# --- the fallback clone ----------------------------------------------------------------------------------


@pytest.fixture
def filled(clones: Clones, made: Template, checkout: str) -> Iterator[tuple[Lease, Callable[[], Filler]]]:
    """A watched lease whose clones have somebody in the background, as a run's have."""
    fillers: list[Filler] = []

    def filling() -> Filler:
        if not fillers:
            own = Clones(clones.link.another(), checkout, OWNER, connections=5)
            fillers.append(Filler(own, [], wanted=1))
        return fillers[0]

    claim = Claim(names.run_id(), "1")
    name = clones.claim(made, claim)
    dsn = clones.link.dsn.with_user(OWNER.name, OWNER.password).with_database(name)
    leased = {"default": LeasedDatabase("default", dsn, made, claim)}
    lease = Lease(clones, leased, run=claim.run, worker="1", filler=filling)
    lease.watch()
    with lease:
        yield lease, filling
        if fillers:
            fillers[0].close()


def test_the_second_fallback_clone_is_a_spare_that_was_ready(
    filled: tuple[Lease, Callable[[], Filler]], clones: Clones, made: Template, link: Link
) -> None:
    lease, filling = filled
    assert clones.spares(made) == []
    lease.renew()
    assert filling().idle(PATIENCE)
    (spare,) = clones.spares(made)
    oid = link.session.value("select oid from pg_database where datname = %s", (spare,))
    lease.renew()
    assert link.session.value("select oid from pg_database where datname = %s", (lease.dsn.database,)) == oid
    assert filling().idle(PATIENCE)
    assert len(clones.spares(made)) == 1


def test_nothing_of_it_is_left(
    filled: tuple[Lease, Callable[[], Filler]], clones: Clones, made: Template, link: Link, checkout: str
) -> None:
    lease, filling = filled
    before = {d.name for d in databases.list_ours(link.session, checkout)}
    for _ in range(3):
        lease.renew()
    filling().close()
    assert {d.name for d in databases.list_ours(link.session, checkout)} == before
    assert filling().failure is None


def test_a_spare_that_was_there_before_stays(
    filled: tuple[Lease, Callable[[], Filler]], clones: Clones, made: Template
) -> None:
    lease, filling = filled
    lease.renew()
    assert filling().idle(PATIENCE)
    theirs = clones.make_spare(made)
    filling().close()
    assert clones.spares(made) == [theirs]


def test_a_large_template_has_no_spare_made(clones: Clones, made: Template, checkout: str) -> None:
    filler = Filler(Clones(clones.link.another(), checkout, OWNER, connections=5), [], wanted=1)
    filler.replaced("", replace(made, size=MOST_BYTES + 1), lambda: None)
    assert filler.idle(PATIENCE)
    assert clones.spares(made) == []
    filler.close()


def test_where_no_spare_can_be_made_what_is_retired_goes_all_the_same(
    clones: Clones, made: Template, link: Link, checkout: str
) -> None:
    filler = Filler(Clones(clones.link.another(), checkout, OWNER, connections=5), [made], wanted=1)
    assert filler.idle(PATIENCE)
    retired = names.retired(checkout)
    assert databases.retire(link.session, clones.claim(made, Claim(names.run_id(), "1")), retired)
    databases.drop(link.session, made.name, checkout)
    for spare in clones.spares(made):
        databases.drop(link.session, spare, checkout)
    filler.retire(retired)
    assert filler.idle(PATIENCE)
    assert databases.find(link.session, retired) is None
    assert "the template" in str(filler.failure)
    filler.close()


def test_a_clone_is_watched_from_its_first_moment(
    filled: tuple[Lease, Callable[[], Filler]],
) -> None:
    """The engine goes on from the note, behind the caller's back; whoever is quicker is seen all the same."""
    lease, _ = filled
    with lease.connect() as connection:
        connection.execute("insert into users (name) values ('before')")
    assert lease.reset().strategy == "restore"
    for number in range(8):
        lease.renew()
        if number % 2:
            lease.renew()
        with lease.connect() as connection:
            connection.execute("insert into users (name) values ('Ada')")
            connection.execute("delete from colours where name = 'red'")
        report = lease.reset()
        assert report.strategy == "restore", report
        with lease.connect() as connection:
            assert connection.execute("select count(*) from colours").fetchone() == (3,)
        assert names_in(lease) == []


def test_a_mark_comes_back_in_a_clone(filled: tuple[Lease, Callable[[], Filler]]) -> None:
    lease, _ = filled
    with lease.connect() as connection:
        connection.execute("insert into users (name) values ('marked')")
    mark = lease.mark()
    for _ in range(3):
        lease.renew()
        assert names_in(lease) == ["marked"]
    mark.release()
    lease.reset()
    assert names_in(lease) == []


def test_a_role_that_nobody_changed_is_not_written(lease: Lease, link: Link) -> None:
    """It is one row for the whole server: workers that all write it disturb each other."""
    asked = "select xmin::text, rolpassword from pg_authid where rolname = %s"
    before = link.session.row(asked, (OWNER.name,))
    lease.reset()
    assert link.session.row(asked, (OWNER.name,)) == before
    for change in ("password 'other'", "createrole", "nologin", "set search_path = nowhere"):
        link.session.execute(f"alter role {OWNER.name} {change}")
        lease.reset()
        with lease.connect() as connection:
            assert connection.execute("show search_path").fetchone() == ('"$user", public',)
        attributes = "select rolcreaterole, rolcanlogin, rolpassword = %s from pg_authid where rolname = %s"
        assert link.session.row(attributes, ((before or ("", ""))[1], OWNER.name)) == (False, True, True)


def test_a_fallback_clone_copies_one_database_and_with_a_spare_none(
    filled: tuple[Lease, Callable[[], Filler]],
    clones: Clones,
    made: Template,
    link: Link,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the caller's path; what it takes is the benchmark's matter."""
    lease, filling = filled
    copied: list[str] = []
    copy, here = databases.clone, threading.get_ident()

    def noted(session: Session, name: str, **options: Any) -> None:
        if threading.get_ident() == here:
            copied.append(name)
        copy(session, name, **options)

    lease.renew()
    assert filling().idle(PATIENCE)
    monkeypatch.setattr(databases, "clone", noted)
    lease.renew()
    assert copied == []
    assert filling().idle(PATIENCE)
    for spare in clones.spares(made):
        databases.drop_retired(link.session, spare)
    lease.renew()
    assert len(copied) == 1


def test_kinds_of_databases_after_a_plain_reset(
    lease_of: Callable[[str], Lease], link: Link, checkout: str
) -> None:
    """Without anybody in the background, the old database goes at once, and no spare is made."""
    with lease_of("2") as lease:
        lease.reset()
        kinds = {d.parsed.kind for d in databases.list_ours(link.session, checkout) if d.parsed}
        assert kinds == {Kind.TEMPLATE, Kind.LEASE}
