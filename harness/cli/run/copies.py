"""``run --copies``: the same command several times side by side, its output prefixed line by line."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO, TextIO

from harness.cli.context import Context
from harness.cli.run.child import exit_code, passing_on
from harness.cli.run.reaper import Reaper

LONGEST = 64 * 1024
"""Bytes of a line; what never ends its line is cut there instead of filling the memory."""

DRAIN = 2.0
"""Seconds to wait for the rest of the output: a background process of the command may hold the pipe for ever."""


def run_copies(
    context: Context,
    command: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    reaper: Reaper | None = None,
    heard: list[int] | None = None,
) -> int:
    """Run one copy for each environment; return the worst exit code.

    Args:
        reaper, heard: see :func:`harness.cli.run.child.call`.
    """
    lock = threading.Lock()
    width = len(str(len(environments)))
    pumps: list[threading.Thread] = []
    with passing_on(reaper, heard) as children:
        try:
            for number, environ in enumerate(environments, 1):
                child = children.start(command, environ, piped=True)
                prefix = f"[{number:>{width}}] ".encode()
                pumps += [
                    _pump(child.stdout, sys.stdout, prefix, lock),
                    _pump(child.stderr, sys.stderr, prefix, lock),
                ]
            codes = [exit_code(code) for code in children.wait()]
        except BaseException:
            # A copy could not be started: the others must not go on without us.
            children.end()
            raise
        for pump in pumps:
            pump.join(DRAIN)
    for number, code in enumerate(codes, 1):
        if code:
            context.console.warn(f"copy {number} of {len(codes)} ended with exit code {code}")
    return max(codes)


def _pump(
    source: IO[bytes] | None, target: TextIO | None, prefix: bytes, lock: threading.Lock
) -> threading.Thread:
    assert source is not None

    def copy() -> None:
        with source:
            while line := source.readline(LONGEST):
                if not _write(target, prefix + line + (b"" if line.endswith(b"\n") else b"\n"), lock):
                    # Whoever read us went away: closing the pipe tells the command, as a shell's would.
                    return

    thread = threading.Thread(target=copy, name="pg-harness output", daemon=True)
    thread.start()
    return thread


def _write(target: TextIO | None, line: bytes, lock: threading.Lock) -> bool:
    if target is None:
        return True
    try:
        with lock:
            target.buffer.write(line)
            target.buffer.flush()
    except (OSError, ValueError):
        return False
    return True
