"""A server that crashed or was restarted: what was noted, counted or copied before is not believed after it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import psycopg
import pytest
from fix_leases import Schema, make_lease
from fix_reset_servers import PATIENCE, VERSIONS, Server, binaries, running
from fix_servers import OWNER

from harness.databases import sweep, template
from harness.databases.clones import Clones
from harness.databases.lease import Lease
from harness.databases.resetting import DatabaseReset, open_baseline
from harness.databases.spec import TemplateSpec
from harness.databases.template import Template
from harness.errors import LeaseError, LeaseLost, ServerLost, ServerRefused
from harness.postgres import databases, names
from harness.postgres.admin import Link
from harness.postgres.incarnation import Incarnation
from harness.postgres.liveness import SignOfLife
from harness.postgres.session import Session
from harness.sandbox import marks


class WithUnlogged(Schema):
    """A table and a sequence that a crash empties."""

    statements = (
        *Schema.statements,
        "create unlogged table fast (id serial primary key, v text)",
        "insert into fast (v) select 'kept ' || i from generate_series(1, 10) i",
    )


class WithUnloggedSequence(Schema):
    """Nothing but a sequence that a crash puts back to its start."""

    statements = (
        *Schema.statements,
        "create unlogged sequence quick",
        "select nextval('quick') from generate_series(1, 7)",
    )


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda v: f"pg{v}")
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that a test may hurt."""
    with running(request.param) as server:
        with server.session() as session:
            # As our own links have it: else a crash undoes the label of a template that was just built.
            session.execute("alter role postgres set synchronous_commit = on")
        yield server


@pytest.fixture
def link(own_server: Server) -> Iterator[Link]:
    """As in the other tests, but of that server."""
    link = Link(own_server.dsn(), "")
    link.session.execute("select 1")
    yield link
    alive(own_server)
    # Whatever a test did to its session.
    link.close()


def alive(server: Server) -> None:
    """Wait until it answers."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            server.session().close()
            return
        except (ServerLost, ServerRefused):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def crash(server: Server, *, wait: bool = True) -> None:
    """One backend is killed with -9: PostgreSQL ends all others, recovers, and empties unlogged tables."""
    with server.session() as session:
        before = Incarnation.of(session)
    with psycopg.connect(server.dsn().url, autocommit=True) as victim, suppress(psycopg.OperationalError):
        victim.execute("copy (select 1) to program 'kill -9 $PPID'")
        pytest.fail("it did not crash")
    # The client knows of it before the postmaster does.
    deadline = time.monotonic() + PATIENCE
    while wait and not before.other(now_of(server)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def now_of(server: Server) -> Incarnation:
    while True:
        alive(server)
        with suppress(ServerLost, ServerRefused), server.session() as session:
            return Incarnation.of(session)


def restart(server: Server, how: str = "fast") -> None:
    """Stop and start it; only where its files are ours."""
    folder = binaries(server.version)
    if folder is None or server.data is None:
        pytest.skip("a server in a container has its data in memory: it is gone with its end")
    user = "postgres" if os.geteuid() == 0 else None
    with open(server.data / "restarted.log", "wb") as log:
        command = [str(folder / "pg_ctl"), "-D", str(server.data), "-w", "-s", "-m", how, "restart"]
        subprocess.run(command, user=user, cwd="/", stdout=log, stderr=log, check=True, timeout=60)


def build(link: Link, project: str, source: Schema) -> Template:
    return template.ensure(link.session, project, TemplateSpec("default", [source]), OWNER)


def users(lease: Lease) -> int:
    with lease.connect() as connection:
        (count,) = connection.execute("select count(*) from users").fetchone()
    return int(count)


def dirty(lease: Lease) -> None:
    with lease.connect() as connection:
        connection.execute("insert into users (name) select 'x' from generate_series(1, 1000)")


def end_ours(server: Server) -> None:
    """End the admin's sessions, without a crash."""
    with psycopg.connect(server.dsn().url, autocommit=True) as other:
        other.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'pg-harness'"
        )


# --- what was noted of a lease ----------------------------------------------------------------------


