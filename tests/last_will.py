"""Ends what a test process has started and could not end itself: run beside it, by ``fix_last_will``.

Reads one JSON list a line: ``["below", FOLDER]`` (servers of projects below a folder, or with their state in it),
``["folder", FOLDER]`` (the same, and the folder itself), ``["process", PID, FOLDER]``, ``["container", NAME]``. At the end of the input, which comes when the other
process has closed it or died in whatever way, all of them are ended. What is gone already is success.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path


def main() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        wishes = [json.loads(line) for line in sys.stdin]
    for kind, *what in reversed(wishes):
        # One that fails must not cost the others.
        with contextlib.suppress(Exception):
            {"below": below, "folder": whole_folder, "process": process, "container": container}[kind](*what)


def below(folder: str) -> None:
    """Servers of both backends."""
    # Only now: an import that fails must not cost the wishes that come later.
    from harness.servers.docker.spec import LABEL
    from harness.servers.process.backend import ProcessBackend

    inside = Path(folder)
    for state in (inside, *inside.glob("*/")):
        backend = ProcessBackend({}, state=state, cache=state)
        for info in backend.list(None):
            if any(Path(path).is_relative_to(inside) for path in (info.root, info.handle)):
                backend.stop(info)
    form = f'{{{{.ID}}}} {{{{.Label "{LABEL}.root"}}}}'
    asked = subprocess.run(
        ["docker", "ps", "-a", "--filter", f"label={LABEL}.project", "--format", form],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    for line in asked.stdout.splitlines():
        name, _, root = line.partition(" ")
        if root and Path(root).is_relative_to(inside):
            container(name)


def whole_folder(folder: str) -> None:
    """Servers below it, and then what is left of it."""
    below(folder)
    shutil.rmtree(folder, ignore_errors=True)


def process(pid: int, folder: str) -> None:
    """A process of ours and its folder; a process of that number that does not name the folder is another one."""
    with contextlib.suppress(OSError):
        if folder.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGQUIT)
    shutil.rmtree(folder, ignore_errors=True)


def container(name: str) -> None:
    """One that is not ours by its labels."""
    subprocess.run(["docker", "rm", "-f", "-v", name], capture_output=True, timeout=60, check=False)


if __name__ == "__main__":
    main()
