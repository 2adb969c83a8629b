"""The process that a run's commands are children of, seen from ``run``; what it does is in :mod:`harness.cli.run.reaper_process`.

It is started before the databases are looked for, because it takes as long to be there as they take.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO

from harness.cli.run import reaper_process
from harness.errors import BackendError

logger = logging.getLogger("pg_harness.cli")

PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); import reaper_process; reaper_process.main(int(sys.argv[2]))"
)
"""Imported, because what is called by its name is compiled each time."""

START = 30.0
"""Seconds that it may take to start a command: a busy machine, or a home on a slow file server."""

CLOSE = 10.0
"""Seconds to wait for its end, which comes at once."""


class Reaped:
    """A command, as :class:`subprocess.Popen` has it.

    Attributes:
        pid: its number.
        returncode: its exit code, or -n for signal n; None while it runs.
        stdout, stderr: its output, where that was asked for.
    """

    stdout: IO[bytes] | None = None
    stderr: IO[bytes] | None = None

    def __init__(self, reaper: Reaper, pid: int, descriptor: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._reaper = reaper
        self._descriptor = descriptor

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        if self.returncode is None:
            self._reaper.read()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.returncode is not None:
            return
        with suppress(OSError):
            if self._descriptor >= 0:
                signal.pidfd_send_signal(self._descriptor, number)
            else:
                os.kill(self.pid, number)

    def close(self) -> None:
        """Let go of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass
class Rest:
    """What was left when the commands had ended, or took too long: ``name (pid)`` of each.

    Attributes:
        ended: those that were ended.
        stay: those that could not be.
    """

    ended: list[str] = field(default_factory=list)
    stay: list[str] = field(default_factory=list)


