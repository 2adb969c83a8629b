"""Starts and ends of local servers that were cut off: the next command finds, uses or removes what is there."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from fix_backends import Checkout, processes_naming, until
from fix_servers import binaries_of

from harness.config import project
from harness.config.processes import running as alive
from harness.errors import ServerStartError
from harness.servers.process import backend as process
from harness.servers.process.backend import ProcessBackend
from harness.servers.process.record import LAUNCHED, Record, folder_name, launched
from harness.servers.process.user import ServerUser, make_folder

pytestmark = pytest.mark.server


@pytest.fixture
def backend(place: Checkout) -> ProcessBackend:
    folder = binaries_of("15")
    if folder is None:
        pytest.skip("PostgreSQL 15 is not installed on this machine")
    state, cache = project.state_dir(place.environ), project.cache_dir(place.environ)
    return ProcessBackend(place.environ, state=state, cache=cache, binaries=folder)


def parent(place: Checkout) -> Path:
    return ServerUser.find().reachable(project.state_dir(place.environ) / "servers", "servers")


def test_a_folder_without_a_record_is_known_by_its_name(place: Checkout, backend: ProcessBackend) -> None:
    folder = parent(place) / folder_name(place.project, "up", "12345678")
    make_folder(folder, ServerUser.find())
    # Half of a removal: the record goes first.
    (folder / "data").mkdir()
    (folder / "data" / "PG_VERSION").write_text("15\n")
    (found,) = backend.list(place.project)
    assert (found.purpose, found.handle) == ("up", str(folder))
    assert backend.find(place.project, "up") is None
    info = backend.start(place.request("up", storage="disk"))
    assert not folder.exists()
    backend.stop(info)
    make_folder(folder, ServerUser.find())
    backend.stop(found)
    assert not folder.exists()


def test_half_a_copy_is_no_stopped_servers_data(
    place: Checkout, backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[Path] = []

    def cut_off(source: Path, target: Path, user: ServerUser) -> None:
        target.mkdir()
        (target / "PG_VERSION").write_text("15\n")
        copied.append(target.parent)
        # As by SIGKILL: nothing is removed.
        monkeypatch.setattr(process, "_remove", lambda folder: None)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(process.cluster_, "copy", cut_off)
        with pytest.raises(KeyboardInterrupt):
            backend.start(place.request("up", storage="disk"))
    monkeypatch.undo()
    assert (copied[0] / "server.json").exists()
    info = backend.start(place.request("up", storage="disk"))
    assert Path(info.handle) != copied[0]
    assert not copied[0].exists()
    backend.stop(info)


def test_a_server_whose_starter_died_before_it_knew_its_number(
    place: Checkout, backend: ProcessBackend
) -> None:
    first = backend.start(place.request("up", storage="disk"))
    folder = Path(first.handle)
    record = Record.read(folder)
    assert record is not None
    assert launched(folder) == (record.pid, record.watcher)
    replace(record, pid=0, watcher=0).write(folder)
    assert backend.find(place.project, "up") == first
    assert backend.start(place.request("up", storage="disk")) == first
    backend.stop(first)
    assert not folder.exists()
    until(lambda: not processes_naming(first.handle), seconds=10, what="no stray process")


def test_a_run_server_and_its_switch_end_with_their_folder(place: Checkout, backend: ProcessBackend) -> None:
    info = backend.start(place.request("run", storage="memory"))
    folder = Path(info.handle)
    (folder / "server.json").unlink()
    pid, watcher = launched(folder) or (0, 0)
    assert alive(pid)
    assert alive(watcher)
    (found,) = backend.list(place.project)
    backend.stop(found)
    assert not folder.exists()
    until(lambda: not alive(pid) and not alive(watcher), seconds=10, what="both to end")


def test_numbers_that_the_servers_user_wrote_end_nobody_else(
    place: Checkout, backend: ProcessBackend
) -> None:
    info = backend.start(place.request("run", storage="disk"))
    folder = Path(info.handle)
    record = Record.read(folder)
    assert record is not None
    replace(record, pid=0, watcher=0).write(folder)
    (folder / LAUNCHED).write_text(f"{os.getpid()} {os.getpid()}\n")
    before = os.getcwd()
    os.chdir(folder / "data")
    try:
        told = Record.read(folder)
        assert told is not None
        assert told.pid == os.getpid()
        # As root: the process is not the server's user's. Else PostgreSQL's own file names another one.
        assert not told.running(folder)
        told.kill_watcher(folder)
    finally:
        os.chdir(before)
        record.write(folder)
        backend.stop(info)


@pytest.mark.parametrize("door", ["make_folder", "Record.write"])
def test_a_start_that_fails_leaves_no_folder(
    place: Checkout, backend: ProcessBackend, door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def half(folder: Path, user: ServerUser, mode: int = 0o700) -> Path:
        made = make_folder(folder, user, mode)
        if folder.name.startswith(place.project):
            full()
        return made

    if door == "make_folder":
        monkeypatch.setattr(process, "make_folder", half)
    else:
        monkeypatch.setattr(Record, "write", full)
    with pytest.raises(ServerStartError, match="No space left"):
        backend.start(place.request("run", storage="disk"))
    assert not list(parent(place).glob(f"{place.project}-*"))
