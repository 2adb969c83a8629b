"""Another user of the machine who takes our names first: nothing of his is believed, executed or written through."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from fix_backends import Checkout, until
from fix_servers import binaries_of

from harness.config import own_folder, project
from harness.config.load import load
from harness.config.processes import running as alive
from harness.config.project import Project
from harness.errors import ConfigError
from harness.postgres.session import Session
from harness.servers.process.backend import ProcessBackend
from harness.servers.process.record import Record
from harness.servers.process.user import ServerUser

STRANGER = 54321
"""A user of no name."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's files")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that everybody may write to, as ``/dev/shm`` is; not below pytest's, which each session closes again."""
    with tempfile.TemporaryDirectory(prefix="pgharness-shared-") as top:
        os.chmod(top, 0o711)
        folder = Path(top, "shm")
        folder.mkdir()
        folder.chmod(0o1777)
        yield folder


def usual(shared: Path) -> Path:
    return shared / f"pg-harness-{os.geteuid()}"


def backend(place: Checkout, shared: Path, **options: Any) -> ProcessBackend:
    folder = binaries_of("15")
    if folder is None:
        pytest.skip("PostgreSQL 15 is not installed on this machine")
    state, cache = project.state_dir(place.environ), project.cache_dir(place.environ)
    return ProcessBackend(place.environ, state=state, cache=cache, binaries=folder, memory=shared, **options)


def planted(place: Checkout, folder: Path, programs: Path) -> Path:
    """A server's folder with a record in it, as a stranger would make it; returns the file that his program writes."""
    proof = programs / "executed"
    programs.mkdir()
    for name in ("postgres", "psql", "initdb"):
        (programs / name).write_text(f"#!/bin/sh\nid -u >> {proof}\n")
        (programs / name).chmod(0o755)
    programs.chmod(0o777)
    folder.mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "data" / "PG_VERSION").write_text("15\n")
    record = Record(
        place.project,
        "up",
        "planted",
        str(place.root),
        "secret",
        "memory",
        str(programs),
        "15.0",
        pid=1,
        port=5432,
    )
    (folder / "server.json").write_text(json.dumps(asdict(record)))
    for path in [folder, *folder.rglob("*"), folder.parent]:
        os.chown(path, STRANGER, STRANGER)
        path.chmod(0o777)
    return proof


