"""`run` on a terminal: Ctrl-C and Ctrl-Z reach the command as they would without us, once."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from fix_cli import Project

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("bash") is None, reason="needs bash with job control, and /proc"
)

SHELL = (
    "import fcntl, os, termios\n"
    "os.setsid()\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "os.execvp('bash', ['bash', '--norc', '--noprofile', '-i'])\n"
)

TWICE = (
    "import signal, time\n"
    "def told(number, frame):\n"
    "    print('got', number, flush=True)\n"
    "signal.signal(signal.SIGINT, told)\n"
    "print('rea' + 'dy', flush=True)\n"
    "end = time.monotonic() + 1.5\n"
    "while time.monotonic() < end: time.sleep(0.05)\n"
    "print('through', flush=True)\n"
)


class Terminal:
    """A person's terminal, with a shell in it that has job control."""

    def __init__(self, project: Project) -> None:
        self.screen, inside = os.openpty()
        environ = {**project.environ, "PS1": "$ ", "TERM": "dumb", "HISTFILE": ""}
        self.shell = subprocess.Popen(
            [sys.executable, "-c", SHELL], cwd=project.root, env=environ, stdin=inside, stdout=inside, stderr=inside
        )  # fmt: skip
        os.close(inside)
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def see(self, text: str, seconds: float = 40) -> str:
        """Wait for a text; what stood before it."""
        deadline = time.monotonic() + seconds
        while text not in self._seen:
            ready, _, _ = select.select([self.screen], [], [], deadline - time.monotonic())
            assert ready, f"{text!r} was not seen in {self._seen!r}"
            self._seen += os.read(self.screen, 4096).decode()
        before, _, self._seen = self._seen.partition(text)
        return before

    def code(self) -> int:
        """The last command's exit code."""
        self.type("echo code=$?.\n")
        self.see("\r\n")
        self.see("code=")
        return int(self.see("."))

    def close(self) -> None:
        self.shell.kill()
        self.shell.wait(20)
        os.close(self.screen)


@pytest.fixture
def terminal(project: Project) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def open_it() -> Terminal:
        made.append(Terminal(project))
        made[-1].see("$ ")
        return made[-1]

    yield open_it
    for each in made:
        each.close()


def command(project: Project, code: str, *words: str) -> str:
    (project.root / "looked.py").write_text(code)
    return " ".join([*project.command("-q", "run", *words, "--"), sys.executable, "looked.py"]) + "\n"


def test_ctrl_c_reaches_the_command_once(project: Project, terminal: Callable[[], Terminal]) -> None:
    shell = terminal()
    shell.type(command(project, TWICE))
    shell.see("ready")
    shell.type("\x03")
    said = shell.see("through")
    assert said.count("got 2") == 1
    # The command has gone on: nobody ends it.
    assert "ended" not in shell.see("$ ")
    assert shell.code() == 0


def test_ctrl_c_ends_what_the_command_has_started(project: Project, terminal: Callable[[], Terminal]) -> None:
    shell = terminal()
    code = (
        "import subprocess, time\n"
        "apart = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "print('pid', apart.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    shell.type(command(project, code))
    shell.see("pid ")
    pid = int(shell.see("\r\n"))
    assert os.path.exists(f"/proc/{pid}")
    shell.type("\x03")
    assert f"ended what the command had started: sleep ({pid})" in shell.see("$ ")
    assert shell.code() == 130
    assert not os.path.exists(f"/proc/{pid}")


def test_ctrl_z_and_on_again(project: Project, terminal: Callable[[], Terminal]) -> None:
    shell = terminal()
    shell.type(command(project, TWICE))
    shell.see("ready")
    shell.type("\x1a")
    shell.see("Stopped")
    shell.see("$ ")
    # All of the job, and it goes on when it is told to.
    shell.type('ps -eo pgid=,stat= | grep -c "^ *$(jobs -p) *T"; echo .\n')
    shell.see("echo .\r\n")
    assert shell.see(".\r\n") == "2\r\n"
    shell.type("fg\n")
    shell.see("through")
    shell.see("$ ")
    assert shell.code() == 0


def test_the_command_may_read_from_the_terminal(project: Project, terminal: Callable[[], Terminal]) -> None:
    shell = terminal()
    shell.type(command(project, "print('you said', input('wh' + 'at? '))\n"))
    shell.see("what? ")
    shell.type("yes\n")
    shell.see("you said yes")
    shell.see("$ ")
    assert shell.code() == 0


def test_a_terminal_that_is_closed(project: Project, terminal: Callable[[], Terminal]) -> None:
    """Its shell sends SIGHUP: nobody is there to see the suite go on."""
    shell = terminal()
    code = "import os, signal, time\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nprint('pid', os.getpid(), flush=True)\ntime.sleep(600)\n"
    shell.type(command(project, code))
    shell.see("pid ")
    pid = int(shell.see("\r\n"))
    began = time.monotonic()
    shell.shell.terminate()
    os.close(shell.screen)
    shell.screen = os.open(os.devnull, os.O_RDONLY)
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < began + 40:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{pid}")
