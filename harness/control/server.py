"""The door to waitress: a socket, of loopback or of a path, that is bound at once, and served from the first connection on.

A run whose command asks for nothing imports no HTTP library for it (docs/decisions/0085).
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import select
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from harness.errors import ConfigError, out_of_files

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

logger = logging.getLogger("pg_harness.control")

LOOPBACK = "127.0.0.1"

THREADS = 16
"""Requests that are answered side by side; those that wait for a lease come on top."""

IDLE = 300
"""Seconds after which a connection that says nothing is closed; also that of a client which never ends its request."""

MOST_CONNECTIONS = 1000
"""Connections at a time; what comes beyond waits in the system's queue."""

LONGEST_BODY = 64 * 1024
"""Bytes of a request's body; a longer one is refused."""

ENDING = 2.0
"""Seconds that requests may take to end when the server does."""

Waits = Callable[[], AbstractContextManager[None]]
"""A block in which a request only waits: it takes no other request's thread."""


def new_token() -> str:
    """A bearer token: 256 random bits."""
    return secrets.token_urlsafe(32)


class ControlServer:
    """An HTTP server for one WSGI application, in a thread of its own. A context manager.

    Args:
        application: makes it, with all that it imports, when the first client connects.
        at: a port of loopback (0: any that is free), or the path of a Unix socket, which its owner alone may use.

    Raises:
        ConfigError: the port or path is not to be had. BackendError: we may open no further file.
    """

    def __init__(self, application: Callable[[Waits], WSGIApplication], *, at: int | Path = 0) -> None:
        self._application = application
        self._path = at if isinstance(at, Path) else None
        self._socket = _bound_to_path(at) if isinstance(at, Path) else _bound(at)
        self.port: int = 0 if self._path else self._socket.getsockname()[1]
        # Not a pipe: on Windows only sockets can be waited for.
        self._stopping, self._stop = socket.socketpair()
        self._server: Any = None
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._waiting = 0
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name="pg-harness control", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``, or ``unix://PATH``."""
        if self._path is not None:
            return f"unix://{quote(str(self._path))}"
        return f"http://{LOOPBACK}:{self.port}"

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._stopping, selectors.EVENT_READ)
            selector.select()
        with self._lock:
            if self._ended:
                return
            try:
                self._server = _waitress(self._application(self._waits), self._socket)
            except Exception:
                logger.exception("the control interface cannot be served")
                # Else whoever has connected waits for ever.
                self._socket.close()
                return
        self._server.run()

    @contextmanager
    def _waits(self) -> Iterator[None]:
        # Else sixteen that wait would keep out the one that gives back what they wait for.
        self._count(+1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._lock:
            self._waiting += more
            if not self._ended:
                self._server.task_dispatcher.set_thread_count(THREADS + self._waiting)

    def close(self) -> None:
        """Answer nobody any more. Twice is once; a fork of the process closes nothing."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            already, self._ended = self._ended, True
        if already:
            return
        self._stop.close()
        if self._server is not None:
            self._server.trigger.pull_trigger(self._end)
        self._thread.join(ENDING)
        if self._server is not None:
            self._server.task_dispatcher.shutdown(timeout=ENDING)
        self._socket.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self._stopping.close()

    def _end(self) -> None:
        """In waitress's own thread: once nothing is left to look after, its loop ends."""
        for channel in list(self._server.active_channels.values()):
            channel.handle_close()
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _bound(port: int) -> socket.socket:
    """A socket that listens: who connects before anybody accepts waits, and is not refused."""
    try:
        bound = socket.socket()
    except OSError as error:
        raise out_of_files(error) or error from error
    try:
        # A port of one's own choice is to be had again at once after a restart.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((LOOPBACK, port))
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"the control interface cannot listen on {LOOPBACK}:{port}: {error.strerror}. Another port, or 0 for any",
            key="port",
            value=str(port),
        ) from error
    return bound


def _bound_to_path(path: Path) -> socket.socket:
    """A Unix socket that listens. One that nobody answers at any more is replaced; whatever else is there stays."""
    bound = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket() and not _answers(path):
            path.unlink()
        before = os.umask(0o177)
        try:
            bound.bind(str(path))
        finally:
            os.umask(before)
        bound.listen(128)
    except OSError as error:
        bound.close()
        why = (
            "there is one already, or a file" if error.errno == errno.EADDRINUSE else error.strerror or error
        )
        raise ConfigError(
            f"the control interface cannot listen at {path}: {why}", key="socket", value=str(path)
        ) from error
    return bound


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True


def _waitress(application: WSGIApplication, bound: socket.socket) -> Any:
    # When the first client connects: most runs have none.
    import waitress

    # Its lines would come between those of the command: what is wrong, the client is told.
    logging.getLogger("waitress").setLevel(logging.CRITICAL)
    return waitress.create_server(
        application,
        sockets=[bound],
        threads=THREADS,
        ident="pg-harness",
        max_request_body_size=LONGEST_BODY,
        max_request_header_size=LONGEST_BODY,
        channel_timeout=IDLE,
        # Else nobody notices that a client which waits has gone, and it is given a lease.
        channel_request_lookahead=1,
        connection_limit=MOST_CONNECTIONS,
        # select takes no descriptor beyond 1023.
        asyncore_use_poll=hasattr(select, "poll"),
        log_socket_errors=False,
    )
