"""Files that one process leaves for another: replaced whole, and read with distrust."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.config.state_file import StateFile, Unreadable, decode, replace_file, sweep
from harness.dsn import Dsn
from harness.servers.port import ServerInfo
from harness.servers.process.record import Record
from harness.servers.records import Hint, root_of


@dataclass(frozen=True)
class Inner:
    words: tuple[str, ...] = ()
    more: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    where: Path
    count: int = 0
    seconds: float = 1.0
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    several: Mapping[str, Inner] = field(default_factory=dict)
    anything: Any = None


VALUE = Outer("ä", Path("/a b"), 3, 2.5, True, Inner(("x",), (1, 2)), {"k": Inner()}, {"free": [1]})


@pytest.fixture
def file(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "folder" / "state.json", 2)


def test_what_is_written_is_read(file: StateFile) -> None:
    file.write(VALUE)
    assert file.read_as(Outer) == VALUE
    assert file.read()["name"] == "ä"
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert os.listdir(file.path.parent) == ["state.json"]
    assert json.loads(file.path.read_text())["format"] == 2
    file.forget()
    file.forget()
    with pytest.raises(FileNotFoundError):
        file.read()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", r"cannot be read \(JSONDecodeError\)"),
        ('{"format": 2, "na', r"cannot be read \(JSONDecodeError\)"),
        ("\udcff", r"cannot be read \(UnicodeDecodeError\)"),
        ("[1]", "has an unknown form"),
        ('{"format": 1, "name": "x", "where": "/"}', "another version of pg-harness wrote it"),
        ('{"name": "x", "where": "/"}', "another version of pg-harness wrote it"),
        ('{"format": 2, "name": "x"}', "where is missing"),
        ('{"format": 2, "name": "x", "where": "/", "new": 1}', "Outer has no new"),
        ('{"format": 2, "name": 1, "where": "/"}', "name is of another type"),
        ('{"format": 2, "name": "x", "where": "/", "count": true}', "count is of another type"),
        ('{"format": 2, "name": "x", "where": "/", "seconds": "1"}', "seconds is of another type"),
        ('{"format": 2, "name": "x", "where": "/", "inner": 1}', "Inner is no object"),
        ('{"format": 2, "name": "x", "where": "/", "inner": {"more": [1, "2"]}}', "more is of another type"),
        ('{"format": 2, "name": "x", "where": "/", "several": {"k": null}}', "Inner is no object"),
    ],
)
def test_what_cannot_be_used_says_why(file: StateFile, text: str, why: str) -> None:
    file.path.parent.mkdir()
    file.path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(Unreadable, match=why):
        file.read_as(Outer)


def test_a_folder_is_no_file(file: StateFile) -> None:
    file.path.mkdir(parents=True)
    with pytest.raises(Unreadable, match=r"cannot be read \(IsADirectoryError\)"):
        file.read()


def test_unknown_fields_may_be_left_out() -> None:
    content = {"name": "x", "where": "/", "new": 1}
    assert decode(Outer, content, ignore_unknown=True) == Outer("x", Path("/"))


def test_a_hint_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    file = StateFile(tmp_path / "taken" / "state.json")
    assert file.note({"a": 1}) is False
    with pytest.raises(OSError, match=r"exists|directory"):
        file.write({"a": 1})


def test_what_fails_leaves_the_old_file_and_nothing_beside_it(file: StateFile) -> None:
    file.write({"a": 1})
    with pytest.raises(TypeError):
        file.write({"a": object()})
    with pytest.raises(UnicodeEncodeError):
        replace_file(file.path, "\udcff")
    assert file.read() == {"a": 1}
    assert os.listdir(file.path.parent) == ["state.json"]


def test_modes(tmp_path: Path) -> None:
    replace_file(tmp_path / "shown", b"\r\n", mode=0o644)
    assert stat.S_IMODE((tmp_path / "shown").stat().st_mode) == 0o644
    assert (tmp_path / "shown").read_bytes() == b"\r\n"
    StateFile(tmp_path / "cache" / "x.json", folder_mode=0o755).write({})
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o755 & ~_umask()


def _umask() -> int:
    present = os.umask(0o022)
    os.umask(present)
    return present


# As earlier versions wrote them.
HINT = (
    '{"format": 1, "dsn": {"host": "127.0.0.1", "port": 59347, "user": "postgres", "password": "s3cret", '
    '"database": "postgres", "options": {}}, "server_id": "5a1d7849", "backend": "process", "purpose": "run", '
    '"storage": "memory", "handle": "/dev/shm/x", "binaries": null, "ttl": 900, "description": "PostgreSQL", '
    '"project": "23c9be967b", "root": "/home/me/shop", "made_with": {"storage": "auto"}}'
)
INFO = ServerInfo(
    Dsn("127.0.0.1", 59347, "postgres", "s3cret", "postgres"), "5a1d7849", "process", "run", "memory",
    "/dev/shm/x", None, 900, "PostgreSQL", "23c9be967b", "/home/me/shop", {"storage": "auto"},
)  # fmt: skip
RECORD = (
    '{"project": "23c9be967b", "purpose": "run", "server_id": "5a1d7849", "root": "/home/me/shop", '
    '"password": "s3cret", "storage": "memory", "binaries": "/usr/lib/postgresql/15/bin", "version": "15.20", '
    '"ttl": 900, "pid": 17, "watcher": 18, "port": 59347, "made_with": {"storage": "auto"}}'
)


def test_the_hint_of_an_earlier_version(tmp_path: Path) -> None:
    hint = Hint(tmp_path / "run.json")
    assert hint.read() == (None, "")
    hint.path.write_text(HINT)
    assert hint.read() == (INFO, "")
    assert root_of(hint.path) == "/home/me/shop"
    hint.write(INFO)
    assert hint.path.read_text() == HINT


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"format": 1', '"format": 2', "another version of pg-harness wrote it"),
        ("59347,", "0,", "names no server"),
        ('"5a1d7849"', '""', "names no server"),
        ("59347,", '"59347",', "port is of another type"),
    ],
)
def test_a_hint_that_is_none(tmp_path: Path, old: str, new: str, why: str) -> None:
    hint = Hint(tmp_path / "run.json")
    hint.path.write_text(HINT.replace(old, new))
    info, said = hint.read()
    assert info is None
    assert said.startswith(str(hint.path))
    assert why in said
    assert "s3cret" not in said
    hint.path.write_text("[]")
    assert root_of(hint.path) == ""


def test_the_record_of_a_server_of_any_version(tmp_path: Path) -> None:
    path = tmp_path / "server.json"
    path.write_text(RECORD)
    record = Record.read(tmp_path)
    assert record is not None
    assert (record.pid, record.ttl, record.made_with) == (17, 900, {"storage": "auto"})
    record.write(tmp_path)
    assert path.read_text() == RECORD
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text(RECORD.replace('"pid"', '"later": [1], "pid"'))
    assert Record.read(tmp_path) == record
    path.write_text(RECORD.replace(', "made_with": {"storage": "auto"}', ""))
    assert Record.read(tmp_path) is not None
    path.write_text(RECORD.replace("17", '"17"'))
    assert Record.read(tmp_path) is None


def test_a_server_that_was_removed_meanwhile_stays_removed(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text(RECORD)
    record = Record.read(tmp_path)
    assert record is not None
    with pytest.raises(FileNotFoundError):
        record.write(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    left, mine = tmp_path / f".up.json.{child}.0a1b_2c3", tmp_path / f".up.json.{os.getpid()}.0a1b_2c3"
    others = [tmp_path / ".env", tmp_path / f"up.json.{child}.0a1b_2c3", tmp_path / "up.json"]
    for path in (left, mine, *others):
        path.write_text("")
    assert sweep(tmp_path) == [str(left)]
    assert all(path.exists() for path in (mine, *others))
