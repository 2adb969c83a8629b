"""Processes of this machine: whether one is still there, and which are to stay."""

from __future__ import annotations

import os

STAYS = {"PGHARNESS_RUN": ""}
"""Variables of a process that outlives the run in which it was started, see :mod:`harness.cli.run.reaper_process`."""


def alive(pid: int) -> bool:
    """Whether a process has this number; it may be another user's."""
    if pid <= 0:
        return False
    if os.name != "posix":
        return True  # os.kill(pid, 0) ends a process on Windows
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
