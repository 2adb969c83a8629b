"""A proxy before a PostgreSQL server that counts round trips of the harness's own sessions."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

_SSL_REQUEST = (80877103).to_bytes(4, "big")
_TERMINATE = b"X\0\0\0\4"


class CountingProxy:
    """Counts how often a session of ours asks something and is answered; other sessions mark the time.

    Attributes:
        port: where it listens, on loopback.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._trips = 0
        self._at_log_ins: list[int] = []
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def between_log_ins(self) -> list[int]:
        """Round trips of ours between each two log-ins of the application."""
        with self._lock:
            return [b - a for a, b in zip(self._at_log_ins, self._at_log_ins[1:], strict=False)]

    def trips(self) -> int:
        """Round trips of ours so far."""
        with self._lock:
            return self._trips

    def close(self) -> None:
        """End everything."""
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._open += [client, server]
                _Session(self, client, server).start()

    def asked(self) -> None:
        """One round trip of ours begins."""
        with self._lock:
            self._trips += 1

    def logged_in(self) -> None:
        """The application logs in."""
        with self._lock:
            self._at_log_ins.append(self._trips)


class _Session:
    def __init__(self, proxy: CountingProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._ours: bool | None = None
        self._answered = True

    def start(self) -> None:
        for target in (self._from_client, self._from_server):
            threading.Thread(target=target, daemon=True).start()

    def _from_client(self) -> None:
        with closing(self._server), suppress(OSError):
            while data := self._client.recv(1 << 16):
                if self._ours is None and data[4:8] != _SSL_REQUEST:
                    self._ours = b"application_name\0pg-harness\0" in data
                    if not self._ours:
                        self._proxy.logged_in()
                if self._ours and self._answered and data != _TERMINATE:
                    self._answered = False
                    self._proxy.asked()
                self._server.sendall(data)

    def _from_server(self) -> None:
        with closing(self._client), suppress(OSError):
            while data := self._server.recv(1 << 16):
                # Before it is passed on: the client may ask again at once.
                self._answered = True
                self._client.sendall(data)


@contextmanager
def counting_proxy(host: str, port: int) -> Iterator[CountingProxy]:
    """A proxy before the server at this address, for the block."""
    proxy = CountingProxy(host, port)
    try:
        yield proxy
    finally:
        proxy.close()
