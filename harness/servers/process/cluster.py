"""Data directories: initialised once per version and options, then copied."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ServerStartError
from harness.postgres import roles
from harness.servers import defaults, memory
from harness.servers.process.binaries import Binaries
from harness.servers.process.user import ServerUser, make_once, renamed_last

logger = logging.getLogger("pg_harness.servers.process")

LAYOUT = "4"
"""Counts up when what :func:`_initialise` does changes: old copies are not used then."""

BASE_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
"""Nothing of the user's: PG* variables bend initdb and psql, and a child keeps what it inherits."""


@dataclass(frozen=True)
class Cluster:
    """An initialised data directory that no server runs on.

    Attributes:
        data: to be copied.
        password: of its superuser ``postgres``, in a file that its user alone reads. A server's is another one, see
            :func:`change_password`.
    """

    data: Path
    password: str


def cached(binaries: Binaries, user: ServerUser, cache: Path) -> Cluster:
    """The initialised directory for these binaries, made now where there is none.

    Raises:
        ServerStartError: initdb failed; its output is in the error.
    """
    seed = f"{LAYOUT}:{binaries.folder}:{binaries.version}:{user.uid}"
    key = hashlib.sha256(seed.encode()).hexdigest()[:12]
    target = cache / f"initdb-{binaries.version}-{key}"
    make_once(target, lambda: _initialise(binaries, user, target), timeout=180, waiting_for="initdb")
    return _read(target, "initialised", "remove it")


def baked(ref: str) -> Cluster:
    """The directory of a snapshot, see :mod:`harness.servers.process.snapshots`.

    Raises:
        ServerStartError: it was removed meanwhile.
    """
    return _read(Path(ref), "baked", "run again, and it is baked anew")


def _read(folder: Path, kind: str, remedy: str) -> Cluster:
    try:
        return Cluster(folder / "data", (folder / "password").read_text().strip())
    except OSError as error:
        raise ServerStartError(
            f"the {kind} directory {folder} cannot be read ({error.strerror}): {remedy}"
        ) from error


def _initialise(binaries: Binaries, user: ServerUser, target: Path) -> None:
    logger.info("process: initialising PostgreSQL %s (once per version)", binaries.version)
    try:
        with renamed_last(target) as aside:
            user.give(aside)
            password = secrets.token_hex(24)
            user.write_secret(aside / "password", password)
            # A random password gains nothing from 4096 rounds of hashing, and each connection pays for them. Before 16
            # PostgreSQL makes no verifier with fewer, and takes one.
            user.write_secret(aside / "verifier", roles.verifier("postgres", password, rounds=1))
            command: list[str | Path] = [binaries.folder / "initdb", "-D", aside / "data"]
            command += [*_options(binaries.major), f"--pwfile={aside / 'verifier'}"]
            for locale in ("C.UTF-8", "C"):
                done = user.run([*command, f"--locale={locale}"], timeout=180, env=BASE_ENVIRONMENT)
                # musl, old glibc and macOS differ in which of them they know.
                if done.returncode == 0 or "invalid locale" not in done.stderr:
                    break
            if done.returncode != 0:
                raise ServerStartError(
                    f"initdb of PostgreSQL {binaries.version} failed in {aside.parent}",
                    log_tail=defaults.tail(done.stdout + done.stderr),
                )
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerStartError(f"initdb of PostgreSQL {binaries.version} failed: {error}") from error


def change_password(data: Path, old: str, new: str) -> None:
    """Give a copy that no server runs on, and that was stopped cleanly, a superuser's password of its own.

    Written into the file of ``pg_authid``: a server that had to be asked would let everybody in who knows the cached
    directory's password until it was. A verifier has the same length as every other, and no page of a data directory of
    ours has a checksum.

    Raises:
        ServerStartError: its password is another one.
    """
    before, after = (roles.verifier("postgres", password, rounds=1).encode() for password in (old, new))
    changed = False
    for path in (data / "global").iterdir():
        # By its content: VACUUM FULL in a migration gives the catalog another file.
        if not path.name.isdecimal():
            continue
        with open(path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW)) as file:
            content = file.read()
            if before in content:
                file.seek(0)
                file.write(content.replace(before, after))
                changed = True
    if not changed:
        raise ServerStartError(
            f"{data} has another superuser's password than was noted: remove what it was copied from"
        )


def _options(major: int) -> list[str]:
    options = [
        "--username=postgres",
        "--encoding=UTF8",
        "--auth=scram-sha-256",
        "--no-sync",
        "--wal-segsize=4",
    ]
    if major >= 14:
        options.append("--no-instructions")
    if major >= 16:
        # For roles that tests make.
        options += ["--set", "scram_iterations=1"]
    if major >= 17:
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    if major >= 18:
        # On by default since 18; hint bits would write WAL, which a reset reads as a change.
        options.append("--no-data-checksums")
    return options


def copy(source: Path, target: Path, user: ServerUser) -> None:
    """Copy a data directory: shared blocks where the file system can, else a plain copy.

    Raises:
        ServerStartError: the disk is full or cannot be written to; what was copied is removed.
    """
    commands = [["cp", "-a", "--reflink=auto"], ["cp", "-a"]]
    if sys.platform == "darwin":
        commands = [["cp", "-cpR"], ["cp", "-pR"]]
    said = ""
    for command in commands:
        try:
            done = user.run([*command, source, target], timeout=300, env=BASE_ENVIRONMENT)
        except subprocess.SubprocessError as error:
            shutil.rmtree(target, ignore_errors=True)
            raise ServerStartError(
                f"the data directory cannot be copied to {target.parent}: {error}"
            ) from error
        if done.returncode == 0:
            return
        said = done.stderr
        shutil.rmtree(target, ignore_errors=True)
        if memory.told_full(said):
            break
    full = " (the disk or memory file system is full)" if memory.told_full(said) else ""
    raise ServerStartError(
        f"the data directory cannot be copied to {target.parent}{full}", log_tail=defaults.tail(said)
    )
