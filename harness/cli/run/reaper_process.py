"""The parent of a run's command, which ends all that the command has started, also when ``run`` was killed.

A program of the standard library alone, started by :mod:`harness.cli.run.reaper`, of which even the imports are chosen: it is started
with each run, and the processor is busy then. It is a *subreaper* (prctl(2), ``PR_SET_CHILD_SUBREAPER``): a process whose parent
has ended becomes its child, not init's, whatever shell, session or group it was started in. So all that is left is below it, and
nothing else is.

Over the socket FD come requests, one letter and the length of what follows:

- ``S``: start the command whose words and variables follow, with the descriptors beside it. Answer: ``started PID`` with a
  descriptor of the process (pidfd_open(2)) where there is one, or ``failed ERRNO``.
- ``E``: end what there is, and tell of each one ``ended PID NAME``, ``stays PID NAME``, then ``done NUMBER``: of the last such
  request, a later one being to be quicker.

``exited PID CODE`` comes when a command has. Once the socket is closed, whatever is left is ended, and so is this program.
"""

from __future__ import annotations

import os
import select
import struct
import time

TYPE_CHECKING = False
"""As ``typing`` has it, which is not imported either."""

if TYPE_CHECKING:
    import signal
    import socket
    from collections.abc import Iterator, Sequence
else:
    try:
        # Without the enumerations that the modules around them make, which take longer than the interpreter's own start.
        import _signal as signal
        import _socket as socket
    except ImportError:
        import signal
        import socket

HEADER = struct.Struct("!cI")
INT = struct.Struct("i")
END = struct.Struct("!Idd")

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

EXEMPT = b"PGHARNESS_RUN="
"""A process with this in its environment, empty, is to outlive the run."""

KILLED_PATIENCE = 3.0
"""Seconds that ``run``'s own death leaves a process between SIGTERM and SIGKILL."""

UNKILLABLE = 5.0
"""Seconds to wait for a process that was sent SIGKILL: it may hang in the kernel, or be another user's."""

RESCAN = (0.01, 0.1)
"""Seconds between two looks at what is left, at first and at last."""


