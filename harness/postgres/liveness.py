"""The sign of life of a run: advisory locks, held by a session of their own for as long as we live."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from harness.errors import HarnessError, ServerLost
from harness.postgres import locks
from harness.postgres.admin import Link
from harness.postgres.session import APPLICATION_NAME

RETRY = 0.25
"""Seconds between two attempts to come back after the server has crashed."""

GIVE_UP = 60.0
"""Seconds after which a server that does not come back is taken for gone."""


class SignOfLife:
    """Holds shared locks on the maintenance database until :meth:`close`.

    A thread watches the connection: one backend of the server killed with SIGKILL ends all sessions, ours
    too, and with them every sign of life at once. The thread notices at once and takes the locks again, so
    that a sweep (which waits for a grace period after a crash) finds the run alive.

    What it says of the run, others read in ``pg_stat_activity``: it goes with the session too.
    """

    def __init__(self, link: Link, held: Sequence[tuple[str, str]], shown: str = APPLICATION_NAME) -> None:
        """
        Args:
            link: for this object alone.
            held: the locks, as (kind, name).
            shown: what it says of the run, 63 bytes at most.

        Raises:
            PoolTimeout: somebody keeps the locks from us.
        """
        self._link = link
        self._held = tuple(held)
        self._shown = shown
        self._said = threading.Event()
        self._take()
        # A pipe ends the wait: closing a file descriptor that another thread selects on is undefined.
        self._wake_read, self._wake_write = os.pipe()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pg-harness sign of life", daemon=True)
        self._thread.start()

    def _take(self) -> None:
        self._session = self._link.session
        locks.hold_shared(self._session, *self._held, shown=self._shown)

    def show(self, shown: str) -> None:
        """Say something else of the run from now on; others see it when this returns.

        Raises:
            ServerLost: the server is gone.
        """
        # By the thread: it takes whatever arrives on the session for the end of it.
        self._said.clear()
        self._shown = shown
        os.write(self._wake_write, b"s")
        if not self._thread.is_alive() or not self._said.wait(GIVE_UP):
            raise ServerLost(f"the server does not come back, which {GIVE_UP:.0f} s were waited for")

    def _watch(self) -> None:
        while not self._closing.is_set():
            try:
                descriptor = self._session.connection.fileno()
                readable, _, _ = select.select([descriptor, self._wake_read], [], [])
            except (HarnessError, OSError, ValueError):
                readable = [-1]
            if self._closing.is_set():
                return
            if self._wake_read in readable:
                os.read(self._wake_read, 1)
                with suppress(HarnessError):
                    # This one: a new one would hold none of the locks.
                    self._session.execute("select set_config('application_name', %s, false)", (self._shown,))
                    self._said.set()
                    continue
            self._link.close()
            if not self._come_back():
                return
            self._said.set()

    def _come_back(self) -> bool:
        began = time.monotonic()
        while time.monotonic() - began < GIVE_UP:
            try:
                self._take()
            except HarnessError:
                self._link.close()
                if self._closing.wait(RETRY):
                    return False
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
            self._link.session.execute(
                "select pg_advisory_unlock_all(), set_config('application_name', %s, false)",
                (APPLICATION_NAME,),
            )
        self._link.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