@pytest.mark.parametrize("opened", [False, True], ids=["first", "open"])
@pytest.mark.parametrize("hurt", [crash, restart], ids=["crash", "restart"])
def test_a_lease_is_cloned_at_once_and_the_report_says_why(
    own_server: Server, lease_of: Callable[[str], Lease], hurt: Callable[[Server], None], opened: bool
) -> None:
    with lease_of("1") as lease:
        lease.watch()
        if opened:
            dirty(lease)
            assert lease.reset().strategy == "restore"
        dirty(lease)
        hurt(own_server)
        report = lease.reset()
        assert report.strategy == "clone"
        assert ("crashed" if hurt is crash else "restarted") in report.reason
        assert users(lease) == 0
        # And it goes on as before: watched, and cheap.
        assert lease.reset().strategy == "nothing"
        dirty(lease)
        assert lease.reset().strategy == "restore"
        assert users(lease) == 0


@pytest.mark.parametrize("opened", [False, True], ids=["first", "open"])
def test_one_database_alone_knows_it_too(
    own_server: Server, clones: Clones, lease_of: Callable[[str], Lease], opened: bool
) -> None:
    with lease_of("1") as lease:
        one = lease["default"]
        reset = DatabaseReset(clones, one.dsn, one.template, one.claim, reset_timeout=1.0)
        reset.prepare()
        if opened:
            dirty(lease)
            assert reset.reset().strategy == "restore"
        dirty(lease)
        crash(own_server)
        assert not reset.untouched
        report = reset.reset()
        assert (report.strategy, "crashed" in report.reason) == ("clone", True)
        assert users(lease) == 0
        reset.close()


def test_a_server_that_still_recovers_is_waited_for(
    own_server: Server, lease_of: Callable[[str], Lease]
) -> None:
    with lease_of("1") as lease:
        lease.watch()
        dirty(lease)
        crash(own_server, wait=False)
        assert lease.reset().strategy == "clone"
        assert users(lease) == 0


def test_nobody_was_there_before_the_crash(own_server: Server, lease_of: Callable[[str], Lease]) -> None:
    """The counters of who was there begin anew, and look the same."""
    with lease_of("1") as lease:
        lease.watch()
        assert lease.reset().strategy == "nothing"
        crash(own_server)
        assert not lease.untouched
        assert lease.reset().strategy == "clone"


@pytest.mark.parametrize("opened", [False, True], ids=["first", "open"])
def test_sessions_of_ours_that_are_ended_are_no_crash(
    own_server: Server, lease_of: Callable[[str], Lease], opened: bool
) -> None:
    with lease_of("1") as lease:
        lease.watch()
        if opened:
            dirty(lease)
            assert lease.reset().strategy == "restore"
        dirty(lease)
        end_ours(own_server)
        report = lease.reset()
        assert report.strategy == ("clone" if opened else "restore")
        assert not report.reason.startswith("the server")
        assert users(lease) == 0


def test_the_sign_of_life_and_the_note_are_one_crash(own_server: Server, clones: Clones, link: Link) -> None:
    """Both notice it: that is one fresh clone, not two; and none where only its own session was ended."""
    made = build(link, clones.project, Schema())
    run = names.run_id()
    life = SignOfLife(link.another(), [("run", run)])
    try:
        plain = make_lease(clones, made, run)
        lease = Lease(clones, dict(plain.databases), run=run, worker="1", epoch=lambda: life.epoch)
        lease.watch()
        dirty(lease)
        crash(own_server)
        came_back(life, own_server, run, 1)
        report = lease.reset()
        assert (report.strategy, "crashed" in report.reason) == ("clone", True)
        assert users(lease) == 0
        assert lease.reset().strategy == "nothing"
        dirty(lease)
        end_ours(own_server)
        came_back(life, own_server, run, 2)
        report = lease.reset()
        # Its engine's sessions were ended too: that is the reason, and not a crash.
        assert report.reason.startswith("a session of the reset was lost")
        assert users(lease) == 0
        lease.release()
    finally:
        life.close()


def came_back(life: SignOfLife, server: Server, run: str, epoch: int) -> None:
    """Wait until it holds its locks again: an epoch is counted before that."""
    deadline = time.monotonic() + PATIENCE
    with server.session() as session:
        while life.epoch < epoch or not sweep.alive_runs(session, [run]):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_lease_that_is_cloned_each_time_goes_on(
    own_server: Server, lease_of: Callable[[str], Lease]
) -> None:
    with lease_of("1") as lease:
        dirty(lease)
        crash(own_server)
        assert lease.renew().strategy == "clone"
        assert users(lease) == 0
        crash(own_server)
        assert lease.reset().strategy == "clone"


