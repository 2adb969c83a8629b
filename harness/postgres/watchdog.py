"""A server that has stopped answering (a paused container, a suspended machine): noticed, so that no wait is endless."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, NoReturn

import psycopg
from psycopg import generators, pq
from psycopg.pq.abc import PGresult

QUIET = 8.0
"""Seconds without an answer after which the server is asked whether it is there at all. A statement may take long."""

PROBE = 3.0
"""Seconds that the answer to that may take: a server that is only busy answers at once."""

STRIKES = 2
"""How many times in a row there must be none."""

AGAIN = 1.0
"""Instead of ``QUIET``, where another session has given up on the server: one strike is enough then."""

HEARD_OUT = 5.0
"""Seconds that the server has to end a statement that was interrupted."""

CANCEL_AGAIN = 0.5
"""Seconds after which it is told so once more: a request that comes before the statement has begun is lost."""

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""What every PostgreSQL server answers with one byte, before any login (PostgreSQL docs, 53.2.9)."""

_given_up: set[tuple[str, int]] = set()
"""Servers that sessions of this process have given up, and that have not answered since."""


class Connection(psycopg.Connection[Any]):
    """A connection that gives up on a server which answers nobody any more.

    Attributes:
        server: host (or folder of the socket) and port to ask; None: wait for ever.
    """

    server: tuple[str, int] | None = None

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """As psycopg's, which comes back ten times a second while there is no answer.

        Raises:
            psycopg.OperationalError: the server answers nobody.
        """
        try:
            return super().wait(self._watched(gen) if self.server else gen, *args, **kwargs)
        except Exception:
            raise
        except BaseException:
            self._hear_out()
            raise

    def _hear_out(self) -> None:
        """After Ctrl-C: leave the connection ready for the statements that undo what was begun, or closed.

        After a KeyboardInterrupt psycopg cancels the statement and waits for its end with the generator that was
        interrupted. Where that was not in a system call but in a line of Python, the generator is used up, and nobody takes the
        answer; after an exception of another signal it does nothing of this. Every later statement then fails
        with "another command is already in progress".
        """
        if self.pgconn.status != pq.ConnStatus.OK:
            return
        if self.pgconn.transaction_status != pq.TransactionStatus.ACTIVE:
            return
        deadline = time.monotonic() + HEARD_OUT
        try:
            while True:
                self.cancel_safe(timeout=HEARD_OUT)
                try:
                    super().wait(_for(CANCEL_AGAIN, generators.fetch_many(self.pgconn)))
                    return
                except _TooLong:
                    if time.monotonic() > deadline:
                        raise
        except BaseException as error:
            self.pgconn.finish()
            if not isinstance(error, psycopg.Error):
                raise

    def ask(self, query: bytes) -> list[PGresult]:
        """What each statement of a simple query gave, as PostgreSQL printed it; the first that fails fails all.

        A third of the time of ``execute``, whose cursor adapts types that nobody here wants.

        Raises:
            psycopg.Error: as ``execute`` does.
        """
        with self.lock:
            results: list[PGresult] = self.wait(self._asking(query))
        if results[-1].status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(results[-1], encoding="utf-8")
        return results

    def prepare(self, name: bytes, query: bytes) -> None:
        """Have a statement prepared under a name, for :meth:`ask_prepared`. One round trip.

        Raises:
            psycopg.Error: as ``execute`` does.
        """
        self._prompt(lambda: self.pgconn.send_prepare(name, query))

    def ask_prepared(self, name: bytes, values: Sequence[bytes]) -> PGresult:
        """What a prepared statement gives, as PostgreSQL printed it. One round trip.

        Args:
            values: its parameters, as text.

        Raises:
            psycopg.Error: as ``execute`` does.
        """
        return self._prompt(lambda: self.pgconn.send_query_prepared(name, values))

    def _prompt(self, send: Callable[[], None]) -> PGresult:
        with self.lock:
            result: PGresult = self.wait(self._answering(send))
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result, encoding="utf-8")
        return result

    def _answering(self, send: Callable[[], None]) -> Generator[Any, Any, PGresult]:
        send()
        results: list[PGresult] = yield from generators.execute(self.pgconn)
        return results[-1]

    def _asking(self, query: bytes) -> Generator[Any, Any, list[PGresult]]:
        # Sent in here, so that Ctrl-C right after it finds somebody who takes the answer.
        self.pgconn.send_query(query)
        results: list[PGresult] = yield from generators.execute(self.pgconn)
        return results

    def _watched(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        strikes = 0
        try:
            wish = next(gen)
            began = since = time.monotonic()
            while True:
                ready = yield wish
                now = time.monotonic()
                known = self.server in _given_up
                if ready:
                    strikes, began, since = 0, now, now
                elif now - since > (AGAIN if known else QUIET):
                    strikes = 0 if self._answers() else strikes + 1
                    since = time.monotonic()
                    if strikes >= (1 if known else STRIKES):
                        self._give_up(since - began)
                wish = gen.send(ready)
        except StopIteration as end:
            return end.value

    def _answers(self) -> bool:
        assert self.server is not None
        if _answers(*self.server):
            _given_up.discard(self.server)
            return True
        return False

    def _give_up(self, seconds: float) -> NoReturn:
        if self.server is not None:
            _given_up.add(self.server)
        # What comes late would be taken for the answer to another question.
        self.pgconn.finish()
        raise psycopg.OperationalError(
            f"it has not answered for {seconds:.0f} s, nor does it take connections: is its container paused, "
            f"or its machine suspended or overloaded?"
        )


class _TooLong(psycopg.OperationalError):
    """A statement goes on although it was to end."""


def _for(seconds: float, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """The same generator, which fails where it takes longer.

    Raises:
        _TooLong: it does.
    """
    deadline = time.monotonic() + seconds
    try:
        wish = next(gen)
        while True:
            ready = yield wish
            if time.monotonic() > deadline:
                raise _TooLong(f"the statement did not end within {seconds:.1f} s")
            wish = gen.send(ready)
    except StopIteration as end:
        return end.value


def _answers(host: str, port: int) -> bool:
    """Whether a server takes calls there; needs no password and no free place."""
    try:
        with _call(host, port) as caller:
            caller.settimeout(PROBE)
            caller.sendall(_SSL_REQUEST)
            return bool(caller.recv(1))
    except OSError:
        return False


def _call(host: str, port: int) -> socket.socket:
    if not host.startswith("/"):
        return socket.create_connection((host, port), timeout=PROBE)
    caller = socket.socket(socket.AF_UNIX)
    try:
        caller.settimeout(PROBE)
        caller.connect(f"{host}/.s.PGSQL.{port}")
    except OSError:
        caller.close()
        raise
    return caller
