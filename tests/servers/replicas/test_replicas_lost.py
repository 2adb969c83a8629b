"""A standby that is behind, gone, killed, moved to another port; and its end."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_impostor import Impostor
from fix_replicas import folder_of, names_in, new_root, pid_of, replica_of, stop, superuser, until, write
from fix_runs import environ_of_15, opened
from fix_servers import binaries_of

from harness import ReplicaBehind
from harness.config import processes
from harness.config.load import load
from harness.databases.lease import Lease
from harness.errors import ServerLost, ServerStartError
from harness.postgres import session as session_
from harness.postgres.session import Session
from harness.runs.run import Run
from harness.servers import handshake
from harness.servers.process.record import postmaster_in
from harness.servers.replica import following
from harness.servers.replica import standbys as standbys_

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(binaries_of("15") is None, reason="PostgreSQL 15 is not installed"),
]

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