@pytest.mark.parametrize("taken", ["his folder", "his folder, open to all", "his link to ours", "his file"])
@pytest.mark.server
def test_a_name_that_a_stranger_took_first(
    place: Checkout, shared: Path, tmp_path: Path, taken: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = usual(shared)
    ours = tmp_path / "of-ours"
    if taken == "his file":
        name.write_text("")
    elif taken == "his link to ours":
        ours.mkdir(mode=0o711)
        name.symlink_to(ours)
    else:
        name.mkdir(mode=0o777)
        name.chmod(0o777 if taken.endswith("all") else 0o755)
    os.chown(name, STRANGER, STRANGER, follow_symlinks=False)
    before = os.lstat(name)
    here = backend(place, shared)
    with caplog.at_level(logging.WARNING, "pg_harness"):
        info = here.start(place.request(storage="memory"))
    assert Path(info.handle).parent.parent == shared
    assert Path(info.handle).parent != name
    assert f"{name} is not used" in caplog.text
    with Session.connect(info.dsn) as session:
        assert session.value("select 1") == 1
    assert backend(place, shared).find(place.project, "run") == info
    # The next start goes to the same place, without looking for a third name.
    other = here.start(place.request("run-2", storage="memory"))
    assert Path(other.handle).parent == Path(info.handle).parent
    for each in (info, other):
        here.stop(each)
        assert not os.path.exists(each.handle)
    assert not ours.exists() or not list(ours.iterdir())
    after = os.lstat(name)
    assert (before.st_uid, before.st_mode, before.st_mtime_ns) == (
        after.st_uid,
        after.st_mode,
        after.st_mtime_ns,
    )


@pytest.mark.server
def test_a_planted_record_is_never_executed(place: Checkout, shared: Path, tmp_path: Path) -> None:
    proof = planted(place, usual(shared) / f"{place.project}-up-12345678", tmp_path / "programs")
    here = backend(place, shared)
    assert here.list(place.project) == []
    assert here.find(place.project, "up") is None
    info = here.start(place.request("up", storage="memory"))
    assert info.server_id != "planted"
    assert not proof.exists(), f"executed as {proof.read_text()}"
    here.stop(info)
    assert (usual(shared) / f"{place.project}-up-12345678" / "server.json").exists()


@pytest.mark.server
def test_what_the_servers_own_user_plants_is_not_roots(place: Checkout, shared: Path, tmp_path: Path) -> None:
    """The folder of all servers is that user's: its record decides nothing, and nothing is written through its links."""
    user = ServerUser.find()
    here = backend(place, shared)
    first = here.start(place.request("run", storage="memory"))
    folder = usual(shared) / f"{place.project}-up-12345678"
    proof = planted(place, folder, tmp_path / "programs")
    for path in [folder, *folder.rglob("*"), folder.parent]:
        user.give(path)
        path.chmod(0o700 if path.is_dir() else 0o600)
    folder.parent.chmod(0o711)
    assert here.list(place.project) == [first]
    info = here.start(place.request("up", storage="memory"))
    assert not proof.exists()
    # A server that was stopped, and whose folder was dressed up before it is started again.
    record = Record.read(Path(info.handle))
    assert record is not None
    record.kill_watcher(Path(info.handle))
    os.kill(record.pid, signal.SIGQUIT)
    until(lambda: not alive(record.pid), seconds=20, what="the postmaster to end")
    victim = tmp_path / "victim"
    victim.write_text("root's own\n")
    victim.chmod(0o600)
    for name in ("log", "settings", "pgpass", "launch.sh", "watch.sh"):
        path = Path(info.handle) / name
        path.unlink()
        path.symlink_to(victim)
        os.chown(path, user.uid or 0, user.gid or 0, follow_symlinks=False)
    again = here.start(place.request("up", storage="memory"))
    about = victim.stat()
    assert (victim.read_text(), about.st_uid, stat.S_IMODE(about.st_mode)) == ("root's own\n", 0, 0o600)
    with Session.connect(again.dsn) as session:
        assert session.value("select 1") == 1
    here.stop(again)
    here.stop(first)


@pytest.mark.parametrize("variable", ["PGHARNESS_STATE_DIR", "PGHARNESS_CACHE_DIR"])
@pytest.mark.parametrize("kind", ["a stranger's", "writable for others", "a stranger's link"])
def test_state_and_caches_of_others_are_refused(
    shared: Path, tmp_path: Path, variable: str, kind: str
) -> None:
    folder = shared / "ours"
    if kind == "a stranger's link":
        (tmp_path / "real").mkdir()
        folder.symlink_to(tmp_path / "real")
    else:
        folder.mkdir()
        folder.chmod(0o777 if kind == "writable for others" else 0o700)
    if kind != "writable for others":
        os.chown(folder, STRANGER, STRANGER, follow_symlinks=False)
    with pytest.raises(ConfigError) as caught:
        Project.of(load({}, start=tmp_path), {variable: str(folder), "HOME": str(tmp_path)})
    assert str(folder) in str(caught.value)
    assert variable in str(caught.value)
    assert {"writable for others": "mode 0777"}.get(kind, f"uid {STRANGER}") in str(caught.value)


def test_our_own_link_to_our_own_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir(mode=0o700)
    (tmp_path / "state").symlink_to(tmp_path / "large disk")
    environ = {"PGHARNESS_STATE_DIR": str(tmp_path / "state"), "PGHARNESS_CACHE_DIR": str(tmp_path / "cache")}
    assert Project.of(load({}, start=tmp_path), environ).state == tmp_path / "state"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        own_folder.make(tmp_path / "a" / "b" / "c", 0o700)
        project.make_folder(tmp_path / "d" / "e", 0o755)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"a": 0o700, "b": 0o700, "c": 0o700, "d": 0o755, "e": 0o755}


@pytest.mark.server
def test_a_whole_server_under_an_open_umask(place: Checkout, shared: Path) -> None:
    before = os.umask(0)
    try:
        info = backend(place, shared).start(place.request(storage="memory"))
    finally:
        os.umask(before)
    top = Path(info.handle).parent
    files = [top, *(path for path in top.rglob("*") if not path.is_symlink())]
    open_to_others = [str(path) for path in files if stat.S_IMODE(path.stat().st_mode) & 0o022]
    assert open_to_others == []
    readable = {
        path.name for path in Path(info.handle).iterdir() if stat.S_IMODE(path.stat().st_mode) & 0o044
    }
    assert readable <= {"launch.sh", "watch.sh"}
    backend(place, shared).stop(info)


def test_where_users_have_no_numbers_folders_are_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows."""
    os.chown(tmp_path, STRANGER, STRANGER)
    assert own_folder.distrust(tmp_path) == f"it belongs to uid {STRANGER}"
    monkeypatch.delattr(os, "geteuid")
    assert own_folder.distrust(tmp_path) == ""