def receive(door: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """Some bytes, and the descriptors beside them; no program that is started inherits those.

    Not ``socket.recv_fds``, which ignores the flag (as of Python 3.13).

    Raises:
        OSError.
    """
    data, beside, _, _ = door.recvmsg(size, socket.CMSG_SPACE(3 * INT.size), socket.MSG_CMSG_CLOEXEC)
    descriptors: list[int] = []
    for level, kind, content in beside:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            whole = content[: len(content) - len(content) % INT.size]
            descriptors += [number for (number,) in INT.iter_unpack(whole)]
    return data, descriptors


class Process:
    """One that is left.

    Attributes:
        pid: its number.
        parent: its parent's.
        born: when it was started, in ticks: with the number it names one process for good.
        gone: whether it has ended, and waits for its parent to hear of it.
    """

    def __init__(self, pid: int) -> None:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # proc(5): the name is in brackets, and may hold anything.
            fields = file.read().rpartition(b")")[2].split()
        self.pid = pid
        self.gone = fields[0] in (b"Z", b"X")
        self.parent = int(fields[1])
        self.born = int(fields[19])

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from a later one of the same number."""
        return self.pid, self.born

    @property
    def name(self) -> str:
        """Its program's, for people. Not its arguments: an address in them holds a password."""
        try:
            return os.path.basename(os.readlink(f"/proc/{self.pid}/exe")).removesuffix(" (deleted)")
        except OSError:
            return "?"

    @property
    def exempt(self) -> bool:
        """Whether whoever started it has asked that it stays."""
        try:
            with open(f"/proc/{self.pid}/environ", "rb") as file:
                return EXEMPT in file.read().split(b"\0")
        except OSError:
            return False

    def send(self, number: int) -> None:
        """Send it a signal; one that has its number by now is left alone."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        except (AttributeError, OSError):
            # An old kernel, or a sandbox.
            descriptor = -1
        try:
            if Process(self.pid).key != self.key:
                return
            if descriptor < 0:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(descriptor, number)
        except OSError:
            # It has just ended, or is another user's (sudo).
            return
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def descendants(root: int) -> list[Process]:
    """All that run below a process, parents first; without those that are exempt and what is below them."""
    below: dict[int, list[Process]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                process = Process(int(name))
            except (OSError, ValueError, IndexError):
                continue
            below.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    todo = [root]
    while todo:
        for process in below.get(todo.pop(), ()):
            if not process.gone and not process.exempt:
                found.append(process)
                todo.append(process.pid)
    return found


class Ending:
    """The end of all that is below a process: a wait, SIGTERM, a wait, SIGKILL.

    Args:
        root: below which process.
        linger: seconds that it may take to end by itself.
        grace: seconds between SIGTERM and SIGKILL.
    """

    def __init__(self, root: int, linger: float, grace: float) -> None:
        self._root = root
        self._asking = time.monotonic() + linger
        self._killing = self._asking + grace
        self._asked: dict[tuple[int, int], str] = {}
        self._left: list[Process] = []

    def hurry(self, linger: float, grace: float) -> None:
        """Be through sooner than was said before."""
        self._asking = min(self._asking, time.monotonic() + linger)
        self._killing = min(self._killing, time.monotonic() + linger + grace)

    def step(self, *, childless: bool = False) -> bool:
        """Look once, and send what is due; whether that was the last time.

        Args:
            childless: there is no need to look.
        """
        self._left = [] if childless else descendants(self._root)
        now = time.monotonic()
        if not self._left or now > self._killing + UNKILLABLE:
            return True
        for process in self._left:
            if now >= self._asking and process.key not in self._asked:
                self._asked[process.key] = process.name
                process.send(signal.SIGTERM)
                # One that a terminal has stopped would not hear of it.
                process.send(signal.SIGCONT)
            if now >= self._killing:
                process.send(signal.SIGKILL)
        return False

    def told(self) -> Iterator[str]:
        """One line for each that was ended, or could not be."""
        left = {process.key for process in self._left}
        for key, name in self._asked.items():
            yield f"{'stays' if key in left else 'ended'} {key[0]} {name}"


class Reaper:
    """The parent of the commands.

    Args:
        door: where requests come from and answers go to.
        woken: becomes readable with each signal.
    """

    def __init__(self, door: socket.socket, woken: int) -> None:
        self._door = door
        self._woken = woken
        self._commands: set[int] = set()
        self._ending: Ending | None = None
        self._asked = 0
        self._open = True

    def serve(self) -> None:
        """Do what is asked for, until nobody asks any more and nothing is left."""
        poll = select.poll()
        poll.register(self._door, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        pause = RESCAN[0]
        while self._open or self._ending is not None:
            for descriptor, _ in poll.poll(None if self._ending is None else pause * 1000):
                if descriptor == self._woken:
                    os.read(self._woken, 512)
                elif not self._request():
                    poll.unregister(self._door)
                    self._open = False
                    self._end(0, KILLED_PATIENCE)
            childless = self._reap()
            if self._ending is None:
                pause = RESCAN[0]
            elif self._ending.step(childless=childless):
                for line in self._ending.told():
                    self._tell(line)
                self._ending = None
                self._tell(f"done {self._asked}")
            else:
                pause = min(2 * pause, RESCAN[1])

    def _request(self) -> bool:
        """One request; False where there are none any more."""
        try:
            header, descriptors = receive(self._door, HEADER.size)
            if not header:
                return False
            letter, length = HEADER.unpack(header + self._exactly(HEADER.size - len(header)))
            body = self._exactly(length)
        except (OSError, EOFError):
            # Killed between two bytes.
            return False
        if letter == b"S":
            self._start(body, descriptors)
        else:
            self._asked, linger, grace = END.unpack(body)
            self._end(linger, grace)
        return True

    def _exactly(self, length: int) -> bytes:
        parts = []
        while length:
            part = self._door.recv(length)
            if not part:
                raise EOFError
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _end(self, linger: float, grace: float) -> None:
        if self._ending is None:
            self._ending = Ending(os.getpid(), linger, grace)
        else:
            self._ending.hurry(linger, grace)

    def _start(self, body: bytes, descriptors: Sequence[int]) -> None:
        group, streams, count, *words = body.split(b"\0")
        arguments, variables = words[: int(count)], words[int(count) :]
        environ = dict(variable.split(b"=", 1) for variable in variables)
        try:
            pid = spawn(
                arguments,
                environ,
                dict(zip(map(int, streams.split()), descriptors, strict=True)),
                int(group),
            )
        except OSError as error:
            self._tell(f"failed {error.errno}")
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._commands.add(pid)
        try:
            held = [os.pidfd_open(pid)]
        except (AttributeError, OSError):
            held = []
        self._tell(f"started {pid}", held)
        for descriptor in held:
            os.close(descriptor)

    def _reap(self) -> bool:
        """Take note of those of our children that have ended; whether there is none any more."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid in self._commands:
                self._commands.remove(pid)
                self._tell(f"exited {pid} {os.waitstatus_to_exitcode(status)}")

    def _tell(self, line: str, descriptors: Sequence[int] = ()) -> None:
        try:
            beside = b"".join(map(INT.pack, descriptors))
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, beside)] if beside else []
            self._door.sendmsg([f"{line}\n".encode("utf-8", "replace")], rights)
        except OSError:
            # Nobody listens: that is found out where the next request is read.
            return


def spawn(
    arguments: Sequence[bytes], environ: dict[bytes, bytes], streams: dict[int, int], group: int
) -> int:
    """Start a program in a process group; return its number.

    Args:
        streams: its descriptor → ours.

    Raises:
        OSError: it cannot be started.
    """
    said, saying = os.pipe()
    # A Ctrl-C that comes before the program is there must neither be lost nor end in a traceback.
    everything = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, group)
            for target, descriptor in streams.items():
                os.dup2(descriptor, target)
            for number in (*HANDLED, signal.SIGPIPE, signal.SIGXFSZ):
                # Python itself ignores the last two.
                if number not in HANDLED or signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, everything)
            os.execvpe(arguments[0], list(arguments), environ)  # noqa: S606 - no shell is meant
        except OSError as error:
            os.write(saying, str(error.errno).encode())
        finally:
            os._exit(127)
    signal.pthread_sigmask(signal.SIG_SETMASK, everything)
    os.close(saying)
    with os.fdopen(said, "rb") as file:
        refused = int(file.read() or 0)
    if refused:
        os.waitpid(pid, 0)
        raise OSError(refused, os.strerror(refused))
    return pid


HANDLED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP,
    signal.SIGCHLD,
)  # fmt: skip
"""What must not end or stop this program: the command's, and ``run``'s. Handled, not ignored: what is ignored would be in the
command too."""


def main(number: int) -> None:
    """Serve the socket of that number."""
    woken, waking = os.pipe()
    os.set_blocking(waking, False)
    for each in HANDLED:
        if each == signal.SIGCHLD or signal.getsignal(each) != signal.SIG_IGN:
            signal.signal(each, lambda signum, frame: None)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    import ctypes

    # Where it is refused, what loses its parent is lost to us; the rest is found all the same.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # The command's until here: it would keep the door open when this program is gone.
    os.set_inheritable(number, False)
    Reaper(socket.socket(fileno=number), woken).serve()
    # Without the interpreter's own tidying up: whoever waits for us, waits for that.
    os._exit(0)
