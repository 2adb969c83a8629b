"""A command that runs in our stead: how it is started, that signals are its business, what its end means and what it leaves."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO, Protocol

from harness.cli.run.reaper import Reaper
from harness.errors import out_of_files

logger = logging.getLogger("pg_harness.cli")

FORWARDED = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
)
"""Those of them by which somebody wants us to end."""

ENDING_GRACE = 10.0
"""Seconds that a command may take to end after such a signal, before it is ended with all that it has started."""

LINGER = 1.0
"""Seconds that processes may outlive their command by themselves: workers that only now hear that it is gone."""

TERM_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL for what a command leaves."""


class NotStarted(Exception):
    """The system did not start the command.

    Attributes:
        message: why, for people.
        exit_code: as shells have it: 127 where it was not found, else 126.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


class Child(Protocol):
    """A command that was started."""

    @property
    def stdout(self) -> IO[bytes] | None:
        """Its output, where that was asked for."""

    @property
    def stderr(self) -> IO[bytes] | None:
        """Likewise."""

    def poll(self) -> int | None:
        """Its exit code, or -n for signal n; None while it runs."""

    def send_signal(self, sig: int) -> None:
        """Send it a signal, unless it has ended."""


def call(
    command: Sequence[str],
    environ: Mapping[str, str],
    reaper: Reaper | None = None,
    heard: list[int] | None = None,
) -> int:
    """Run the command, passing signals on to it; return its exit code.

    Args:
        reaper: ends what the command leaves, or that and the command where it takes too long after a signal.
        heard: as for :func:`passing_on`.
    """
    with passing_on(reaper, heard) as children:
        children.start(command, environ)
        return exit_code(children.wait()[0])


def start(
    command: Sequence[str],
    environ: Mapping[str, str],
    reaper: Reaper | None = None,
    *,
    piped: bool = False,
) -> Child:
    """Start the command in our own process group, so that a terminal's Ctrl-C and Ctrl-Z reach it as ever.

    Args:
        reaper: whose child it shall be; None: ours.
        piped: take its output instead of letting it through.

    Raises:
        NotStarted: it is not found by the PATH that it is given, or the system refuses it.
        BackendError: we may open no further file.
    """
    try:
        if reaper is not None and (reaped := reaper.start(command, environ, piped=piped)) is not None:
            return reaped
        pipe = subprocess.PIPE if piped else None
        return subprocess.Popen(
            list(command),
            env=dict(environ),
            stdin=subprocess.DEVNULL if piped else None,
            stdout=pipe,
            stderr=pipe,
        )
    except OSError as error:
        if (full := out_of_files(error)) is not None:
            raise full from error
        path = (
            f" (PATH is {environ.get('PATH', '')!r} for it)" if isinstance(error, FileNotFoundError) else ""
        )
        code = 127 if isinstance(error, FileNotFoundError) else 126
        raise NotStarted(f"{command[0]!r} cannot be started: {error.strerror}{path}", code) from error


def exit_code(returned: int) -> int:
    """As shells have it: 128 + n for signal n."""
    return 128 - returned if returned < 0 else returned


class Children:
    """The commands: signals are passed on to them, and what they leave is ended.

    Args:
        wakeup: becomes readable with each signal (``signal.set_wakeup_fd``).
        reaper: whose children they are; None: ours, and nobody looks for what they leave.
        heard: is given each signal by which somebody wants us to end.
    """

    def __init__(self, wakeup: int, reaper: Reaper | None = None, heard: list[int] | None = None) -> None:
        self._wakeup = wakeup
        self._ending = [] if heard is None else heard
        self._reaper = reaper
        self._running: list[Child] = []
        self._arrived: list[int] = []
        self._heard = 0
        self._asked = 0.0
        """When somebody wanted us to end (``time.monotonic``); 0: nobody did."""
        self._asked_by = 0

    def start(self, command: Sequence[str], environ: Mapping[str, str], *, piped: bool = False) -> Child:
        """Start one more, as :func:`start` does; what arrived before it was there is passed on now."""
        child = start(command, environ, self._reaper, piped=piped)
        arrived = len(self._arrived)
        self._running.append(child)
        for signum in self._arrived[:arrived]:
            child.send_signal(signum)
        return child

    def wait(self) -> list[int]:
        """Wait until all have ended, and nothing is left of them; return their codes as :class:`subprocess.Popen` has them.

        Not ``child.wait()``: a signal that arrives just before its system call begins, or in another thread,
        does not interrupt it, and would be passed on only when the command has ended by itself.
        """
        forced = False
        while None in (codes := [child.poll() for child in self._running]):
            if self._reaper is None or not self._asked or forced:
                self._sleep(None)
            elif (left := self._asked + ENDING_GRACE - time.monotonic()) > 0:
                self._sleep(left)
            else:
                logger.warning(
                    "the command has not ended %g s after signal %d: ending it, with all that it has started",
                    ENDING_GRACE,
                    self._asked_by,
                )
                self.end()
                # One that cannot be ended (sudo) is waited for, as ever.
                forced = True
        # Who was told to end has had his time.
        self._end_rest(0 if self._asked else LINGER)
        return [code for code in codes if code is not None]

    def end(self) -> None:
        """End them, and what they have started."""
        if self._reaper is not None and not self._reaper.gone:
            self._end_rest(0)
            return
        for child in self._running:
            child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + ENDING_GRACE
        while any(child.poll() is None for child in self._running):
            if (left := deadline - time.monotonic()) > 0:
                self._sleep(left)
                continue
            for child in self._running:
                child.send_signal(signal.SIGKILL)
            deadline = time.monotonic() + ENDING_GRACE

    def _end_rest(self, linger: float) -> None:
        """Before the databases go: what is left would only fail, and hold connections."""
        if self._reaper is None:
            return
        self._reaper.ask_to_end(linger, TERM_GRACE)
        heard = self._heard
        while (rest := self._reaper.rest) is None:
            self._sleep(None)
            if self._heard > heard:
                # Somebody is impatient.
                heard = self._heard
                self._reaper.ask_to_end(0, 0)
        if rest.ended:
            logger.warning("ended what the command had started: %s", ", ".join(rest.ended))
        if rest.stay:
            logger.warning("the command has started what cannot be ended: %s", ", ".join(rest.stay))

    def _sleep(self, seconds: float | None) -> None:
        """Until something happens."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        if self._reaper is not None and not self._reaper.gone:
            poll.register(self._reaper, select.POLLIN)
        poll.poll(None if seconds is None else seconds * 1000)
        with suppress(BlockingIOError):
            os.read(self._wakeup, 512)

    def handle(self, signum: int, _frame: FrameType | None) -> None:
        """Pass a signal on, unless the terminal has sent it to the whole group already."""
        self._heard += 1
        if signum in ENDING:
            self._ending.append(signum)
        if signum in (signal.SIGINT, signal.SIGQUIT) and _in_foreground():
            # Twice would be a second Ctrl-C, which pytest and others take for "at once, without teardown".
            return
        self._arrived.append(signum)
        if signum in ENDING and not self._asked:
            self._asked, self._asked_by = time.monotonic(), signum
        for child in self._running:
            child.send_signal(signum)


@contextmanager
def passing_on(reaper: Reaper | None = None, heard: list[int] | None = None) -> Iterator[Children]:
    """While the block runs, signals are passed on, and waiting for a child never misses one.

    Args:
        heard: is given each signal by which somebody wants us to end, a terminal's Ctrl-C too.
    """
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    children = Children(reading, reaper, heard)
    before = {signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda signum, frame: None)}
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for signum in FORWARDED:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            before[signum] = signal.signal(signum, children.handle)
    try:
        yield children
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        signal.set_wakeup_fd(woken)
        os.close(reading)
        os.close(writing)


def _in_foreground() -> bool:
    """Whether a terminal sent its Ctrl-C to our whole process group, the command included."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
