"""Processes of this machine: whether one is still there, and which are to stay."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.config.run_variables import RUN

STAYS = {RUN: ""}
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


def running(pid: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent does not count."""
    if not alive(pid):
        return False
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return sys.platform != "linux"
    # proc(5): the state follows the name, which is in brackets and may hold anything.
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")


class Process:
    """A process that is known by its number, if that still is its own: else another one would be ended.

    Nobody else gets the number while it is held by a descriptor (pidfd_open(2)); elsewhere than on Linux there is none.
    """

    def __init__(self, pid: int, descriptor: int | None) -> None:
        self._pid = pid
        self._descriptor = descriptor

    @classmethod
    @contextmanager
    def of(cls, pid: int, is_it: Callable[[], bool]) -> Iterator[Process]:
        """Hold it for a while.

        Args:
            is_it: whether the process of that number is the one that was recorded.
        """
        descriptor = None
        try:
            # In a sandbox the call may be forbidden.
            with suppress(OSError):
                descriptor = os.pidfd_open(pid) if pid > 0 and hasattr(os, "pidfd_open") else None
            yield cls(pid if pid > 0 and is_it() else 0, descriptor)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended or is not the one that was recorded."""
        if not self._pid:
            return
        with suppress(ProcessLookupError, PermissionError):
            if self._descriptor is not None:
                signal.pidfd_send_signal(self._descriptor, number)
            else:
                os.kill(self._pid, number)

    def ended(self, patience: float) -> bool:
        """Whether it ends within so many seconds."""
        if self._pid and self._descriptor is not None:
            # poll, not select: that takes no descriptor beyond 1023.
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
            return bool(poll.poll(patience * 1000))
        deadline = time.monotonic() + patience
        while running(self._pid):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True
