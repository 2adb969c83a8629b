"""pgbouncer in front of a server: real ones, killed, with clients that leave behind what a transaction pooler keeps."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import psycopg
import pytest
from fix_backends import until as until_of
from fix_last_will import leave
from fix_runs import environ_of_15, opened
from fix_servers import binaries_of

from harness.config import processes
from harness.config.load import load
from harness.config.project import Project
from harness.config.state_file import StateFile
from harness.databases.lease import Lease
from harness.dsn import Dsn
from harness.errors import BackendUnavailable, HarnessError, ServerRefused, ServerStartError
from harness.postgres import databases
from harness.postgres.session import Session
from harness.runs.run import Run
from harness.servers import inventory
from harness.servers.pooler import front, keeper, notes, pgbouncer
from harness.servers.port import ServerInfo

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(
        shutil.which("pgbouncer", path=os.pathsep.join([os.environ["PATH"], *pgbouncer.PLACES])) is None
        or binaries_of("15") is None,
        reason="pgbouncer, or PostgreSQL 15, is not installed",
    ),
]

SETTINGS = """
migrations = ["sql:db"]
pooler = "pgbouncer"
reset_timeout = "300ms"
connections_per_worker = 6
[env]
DIRECT_URL = "{direct.url}"
[databases.analytics]
env = { ANALYTICS_DIRECT = "{direct.url}", ANALYTICS_URL = "{url}" }
"""


def until(true: Callable[[], bool]) -> None:
    until_of(true, seconds=20, what="what was waited for")


def new_root(folder: Path) -> Path:
    folder.mkdir()
    (folder / "db").mkdir()
    (folder / "db" / "1.sql").write_text("create table users (id serial primary key, name text not null);")
    (folder / "pg-harness.toml").write_text(SETTINGS)
    return folder


@pytest.fixture(scope="module")
def run(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run with a pooler in front, for all of this file."""
    with opened(new_root(tmp_path_factory.mktemp("pooled") / "shop"), environ_of_15(folders)) as run:
        yield run


@pytest.fixture
def lease(run: Run) -> Iterator[Lease]:
    with run.lease(watch=True) as lease:
        yield lease


def noted(run: Run) -> notes.Notes:
    (path,) = (run.placement.project.folder / notes.FOLDER).glob("*.json")
    found = notes.read(path)
    assert found is not None
    leave("process", found.keeper, notes.FOLDER)
    return found


