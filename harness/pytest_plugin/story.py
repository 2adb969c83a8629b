"""What the harness is doing, on stderr: lines, and one line of progress on a terminal."""

from __future__ import annotations

import sys
import time

_REDRAW = 0.1
"""Seconds between two drawings of the progress line."""


class Teller:
    """Writes to stderr; silent with ``-q``. A context manager: the progress line is wiped at its end."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._stream = sys.stderr
        self._terminal = self._stream.isatty()
        self._width = 0
        self._drawn = 0.0

    def line(self, text: str) -> None:
        """One line about what is being done."""
        if self._quiet:
            return
        self._wipe()
        print(f"pg-harness: {text}", file=self._stream, flush=True)

    def progress(self, done: int, total: int | None, what: str) -> None:
        """Redraw the progress line: steps done, of how many, which one."""
        now = time.monotonic()
        if self._quiet or not self._terminal or now - self._drawn < _REDRAW:
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
        return self

    def __exit__(self, *_: object) -> None:
        self._wipe()
