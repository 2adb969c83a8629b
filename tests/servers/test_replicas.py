"""Streaming standbys: real ones, that lag, are killed, are written to, and in which a test's sessions stay open."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_backends import docker
from fix_backends import until as until_of
from fix_impostor import Impostor
from fix_reset_servers import VERSIONS, binaries
from fix_runs import environ_of_15, opened
from fix_servers import binaries_of

from harness import ReplicaBehind
from harness.config import processes
from harness.config.load import load
from harness.config.project import Project
from harness.databases.lease import Lease
from harness.databases.replicas import NoReplica, Replica
from harness.errors import BackendUnavailable, ConfigError, ServerLost, ServerStartError
from harness.postgres import session as session_
from harness.postgres.session import Session
from harness.runs.opening import settings_of
from harness.runs.places import places_on
from harness.runs.run import Run
from harness.runs.session import ServerSession
from harness.servers import handshake
from harness.servers.external import OLDEST
from harness.servers.pooler import pgbouncer
from harness.servers.process.record import postmaster_in
from harness.servers.replica import following
from harness.servers.replica import standbys as standbys_

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(binaries_of("15") is None, reason="PostgreSQL 15 is not installed"),
]

SETTINGS = """
migrations = ["sql:db"]
replicas = 1
reset_timeout = "300ms"
ttl = "60s"
[env]
READ_URL = "{replica.url}"
[postgres]
wal_keep_size = "16MB"
max_wal_size = "32MB"
min_wal_size = "16MB"
[databases.analytics]
env = { ANALYTICS_READ = "{replica.sqlalchemy}", ANALYTICS_OTHER = "{analytics.replica.host}" }
"""


def until(true: Callable[[], bool]) -> None:
    until_of(true, seconds=20, what="what was waited for")


def new_root(folder: Path, settings: str = SETTINGS) -> Path:
    folder.mkdir()
    (folder / "db").mkdir()
    (folder / "db" / "1.sql").write_text(
        "create table users (id serial primary key, name text not null); insert into users (name) values ('first');"
    )
    (folder / "pg-harness.toml").write_text(settings)
    return folder


@pytest.fixture(scope="module")
def run(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run whose server has a standby, for all of this file."""
    with opened(new_root(tmp_path_factory.mktemp("replicas") / "shop"), environ_of_15(folders)) as run:
        yield run


@pytest.fixture
def lease(run: Run) -> Iterator[Lease]:
    with run.lease(watch=True) as lease:
        yield lease


def replica_of(lease: Lease) -> Replica:
    assert lease.replica is not None
    return lease.replica


def folder_of(run: Run) -> Path:
    return Path(run.server.info.handle) / "standby-1"


def pid_of(run: Run) -> int:
    return postmaster_in(folder_of(run) / "data")


def stop(run: Run) -> None:
    os.kill(pid_of(run), signal.SIGKILL)
    until(lambda: pid_of(run) == 0)


def write(lease: Lease, statement: str = "insert into users (name) values ('new')") -> None:
    with lease.connect() as connection:
        connection.execute(statement.encode())


def names_in(where: Lease | Replica) -> list[str]:
    with where.connect() as connection:
        return [name for (name,) in connection.execute("select name from users order by id")]


def superuser(run: Run) -> Session:
    standbys = run.session.standbys
    assert standbys is not None
    return standbys.connect(1)


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


# --- a standby that is behind, or gone ---------------------------------------------------------------------


def test_one_that_is_behind_says_how_far_and_why(run: Run, lease: Lease) -> None:
    with superuser(run) as session:
        session.value("select pg_wal_replay_pause()")
        until(lambda: session.value("select pg_get_wal_replay_pause_state()") == "paused")
        write(lease)
        with pytest.raises(ReplicaBehind, match=r"within 0\.2 s: \d+ bytes are left\n.*paused") as caught:
            lease.wait_for_replica(timeout=0.2)
        assert caught.value.behind is not None
        assert caught.value.behind > 0
        assert names_in(replica_of(lease)) == ["first"]
        # The next test must not pay for it.
        lease.reset()
        assert session.value("select pg_is_wal_replay_paused()") is False
    write(lease)
    lease.wait_for_replica()
    assert names_in(replica_of(lease)) == ["first", "new"]


def test_one_that_a_transaction_holds_up_names_it(lease: Lease) -> None:
    with replica_of(lease).connect() as left:
        left.execute("select count(*) from users")
        write(lease, "truncate users")
        with pytest.raises(
            ReplicaBehind, match=r"transactions there that may be in its way.*\n.*select count"
        ):
            lease.wait_for_replica(timeout=0.15)


