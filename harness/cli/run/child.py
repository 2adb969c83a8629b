"""A command that runs in our stead: how it is started, that signals are its business, and what its end means."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from harness.errors import out_of_files

FORWARDED = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


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


def call(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the command, passing signals on to it; return its exit code."""
    with passing_on() as children:
        child = start(command, environ)
        children.add(child)
        return exit_code(children.wait(child))


def start(
    command: Sequence[str], environ: Mapping[str, str], *, piped: bool = False
) -> subprocess.Popen[bytes]:
    """Start the command in our own process group, so that a terminal's Ctrl-C and Ctrl-Z reach it as ever.

    Args:
        piped: take its output instead of letting it through.

    Raises:
        NotStarted: it is not found by the PATH that it is given, or the system refuses it.
        BackendError: we may open no further file.
    """
    pipe = subprocess.PIPE if piped else None
    try:
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
    """The processes that signals are passed on to.

    Args:
        wakeup: becomes readable with each signal (``signal.set_wakeup_fd``).
    """

    def __init__(self, wakeup: int) -> None:
        self._wakeup = wakeup
        self._running: list[subprocess.Popen[bytes]] = []
        self._arrived: list[int] = []

    def add(self, child: subprocess.Popen[bytes]) -> None:
        """One more; what arrived before it was there is passed on now."""
        arrived = len(self._arrived)
        self._running.append(child)
        for signum in self._arrived[:arrived]:
            child.send_signal(signum)

    def wait(self, child: subprocess.Popen[bytes]) -> int:
        """Wait until one has ended; return its code as :class:`subprocess.Popen` has it.

        Not ``child.wait()``: a signal that arrives just before its system call begins, or in another thread,
        does not interrupt it, and would be passed on only when the command has ended by itself.
        """
        while (code := child.poll()) is None:
            select.select([self._wakeup], [], [])
            os.read(self._wakeup, 512)
        return code

    def handle(self, signum: int, _frame: FrameType | None) -> None:
        """Pass a signal on, unless the terminal has sent it to the whole group already."""
        if signum in (signal.SIGINT, signal.SIGQUIT) and _in_foreground():
            # Twice would be a second Ctrl-C, which pytest and others take for "at once, without teardown".
            return
        self._arrived.append(signum)
        for child in self._running:
            # poll() first: the number of a process that has ended may be somebody else's by now.
            if child.poll() is None:
                child.send_signal(signum)


@contextmanager
def passing_on() -> Iterator[Children]:
    """While the block runs, signals are passed on, and waiting for a child never misses one."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    children = Children(reading)
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
