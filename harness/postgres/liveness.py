"""The sign of life of a run: advisory locks, held by a session of their own for as long as we live."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Sequence
from contextlib import suppress

from harness.errors import HarnessError
from harness.postgres import locks
from harness.postgres.admin import Link

RETRY = 0.25
"""Seconds between two attempts to come back after the server has crashed."""

GIVE_UP = 60.0
"""Seconds after which a server that does not come back is taken for gone."""


class SignOfLife:
    """Holds shared locks on the maintenance database until :meth:`close`.

    A thread watches the connection: one backend of the server killed with SIGKILL ends all sessions, ours
    too, and with them every sign of life at once. The thread notices at once and takes the locks again, so
    that a sweep (which waits for a grace period after a crash) finds the run alive.
    """

    def __init__(self, link: Link, held: Sequence[tuple[str, str]]) -> None:
        """
        Args:
            link: for this object alone.
            held: the locks, as (kind, name).
        """
        self._link = link
        self._held = tuple(held)
        self._take()
        # A pipe ends the wait: closing a file descriptor that another thread selects on is undefined.
        self._wake_read, self._wake_write = os.pipe()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pg-harness sign of life", daemon=True)
        self._thread.start()

    def _take(self) -> None:
        for kind, name in self._held:
            locks.hold_shared(self._link.session, kind, name)

    def _watch(self) -> None:
        while not self._closing.is_set():
            try:
                descriptor = self._link.session.connection.fileno()
                readable, _, _ = select.select([descriptor, self._wake_read], [], [])
            except (HarnessError, OSError, ValueError):
                readable = [-1]
            if self._closing.is_set():
                return
            if self._wake_read not in readable:
                self._link.close()
                if not self._come_back():
                    return

    def _come_back(self) -> bool:
        waited = 0.0
        while waited < GIVE_UP:
            try:
                self._take()
            except HarnessError:
                self._link.close()
                if self._closing.wait(RETRY):
                    return False
                waited += RETRY
            else:
                return True
        return False

    @property
    def epoch(self) -> int:
        """How many times the server's sessions were lost; leases from before must be cloned again."""
        return self._link.epoch

    def close(self) -> None:
        """Let go of the locks. Safe to call twice, and in a forked child (which owns nothing)."""
        if self._closing.is_set():
            return
        self._closing.set()
        os.write(self._wake_write, b"x")
        self._thread.join(timeout=5)
        with suppress(HarnessError):
            # Logging out is not waited for: the next command could still see the locks of a run that is over.
            self._link.session.execute("select pg_advisory_unlock_all()")
        self._link.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
