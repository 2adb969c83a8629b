"""What a container writes, read while it starts: auto_remove destroys the log with the container."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Output:
    """What a container writes, from its first line on."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._lines: deque[str] = deque(maxlen=200)
        self._close: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None

    def attach(self, container: Any) -> None:
        """Begin to read; before the container starts."""
        stream = container.attach(stream=True, stdout=True, stderr=True, logs=False)
        self._close = stream.close
        self._thread = threading.Thread(target=self._read, args=(stream,), name="pg-harness-log", daemon=True)
        self._thread.start()

    def _read(self, stream: Any) -> None:
        rest = ""
        try:
            for chunk in stream:
                *lines, rest = (rest + chunk.decode("utf-8", "replace")).split("\n")
                self._lines.extend(line.rstrip("\r") for line in lines)
        except Exception:  # noqa: BLE001 - the stream breaks in many ways when either side closes it
            pass
        finally:
            if rest:
                self._lines.append(rest)
            self.ended.set()
            # close() ends the reading only: the connection itself stays open until its response is closed.
            for each in (stream, getattr(stream, "_response", None)):
                with contextlib.suppress(Exception):
                    each.close()  # type: ignore[union-attr]

    def tail(self) -> str:
        """The last lines so far."""
        return "\n".join(list(self._lines)[-25:])

    def detach(self) -> None:
        """Stop reading."""
        with contextlib.suppress(Exception):
            self._close()
        if self._thread is not None:
            self._thread.join(2)
