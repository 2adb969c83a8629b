"""Nothing that a run's command has started outlives the run, however it ends, and whatever shells are between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fix_maven
import pytest
from fix_backends import until
from fix_cli import Project

needs_npm = pytest.mark.skipif(shutil.which("npx") is None, reason="no npx on this machine")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no subreapers")
pytestmark = linux_only

GONE = 10.0
"""Seconds within which all must have ended: three from a kill until the stubborn are killed too, and a busy machine."""

PRELUDE = 'echo "$PGHARNESS_RUN" >run.new; mv run.new run; note() { echo "$1" >>pids; }\n'

SHELLS = {
    "background": "sleep 600 & note $!; sleep 600 & note $!; wait",
    "shell in a shell": "sh -c 'sleep 600; true' & note $!; wait",
    "stubborn": "sh -c 'trap \"\" TERM HUP INT; echo $$ >>pids; while :; do sleep 1; done' & wait",
    "other session": "setsid sh -c 'echo $$ >>pids; exec sleep 600' & wait",
    "daemon": '"$PYTHON" daemon.py; while :; do sleep 1; done',
}
"""Of each: a shell that passes nothing on, and what it starts. All of it is noted in the file ``pids``."""

DAEMON = """
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        with open("pids", "a") as file:
            file.write(f"{os.getpid()}\\n")
        os.closerange(0, 100)
        # No mark of ours is in its environment, and its parent is gone.
        os.execve("/bin/sleep", ["sleep", "600"], {})
    os._exit(0)
os.wait()
"""

RUNNER = """#!/usr/bin/env node
const { fork, spawn } = require('node:child_process');
const fs = require('node:fs');
const note = (pid) => fs.appendFileSync('pids', pid + '\\n');
if (process.argv[2] !== 'worker') {
  fs.writeFileSync('run.new', process.env.PGHARNESS_RUN);
  fs.renameSync('run.new', 'run');
  note(process.pid);
  for (let i = 0; i < 3; i++) note(fork(__filename, ['worker']).pid);
  const apart = spawn('sleep', ['600'], { detached: true, stdio: 'ignore' });
  apart.unref();
  note(apart.pid);
}
setInterval(() => {}, 1000);
"""

PACKAGE = {
    "name": "suite", "version": "1.0.0", "private": True,
    "scripts": {"test": "node runner.js", "both": "npm run --silent test & npm run --silent test & wait"},
}  # fmt: skip

NODE = {
    "npx": (("npx", "runner"), 5),
    "npm test": (("npm", "test"), 5),
    "npm scripts of a script": (("npm", "run", "both"), 10),
}
"""Command, and how many processes it notes."""


@dataclass
class Suite:
    """One project in which commands run for ever, and what they have started."""

    project: Project

    def begin(self, *words: str, count: int, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Run a command, and wait until it has noted so many processes."""
        child = self.project.start(
            "run", *before, "--", *words, PYTHON=sys.executable, npm_config_update_notifier="false"
        )
        until(lambda: len(self.noted()) >= count or child.poll() is not None, seconds=60, what="the suite")
        assert child.poll() is None, child.communicate()
        assert len(self.left()) == count
        return child

    def noted(self) -> list[int]:
        try:
            return [int(line) for line in (self.project.root / "pids").read_text().split()]
        except FileNotFoundError:
            return []

    def left(self) -> list[int]:
        """What runs of that which was noted, and whatever has the run's mark."""
        run = (self.project.root / "run").read_text().strip()
        assert len(run) == 16
        found = [pid for pid in self.noted() if running(pid)]
        return found + [pid for pid in marked(run) if pid not in found and pid in self.noted()]

    def all_left(self) -> list[str]:
        """The same, and the shells between, for people."""
        run = (self.project.root / "run").read_text().strip()
        pids = {pid for pid in self.noted() if running(pid)} | set(marked(run))
        return [f"{pid} {words(pid)}" for pid in sorted(pids)]

    def nothing_is_left(self) -> None:
        """Neither a process now, nor a database after the next run."""
        until(lambda: not self.all_left(), seconds=GONE, what=f"the end of {self.all_left()}")
        self.project.ok("run", "--", "true")
        for server in json.loads(self.project.ok("status", "--json"))["servers"]:
            assert server["workers"] == []
            assert server["left_over"] == 0


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def marked(run: str) -> list[int]:
    """The processes that have a run's mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"PGHARNESS_RUN={run}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return [pid for pid in found if running(pid)]


@pytest.fixture(scope="module")
def whole(new_project: Callable[..., Project]) -> Project:
    project = new_project("descendants")
    (project.root / "daemon.py").write_text(DAEMON)
    (project.root / "runner.js").write_text(RUNNER)
    (project.root / "package.json").write_text(json.dumps(PACKAGE))
    binaries = project.root / "node_modules" / ".bin"
    binaries.mkdir(parents=True)
    (project.root / "runner.js").chmod(0o755)
    (binaries / "runner").symlink_to("../../runner.js")
    return project


@pytest.fixture
def suite(whole: Project) -> Iterator[Suite]:
    for name in ("pids", "run"):
        (whole.root / name).unlink(missing_ok=True)
    made = Suite(whole)
    yield made
    for pid in made.noted():
        if running(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """Another run's process, in the same session as ours and in no group of its own."""
    with subprocess.Popen(["sleep", "600"], env={**os.environ, "PGHARNESS_RUN": "0123456789abcdef"}) as other:
        yield other
        assert other.poll() is None
        other.kill()


