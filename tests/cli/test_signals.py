"""A signal is passed on whichever thread the system gave it to, and however early it arrives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from harness.cli import entry
from harness.cli.context import Context
from harness.errors import HarnessError, ServerLost

# What the main thread has not seen yet is the danger: a signal just before its system call begins cannot be
# timed by a test, but one that another thread receives leaves the main thread's system call alone just so.
SCRIPT = """
import os, signal, sys, threading
from contextlib import nullcontext
from harness.cli.run.child import exit_code, passing_on
from harness.cli.run.reaper import Reaper

with Reaper.beside() if "reaper" in sys.argv else nullcontext() as reaper, passing_on(reaper) as children:
    if "early" in sys.argv:
        signal.raise_signal(signal.SIGUSR1)
        command = "kill -0 $PPID; exec sleep 60"
    else:
        command = "trap 'exit 9' USR1; echo ready; while :; do sleep 0.05; done"
    child = children.start(["sh", "-c", command], dict(os.environ), piped=True)

    def send():
        child.stdout.readline()
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    if "thread" in sys.argv:
        threading.Thread(target=send, daemon=True).start()
    sys.exit(exit_code(children.wait()[0]))
"""


@pytest.mark.parametrize("whose", ["ours", "reaper"])
@pytest.mark.parametrize(("how", "code"), [("thread", 9), ("early", 128 + 10)])
def test_no_signal_is_lost(how: str, code: int, whose: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how, whose], timeout=30, check=False)
    assert done.returncode == code


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "error", [ServerLost("the server is gone"), ValueError("a bug")], ids=["told", "bug"]
)
def test_what_cannot_be_undone_does_not_hide_the_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], signum: int, error: Exception
) -> None:
    def verb(context: Context) -> int:
        try:
            os.kill(os.getpid(), signum)
            signal.pause()
        finally:
            raise error

    monkeypatch.setattr(entry, "parse", lambda words: (verb, SimpleNamespace(), []))
    assert entry.run(["mark"]) == 128 + signum
    assert str(error) in capsys.readouterr().err


def test_an_error_without_a_signal_has_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def verb(context: Context) -> int:
        raise HarnessError("told")

    monkeypatch.setattr(entry, "parse", lambda words: (verb, SimpleNamespace(), []))
    assert entry.run(["mark"]) == HarnessError.exit_code
