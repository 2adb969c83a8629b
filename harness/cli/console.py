"""The answer goes to stdout, the log to stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from harness.config import logs

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PREFIX = "pg-harness: "
"""What every line on stderr begins with: in a CI log it stands between a command's own lines."""

_DIM, _YELLOW, _RED, _PLAIN = "\x1b[2m", "\x1b[33m", "\x1b[31m", "\x1b[0m"


class Console:
    """Where a command speaks.

    Args:
        environ: ``NO_COLOR`` and ``TERM`` are looked at (no-color.org).

    Attributes:
        verbosity: which records of the log are shown; warnings, errors and answers always are.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.verbosity = logs.Verbosity()
        self.terminal = _is_terminal(sys.stderr)
        self.color = self.terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        # rich draws with escape sequences only.
        self._draws = self.terminal and environ.get("TERM") not in (None, "dumb")
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._unlisten: Callable[[], None] | None = None

    def listen(self, verbosity: logs.Verbosity) -> None:
        """Show the log's records from now on, until :meth:`close`."""
        self._stop_listening()
        self.verbosity = verbosity
        self._unlisten = logs.show(_Shown(self), verbosity.level)

    def hush(self) -> None:
        """Show no more than warnings, unless more than the usual was asked for."""
        if self.verbosity == logs.Verbosity():
            self.listen(logs.Verbosity(logging.WARNING))

    def record(self, record: logging.LogRecord) -> None:
        """What is being done, for people who watch."""
        if record.levelno >= logging.WARNING:
            color = _RED if record.levelno >= logging.ERROR else _YELLOW
        else:
            color = _DIM
        self._say(self.verbosity.line(record), color)

    def warn(self, line: str) -> None:
        """What a person should know, also with ``-q``."""
        self._say(line, _YELLOW)

    def error(self, text: str) -> None:
        """Why it failed; may have several lines."""
        self._end_progress()
        first, *rest = text.splitlines() or [""]
        self._say(f"error: {first}", _RED)
        for line in rest:
            self._say(f"  {line}", "")

    def answer(self, text: str) -> None:
        """One line (or more) of the answer."""
        self._end_progress()
        if sys.stdout is not None:
            # A path may hold bytes that are no UTF-8: they must not end the command with an error.
            print(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"), file=sys.stdout)

    def json(self, value: Any) -> None:
        """The answer for programs."""
        self.answer(json.dumps(value, indent=2, ensure_ascii=False, default=str))

    def progress(self, done: int, total: int | None, what: str) -> None:
        """Steps of a migration; drawn on a terminal only."""
        if not self._draws or self.verbosity.level > logging.INFO:
            return
        if self._bar is None:
            self._bar = _bar(self.color)
            self._bar.start()
            self._task = self._bar.add_task("migrating", total=total)
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total, description=what[:60])

    def ask(self, question: str) -> bool:
        """Yes or no, from a person; anything but yes, also the end of the input, is no."""
        self._end_progress()
        try:
            # Python's input() writes the last of a prompt to stdout, which is for the answer.
            with redirect_stdout(sys.stderr):
                return click.confirm(f"{PREFIX}{question}", err=True)
        except click.Abort as ended:
            # click makes one error of a Ctrl-C and of the end of the input.
            if isinstance(ended.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            return False
        except (OSError, ValueError):
            return False

    @property
    def can_ask(self) -> bool:
        """Whether a person sits at both ends."""
        return self.terminal and _is_terminal(sys.stdin)

    def close(self) -> None:
        """Leave the terminal, and the log, as they were."""
        self._end_progress()
        self._stop_listening()

    def _say(self, line: str, color: str) -> None:
        if sys.stderr is None:
            return
        text = f"{PREFIX}{line}".encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if self._bar is not None:
            self._bar.console.print(
                text, markup=False, highlight=False, style="dim" if color == _DIM else None
            )
            return
        try:
            print(f"{color}{text}{_PLAIN}" if self.color and color else text, file=sys.stderr, flush=True)
        except OSError:
            # Nobody reads it: that is no reason to fail.
            return

    def _stop_listening(self) -> None:
        if self._unlisten is not None:
            self._unlisten()
            self._unlisten = None

    def _end_progress(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Shown(logging.Handler):
    """The command line's one handler."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print it on stderr."""
        try:
            self._console.record(record)
        except Exception:  # noqa: BLE001 — as every handler: a record that cannot be shown ends no command
            self.handleError(record)


def verbosity_count(options: SimpleNamespace) -> int:
    """How many ``-v`` were given, less how many ``-q``."""
    return int(getattr(options, "verbose", 0)) - int(getattr(options, "quiet", 0))


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream is not None and stream.isatty())
    except ValueError:
        return False


def _bar(color: bool) -> Progress:
    # Takes longer to import than a warm `up` takes in all.
    from rich import console, progress

    return progress.Progress(
        progress.TextColumn(PREFIX + "migrating"),
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.description}", markup=False),
        console=console.Console(stderr=True, no_color=not color),
        transient=True,
    )
