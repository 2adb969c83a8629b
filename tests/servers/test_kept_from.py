"""Somebody in the maintenance database queues for a lock of ours: nobody waits for longer than is said, and he is named."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psycopg
import pytest
from fix_backends import Checkout, until

from harness.dsn import Dsn
from harness.errors import PoolTimeout
from harness.postgres import locks
from harness.postgres.admin import Link
from harness.postgres.session import LOCK_LIMIT, STATEMENT_LIMIT, Session, lock_key
from harness.reset.rewind import leftovers
from harness.servers.handshake import attach
from harness.servers.port import ServerInfo

LIMIT = 1.0

Queue = Callable[[Dsn, int], None]


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    """A test that waits for a lock exclusively, while it is held shared, until the end."""
    monkeypatch.setattr(locks, "LIFE_LIMIT", LIMIT)
    sessions: list[psycopg.Connection] = []
    waiting: list[threading.Thread] = []

    def begin(dsn: Dsn, key: int) -> None:
        session = psycopg.connect(dsn.url, autocommit=True, application_name="a test")

        def wait() -> None:
            with suppress(psycopg.Error):
                session.execute("select pg_advisory_lock(%s)", (key,))

        sessions.append(session)
        waiting.append(threading.Thread(target=wait))
        waiting[-1].start()
        with Session.connect(dsn) as watcher:
            until(
                lambda: watcher.value(
                    "select count(*) from pg_locks where locktype = 'advisory' and not granted"
                ),
                seconds=20,
                what="the test to queue",
            )

    yield begin
    for session in sessions:
        session.cancel_safe(timeout=10)
    for thread in waiting:
        thread.join(20)
    for session in sessions:
        session.close()


def test_whoever_is_kept_from_a_server_says_by_whom(server: ServerInfo, queue: Queue) -> None:
    """It waited for as long as the test lived."""
    first, _ = attach(server)
    assert first is not None
    with first:
        queue(server.dsn, lock_key("server", server.server_id))
        began = time.monotonic()
        with pytest.raises(PoolTimeout, match=r"the server's: session \d+ \(a test, role postgres") as caught:
            attach(server)
        assert LIMIT <= time.monotonic() - began < LIMIT + 20
    assert "pg_advisory_lock" in str(caught.value)


def test_a_new_run_uses_a_second_server(new_checkout: Callable[..., Checkout], queue: Queue) -> None:
    """The first one is left alone: others use it."""
    place = new_checkout("kept/app")
    settings = place.settings(backend="process")
    with place.ensure(settings) as first:
        queue(first.info.dsn, lock_key("server", first.info.server_id))
        began = time.monotonic()
        with place.ensure(settings) as second:
            assert second.info.server_id != first.info.server_id
            # Once, although the note and the backend both name the first.
            assert time.monotonic() - began < LIMIT + 30
        assert any("a test" in line for line in place.told)
        assert first.session.value("select 1") == 1
        second.stop()


def test_a_lock_of_ours_that_a_test_holds_is_not_waited_for_for_ever(link: Link, server: ServerInfo) -> None:
    with psycopg.connect(server.dsn.url, autocommit=True, application_name="a test") as test:
        test.execute("select pg_advisory_lock(%s)", (lock_key("baseline", "b"),))
        with (
            pytest.raises(PoolTimeout, match=r"busy with a baseline after 1 s: session \d+ \(a test"),
            locks.exclusive(link.session, "baseline", "b", timeout=1, waiting_for="a baseline"),
        ):
            pass
    with locks.exclusive(link.session, "baseline", "b", timeout=1, waiting_for="a baseline"):
        pass


def test_a_modules_sign_of_life_is_not_waited_for(server: ServerInfo, link: Link, queue: Queue) -> None:
    key = leftovers.sign_of_life("pgharness_0123456789ab")
    link.session.execute("select pg_advisory_lock_shared(%s)", (key,))
    queue(server.dsn, key)
    with Session.connect(server.dsn) as other:
        assert other.value("select pg_try_advisory_lock_shared(%s)", (key,)) is False


def test_every_session_of_ours_has_limits(server: ServerInfo) -> None:
    """Whatever is asked on it: the server ends the wait."""
    shown = "select current_setting('lock_timeout')::interval, current_setting('statement_timeout')::interval"

    def limits(session: Session) -> list[float]:
        return [each.total_seconds() for each in session.row(shown) or ()]

    attached, _ = attach(server)
    assert attached is not None
    with attached, Session.connect(server.dsn) as plain:
        assert limits(plain) == limits(attached) == [LOCK_LIMIT, STATEMENT_LIMIT]
        with locks.exclusive(plain, "connections", "", timeout=7, waiting_for="nothing"):
            assert limits(plain) == [LOCK_LIMIT, STATEMENT_LIMIT]
    bent = Dsn.parse(server.dsn.url + "?options=-c%20work_mem%3D7MB")
    with Session.connect(bent) as session:
        assert session.value("select current_setting('work_mem')") == "7MB"
        assert limits(session) == [LOCK_LIMIT, STATEMENT_LIMIT]