def end(child: subprocess.Popen[str], signum: int) -> tuple[int, str]:
    """Send it a signal; its exit code, and what it said. Whoever holds its output open makes this fail."""
    child.send_signal(signum)
    _, err = child.communicate(timeout=60)
    return child.returncode, err


SIGNALS = [signal.SIGTERM, signal.SIGKILL]


@pytest.mark.parametrize("signum", [*SIGNALS, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("script", SHELLS)
def test_shells(suite: Suite, stranger: subprocess.Popen[bytes], script: str, signum: int) -> None:
    child = suite.begin("sh", "-c", PRELUDE + SHELLS[script], count=SHELLS[script].count("note") or 1)
    code, err = end(child, signum)
    assert code == (-signum if signum == signal.SIGKILL else 128 + signum), err
    if signum != signal.SIGKILL:
        assert "ended what the command had started: " in err
        # Before the databases went, and not after.
        assert not suite.all_left()
    suite.nothing_is_left()


@needs_npm
@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("name", NODE)
def test_npm(suite: Suite, name: str, signum: int) -> None:
    command, count = NODE[name]
    child = suite.begin(*command, count=count)
    code, err = end(child, signum)
    assert code != 0, err
    if signum != signal.SIGKILL:
        assert not suite.all_left()
    suite.nothing_is_left()


@pytest.mark.parametrize("signum", [*SIGNALS, signal.SIGHUP, signal.SIGINT])
def test_maven(suite: Suite, maven: tuple[str, ...], signum: int) -> None:
    """A script of the shell's, a machine, a shell for each fork, and a machine in each."""
    if not (suite.project.root / "pom.xml").exists():
        fix_maven.make(suite.project.root)
    child = suite.begin(*maven, count=2)
    code, err = end(child, signum)
    assert code != 0, err
    if signum != signal.SIGKILL:
        assert not suite.all_left()
    suite.nothing_is_left()


@pytest.mark.parametrize("signum", SIGNALS)
def test_copies(suite: Suite, signum: int) -> None:
    script = PRELUDE + SHELLS["background"]
    child = suite.begin("sh", "-c", script, count=6, before=("--copies", "3"))
    code, err = end(child, signum)
    assert code == (-signum if signum == signal.SIGKILL else 128 + signum), err
    suite.nothing_is_left()


def test_the_whole_group_is_killed(suite: Suite) -> None:
    """As `timeout -s KILL` and many a CI runner do it: what is in another session lives on."""
    script = PRELUDE + SHELLS["other session"].replace("& wait", "& ") + SHELLS["background"]
    child = suite.begin("sh", "-c", script, count=3)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate(timeout=60)
    suite.nothing_is_left()


def test_stopped_and_killed(suite: Suite) -> None:
    child = suite.begin("sh", "-c", PRELUDE + SHELLS["background"], count=2)
    os.killpg(child.pid, signal.SIGSTOP)
    end(child, signal.SIGKILL)
    suite.nothing_is_left()


# --- the command ends by itself ---------------------------------------------------------------------------


def test_what_a_command_leaves_is_ended_with_its_databases(suite: Suite) -> None:
    script = PRELUDE + "sleep 600 >/dev/null 2>&1 & note $!; setsid sleep 600 & exit 3"
    done = suite.project.run("run", "--", "sh", "-c", script)
    assert done.returncode == 3
    pid = suite.noted()[0]
    assert f"ended what the command had started: sleep ({pid}), sleep (" in done.stderr
    suite.nothing_is_left()


def test_what_is_about_to_end_is_left_to_itself(suite: Suite) -> None:
    script = PRELUDE + "(sleep 0.4; echo done >late) & note $!"
    done = suite.project.run("run", "-n", "2", "--", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    assert (suite.project.root / "late").read_text() == "done\n"


def test_what_shall_stay_stays(suite: Suite) -> None:
    """A build's daemon, for one, which has no business with the databases."""
    script = PRELUDE + "PGHARNESS_RUN= sh -c 'sleep 600 & echo $! >>pids; wait' >/dev/null 2>&1 & sleep 0.5"
    done = suite.project.run("run", "-n", "2", "--", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    assert [running(pid) for pid in suite.noted()] == [True]


def test_a_server_that_is_started_in_a_run_stays(new_project: Callable[..., Project]) -> None:
    """pytest's plugin starts one, and the next pytest finds it warm."""
    project = new_project("inside")
    other = new_project("beside")
    script = f"cd '{other.root}' && '{sys.executable}' -m harness up"
    done = project.run("run", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert "ended what" not in done.stderr
    assert "yours, worker 1" in other.ok("status")


def test_a_command_that_does_not_end(tmp_path: Path) -> None:
    """It takes SIGTERM and goes on: after a while it is ended with all that it has started."""
    script = (
        "import os, sys\n"
        "from harness.cli.run import child\n"
        "from harness.cli.run.reaper import Reaper\n"
        "import logging; logging.basicConfig(format='%(message)s')\n"
        "child.ENDING_GRACE = child.TERM_GRACE = 0.5\n"
        "with Reaper.beside() as reaper:\n"
        "    sys.exit(child.call(['sh', '-c', sys.argv[1]], dict(os.environ), reaper))\n"
    )
    stubborn = 'trap "" TERM; (while :; do sleep 1; done) & echo $$ $! >pids; mv pids noted; while :; do sleep 1; done'
    child = subprocess.Popen(
        [sys.executable, "-c", script, stubborn], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    until((tmp_path / "noted").exists, seconds=30, what="the command")
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 128 + signal.SIGKILL
    assert "the command has not ended 0.5 s after signal 15" in err
    assert "ended what the command had started: " in err
    assert not [pid for pid in (tmp_path / "noted").read_text().split() if running(int(pid))]


# --- what must not be different ---------------------------------------------------------------------------


def test_the_command_has_our_three_streams_and_no_others(suite: Suite) -> None:
    for words in ((), ("--copies", "1")):
        out = suite.project.ok("run", *words, "--", "sh", "-c", "ls /proc/$$/fd")
        assert [line.split()[-1] for line in out.splitlines()] == ["0", "1", "2"]


def test_a_stream_that_is_closed(suite: Suite) -> None:
    """The number may be anything else's by now: the command's output went into a connection to the server."""
    command = " ".join(
        f"'{word}'"
        for word in suite.project.command("run", "-n", "2", "--", "sh", "-c", "echo x; echo y >&2")
    )
    done = subprocess.run(
        ["sh", "-c", f"{command} >&-"], cwd=suite.project.root, env=suite.project.environ, timeout=60, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "y\n")


def test_signals_that_were_ignored_stay_so(suite: Suite) -> None:
    """As `nohup` has it. Whoever runs this suite may have ignored others."""
    ignored = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])"
    ask = ["cat", "/proc/self/status"]

    def masks(*words: str) -> dict[str, int]:
        done = subprocess.run(
            words, cwd=suite.project.root, env=suite.project.environ, timeout=60, check=True, capture_output=True, text=True
        )  # fmt: skip
        found = (line.partition(":") for line in done.stdout.splitlines())
        # Python ignores these two for itself, and only its `subprocess` takes that back for a child.
        own = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
        return {
            name: int(value, 16) & ~own for name, _, value in found if name in ("SigBlk", "SigIgn", "SigCgt")
        }

    for front in ([], [sys.executable, "-c", ignored]):
        expected = masks(*front, *ask)
        assert masks(*front, *suite.project.command("run", "--", *ask)) == expected
        assert bool(expected["SigIgn"] & 1) == bool(front)


def test_a_reaper_that_is_killed(suite: Suite) -> None:
    """Nobody can tell any more how the command ended: it does not go on unseen."""
    child = suite.begin("sh", "-c", PRELUDE + SHELLS["background"], count=2)
    reapers = [
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if "reaper_process" in words(int(folder.name)) and parent(int(folder.name)) == child.pid
    ]
    os.kill(reapers[0], signal.SIGKILL)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGKILL
    assert "was killed" in err
    suite.nothing_is_left()


def test_a_reaper_that_cannot_be_there(tmp_path: Path) -> None:
    """The command is run all the same, and a warning tells what is missing."""
    (tmp_path / "reaper_process.py").write_text("raise SystemExit(1)\n")
    script = (
        "import os, sys, time, logging\n"
        "from harness.cli.run import child, reaper\n"
        "logging.basicConfig(format='%(message)s')\n"
        "reaper.reaper_process.__file__ = sys.argv[1]\n"
        "with reaper.Reaper.beside() as beside:\n"
        "    time.sleep(float(sys.argv[2]))\n"
        "    sys.exit(child.call(['sh', '-c', 'sleep 0.2; exit 3'], dict(os.environ), beside))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "reaper_process.py"), "0.5"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "can outlive its databases" in done.stderr


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
