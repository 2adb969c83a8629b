"""Whose settings are obeyed: a file that is found in a parent folder runs its ``command:`` as us.

Whoever may write to a folder above ours (``/tmp``, a shared ``/srv``) could put one there. As git does for the
repositories that it finds (``safe.directory``, git-config(1)), a folder of somebody else's counts only where it was named.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from harness.config import own_folder
from harness.errors import ConfigError

KEY = "safe_directories"
_GIT_PATIENCE = 5.0
"""Seconds that git may take to print a few lines."""


def check(file: Path, environ: Mapping[str, str]) -> None:
    """Pass where a settings file, and the folder in which it was found, is ours, root's or named.

    Raises:
        ConfigError: it is somebody else's.
    """
    trusted = own_folder.ourselves()
    if not trusted:
        return  # Windows: files have no owner's number.
    trusted |= {0}
    if 0 in own_folder.ourselves() and (behind := environ.get("SUDO_UID", "")).isdigit():
        # Who has become root by sudo trusts himself.
        trusted |= {int(behind)}
    # Of a symbolic link, who made it and whose the file is.
    asked = [(file.parent, os.stat(file.parent)), (file, os.lstat(file)), (file, os.stat(file))]
    strange = [(path, about.st_uid) for path, about in asked if about.st_uid not in trusted]
    if not strange or _named(file.parent, environ):
        return
    path, uid = strange[0]
    raise ConfigError(
        f"{file} is not obeyed: {path} belongs to {own_folder.user_name(uid)}, and its settings may run any program "
        f'as you. If you trust it, name it in {user_file(environ)}: {KEY} = ["{file.parent}"] '
        f"(or for git and us: git config --global --add safe.directory {file.parent})",
        origin=str(file),
    )


def user_file(environ: Mapping[str, str]) -> Path:
    """The user's own settings, which hold for all projects: ``config.toml`` in the XDG configuration folder."""
    base = environ.get("XDG_CONFIG_HOME") or os.path.join(
        environ.get("HOME") or os.path.expanduser("~"), ".config"
    )
    return Path(base) / "pg-harness" / "config.toml"


def _named(folder: Path, environ: Mapping[str, str]) -> bool:
    names = _safe_directories(user_file(environ))
    return _among(folder, names) or _among(folder, _of_git(environ))


def _among(folder: Path, names: list[str]) -> bool:
    """``*`` is every folder, ``/srv/*`` all below (as git has it)."""
    for name in names:
        if name == "*":
            return True
        below = name.endswith("/*")
        named = Path(os.path.realpath(os.path.expanduser(name.removesuffix("/*"))))
        if named == folder or (below and named in folder.parents):
            return True
    return False


def _safe_directories(path: Path) -> list[str]:
    try:
        table = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}", key=KEY, origin=str(path)) from error
    if why := own_folder.distrust(path.parent, links=True):
        raise ConfigError(f"{path} is not obeyed: of {path.parent}, {why}", key=KEY, origin=str(path))
    if unknown := table.keys() - {KEY}:
        raise ConfigError(
            f"{path}: unknown key {min(unknown)!r}; the only one is {KEY}", key=min(unknown), origin=str(path)
        )
    names = table.get(KEY, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{path}: {KEY} is no list of folders", key=KEY, origin=str(path), value=repr(names)
        )
    return names


def _of_git(environ: Mapping[str, str]) -> list[str]:
    """What the user has told git; of its own files only, never of the folder that is in question."""
    import subprocess  # Here: only who has somebody else's settings pays for it.

    command = ["git", "config", "--global", "--get-all", "safe.directory"]
    # Variables that would let somebody else name it (git(1)); GIT_CONFIG_GLOBAL stays: it is the user's file.
    clean = {k: v for k, v in environ.items() if not k.startswith("GIT_") or k == "GIT_CONFIG_GLOBAL"}
    try:
        done = subprocess.run(
            command, env=clean, cwd="/", capture_output=True, text=True, timeout=_GIT_PATIENCE, check=False
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    return done.stdout.splitlines()