def bouncers(folder: Path) -> list[int]:
    """The pgbouncers that read their settings from a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0].endswith(b"pgbouncer") and any(w.startswith(f"{folder}/".encode()) for w in words):
                found.append(int(path.parent.name))
    return [pid for pid in found if processes.running(pid)]


def names_in(run: Run, lease: Lease) -> list[str]:
    with Session.connect(run.server.admin_dsn.with_database(lease.dsn.database)) as admin:
        return admin.column("select name from public.users order by id")


def test_the_url_leads_through_it_and_direct_past_it(run: Run, lease: Lease) -> None:
    assert lease.pooled
    assert lease.dsn.host == "127.0.0.1"
    assert lease.dsn.port != run.server.admin_dsn.port == lease.direct.dsn.port
    assert lease.direct.url == lease["default"].direct.url
    with lease.connect() as connection:
        connection.execute("insert into users (name) values ('a')")
    with lease.direct.connect() as connection:
        assert connection.execute("select name from users").fetchall() == [("a",)]
    values = run.variables(lease)
    assert values["DATABASE_URL"] == lease.url
    assert values["PGPORT"] == str(lease.dsn.port)
    assert values["DATABASE_DIRECT_URL"] == values["DIRECT_URL"] == lease.direct.url
    assert values["ANALYTICS_URL"] == lease["analytics"].url
    assert values["ANALYTICS_DIRECT"] == lease["analytics"].direct.url != values["DIRECT_URL"]


def test_what_a_test_set_in_a_session_is_gone_for_the_next(run: Run, lease: Lease) -> None:
    client = lease.connect(autocommit=True)
    client.execute("set search_path to nowhere")
    client.execute("set role none")
    client.execute("create temporary table leftover (a int)")
    client.execute("listen news")
    client.execute("select pg_advisory_lock(5)")
    client.execute("insert into public.users (name) values ('x')")
    look = (
        "select current_setting('search_path'), to_regclass('leftover'), (select count(*) from pg_listening_channels()), "
        "(select count(*) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database "
        "where datname = current_database()))"
    )
    # As in production: within one test, the pool has what was set.
    assert client.execute(look).fetchone()[0] == "nowhere"
    lease.reset()
    # The same client, whose connection was kept.
    assert client.execute(look).fetchone() == ('"$user", public', None, 0, 0)
    assert client.execute("select count(*) from users").fetchone() == (0,)
    client.close()


def test_a_transaction_that_is_left_open_is_ended_and_named(lease: Lease) -> None:
    left = lease.connect()
    left.execute("set local application_name = 'the careless one'")
    left.execute("insert into users (name) values ('left')")
    report = lease.reset()
    assert len(report.ended) == 1
    assert "the careless one" in report.ended[0]
    with pytest.raises(psycopg.OperationalError):
        left.execute("select 1")
    left.close()
    with lease.connect() as connection:
        assert connection.execute("select count(*) from users").fetchone() == (0,)


def test_a_client_that_asks_all_the_time_sees_clones_come_without_an_error(lease: Lease) -> None:
    stop, errors, asked = threading.Event(), [], []

    def ask() -> None:
        try:
            with lease.connect(autocommit=True) as connection:
                while not stop.is_set():
                    asked.append(connection.execute("select count(*) from users").fetchone()[0])
        except psycopg.Error as error:
            errors.append(error)

    idle = lease.connect(autocommit=True)
    idle.execute("select 1")
    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: bool(asked))
    for _ in range(4):
        assert lease.renew().strategy == "clone"
    seen = len(asked)
    until(lambda: len(asked) > seen or bool(errors))
    stop.set()
    thread.join(20)
    # What was in the middle of a statement is ended, as it is without a pooler; who waits or is idle is not.
    assert all(isinstance(error, psycopg.errors.AdminShutdown) for error in errors), errors
    idle.execute("insert into users (name) values ('b')")
    with lease.connect() as connection:
        assert connection.execute("select count(*) from users").fetchone() == (1,)
    idle.close()


def test_prepared_statements_of_a_driver_are_to_be_switched_off(run: Run, lease: Lease) -> None:
    asyncpg = pytest.importorskip("asyncpg")

    def with_psycopg(**options: Any) -> None:
        with psycopg.connect(lease.url, autocommit=True, **options) as connection:
            for _ in range(2):
                for _ in range(7):
                    connection.execute("select name from users where id > %s", (1,))
                lease.reset()

    async def with_asyncpg(**options: Any) -> None:
        connection = await asyncpg.connect(lease.url, **options)
        try:
            for _ in range(2):
                await connection.fetch("select name from users where id > $1", 1)
                await asyncio.to_thread(lease.reset)
        finally:
            await connection.close()

    with_psycopg(prepare_threshold=None)
    asyncio.run(with_asyncpg(statement_cache_size=0))
    if noted(run).program.prepares:
        with_psycopg()
        asyncio.run(with_asyncpg())
        return
    # As the documentation says of pgbouncer before 1.21.
    with pytest.raises(psycopg.errors.InvalidSqlStatementName):
        with_psycopg()
    with pytest.raises(asyncpg.InvalidSQLStatementNameError):
        asyncio.run(with_asyncpg())


def test_a_connection_of_ours_prepares_nothing(lease: Lease) -> None:
    with lease.connect(autocommit=True) as connection:
        assert connection.prepare_threshold is None
        for round_ in range(3):
            for _ in range(8):
                connection.execute("insert into users (name) values (%s)", ("p",))
            lease.reset()
            assert connection.execute("select count(*) from users").fetchone() == (0,), round_


def test_more_clients_than_connections_wait_for_their_turn(run: Run, lease: Lease) -> None:
    clients = [lease.connect(autocommit=True) for _ in range(20)]
    threads = [threading.Thread(target=client.execute, args=("select pg_sleep(0.02)",)) for client in clients]
    for thread in threads:
        thread.start()
    with Session.connect(run.server.admin_dsn) as admin:
        most = 0
        while any(thread.is_alive() for thread in threads):
            most = max(
                most,
                admin.value(
                    "select count(*) from pg_stat_activity where datname = %s", (lease.dsn.database,)
                ),
            )
    # The harness's own is in it too.
    assert 1 <= most <= noted(run).pool + 2
    assert noted(run).pool <= run.settings.connections_per_worker
    for client in clients:
        client.close()


def test_a_worker_that_leases_again_has_the_same_name_and_a_new_database(run: Run) -> None:
    first = run.lease("again")
    client = first.connect(autocommit=True)
    client.execute("insert into users (name) values ('old')")
    url = first.url
    # A session is in it, and the pool has one more.
    first.release()
    second = run.lease("again")
    assert second.url == url
    with second.connect() as connection:
        assert connection.execute("select count(*) from users").fetchone() == (0,)
    second.release()
    client.close()
    with Session.connect(run.server.admin_dsn) as admin:
        assert (
            admin.value("select count(*) from pg_database where datname = %s", (url.rpartition("/")[2],)) == 0
        )


def test_nobody_else_can_read_what_it_reads_and_no_password_is_in_it(run: Run, lease: Lease) -> None:
    found = noted(run)
    password = lease.dsn.password
    for path in found.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        text = path.read_text()
        assert str(password) not in text
        assert found.password not in text
        assert str(run.server.admin_dsn.password) not in text
    assert stat.S_IMODE(found.folder.stat().st_mode) == 0o700
    for pid in (found.keeper, *bouncers(found.folder)):
        for name in ("cmdline", "environ"):
            shown = Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
            assert str(run.server.admin_dsn.password) not in shown
            assert found.password not in shown
    assert found.password not in repr(found)
    # Loopback, as the kernel has it (proc(5)): 0100007F.
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {
        r[1].split(":")[0] for r in rows if r[3] == "0A" and int(r[1].split(":")[1], 16) == found.port
    }
    assert listening == {"0100007F"}


def test_killed_it_is_started_again_by_the_next_reset_under_the_same_url(
    run: Run, lease: Lease, caplog: pytest.LogCaptureFixture
) -> None:
    client = lease.connect(autocommit=True)
    client.execute("insert into users (name) values ('before')")
    before = noted(run)
    (pid,) = bouncers(before.folder)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(psycopg.OperationalError):
        client.execute("select 1")
    client.close()
    with caplog.at_level(logging.WARNING, "pg_harness"):
        lease.reset()
    assert "it had ended; started again, on the same port" in caplog.text
    assert noted(run).port == before.port
    with lease.connect() as connection:
        assert connection.execute("select count(*) from users").fetchone() == (0,)
    until(lambda: not processes.running(before.keeper))
    (pid,) = bouncers(noted(run).folder)
    os.kill(pid, signal.SIGKILL)
    # Likewise by a new lease, whose role it does not know yet; and a release does not need it.
    with run.lease("one more") as more:
        with more.connect() as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        (pid,) = bouncers(noted(run).folder)
        os.kill(pid, signal.SIGKILL)


def test_a_killed_keeper_takes_it_along(run: Run, lease: Lease) -> None:
    before = noted(run)
    (pid,) = bouncers(before.folder)
    os.kill(before.keeper, signal.SIGKILL)
    until(lambda: not processes.running(pid))
    lease.renew()
    with lease.connect() as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    assert noted(run).keeper != before.keeper


def test_a_server_whose_machine_fell_silent_is_noticed(run: Run, tmp_path: Path) -> None:
    """Nothing is said on its session then: the system has to ask, and asks after two hours where nobody tells it when."""
    direct = run.server.admin_dsn
    for options, idle in (({}, 15), ({"keepalives_idle": "7"}, 7)):
        server = direct.with_options(options)
        nowhere = tmp_path / "nowhere"
        orders = keeper.Orders(
            (), None, None, nowhere, nowhere, 1, server, run.server.info.server_id, None, nowhere
        )
        with subprocess.Popen(["true"]) as child:
            link = keeper.Keeper(orders, child)._link
        with link.session as session, socket.socket(fileno=os.dup(session.connection.fileno())) as wire:
            assert wire.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            told = [
                wire.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            ]
            assert told == [idle, 5, 3]


def test_it_ends_with_its_server_and_leaves_nothing(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = environ_of_15(folders)
    root = new_root(tmp_path / "shop")
    run = Run.open_with(load(environ, start=root), environ)
    run.lease()
    found, place = noted(run), run.placement.project.folder / notes.FOLDER
    (pid,) = bouncers(found.folder)
    # As a power cut would have it: nobody shuts anything down.
    os.kill(
        int((Path(run.server.info.handle) / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL
    )
    until(lambda: not processes.running(found.keeper) and not processes.running(pid))
    assert not found.folder.exists()
    assert list(place.glob("*.json")) == []
    with suppress(HarnessError):
        run.close()
    inventory.stop(run.placement.project, purpose="run")
    # And where everything was killed, what is left of it goes with the next one's start, or `gc`.
    (found.folder).mkdir(mode=0o700)
    StateFile(place / "dead.json", notes.FORMAT).write(found)
    assert notes.sweep(run.placement.project.state) == [str(found.folder)]
    assert not found.folder.exists()


def test_without_the_program_it_is_said_how_to_get_it(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgbouncer, "PLACES", ())
    with pytest.raises(BackendUnavailable, match="apt install pgbouncer"):
        pgbouncer.find({"PATH": "/nowhere"})
    odd = tmp_path / "pgbouncer"
    odd.write_text("#!/bin/sh\necho what\n")
    odd.chmod(0o755)
    with pytest.raises(BackendUnavailable, match="does not say which pgbouncer it is: what"):
        pgbouncer.find({"PATH": str(tmp_path)})
    odd.write_text("#!/bin/sh\n[ $1 = --version ] && echo PgBouncer 1.24.1 || exit 3\n")
    assert pgbouncer.find({"PATH": str(tmp_path)}).prepares
    config = pgbouncer.Config(tmp_path, remote(), 5, 7, "console", pgbouncer.find({"PATH": str(tmp_path)}))
    assert "max_prepared_statements" in config.render()
    assert (
        "max_prepared_statements"
        not in pgbouncer.Config(tmp_path, remote(), 5, 7, "console", pgbouncer.Program("x", (1, 18))).render()
    )


def remote() -> Dsn:
    return Dsn("db's host", 5432, "u", "topsecret", "d", {"sslmode": "verify-full", "sslrootcert": "/x"})


def test_without_the_program_nothing_is_migrated(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgbouncer, "PLACES", ())
    environ = {**environ_of_15(folders), "PATH": "/nowhere"}
    settings = load(environ, start=new_root(tmp_path / "shop"))
    with pytest.raises(BackendUnavailable, match="the program pgbouncer was not found"):
        Run.open_with(settings, environ)
    with inventory.find(Project.of(settings, environ), purpose="run") as server:  # type: ignore[union-attr]
        assert databases.list_ours(server.session, None) == []
    inventory.stop(Project.of(settings, environ), purpose="run")


def test_a_program_that_does_not_start_is_an_error_with_its_log(
    run: Run, lease: Lease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "pgbouncer"
    odd.write_text("#!/bin/sh\n[ $1 = --version ] && echo PgBouncer 1.24.1 || exit 3\n")
    odd.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setattr(front, "ATTEMPTS", 1)
    project = run.placement.project
    info = run.server.info
    other = front.Pooler(
        project.__class__(project.settings, {"PATH": str(tmp_path)}, "0" * 10, project.state, project.cache),
        info,
        connections=5,
    )
    with pytest.raises(HarnessError, match=r"pgbouncer\) did not start: .*(ended at once|Permission)"):
        other.ensure()


def test_an_attempt_that_fails_leaves_no_process(
    folders: tuple[Path, Path], run: Run, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noted nowhere, and would stay until the server ends: one whose console lets nobody in, and one at Ctrl-C."""
    project = run.placement.project
    other = front.Pooler(replace(project, id="f" * 10), run.server.info, connections=5)
    launched: list[int] = []
    launch = other._launch

    def launching(config: pgbouncer.Config) -> int:
        launched.append(launch(config))
        assert len(bouncers(config.folder)) == 1
        config.log.write_text("what it says\n")
        return launched[-1]

    def refused(_: Dsn) -> None:
        raise ServerRefused("nobody gets in", sqlstate="08P01", statement="")

    monkeypatch.setattr(other, "_launch", launching)
    with monkeypatch.context() as patch:
        patch.setattr(front, "ATTEMPTS", 2)
        patch.setattr(front.Console, "connect", refused)
        with pytest.raises(ServerStartError, match="nobody gets in") as caught:
            other.ensure()
    assert "what it says" in str(caught.value)
    assert len(launched) == 2
    assert [pid for pid in launched if processes.running(pid)] == []
    assert bouncers(other._folder()) == []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *words: Any, **values: Any) -> None:
            super().__init__(*words, **values)
            started.append(self.pid)
            answers, self.stdout = self.stdout, MagicMock()
            self.stdout.__exit__.side_effect = lambda *_: answers.close()
            self.stdout.readline.side_effect = self.wait_in_vain

        def wait_in_vain(self) -> None:
            until(lambda: bouncers(other._folder()) != [])
            raise KeyboardInterrupt

    def interrupted(config: pgbouncer.Config) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", Interrupted)
            return launch(config)

    started: list[int] = []
    monkeypatch.setattr(other, "_launch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        other.ensure()
    assert len(started) == 1
    assert [pid for pid in started if processes.running(pid)] == []
    assert bouncers(other._folder()) == []


def test_in_front_of_somebody_elses_server_it_ends_with_the_last_run(
    server_of: Callable[[str], ServerInfo], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    server = server_of("15")
    environ = {**environ_of_15(folders), "PGHARNESS_SERVER_URL": server.dsn.url, "PGHARNESS_TTL": "400ms"}
    environ["PGHARNESS_ALLOW_FOREIGN"] = "1"
    environ = {k: v for k, v in environ.items() if k not in ("PGHARNESS_BACKEND", "PGHARNESS_BINARIES")}
    root = new_root(tmp_path / "shop")
    with Run.open_with(load(environ, start=root), environ) as run, run.lease(watch=True) as lease:
        found = noted(run)
        time.sleep(1.2)
        with lease.connect() as connection:
            connection.execute("insert into users (name) values ('x')")
        lease.reset()
        assert names_in(run, lease) == []
        assert processes.running(found.keeper)
    until(lambda: not processes.running(found.keeper))
    assert not found.folder.exists()


@pytest.mark.docker
def test_in_front_of_a_server_in_a_container(folders: tuple[Path, Path], tmp_path: Path) -> None:
    environ = {k: v for k, v in environ_of_15(folders).items() if k != "PGHARNESS_BINARIES"}
    environ |= {"PGHARNESS_BACKEND": "docker", "PGHARNESS_IMAGE": "pgharness-test:15"}
    with opened(new_root(tmp_path / "shop"), environ) as run:
        found = None
        with run.lease(watch=True) as lease:
            found = noted(run)
            client = lease.connect(autocommit=True)
            for again in (lease.reset, lease.renew):
                client.execute("insert into users (name) values ('x')")
                again()
                assert client.execute("select count(*) from users").fetchone() == (0,)
            client.close()
    until(lambda: not processes.running(found.keeper))


def test_a_run_without_it_imports_nothing_of_it(folders: tuple[Path, Path], tmp_path: Path) -> None:
    root = new_root(tmp_path / "shop")
    (root / "pg-harness.toml").write_text('migrations = ["sql:db"]\n')
    code = (
        "import os, sys\nfrom harness import Harness\n"
        "with Harness.open(root=sys.argv[1], environ=os.environ) as run:\n    run.lease(watch=True).reset()\n"
        "print([name for name in sys.modules if 'pooler' in name or 'console' in name and name.startswith('harness')])"
    )
    environ = environ_of_15(folders)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(root)],
            env=environ,
            text=True,
            capture_output=True,
            timeout=60,
            check=True,
        )
        assert done.stdout.strip() == "[]"
    finally:
        inventory.stop(Project.of(load(environ, start=root), environ), purpose="run")
