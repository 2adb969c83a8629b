"""The answer goes to stdout, the story to stderr."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress, TaskID

PREFIX = "pg-harness: "
"""What every line on stderr begins with: in a CI log it stands between a command's own lines."""

_DIM, _YELLOW, _RED, _PLAIN = "\x1b[2m", "\x1b[33m", "\x1b[31m", "\x1b[0m"


class Console:
    """Where a command speaks.

    Args:
        environ: ``NO_COLOR`` and ``TERM`` are looked at (no-color.org).
        quiet: no story; warnings, errors and answers stay.
    """

    def __init__(self, environ: Mapping[str, str], *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.terminal = _is_terminal(sys.stderr)
        self.color = self.terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        # rich draws with escape sequences only.
        self._draws = self.terminal and not quiet and environ.get("TERM") not in (None, "dumb")
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def story(self, line: str) -> None:
        """What is being done, for people who watch."""
        if not self.quiet:
            self._say(line, _DIM)

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
        import json

        self.answer(json.dumps(value, indent=2, ensure_ascii=False, default=str))

    def progress(self, done: int, total: int | None, what: str) -> None:
        """Steps of a migration; drawn on a terminal only."""
        if not self._draws:
            return
        if self._bar is None:
            self._bar = _bar(self.color)
            self._bar.start()
            self._task = self._bar.add_task("migrating", total=total)
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total, description=what[:60])

    def ask(self, question: str) -> bool:
        """Yes or no, from a person; anything but yes, also the end of the input, is no."""
        import click

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
        """Leave the terminal as it was."""
        self._end_progress()

    def _say(self, line: str, color: str) -> None:
        if sys.stderr is None:
            return
        text = f"{PREFIX}{line}".encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if self._bar is not None:
            console: RichConsole = self._bar.console
            console.print(text, markup=False, highlight=False, style="dim" if color == _DIM else None)
            return
        try:
            print(f"{color}{text}{_PLAIN}" if self.color and color else text, file=sys.stderr, flush=True)
        except OSError:
            # Nobody listens to the story: that is no reason to fail.
            return

    def _end_progress(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream is not None and stream.isatty())
    except ValueError:
        return False


def _bar(color: bool) -> Progress:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn(PREFIX + "migrating"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=RichConsole(stderr=True, no_color=not color),
        transient=True,
    )
