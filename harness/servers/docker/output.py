"""What a container reads and writes while it starts. Its log: auto_remove destroys it with the container."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from harness.errors import ServerLost
from harness.servers.docker.daemon import Daemon, translated

_READY = "database system is ready to accept connections"
_OURS = "pg-harness: the password is set"
"""What `watch.sh` writes, where the image brought data that has no password."""

_UNTOLD = 0.1
"""Seconds between two log-ins while nothing was written: the server's log may go elsewhere."""


class Output:
    """What a container writes, from its first line on.

    Attributes:
        ended: set when the container has closed its output.
    """

    def __init__(self, *, brought: bool = False) -> None:
        """
        Args:
            brought: whether the server gets its password only after it has started.
        """
        self.ended = threading.Event()
        self._told = threading.Event()
        self._sign = _OURS if brought else _READY
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
                if any(self._sign in line for line in lines):
                    self._told.set()
        except Exception:  # noqa: BLE001, S110 - the stream breaks in many ways when either side closes it
            pass
        finally:
            if rest:
                self._lines.append(rest)
            self.ended.set()
            self._told.set()
            _close(stream)

    def tail(self) -> str:
        """The last lines so far."""
        return "\n".join(list(self._lines)[-25:])

    def nap(self, seconds: float) -> None:
        """A pause between two log-ins: until the line that says that one will succeed, where it has not come."""
        if self._told.is_set():
            time.sleep(seconds)
        else:
            self._told.wait(max(seconds, _UNTOLD))

    def detach(self) -> None:
        """Stop reading."""
        with contextlib.suppress(Exception):
            self._close()
        if self._thread is not None:
            self._thread.join(2)


@contextlib.contextmanager
def feeding(daemon: Daemon, container: Any, content: bytes) -> Iterator[None]:
    """Give a container what it will read from its standard input, and hold that open while the block starts it."""
    with translated(f"write to the container {container.short_id}"):
        stream = daemon.client.api.attach_socket(container.id, params={"stdin": 1, "stream": 1})
    # A SocketIO cannot write: the socket below it can.
    socket = getattr(stream, "_sock", stream)
    try:
        try:
            socket.sendall(content)
        except OSError as error:
            raise ServerLost(f"the Docker daemon hung up while it took our settings: {error}") from error
        yield
    finally:
        _close(stream)
        with contextlib.suppress(OSError):
            socket.close()


def _close(stream: Any) -> None:
    # Its close() ends the reading only: the connection itself stays open until its response is closed.
    for each in (stream, getattr(stream, "_response", None)):
        with contextlib.suppress(Exception):
            each.close()  # type: ignore[union-attr]