def test_a_session_of_the_replication_protocol_is_no_nobody(
    own_server: Server, lease_of: Callable[[str], Lease]
) -> None:
    """It is counted as no session, and runs any SQL."""
    with lease_of("1") as lease:
        lease.watch()
        assert lease.untouched
        dsn = own_server.dsn(lease.dsn.database)
        with psycopg.connect(dsn.url, replication="database", autocommit=True) as connection:
            connection.cursor().execute("insert into users (name) values ('walsender')")
        deadline = time.monotonic() + PATIENCE
        while databases_in_use(own_server, lease.dsn.database):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert not lease.untouched
        assert lease.reset().strategy != "nothing"
        assert users(lease) == 0


def databases_in_use(server: Server, name: str) -> bool:
    """Whether anybody is in a database, of whatever protocol."""
    with server.session() as session:
        return bool(session.value("select count(*) from pg_stat_activity where datname = %s", (name,)))


# --- templates and their copies ---------------------------------------------------------------------


def fast(session: Session) -> tuple[int, int]:
    found = session.row("select (select count(*)::int from fast), (select last_value::int from fast_id_seq)")
    assert found is not None
    return int(found[0]), int(found[1])


def of(link: Link, name: str) -> Session:
    return Session.connect(link.dsn.with_database(name))


def oid(link: Link, name: str) -> int:
    return int(link.session.value("select oid::int8 from pg_database where datname = %s", (name,)) or 0)


def back(link: Link) -> None:
    """The test's own link has lost its session as well."""
    link.close()
    link.session.execute("select 1")


@pytest.mark.parametrize("source", [WithUnlogged(), WithUnloggedSequence()], ids=["table", "sequence"])
def test_a_template_that_a_crash_emptied_is_built_again(
    own_server: Server, checkout: str, link: Link, source: Schema, told: list[str]
) -> None:
    before = build(link, checkout, source)
    assert not build(link, checkout, source).built
    assert not any("crash" in line for line in told)
    crash(own_server)
    back(link)
    assert template.look(link.session, checkout, before.fingerprint) is None
    again = build(link, checkout, source)
    assert again.built
    assert [line for line in told if "crash" in line and "unlogged" in line]
    assert not build(link, checkout, source).built


def test_a_template_without_unlogged_relations_stays(own_server: Server, checkout: str, link: Link) -> None:
    made = build(link, checkout, Schema())
    before = oid(link, made.name)
    crash(own_server)
    back(link)
    assert not build(link, checkout, Schema()).built
    assert oid(link, made.name) == before


def test_a_clean_restart_keeps_all_of_them(own_server: Server, checkout: str, link: Link) -> None:
    made = build(link, checkout, WithUnlogged())
    before = oid(link, made.name)
    restart(own_server)
    back(link)
    assert not build(link, checkout, WithUnlogged()).built
    assert oid(link, made.name) == before
    restart(own_server, "immediate")
    back(link)
    assert build(link, checkout, WithUnlogged()).built


def test_a_lease_gets_its_unlogged_rows_back(own_server: Server, checkout: str, link: Link) -> None:
    made = build(link, checkout, WithUnlogged())
    clones = Clones(
        link, checkout, OWNER, connections=5, remake=lambda old: build(link, checkout, WithUnlogged())
    )
    run = names.run_id()
    with make_lease(clones, made, run) as lease, make_lease(clones, made, run, "2") as other:
        for one in (lease, other):
            one.watch()
        dirty(lease)
        assert lease.reset().strategy == "restore"
        stale = clones.make_spare(made)
        crash(own_server)
        for one in (lease, other):
            report = one.reset()
            assert (report.strategy, "crashed" in report.reason) == ("clone", True)
            with of(link, one.dsn.database) as inside:
                assert fast(inside) == (10, 10)
        with open_baseline(clones, made, {}) as inside:
            assert fast(inside) == (10, 10)
        assert databases.find(link.session, stale) is None
        with lease.connect() as connection:
            connection.execute("delete from fast")
        # Its relations have other OIDs now: what the engine knew of the old ones is gone.
        assert lease.reset().strategy == "restore"
        with of(link, lease.dsn.database) as inside:
            assert fast(inside) == (10, 10)


