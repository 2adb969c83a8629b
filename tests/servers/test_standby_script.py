"""The copies that standbys are made of, by their script alone: no half copy is taken for a whole one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from fix_backends import until

from harness.config import processes
from harness.servers.process.user import ServerUser

SCRIPT = str(resources.files("harness.servers").joinpath("scripts", "standby.sh"))

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no /bin/sh")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    for name in ("base", "global", "pg_wal"):
        (data / name).mkdir(parents=True)
        (data / name / "file").write_text(name)
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "standby-1"
    folder.mkdir()
    return folder


def environ_with(cp: str, tmp_path: Path) -> dict[str, str]:
    """The environment in which ``cp`` is that script."""
    programs = tmp_path / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "cp").write_text(f"#!/bin/sh\n{cp}\n")
    (programs / "cp").chmod(0o755)
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}


def copied(
    data: Path, folder: Path, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    words = ["/bin/sh", SCRIPT, "copy", str(data), str(folder)]
    return subprocess.run(words, capture_output=True, text=True, env=environ, timeout=20, check=False)


def launched(data: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Of programs that are not there: the script itself has to refuse."""
    for name in ("settings", "own"):
        (folder / name).touch()
    words = [folder / name for name in ("settings", "own", "label")]
    command = ["/bin/sh", SCRIPT, "launch", "/nowhere", data, folder, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def test_a_copy_is_whole(data: Path, folder: Path) -> None:
    for name in ("begun", "copied.1"):
        (folder / name).mkdir()
    assert copied(data, folder).returncode == 0
    assert (folder / "data" / "base" / "file").read_text() == "base"
    assert (folder / "data" / "global" / "file").read_text() == "global"
    assert not (folder / "data" / "pg_wal" / "file").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["copying", "data"]


@pytest.mark.parametrize(
    ("cp", "why"),
    [
        ("kill -9 $$", "cp ended with 137 at "),
        ("exit 1", "cp ended with 1 at "),
        ("echo \"cp: cannot stat 'x': No such file or directory\"; kill -9 $$", "cp ended with 137 at "),
        ("echo 'cp: No space left on device'; exit 1", "No space left"),
    ],
    ids=["killed", "silent", "killed after a file had gone", "full"],
)
def test_a_cp_that_did_not_come_to_its_end_is_an_error(
    cp: str, why: str, data: Path, folder: Path, tmp_path: Path
) -> None:
    done = copied(data, folder, environ_with(cp, tmp_path))
    assert done.returncode != 0
    assert why in done.stderr
    assert not (folder / "data").exists()


def test_a_file_that_goes_meanwhile_is_none(data: Path, folder: Path, tmp_path: Path) -> None:
    gone = environ_with("echo \"cp: cannot stat 'x': No such file or directory\"; exit 1", tmp_path)
    assert copied(data, folder, gone).returncode == 0


def test_a_long_copy_gives_signs_of_life(data: Path, folder: Path, tmp_path: Path) -> None:
    done = copied(data, folder, environ_with("sleep 1.2", tmp_path))
    assert done.returncode == 0
    assert set(done.stdout.split()) == {"."}
    assert done.stderr == ""


def test_what_was_cut_off_behind_its_copy_does_not_start(data: Path, folder: Path) -> None:
    assert copied(data, folder).returncode == 0
    (folder / "label").touch()
    done = launched(data, folder)
    assert done.returncode == 1
    assert "was cut off" in done.stderr
    assert not (folder / "begun").exists()
    (folder / "label").write_text("the label")
    assert launched(data, folder).returncode == 0
    assert (folder / "data" / "backup_label").read_text() == "the label"
    # One that has begun never begins again with it, and needs it no more.
    (folder / "data" / "backup_label").unlink()
    (folder / "label").unlink()
    assert launched(data, folder).returncode == 0
    assert not (folder / "data" / "backup_label").exists()


def test_a_copy_that_goes_on_without_its_caller_leaves_the_next_ones_alone(
    data: Path, folder: Path, tmp_path: Path
) -> None:
    slow = environ_with('echo x >>"$0.began"; exec sleep 1', tmp_path)
    words = ["/bin/sh", SCRIPT, "copy", str(data), str(folder)]
    first = subprocess.Popen(words, env=slow, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until((tmp_path / "programs" / "cp.began").exists, seconds=10, what="the first has begun")
    assert copied(data, folder).returncode == 0
    _, said = first.communicate(timeout=20)
    assert first.returncode == 1
    assert "another copy" in said
    assert (folder / "data" / "global" / "file").read_text() == "global"
    assert sorted(path.name for path in folder.iterdir()) == ["copying", "data"]


def test_at_its_limit_all_of_it_ends(data: Path, folder: Path, tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    environ = environ_with(f"echo $$ >{noted}; exec sleep 60", tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        ServerUser().run(["/bin/sh", SCRIPT, "copy", data, folder], timeout=1, env=environ, whole=True)
    pid = int(noted.read_text())
    try:
        until(lambda: not processes.running(pid), seconds=10, what="cp has ended")
    finally:
        if processes.running(pid):
            os.kill(pid, signal.SIGKILL)
