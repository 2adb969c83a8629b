"""Run somebody else's program: its own process group, a deadline, its output kept, nothing left running."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.config import drivers
from harness.migrations.port import Configured, MigrationContext

KEPT_LINES = 400
"""Lines of output that are kept: the tail tells what went wrong."""
SHOWN_LINES = 30
_TERM_GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL."""


@dataclass(frozen=True)
class Finished:
    """A program that ended.

    Attributes:
        code: its exit code; negative is the signal that ended it; None: it was killed at the deadline.
        output: the last lines of stdout and stderr together.
    """

    code: int | None
    output: tuple[str, ...]

    @property
    def tail(self) -> str:
        """The last lines, indented, for an error."""
        lines = [line for line in self.output if line.strip()]
        shown = lines[-SHOWN_LINES:]
        head = [f"  … {len(lines) - len(shown)} lines before"] if len(lines) > len(shown) else []
        return "\n".join([*head, *(f"  {line[:400]}" for line in shown)]) or "  (it printed nothing)"


def migrate(
    source: Configured,
    argv: Sequence[str],
    context: MigrationContext,
    *,
    step: str,
    cwd: Path,
    interpreted: bool = False,
    stdin: bytes = b"",
) -> None:
    """Run a program that migrates, in the context's environment and time; its output is the progress.

    Args:
        step: what is run, for messages.
        interpreted: whether the program is an interpreter, so that step and program must both be named.

    Raises:
        MigrationError: it cannot be started, failed, or took too long; with its last lines.
    """
    context.progress(0, None, step)
    try:
        finished = run(
            argv,
            cwd=cwd,
            environment=context.environment,
            timeout=context.timeout,
            line=lambda text: context.progress(0, None, text),
            stdin=stdin,
        )
    except OSError as error:
        raise source.failure(
            f"{argv[0]} cannot be started: {error.strerror} (in {cwd}, with the PATH of this process)", step
        ) from error
    what, where = (f"{step} ", f" in {argv[0]}") if interpreted else ("", "")
    if finished.code is None:
        raise source.failure(
            f"{what}still running after {context.timeout:g} s (migration_timeout), so it was ended "
            f"with all its processes. Its output ends with:\n{finished.tail}",
            step,
        )
    if finished.code != 0:
        how = f"exit code {finished.code}" if finished.code > 0 else f"signal {-finished.code}"
        output = "\n".join(finished.output)
        form = drivers.remedy(output, None) if "sqlalchemy" in output.lower() else ""
        raise source.failure(
            f"{what}failed{where} with {how}. Its output ends with:\n{finished.tail}"
            + (f"\n{form}" if form else ""),
            step,
        )


def run(
    argv: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    timeout: float,
    line: Callable[[str], None] = lambda text: None,
    stdin: bytes = b"",
) -> Finished:
    """Run a program to its end, or to the deadline.

    When this returns or raises (Ctrl-C too), no process of the program's group runs any more, also not
    what it left in the background: a pool in such a process would sit on the template.

    Args:
        timeout: seconds. line: gets each line of output as it comes.

    Raises:
        OSError: the program cannot be started.
    """
    process = subprocess.Popen(
        list(argv),
        cwd=cwd,
        env=dict(environment),
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    # Nothing stands between the start and the try: a Ctrl-C there would leave the program behind.
    try:
        _running.add(process)
        kept: deque[str] = deque(maxlen=KEPT_LINES)
        reader = threading.Thread(
            target=_read, args=(process, kept, line), name="pg-harness-output", daemon=True
        )
        reader.start()
        deadline = time.monotonic() + timeout
        code: int | None = None
        if stdin and process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it ended before it read: its exit code tells why
                process.stdin.write(stdin)
                process.stdin.close()
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        code = None
    finally:
        _end_group(process)
        _running.discard(process)
    # The pipe ends with its last writer; a process that left the group may hold it open for ever.
    reader.join(_TERM_GRACE)
    return Finished(code, tuple(kept))


_running: set[subprocess.Popen[bytes]] = set()
"""Programs that run just now, of whichever thread."""


def end_all() -> None:
    """End what runs, whichever thread waits for it: a process that is about to go would leave it behind."""
    for process in list(_running):
        _end_group(process)


def _read(process: subprocess.Popen[bytes], kept: deque[str], line: Callable[[str], None]) -> None:
    assert process.stdout is not None
    with process.stdout as stream:
        for raw in stream:
            text = raw.decode("utf-8", "replace").rstrip("\r\n")
            # A progress bar redraws one line with carriage returns: the last drawing is the line.
            text = text.rsplit("\r", 1)[-1]
            kept.append(text)
            line(text)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    if not hasattr(os, "killpg"):
        process.kill()
        process.wait(_TERM_GRACE)
        return
    # start_new_session made the child's pid the id of its group, and the group outlives the child.
    for sign, grace in ((signal.SIGTERM, _TERM_GRACE), (signal.SIGKILL, _TERM_GRACE)):
        if not _signal(process.pid, sign):
            break
        end = time.monotonic() + grace
        while time.monotonic() < end and _group_lives(process):
            time.sleep(0.01)
        if not _group_lives(process):
            break
    # Killed, unless it hangs in the kernel: its disk is gone, say.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_TERM_GRACE)


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # a zombie of ours would count as alive
    if not _signal(process.pid, 0):
        return False
    states = _states(process.pid)
    # Orphans that ended stay zombies until init reaps them: in some containers that takes seconds.
    return states is None or any(state not in "ZX" for state in states)


def _states(group: int) -> list[str] | None:
    """The states of the processes of a group (proc(5), ``stat``: state and pgrp); None without Linux's /proc."""
    if not os.path.isfile("/proc/self/stat"):
        return None
    states = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group:
                    states.append(fields[0])
    return states


def _signal(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        # macOS answers PermissionError for a group of zombies.
        return False
    return True