def test_a_spare_of_before_the_crash_is_nobodys(own_server: Server, checkout: str, link: Link) -> None:
    """One that was made by a process that has not noticed yet."""
    made = build(link, checkout, WithUnlogged())
    clones = Clones(
        link, checkout, OWNER, connections=5, remake=lambda old: build(link, checkout, WithUnlogged())
    )
    spare = clones.make_spare(made)
    assert clones.spares(made) == [spare]
    crash(own_server)
    back(link)
    assert clones.spares(made) == []
    with make_lease(clones, made, names.run_id()) as lease, of(link, lease.dsn.database) as inside:
        assert fast(inside) == (10, 10)


def test_a_template_that_cannot_be_made_again_is_an_error(
    own_server: Server, checkout: str, link: Link, clones: Clones
) -> None:
    made = build(link, checkout, WithUnlogged())
    with make_lease(clones, made, names.run_id()) as lease:
        lease.watch()
        crash(own_server)
        with pytest.raises(LeaseLost, match="crash"):
            lease.reset()


def test_marks_of_a_test_end_with_a_template_that_is_gone(
    own_server: Server, checkout: str, link: Link
) -> None:
    made = build(link, checkout, WithUnlogged())
    clones = Clones(
        link, checkout, OWNER, connections=5, remake=lambda old: build(link, checkout, WithUnlogged())
    )
    with make_lease(clones, made, names.run_id()) as lease:
        lease.watch()
        dirty(lease)
        lease.mark()
        crash(own_server)
        with pytest.raises(LeaseError, match="marked state"):
            lease.reset()
        assert lease.reset().strategy in ("nothing", "clone")
        assert users(lease) == 0
        with of(link, lease.dsn.database) as inside:
            assert fast(inside) == (10, 10)


def test_a_persons_mark_that_a_crash_emptied_is_refused(
    own_server: Server, checkout: str, link: Link, clones: Clones
) -> None:
    for source, refused in ((WithUnlogged(), True), (Schema(), False)):
        made = build(link, checkout, source)
        lease = make_lease(clones, made, names.SANDBOX)
        found = databases.find(link.session, lease.dsn.database)
        assert found is not None
        mark, _, _ = marks.save(
            link.session,
            checkout,
            {"default": found},
            "one",
            strategy="file_copy",
            reset_timeout=1,
        )
        crash(own_server)
        back(link)
        copy = mark.databases["default"]
        if refused:
            with pytest.raises(LeaseError, match=r"'one'.*crash"):
                marks.put_back(clones, "one", copy, found, strategy="file_copy")
        else:
            marks.put_back(clones, "one", copy, found, strategy="file_copy")
        marks.drop_of(link.session, checkout, found.name)
        lease.release()


@pytest.mark.parametrize("source", [WithUnlogged(), Schema()], ids=["unlogged", "plain"])
def test_a_label_that_says_nothing_of_it(checkout: str, link: Link, source: Schema) -> None:
    """Of an earlier version: looked into once, and built again only where there is something to lose."""
    made = build(link, checkout, source)
    found = databases.find(link.session, made.name)
    assert found is not None
    assert found.label.unlogged is not None
    old = replace(found.label, unlogged=None)
    link.session.execute(databases.label_statement(made.name, old, found.comment))
    assert build(link, checkout, source).built == isinstance(source, WithUnlogged)
    after = databases.find(link.session, made.name)
    assert after is not None
    assert (after.allows_connections, after.is_template) == (False, True)
    assert after.label.unlogged is not None
    assert template.look(link.session, checkout, made.fingerprint) is not None


@pytest.mark.parametrize("hurt", [crash, restart], ids=["crash", "restart"])
def test_a_baked_template_is_as_good_as_its_server(
    own_server: Server, checkout: str, link: Link, hurt: Callable[[Server], None]
) -> None:
    """It is another life of the server that adopts it: a snapshot is taken after a clean stop."""
    source = WithUnlogged()
    baked = build(link, names.BAKED, source)
    try:
        hurt(own_server)
        back(link)
        assert build(link, checkout, source).built == (hurt is crash)
        with of(link, lease_name(link, checkout, baked)) as inside:
            assert fast(inside) == (10, 10)
    finally:
        for found in databases.list_ours(link.session, names.BAKED):
            databases.drop(link.session, found.name, names.BAKED)


def lease_name(link: Link, project: str, made: Template) -> str:
    """A clone of it, to look into."""
    found = template.look(link.session, project, made.fingerprint)
    assert found is not None
    return Clones(link, project, OWNER, connections=5).make_spare(found)
