"""Settings of somebody else's in a parent folder: obeyed only where the folder was named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config import own_folder
from harness.config.files import locate
from harness.config.load import load
from harness.errors import ConfigError

STRANGER = 54321

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's files")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment with a home of its own."""
    (tmp_path / "home").mkdir()
    for name in [*os.environ]:
        if name.startswith(("GIT_", "XDG_", "SUDO_")):
            monkeypatch.delenv(name)
    return {"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]}


@pytest.fixture(params=["pg-harness.toml", "pyproject.toml"])
def shared(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder with settings, and one of ours in it."""
    folder = tmp_path / "shared"
    (folder / "mine").mkdir(parents=True)
    section = "[tool.pg-harness]\n" if request.param == "pyproject.toml" else ""
    (folder / request.param).write_text(f'{section}migrations = ["command:id > {tmp_path}/executed"]\n')
    return folder


def settings(shared: Path) -> Path:
    (found,) = shared.glob("*.toml")
    return found


def user_file(home: dict[str, str], text: str) -> None:
    path = Path(home["HOME"], ".config", "pg-harness", "config.toml")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_text(text)


@pytest.mark.parametrize("whose", ["folder", "file", "link", "file behind a link"])
def test_a_strangers_settings_are_refused(
    home: dict[str, str], shared: Path, tmp_path: Path, whose: str
) -> None:
    path = settings(shared)
    if whose == "folder":
        os.chown(shared, STRANGER, STRANGER)
    elif whose == "file":
        os.chown(path, STRANGER, STRANGER)
    else:
        real = path.rename(tmp_path / "real.toml")
        path.symlink_to(real)
        os.chown(path if whose == "link" else real, STRANGER, STRANGER, follow_symlinks=False)
    with pytest.raises(ConfigError) as caught:
        load(home, start=shared / "mine")
    said = str(caught.value)
    assert f"{path} is not obeyed" in said
    assert f"uid {STRANGER}" in said
    assert f'safe_directories = ["{shared}"]' in said
    assert f"{home['HOME']}/.config/pg-harness/config.toml" in said


@pytest.mark.parametrize("named", ["{}", "{}/", "*", "{}/../shared", "above/*"])
def test_a_folder_that_the_user_has_named_is_obeyed(
    home: dict[str, str], shared: Path, tmp_path: Path, named: str
) -> None:
    os.chown(shared, STRANGER, STRANGER)
    user_file(home, f'safe_directories = ["{named.format(shared).replace("above", str(tmp_path))}"]')
    assert locate(shared / "mine", home).file == settings(shared)


def test_what_git_was_told_is_heard(home: dict[str, str], shared: Path) -> None:
    os.chown(shared, STRANGER, STRANGER)
    add = ["git", "config", "--global", "--add", "safe.directory", str(shared)]
    subprocess.run(add, env=home, check=True)
    assert locate(shared / "mine", home).file == settings(shared)


def test_what_others_tell_git_is_not_heard(home: dict[str, str], shared: Path) -> None:
    """Neither the environment's word for git nor the checkout's own configuration."""
    os.chown(shared, STRANGER, STRANGER)
    told = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    subprocess.run(["git", "init", "-q", str(shared)], env=home, check=True)
    subprocess.run(
        ["git", "-C", str(shared), "config", "safe.directory", "*"], env={**home, **told}, check=True
    )
    with pytest.raises(ConfigError, match="is not obeyed"):
        locate(shared / "mine", {**home, **told})


def test_who_became_root_by_sudo_trusts_himself(home: dict[str, str], shared: Path) -> None:
    os.chown(shared, STRANGER, STRANGER)
    assert locate(shared / "mine", {**home, "SUDO_UID": str(STRANGER)}).file == settings(shared)
    with pytest.raises(ConfigError, match="is not obeyed"):
        locate(shared / "mine", {**home, "SUDO_UID": str(STRANGER + 1)})


def test_a_file_that_was_named_is_obeyed(home: dict[str, str], shared: Path) -> None:
    os.chown(shared, STRANGER, STRANGER)
    assert locate(shared / "mine", home, explicit=settings(shared)).file == settings(shared)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("safe_directories = '/srv'", "is no list of folders"),
        ("safe_directory = ['/srv']", "unknown key 'safe_directory'"),
        ("safe_directories = [", "cannot read"),
    ],
)
def test_mistakes_in_the_users_own_file(home: dict[str, str], shared: Path, text: str, said: str) -> None:
    os.chown(shared, STRANGER, STRANGER)
    user_file(home, text)
    with pytest.raises(ConfigError, match=said):
        locate(shared / "mine", home)


def test_a_users_own_file_that_others_may_write_is_refused(home: dict[str, str], shared: Path) -> None:
    os.chown(shared, STRANGER, STRANGER)
    user_file(home, "safe_directories = ['*']")
    Path(home["HOME"], ".config", "pg-harness").chmod(0o777)
    with pytest.raises(ConfigError, match="others may write to it"):
        locate(shared / "mine", home)


@pytest.mark.parametrize("command", [["-m", "pytest", "-p", "no:cacheprovider"], ["-m", "harness", "up"]])
def test_neither_pytest_nor_the_command_line_runs_them(
    home: dict[str, str], shared: Path, tmp_path: Path, command: list[str]
) -> None:
    os.chown(shared, STRANGER, STRANGER)
    (shared / "mine" / "test_mine.py").write_text("def test_mine(database): pass\n")
    done = subprocess.run(
        [sys.executable, *command], env=home, cwd=shared / "mine", capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "is not obeyed" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "executed").exists()


def test_a_folder_that_can_never_be_made_is_an_error() -> None:
    """mkdir(2) below /proc says that a folder above is missing, which is there: it was asked for ever."""
    with pytest.raises(OSError, match="No such file"):
        own_folder.make(Path("/proc/no/such"))