class Reaper:
    """One such process.

    Args:
        process: it.
        door: to it.
    """

    def __init__(self, process: subprocess.Popen[bytes], door: socket.socket) -> None:
        self._process = process
        self._door = door
        self._commands: dict[int, Reaped] = {}
        """Those that run, by their number."""
        self._all: list[Reaped] = []
        self._answers: list[Reaped | int] = []
        self._rest = Rest()
        self._asked = self._done = 0
        self._text = b""
        # Never waits, but where it is said: a signal must find us in `select`.
        door.setblocking(False)
        self.gone = False
        """Whether it was killed."""

    @classmethod
    @contextmanager
    def beside(cls) -> Iterator[Reaper | None]:
        """Have one for a while; None where the system has no such processes (other than Linux), or refuses one."""
        reaper = cls._launched() if sys.platform == "linux" else None
        try:
            yield reaper
        finally:
            if reaper is not None:
                reaper.close()

    @classmethod
    def _launched(cls) -> Reaper | None:
        try:
            ours, its = socket.socketpair()
        except OSError as error:
            _warn(f"the process that would end it cannot be started: {error.strerror}")
            return None
        with its:
            try:
                process = subprocess.Popen(
                    [
                        sys.executable,
                        "-I",
                        "-S",
                        "-c",
                        PROGRAM,
                        os.path.dirname(reaper_process.__file__),
                        str(its.fileno()),
                    ],
                    pass_fds=[its.fileno()],
                    # Whoever waits for the end of our output must not wait for this one.
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    # Not in our group: SIGKILL for that is just when it is needed, and Ctrl-Z is not for it.
                    process_group=0,
                )
            except OSError as error:
                ours.close()
                _warn(f"the process that would end it cannot be started: {error.strerror}")
                return None
        return cls(process, ours)

    def fileno(self) -> int:
        """Readable when there is something to :meth:`read`."""
        return self._door.fileno()

    def start(
        self, command: Sequence[str], environ: Mapping[str, str], *, piped: bool = False
    ) -> Reaped | None:
        """Start a command in our own process group; None where this process cannot: it was killed before the first.

        Args:
            piped: take its output instead of letting it through; its input is empty then.

        Raises:
            OSError: the system refuses the command; as :class:`subprocess.Popen` has it.
            BackendError: the reaper does not answer.
        """
        if not piped:
            # One that is closed may be anything by now: a connection to the server.
            standard = enumerate((sys.__stdin__, sys.__stdout__, sys.__stderr__))
            return self._start(
                command, environ, {number: number for number, its in standard if its is not None}
            )
        with ExitStack() as outputs, ExitStack() as ours:
            ends = {}
            streams = []
            for number in (1, 2):
                reading, ends[number] = os.pipe()
                ours.callback(os.close, ends[number])
                streams.append(outputs.enter_context(os.fdopen(reading, "rb")))
            started = self._start(command, environ, ends)
            if started is not None:
                started.stdout, started.stderr = streams
                outputs.pop_all()
        return started

    def _start(
        self, command: Sequence[str], environ: Mapping[str, str], streams: Mapping[int, int]
    ) -> Reaped | None:
        words = [
            str(os.getpgrp()),
            " ".join(map(str, streams)),
            str(len(command)),
            *command,
            *(f"{name}={value}" for name, value in environ.items()),
        ]
        if not self._ask(b"S", b"\0".join(map(os.fsencode, words)), list(streams.values())):
            if self._all:
                raise _silent()
            _warn("the process that would end it has ended")
            self.gone = True
            return None
        deadline = time.monotonic() + START
        while not self._answers:
            self._wait(deadline)
        answer = self._answers.pop()
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return answer

    def ask_to_end(self, linger: float, grace: float) -> None:
        """Have all ended that the commands have started, they included; asked twice, the shorter time holds.

        Args:
            linger: seconds to wait until they are asked.
            grace: seconds from there until they are killed.
        """
        self._asked += 1
        self._ask(b"E", reaper_process.END.pack(self._asked, linger, grace))

    @property
    def rest(self) -> Rest | None:
        """What was ended since this was asked before; None as long as there is something left."""
        self.read()
        if self._done != self._asked and not self.gone:
            return None
        found, self._rest = self._rest, Rest()
        return found

    def read(self) -> None:
        """Take in what it has said. Waits for nothing."""
        while not self.gone:
            try:
                data, descriptors = reaper_process.receive(self._door, 4096)
            except BlockingIOError:
                return
            except OSError:
                # It was killed, and had not read all that we had written.
                data, descriptors = b"", []
            if not data:
                self._lost()
                return
            *lines, self._text = (self._text + data).split(b"\n")
            for line in lines:
                self._said(line.decode().split(" ", 2), descriptors)

    def _said(self, words: Sequence[str], descriptors: list[int]) -> None:
        match words:
            case ["started", pid]:
                found = Reaped(self, int(pid), descriptors.pop(0) if descriptors else -1)
                self._commands[found.pid] = found
                self._all.append(found)
                self._answers.append(found)
            case ["failed", number]:
                self._answers.append(int(number))
            case ["exited", pid, code]:
                self._commands.pop(int(pid)).returncode = int(code)
            case ["ended", pid, name]:
                self._rest.ended.append(f"{name} ({pid})")
            case ["stays", pid, name]:
                self._rest.stay.append(f"{name} ({pid})")
            case ["done", number]:
                self._done = int(number)

    def _lost(self) -> None:
        """It was killed: nobody tells any more when a command ends, nor finds what it leaves."""
        self.gone = True
        if self._commands:
            logger.warning(
                "the process that looks after the command was killed: the command is ended, and what runs below it; what it has "
                "left in the background may not be"
            )
        for command in self._commands.values():
            below = reaper_process.descendants(command.pid)
            command.send_signal(signal.SIGKILL)
            for process in below:
                process.send(signal.SIGKILL)
            command.returncode = -signal.SIGKILL
        self._commands.clear()

    def _ask(self, letter: bytes, body: bytes, descriptors: Sequence[int] = ()) -> bool:
        """Whether it is there to be asked.

        Raises:
            BackendError: it is, and does not listen.
        """
        try:
            self._door.settimeout(START)
            header = reaper_process.HEADER.pack(letter, len(body))
            sent = socket.send_fds(self._door, [header], list(descriptors))
            self._door.sendall(header[sent:] + body)
        except TimeoutError:
            raise _silent() from None
        except ConnectionError:
            return False
        finally:
            self._door.setblocking(False)
        return True

    def _wait(self, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._door, select.POLLIN)
        if not poll.poll(max(0, deadline - time.monotonic()) * 1000):
            raise _silent()
        self.read()
        if self.gone:
            raise _silent()

    def close(self) -> None:
        """Let it end, and with it whatever is left."""
        self._door.close()
        if not self._all:
            # It may not have got as far as to notice.
            self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE)
        for command in self._all:
            command.close()


def _silent() -> BackendError:
    return BackendError("the process that starts the command was killed, or does not answer")


def _warn(why: str) -> None:
    logger.warning("what the command leaves in the background can outlive its databases: %s", why)
