"""What is noted of poolers, and how those end that nobody looks after any more."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness.config import processes
from harness.config.state_file import StateFile, Unreadable
from harness.servers.pooler.pgbouncer import Program

FOLDER = "poolers"
"""What the folders are called in which what is noted of poolers lies, and their files."""

PERSON = "up"
"""What the file of a person's is called: there is one in a checkout, and it keeps its port."""

FORMAT = 1


@dataclass(frozen=True)
class Notes:
    """What processes of ours need to know of a pooler, readable by its owner only.

    Attributes:
        password: for the console.
        keeper: number of the process that looks after it.
        folder: where its files are.
        pool: connections to a database at most.
        program: pgbouncer's, and its version.
        server: what the server behind calls itself, or where it is.
        purpose: in front of somebody else's server, ``"up"`` or ``"run"``; empty in front of one of ours, with which it ends.
    """

    port: int
    password: str = field(repr=False)
    keeper: int
    folder: Path
    pool: int
    program: Program
    purpose: str
    server: str


def end_all(folder: Path, *, runs: bool) -> list[str]:
    """End poolers that are in front of servers of others; return what ended, for people.

    Args:
        folder: a checkout's own of the state; or the whole state, for those of all checkouts.
        runs: those of test runs too, and not a person's only.
    """
    ended = []
    for path in sorted([*folder.glob(f"{FOLDER}/*.json"), *folder.glob(f"*/{FOLDER}/*.json")]):
        notes = read(path)
        if notes is None or not (notes.purpose == "up" or (runs and notes.purpose)):
            continue
        if end(notes):
            ended.append(f"{notes.program.told} on port {notes.port}")
        _remove(path, notes)
    return ended


def sweep(state: Path) -> list[str]:
    """Remove what poolers have left whose keepers were killed, of all checkouts; return the folders."""
    gone = []
    for path in sorted(state.glob(f"*/{FOLDER}/*.json")):
        notes = read(path)
        if notes is None or _keeps(notes):
            continue
        if path.stem != PERSON:
            _remove(path, notes)
            gone.append(str(notes.folder))
        elif notes.folder.exists():
            # Its port stays, as the server's does.
            _remove(None, notes)
            gone.append(str(notes.folder))
    return gone


def read(path: Path) -> Notes | None:
    """What is noted there; None where nothing is, or nothing that can be used."""
    try:
        return StateFile(path, FORMAT).read_as(Notes)
    except (FileNotFoundError, Unreadable):
        return None


def wait(notes: Notes, patience: float) -> None:
    """Until a pooler has ended, for so many seconds at most."""
    deadline = time.monotonic() + patience
    while _keeps(notes) and time.monotonic() < deadline:
        time.sleep(0.01)


def _keeps(notes: Notes) -> bool:
    """Whether the process that is noted is the keeper that it was."""
    if not processes.running(notes.keeper):
        return False
    try:
        words = Path(f"/proc/{notes.keeper}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return sys.platform != "linux"
    return str(notes.folder).encode() in words


def end(notes: Notes) -> bool:
    """End a pooler by its keeper, and wait; whether it was there."""
    with processes.Process.of(notes.keeper, lambda: _keeps(notes)) as process:
        there = _keeps(notes)
        process.send(signal.SIGTERM)
        if there and not process.ended(5):
            process.send(signal.SIGKILL)
        return there


def _remove(path: Path | None, notes: Notes | None) -> None:
    if notes is not None and notes.folder.parent.name == FOLDER:
        shutil.rmtree(notes.folder, ignore_errors=True)
    for name in () if path is None else (path, path.with_suffix(".used")):
        with suppress(OSError):
            name.unlink(missing_ok=True)
