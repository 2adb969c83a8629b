"""What was decided in the last runs of a checkout, and why: a small file, for `pg-harness report`.

Which server was taken or started, how resets are made there, what templates came from, why a reset was a clone. Nothing of
ours ever reads it to decide anything.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.config.project import Project
from harness.config.state_file import replace_file

LIMIT = 64 * 1024
"""Bytes beyond which the older half goes."""

_LONGEST = 2000
"""Characters of one entry."""


@dataclass(frozen=True)
class Decision:
    """One line of the file.

    Attributes:
        at: seconds since 1970.
        pid: of the process that decided.
        what: one word, ``"server"``, ``"reset"`` …
        text: for people.
    """

    at: float
    pid: int
    what: str
    text: str


def path_of(project: Project) -> Path:
    """Where they are noted."""
    return project.folder / "decisions.jsonl"


def note(project: Project, what: str, text: str) -> None:
    """Add one. Where it cannot be written, nothing is lost but a line of a report."""
    line = json.dumps(
        {"at": round(time.time(), 3), "pid": os.getpid(), "what": what, "text": text[:_LONGEST]}
    )
    path = path_of(project)
    try:
        # One write at the end of the file: processes that decide at the same time do not mix their lines.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "ab", buffering=0) as file:
            file.write(line.encode() + b"\n")
            size = file.tell()
        if size > LIMIT:
            lines = path.read_bytes().splitlines(keepends=True)
            replace_file(path, b"".join(lines[len(lines) // 2 :]))
    except OSError:
        return


def last(project: Project, count: int) -> Sequence[Decision]:
    """The last ones, the oldest first."""
    try:
        lines = path_of(project).read_text(errors="replace").splitlines()
    except OSError:
        return ()
    found = []
    for line in lines[-count:]:
        try:
            told = json.loads(line)
            found.append(Decision(float(told["at"]), int(told["pid"]), str(told["what"]), str(told["text"])))
        except (ValueError, KeyError, TypeError):
            # Cut off while it was written: the disk was full.
            continue
    return found
