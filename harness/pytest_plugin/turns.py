"""Turns of one run's tests: many side by side, or one alone, over all its processes.

A readers-writer advisory lock on the maintenance database. PostgreSQL's queue for it is fair, and SIGKILL
frees it. A reader keeps its turn from one test to the next, so that a test costs no round trip; it gives
it up when a writer asks (NOTIFY), at the end of the test that is running, or at once when none is.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from harness.dsn import Dsn
from harness.errors import HarnessError, PoolTimeout, ServerRefused
from harness.postgres import sqlstate
from harness.postgres.session import Session, lock_key

ASK_AGAIN = 0.2
"""Seconds between two calls to the holders: one that took its turn just now has not heard the last call."""


class Turns:
    """One process's place in the queue of a run.

    Used by one thread; a thread of its own listens to the others. Safe to close twice.
    """

    def __init__(self, dsn: Dsn, run: str, worker: str) -> None:
        """
        Args:
            dsn: the admin's, on the maintenance database.
            run: whose tests take turns.
            worker: this process, for messages.
        """
        self.worker = worker
        self._key = lock_key("turn", run)
        self._channel = f"pgh_turn_{run}"
        self._dsn = dsn
        self._lock_session = self._connect()
        self._listener = self._connect()
        self._listener.listen(self._channel)
        self._mutex = threading.Lock()
        self._holding = False
        self._wanted = False
        self._test = ""
        self._since = 0.0
        self._asking = False
        self._heard: dict[str, tuple[str, float, float]] = {}
        # A pipe ends the listener's wait: closing a file that another thread selects on is undefined.
        self._wake_read, self._wake_write = os.pipe()
        self._closing = False
        self._thread = threading.Thread(target=self._listen, name="pg-harness turns", daemon=True)
        self._thread.start()

    def _connect(self) -> Session:
        return Session.connect(self._dsn, application_name=f"pg-harness turns {self.worker}")

    # --- readers -----------------------------------------------------------------------------------

    def enter(self, test: str) -> None:
        """Begin a test that may run beside others. Waits while another process's test runs alone."""
        with self._mutex:
            self._test, self._since = test, time.time()
            if not self._holding:
                self._take("select pg_advisory_lock_shared(%s)")

    def leave(self) -> None:
        """The test has ended. The turn is kept unless somebody waits for it."""
        with self._mutex:
            self._test = ""
            if self._wanted:
                self._give_up()

    # --- the writer --------------------------------------------------------------------------------

    @contextmanager
    def alone(self, test: str, *, timeout: float) -> Iterator[None]:
        """Run a test while no other test of the run is running.

        Args:
            timeout: seconds to wait for the others.

        Raises:
            PoolTimeout: they did not let go; the text lists who holds: worker, test, seconds.
        """
        with self._mutex:
            if self._holding:
                self._give_up()
        self._heard.clear()
        self._ask(True)
        try:
            self._lock_session.execute(f"set lock_timeout = {max(1, int(timeout * 1000))}")
            self._take("select pg_advisory_lock(%s)")
        except ServerRefused as error:
            if error.sqlstate != sqlstate.LOCK_NOT_AVAILABLE:
                raise
            raise PoolTimeout(
                f"serial_only: other tests of the run did not end within {timeout:g} s "
                f"(setting serial_timeout):\n{self._holders()}"
            ) from error
        finally:
            self._ask(False)
            if not self._lock_session.closed:
                self._lock_session.execute("set lock_timeout = 0")
        with self._mutex:
            self._test, self._since = test, time.time()
        try:
            yield
        finally:
            with self._mutex:
                self._test = ""
                self._give_up("select pg_advisory_unlock(%s)")

    def _holders(self) -> str:
        now = time.time()
        lines = [
            f"  {worker}: {test or 'between two tests'}, for {now - since:.0f} s"
            for worker, (test, since, heard) in sorted(self._heard.items())
            if now - heard < 5 * ASK_AGAIN + 2
        ]
        # One that cannot answer (its process is stopped, or C code holds Python's lock) is known by its session.
        sessions = self._lock_session.rows(
            """
            select a.application_name from pg_locks l join pg_stat_activity a using (pid)
             where l.locktype = 'advisory' and l.granted and l.objsubid = 1
               and l.classid = ((%s::int8 >> 32) & 4294967295)::oid
               and l.objid = (%s::int8 & 4294967295)::oid
            """,
            (self._key, self._key),
        )
        silent = {name.removeprefix("pg-harness turns ") for (name,) in sessions} - set(self._heard)
        lines += [f"  {worker}: does not answer" for worker in sorted(silent)]
        return "\n".join(lines) or "  (the holders have just let go)"

    # --- both --------------------------------------------------------------------------------------

    def _take(self, statement: str) -> None:
        if self._lock_session.closed:
            self._lock_session = self._connect()
        self._lock_session.execute(statement, (self._key,))
        self._holding, self._wanted = True, False

    def _give_up(self, statement: str = "select pg_advisory_unlock_shared(%s)") -> None:
        self._holding = self._wanted = False
        if not self._lock_session.closed:
            self._lock_session.execute(statement, (self._key,))

    def _ask(self, asking: bool) -> None:
        self._asking = asking
        os.write(self._wake_write, b"x")

    def _listen(self) -> None:
        try:
            while not self._closing:
                if self._asking:
                    self._tell({"asks": self.worker})
                # Before the wait: messages that came with the answer to a statement of ours wake nobody.
                while messages := self._listener.notifications():
                    for message in messages:
                        self._hear(json.loads(message))
                descriptor = self._listener.connection.fileno()
                timeout = ASK_AGAIN if self._asking else None
                readable, _, _ = select.select([descriptor, self._wake_read], [], [], timeout)
                if self._wake_read in readable:
                    os.read(self._wake_read, 4096)
        except (HarnessError, OSError, ValueError):
            # The server's sessions are lost, and with them all turns: the next enter() takes a new one.
            self._lock_session.close()

    def _hear(self, message: dict[str, object]) -> None:
        if message.get("asks") not in (None, self.worker):
            self._answer()
        elif "holds" in message and message["holds"] != self.worker:
            self._heard[str(message["holds"])] = (
                str(message["test"]), float(str(message["since"])), time.time(),
            )  # fmt: skip

    def _answer(self) -> None:
        # Whoever waits for a turn itself holds none, and has the mutex: do not wait for it.
        if not self._mutex.acquire(timeout=ASK_AGAIN):
            return
        try:
            if not self._holding:
                return
            if not self._test:
                self._give_up()
                return
            self._wanted = True
            test, since = self._test, self._since
        finally:
            self._mutex.release()
        self._tell({"holds": self.worker, "test": test[:2000], "since": since})

    def _tell(self, message: dict[str, object]) -> None:
        self._listener.execute("select pg_notify(%s, %s)", (self._channel, json.dumps(message)))

    def close(self) -> None:
        """Give up everything."""
        if self._closing:
            return
        self._closing = True
        os.write(self._wake_write, b"x")
        self._thread.join(timeout=5)
        self._lock_session.close()
        self._listener.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
