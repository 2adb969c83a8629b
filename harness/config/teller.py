"""What is being done, on stderr, while a process of a user's works for itself: pytest with our plugin, a script with a Harness."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping

from harness.config import logs

_REDRAW = 0.1
"""Seconds between two drawings of the progress line."""


class Teller(logging.Handler):
    """A handler that writes the log to stderr, inside of its block only.

    A context manager, entered wherever we work for ourselves; blocks of several threads may overlap. Between, the level of our
    loggers is the user's: what they log at INFO would else be in the report of each test that fails.
    """

    def __init__(self, verbosity: logs.Verbosity) -> None:
        super().__init__()
        self._verbosity = verbosity
        self._stream = sys.stderr
        self._terminal = self._stream.isatty()
        self._width = 0
        self._drawn = 0.0
        self._blocks = 0
        self._alone = threading.Lock()
        self._undo: Callable[[], None] | None = None

    @classmethod
    def for_scripts(cls, environ: Mapping[str, str]) -> Teller | None:
        """For a program that has no logging of its own and whose stderr is a terminal; None where nothing is to be shown.

        Raises:
            ConfigError: the variable names no level.
        """
        stream = sys.stderr
        if stream is None or stream.closed or not stream.isatty() or logs.configured():
            return None
        return cls(logs.Verbosity.of(environ))

    def emit(self, record: logging.LogRecord) -> None:
        """One line about what is being done."""
        try:
            self._wipe()
            print(f"pg-harness: {self._verbosity.line(record)}", file=self._stream, flush=True)
        except Exception:  # noqa: BLE001 — as every handler: a record that cannot be shown ends no run
            self.handleError(record)

    def progress(self, done: int, total: int | None, what: str) -> None:
        """Redraw the progress line: steps done, of how many, which one."""
        now = time.monotonic()
        hidden = self._verbosity.level > logging.INFO or not self._terminal
        if hidden or now - self._drawn < _REDRAW:
            return
        self._drawn = now
        text = f"pg-harness: {done}{f'/{total}' if total else ''} {what}"[:100]
        self._wipe()
        print(text, end="", file=self._stream, flush=True)
        self._width = len(text)

    def _wipe(self) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=self._stream, flush=True)
            self._width = 0

    def __enter__(self) -> Teller:
        with self._alone:
            self._blocks += 1
            if self._undo is None:
                self._undo = logs.show(self, self._verbosity.level)
        return self

    def __exit__(self, *_: object) -> None:
        with self._alone:
            self._wipe()
            self._blocks -= 1
            if self._undo is not None and not self._blocks:
                self._undo()
                self._undo = None
