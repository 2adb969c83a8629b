"""A server that stops answering without ending: a wait for it ends all the same, and a slow answer is waited for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from fix_backends import Checkout, processes_naming
from fix_servers import binaries_of

from harness.config import project
from harness.errors import ServerLost, ServerRefused
from harness.postgres import bounded, watchdog
from harness.postgres.session import Session
from harness.servers.port import ServerInfo
from harness.servers.process.backend import ProcessBackend


@pytest.fixture
def own(place: Checkout, monkeypatch: pytest.MonkeyPatch) -> ServerInfo:
    """A server that this test may stop, and little patience."""
    folder = binaries_of("15") or binaries_of("18")
    if folder is None:
        pytest.skip("PostgreSQL is not installed on this machine")
    monkeypatch.setattr(watchdog, "QUIET", 0.3)
    monkeypatch.setattr(watchdog, "PROBE", 0.5)
    monkeypatch.setattr(watchdog, "AGAIN", 0.1)
    state, cache = project.state_dir(place.environ), project.cache_dir(place.environ)
    backend = ProcessBackend(place.environ, state=state, cache=cache, binaries=folder)
    return backend.start(place.request(settings={"max_connections": "25"}))


@contextmanager
def frozen(info: ServerInfo) -> Iterator[None]:
    """As `docker pause` does it: all processes are stopped, the kernel still takes calls."""
    stopped = family(info)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def family(info: ServerInfo) -> list[int]:
    """The postmaster and all of its children."""
    postmaster = int((Path(info.handle) / "data" / "postmaster.pid").read_text().split()[0])
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
    return [postmaster, *(pid for pid, parent in parents.items() if parent == postmaster)]


class Ended(BaseException):
    """As the command line's for SIGTERM."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, Ended])
@pytest.mark.parametrize("moment", range(1, 6))
def test_a_session_goes_on_after_an_interrupt(
    own: ServerInfo, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], moment: int
) -> None:
    """A signal that comes in a line of Python, not in a system call: the answer is taken by nobody else."""

    class Clock:
        calls = 0

        def monotonic(self) -> float:
            self.calls += 1
            if self.calls == moment:
                raise error
            return time.monotonic()

    with Session.connect(own.dsn) as session:
        for ask in (
            lambda: session.value("select pg_sleep(60)"),
            lambda: session.connection.ask(b"select 1; select pg_sleep(60)"),
        ):
            began = time.monotonic()
            with monkeypatch.context() as patched:
                patched.setattr(watchdog, "time", Clock())
                with pytest.raises(error):
                    ask()
            assert session.value("select 2") == 2
            assert time.monotonic() - began < 5
        with session.transaction():
            assert session.value("select 3") == 3


def test_a_frozen_server_is_given_up(own: ServerInfo) -> None:
    with Session.connect(own.dsn) as session, Session.connect(own.dsn) as other:
        with frozen(own):
            began = time.monotonic()
            with pytest.raises(ServerLost, match=r"has not answered for .*paused"):
                session.value("select 1")
            assert time.monotonic() - began < 10
            assert session.closed
            # Another session need not find out as slowly.
            with pytest.raises(ServerLost, match="has not answered"):
                other.value("select 1")
        # Thawed, it is the same server: whoever asks anew is answered, and may ask long questions.
        with Session.connect(own.dsn) as again:
            assert again.value("select 1 from pg_sleep(1)") == 1
        assert (own.dsn.host, own.dsn.port) not in watchdog._given_up
    assert processes_naming(own.handle)


def test_a_long_answer_is_waited_for(own: ServerInfo) -> None:
    with Session.connect(own.dsn) as session:
        assert session.value("select 7 from pg_sleep(1.5)") == 7
        with pytest.raises(ServerRefused, match="division by zero"):
            session.script("select pg_sleep(1); select 1 / 0")
        with session.connection.pipeline():
            first, second = session.connection.cursor(), session.connection.cursor()
            first.execute("select 1 from pg_sleep(0.8)")
            second.execute("select 2")
        assert (first.fetchone(), second.fetchone()) == ((1,), (2,))


def _fill(own: ServerInfo, others: ExitStack, limit: int) -> None:
    for _ in range(limit):
        others.enter_context(Session.connect(own.dsn))


def test_a_full_server_still_answers(own: ServerInfo) -> None:
    # Out of connections, it refuses logins; that is an answer.
    with Session.connect(own.dsn) as session, ExitStack() as others:
        limit = session.value("select current_setting('max_connections')::int")
        # Not counted: a session of the test before may still be on its way out.
        with pytest.raises(ServerRefused, match="too many"):
            _fill(own, others, limit)
        assert session.value("select 7 from pg_sleep(1.5)") == 7


def test_a_statement_is_given_up_though_the_server_takes_no_cancel(
    own: ServerInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "PATIENCE", 0.3)
    limits = bounded.Limits(seconds=60)
    statement = bounded.Statement(
        own.dsn, "select pg_sleep(60)", read_only=False, superuser=True, limits=limits
    )
    with ThreadPoolExecutor(1) as threads, Session.connect(own.dsn) as session:
        running = threads.submit(statement.run)
        while not session.value("select count(*) from pg_stat_activity where wait_event = 'PgSleep'"):
            time.sleep(0.05)
        with frozen(own):
            statement.cancel()
            error = running.exception(timeout=10)
        assert "its session was closed" in str(error)