def test_a_reset_that_is_late_there_is_not_taken_for_done(
    run: Run, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PATIENCE", 0.5)
    monkeypatch.setattr(following, "DELAY", -following.MARGIN)
    with superuser(run) as session:

        def delayed(value: str) -> None:
            session.execute(f"alter system set recovery_min_apply_delay = '{value}'")
            session.value("select pg_reload_conf()")
            until(lambda: session.value("show recovery_min_apply_delay") == value)

        write(lease)
        lease.wait_for_replica()
        delayed("1h")
        try:
            # Its commit is replayed in an hour; the second reset finds nothing to do at its primary.
            for _ in range(2):
                with pytest.raises(
                    ReplicaBehind, match=r"within 0\.5 s: .*\n.*recovery_min_apply_delay is 1h"
                ):
                    lease.reset()
            # Nor is a lease given that the standby does not show.
            with pytest.raises(ReplicaBehind):
                run.lease("late", watch=True)
            assert names_in(replica_of(lease)) == ["first", "new"]
        finally:
            delayed("0")
    assert lease.reset().strategy == "nothing"
    assert names_in(replica_of(lease)) == ["first"]
    with run.lease("late", watch=True) as other:
        assert names_in(replica_of(other)) == ["first"]


def test_a_reset_waits_for_as_long_as_the_log_does_there(
    lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker's reader may hold it up for `reset_timeout` and DELAY, which may be more than PATIENCE."""
    began = time.monotonic()
    behind = following._behind

    def held_up(session: Session, target: str) -> int:
        return 1 if time.monotonic() - began < 0.8 else behind(session, target)

    write(lease)
    monkeypatch.setattr(following, "PATIENCE", 0.2)
    monkeypatch.setattr(following, "_behind", held_up)
    lease.reset()
    assert names_in(replica_of(lease)) == ["first"]
    monkeypatch.setattr(following, "DELAY", -following.MARGIN)
    began = time.monotonic()
    write(lease)
    with pytest.raises(ReplicaBehind, match=r"within 0\.3 s"):
        lease.reset()
    monkeypatch.undo()
    lease.reset()


def test_one_that_was_killed_is_started_again_at_its_address(run: Run, lease: Lease) -> None:
    write(lease)
    before, url = pid_of(run), replica_of(lease).url
    os.kill(before, signal.SIGKILL)
    until(lambda: pid_of(run) == 0)
    # Nothing is held back for it: there is no slot.
    assert run.link.session.value("select count(*) from pg_replication_slots") == 0
    lease.reset()
    assert pid_of(run) not in (0, before)
    assert names_in(replica_of(lease)) == ["first"]
    assert replica_of(lease).url == url
    with run.lease("other", watch=True) as other:
        os.kill(pid_of(run), signal.SIGKILL)
        until(lambda: pid_of(run) == 0)
        # Nothing was written: a reset sees to it all the same.
        assert other.reset().strategy == "nothing"
        assert names_in(replica_of(other)) == ["first"]


@pytest.mark.parametrize("libpq", ["insists on SCRAM", "15"])
def test_who_has_taken_its_port_is_not_told_the_password(
    run: Run, lease: Lease, libpq: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if libpq == "15":
        for module in (session_, handshake, standbys_):
            monkeypatch.setattr(module, "asks_for_scram", lambda: False)
    standbys = run.session.standbys
    assert standbys is not None
    standbys.connect(1).close()
    stop(run)
    with Impostor(port=run.server.info.standbys[0]) as impostor:
        with pytest.raises(ServerLost):
            standbys.connect(1)
        assert impostor.asked == (libpq != "15")
    assert impostor.told == []
    standbys.ensure()


def test_one_that_was_away_for_too_long_is_made_again(
    run: Run, lease: Lease, caplog: pytest.LogCaptureFixture
) -> None:
    os.kill(pid_of(run), signal.SIGKILL)
    until(lambda: pid_of(run) == 0)
    session = run.link.session
    for _ in range(3):
        write(
            lease, "insert into users (name) select repeat(md5(i::text), 30) from generate_series(1, 20000) i"
        )
        session.execute("checkpoint")
    write(lease, "truncate users")
    # What a server keeps for standbys is bounded.
    assert session.value("select sum(size) from pg_ls_waldir()") < 150 << 20
    with caplog.at_level("INFO", "pg_harness"):
        lease.reset()
    assert "is made again" in caplog.text
    assert names_in(replica_of(lease)) == ["first"]


def test_one_whose_maker_was_killed_is_made_again(run: Run, lease: Lease) -> None:
    standbys = run.session.standbys
    assert standbys is not None
    stop(run)
    # As if it had been killed behind the copy, before the standby has begun.
    folder = folder_of(run)
    standbys._of.copy(1)
    assert not (folder / "label").exists()
    (folder / "data" / "of_that_copy").touch()
    write(lease)
    lease.reset()
    assert not (folder / "data" / "of_that_copy").exists()
    assert (folder / "label").read_text().startswith("START WAL LOCATION")
    assert names_in(replica_of(lease)) == ["first"]


def test_a_crash_of_the_primary_is_survived(run: Run, lease: Lease) -> None:
    write(lease)
    with suppress(psycopg.OperationalError), lease.connect() as connection:
        os.kill(connection.info.backend_pid, signal.SIGKILL)
        connection.execute("select pg_sleep(5)")
    lease.reset()
    assert names_in(replica_of(lease)) == ["first"]
    write(lease)
    lease.wait_for_replica()
    assert names_in(replica_of(lease)) == ["first", "new"]


def test_a_port_that_is_taken_is_not_waited_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    standbys = run.session.standbys
    assert standbys is not None
    calls: list[int] = []

    class Place:
        def move(self, number: int) -> int:
            calls.append(number)
            return 40000 + len(calls)

        def copy(self, number: int) -> None:
            pass

    def launch(self: standbys_.Standbys, number: int, label: str | None, *, timeout: float) -> None:
        assert label is not None
        assert "CHECKPOINT LOCATION" in label
        if len(calls) < 2:
            raise ServerStartError("no", log_tail="could not create any TCP/IP sockets")

    mine = standbys_.Standbys(standbys._project, run.server)
    before = run.server.info
    try:
        monkeypatch.setattr(standbys_.Standbys, "_launch", launch)
        mine._place = Place()  # type: ignore[assignment]
        mine._make(1)
        assert run.server.info.standbys == (40002,)
    finally:
        run.server.info = before
        mine._moved(1, before.standbys[0])


def test_one_whose_port_is_taken_moves_once_for_all_processes(
    run: Run, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in another process: what they know of the ports is their own.
    servers = [copy(run.server) for _ in range(2)]
    for server in servers:
        server.started = False
    first, second = (standbys_.Standbys(run.session.project, server) for server in servers)
    port = run.server.info.standbys[0]
    stop(run)
    made: list[int] = []
    make = standbys_.Standbys._make

    def counted(self: standbys_.Standbys, number: int, *words: Any) -> None:
        made.append(number)
        make(self, number, *words)

    monkeypatch.setattr(standbys_.Standbys, "_make", counted)
    with Impostor(port=port) as impostor:
        with pytest.raises(ServerStartError, match=f"something else has taken port {port} of standby 1"):
            lease.reset()
        first.ensure()
        pid = pid_of(run)
        assert pid
        assert first.info.standbys != (port,)
        began = time.monotonic()
        second.ensure()
        # It found the one that there is, and did not end it.
        assert (second.info.standbys, pid_of(run)) == (first.info.standbys, pid)
        assert time.monotonic() - began < 5
        # Tests of this run were told the old port: they must not go on with whoever is there, now or at the next reset.
        for _ in range(2):
            with pytest.raises(
                ServerStartError, match=f"is at another port by now: something else had taken {port}"
            ):
                lease.reset()
        assert replica_of(lease).dsn.port == port
    assert impostor.told == []
    assert made == []
    # Its data was there, and it has gone on with that; so does the next run.
    run.session.standbys.ensure()  # type: ignore[union-attr]
    assert run.server.info.standbys == first.info.standbys
    lease.reset()


# --- the end -----------------------------------------------------------------------------------------------


def test_it_ends_with_its_server(folders: tuple[Path, Path], tmp_path: Path) -> None:
    environ, root = environ_of_15(folders), new_root(tmp_path / "ends")
    with suppress(ServerLost), opened(root, environ, replicas=2) as run, run.lease() as lease:
        assert [replica.number for replica in lease.replicas] == [1, 2]
        values = run.variables(lease)
        assert values["DATABASE_REPLICA2_URL"] == lease.replicas[1].url != lease.replicas[0].url
        write(lease)
        lease.wait_for_replica()
        assert [names_in(replica) for replica in lease.replicas] == [["first", "new"]] * 2
        folder = Path(run.server.info.handle)
        pids = [postmaster_in(folder / f"standby-{number}" / "data") for number in (1, 2)]
        assert all(pids)
        os.kill(postmaster_in(folder / "data"), signal.SIGKILL)
        until(lambda: not any(processes.running(pid) for pid in pids))
    assert not folder.exists()


def test_its_switch_ends_it_and_nothing_is_left(folders: tuple[Path, Path], tmp_path: Path) -> None:
    environ, root = environ_of_15(folders), new_root(tmp_path / "switch")
    settings = load(environ, start=root, overrides={"ttl": "1s"})
    with Run.open_with(settings, environ) as run:
        folder, pid = Path(run.server.info.handle), pid_of(run)
        assert pid
    until(lambda: not folder.exists())
    assert not processes.running(pid)


def test_each_worker_has_one_where_each_has_a_server(folders: tuple[Path, Path], tmp_path: Path) -> None:
    environ, root = environ_of_15(folders), new_root(tmp_path / "each")
    with opened(root, environ, isolation="server") as run:
        first, second = run.leases(2, watch=True)
        assert replica_of(first).dsn.port != replica_of(second).dsn.port
        write(first)
        first.wait_for_replica()
        assert (names_in(replica_of(first)), names_in(replica_of(second))) == (["first", "new"], ["first"])
        first.reset()
        assert names_in(replica_of(first)) == ["first"]
        handles = [Path(session.server.info.handle) for session in run.placement.members.values()]
        pids = [postmaster_in(handle / "standby-1" / "data") for handle in handles]
        assert all(pids)
    assert not any(handle.exists() for handle in handles)
    assert not any(processes.running(pid) for pid in pids)


# --- with others -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [each for each in dict.fromkeys((OLDEST, *VERSIONS)) if each != 15])
def test_versions(version: int, folders: tuple[Path, Path], tmp_path: Path) -> None:
    programs = binaries(version)
    if programs is None:
        pytest.skip(f"PostgreSQL {version} is not installed on this machine")
    environ, root = environ_of_15(folders), new_root(tmp_path / "version")
    environ["PGHARNESS_BINARIES"] = str(programs)
    with opened(root, environ) as run, run.lease(watch=True) as lease:
        replica = replica_of(lease)
        with replica.connect() as connection:
            assert connection.info.server_version // 10000 == version
        for statement in ("insert into users (name) values ('new')", "alter table users add column age int"):
            write(lease, statement)
            lease.wait_for_replica()
            lease.reset()
            with replica.connect() as connection:
                assert connection.execute("select * from users").fetchall() == [(1, "first")]


@pytest.mark.skipif(
    shutil.which("pgbouncer", path=os.pathsep.join([os.environ["PATH"], *pgbouncer.PLACES])) is None,
    reason="pgbouncer is not installed",
)
def test_a_pooler_is_in_front_of_the_primary_alone(folders: tuple[Path, Path], tmp_path: Path) -> None:
    environ, root = environ_of_15(folders), new_root(tmp_path / "pooled")
    with opened(root, environ, pooler="pgbouncer") as run, run.lease(watch=True) as lease:
        replica, values = replica_of(lease), run.variables(lease)
        assert lease.pooled
        assert values["DATABASE_REPLICA_URL"] == values["READ_URL"] == replica.url
        assert len({replica.dsn.port, lease.dsn.port, lease.direct.dsn.port}) == 3
        with lease.connect() as writing, replica.connect(autocommit=True) as reading:
            for statement in ("insert into users (name) values ('new')", "drop table users"):
                writing.execute(statement.encode())
                writing.commit()
                lease.wait_for_replica()
                lease.reset()
                # A clone ends who reads in the database before it.
                if statement.startswith("insert"):
                    assert reading.execute("select name from users").fetchall() == [("first",)]
        assert names_in(replica) == names_in(lease) == ["first"]


# --- refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        (
            {"server_url": "postgresql://ann@127.0.0.1:9/shop"},
            r"server_url \(.*\): the server is somebody else's",
        ),
        ({"backend": "swarm"}, r'backend = "swarm" \(.*\): a Swarm\'s task publishes one port'),
    ],
    ids=["external", "swarm"],
)
def test_what_can_have_none_says_so_before_anything_is_started(
    backend: dict[str, str], why: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    environ, root = environ_of_15(folders), new_root(tmp_path / "others")
    del environ["PGHARNESS_BACKEND"]
    with pytest.raises(ConfigError, match=rf"replicas = 1 cannot be had beside {why}.*Leave `replicas` out"):
        settings_of(root, environ, backend)


def test_a_backend_of_others_that_starts_none_says_so(
    run: Run, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    environ, root = environ_of_15(folders), new_root(tmp_path / "lent")
    url = run.server.info.dsn.url
    with (
        # Not through the edge, which refuses it before.
        pytest.raises(BackendUnavailable, match=r"replicas = 1 .*the backend external starts no standbys"),
        opened(root, environ, backend="external", server_url=url, allow_foreign=True),
    ):
        pass


def test_one_that_was_started_without_is_looked_at_as_it_is(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    environ, root = environ_of_15(folders), new_root(tmp_path / "without")
    with opened(root, environ, replicas=0) as run, run.lease() as lease:
        # `env`, `url`, `psql` and the databases of agents, with settings that have changed since.
        project = Project.of(load(environ, start=root), environ)
        session = ServerSession(project, run.server)
        assert project.settings.replicas == 1
        assert session.standbys is None
        place = next(each for each in places_on(session) if each.run == run.session.run)
        assert place.addresses()["default"] == lease.dsn
        assert not [word for word in place.addresses() if "replica" in word]
        with pytest.raises(NoReplica):
            place.on_standby("default")


def test_rewinding_cannot_be_asked_for_as_well(folders: tuple[Path, Path], tmp_path: Path) -> None:
    environ, root = environ_of_15(folders), new_root(tmp_path / "rewind")
    with (
        pytest.raises(BackendUnavailable, match=r"(?s)engine = .rewind.*replicas = 1.*leave `replicas` out"),
        opened(root, environ, engine="rewind"),
    ):
        pass


def test_a_tablespace_would_be_shared(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = run.link.session
    session.execute("set allow_in_place_tablespaces = on")
    session.execute("create tablespace within location ''")
    try:
        # In the data directory: copied with it.
        standbys_._refuse_tablespaces(session)
    finally:
        session.execute("drop tablespace within")
    monkeypatch.setattr(Session, "rows", lambda self, statement: [("fast", "/mnt/fast")])
    with pytest.raises(ConfigError, match=r"1 tablespace \(fast\)"):
        standbys_._refuse_tablespaces(session)


def test_without_the_setting_there_is_none(folders: tuple[Path, Path], tmp_path: Path) -> None:
    environ, root = environ_of_15(folders), new_root(tmp_path / "none")
    with opened(root, environ, replicas=0) as run, run.lease() as lease:
        assert lease.replica is None
        assert lease.replicas == ()
        with pytest.raises(ConfigError, match="replicas = 1"):
            lease.wait_for_replica()
        values = run.variables(lease)
        assert "DATABASE_REPLICA_URL" not in values
        # The same settings hold for both.
        assert values["READ_URL"] == lease.url
        assert values["ANALYTICS_READ"] == lease["analytics"].sqlalchemy_url
        assert run.server.info.standbys == ()


@pytest.mark.parametrize("value", ["4", "-1", "one"])
def test_a_wrong_number_is_refused(value: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    environ = {**environ_of_15(folders), "PGHARNESS_REPLICAS": value}
    with pytest.raises(ConfigError, match="PGHARNESS_REPLICAS"):
        load(environ, start=new_root(tmp_path / "wrong"))


# --- in a container ----------------------------------------------------------------------------------------


@pytest.mark.docker
def test_one_in_a_container(folders: tuple[Path, Path], tmp_path: Path) -> None:
    environ, root = environ_of_15(folders), new_root(tmp_path / "container")
    environ |= {"PGHARNESS_BACKEND": "docker", "PGHARNESS_IMAGE": "pgharness-test:15"}
    del environ["PGHARNESS_BINARIES"]
    with opened(root, environ) as run, run.lease(watch=True) as lease:
        replica = replica_of(lease)
        assert names_in(replica) == ["first"]
        for _ in range(2):
            write(lease)
            lease.wait_for_replica()
            assert names_in(replica) == ["first", "new"]
            lease.reset()
            assert names_in(replica) == ["first"]
            # As if it had been killed, in its container.
            run.server.backend.standbys(run.server.info).end(1)
        write(lease, "create table more ()")
        assert lease.reset().strategy == "clone"
        assert names_in(replica) == ["first"]
        # Its port is for this machine alone, as its server's is.
        bound = docker("port", run.server.info.handle).splitlines()
        assert len(bound) == 2
        assert all("-> 127.0.0.1:" in line for line in bound)
        # Found again by what the container says of itself.
        found = run.server.backend.find(run.project, "run")
        assert found is not None
        assert found.standbys == run.server.info.standbys
        handle = run.server.info.handle
    assert not docker("ps", "--all", "--quiet", "--no-trunc", "--filter", f"id={handle}")
