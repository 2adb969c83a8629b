"""What a run has booked goes with its sign of life, and comes back with it."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from fix_backends import until
from fix_leases import make_lease

from harness.databases.clones import Clones
from harness.databases.template import Template
from harness.postgres import names
from harness.postgres.admin import Link
from harness.postgres.liveness import SignOfLife
from harness.runs import booking, budget
from harness.runs.booking import Booking
from harness.runs.budget import PER_WORKER_RESERVE

RUN = "0123456789abcdef"


@pytest.fixture
def life(link: Link) -> Iterator[SignOfLife]:
    """The sign of life of one run, which has booked nothing yet."""
    life = SignOfLife(link.another(), [("run", RUN)], Booking(RUN, 7).shown)
    yield life
    life.close()


def others(link: Link) -> int:
    return budget.of(link.session, run=names.run_id(), workers=1, per_worker=5).others


def test_the_longest_booking_is_shown_whole() -> None:
    assert len(Booking(RUN, 4194304, 999, 99999).shown) <= 63
    assert str(Booking(RUN, 12, 1, 58)) == "run 01234567 (pid 12, 1 worker) has 58"


def test_a_booking_lives_as_long_as_its_run(link: Link, life: SignOfLife) -> None:
    assert booking.living(link.session) == [Booking(RUN, 7, 0, booking.WAITING)]
    booked = Booking(RUN, 7, 4, 94)
    life.show(booked.shown)
    assert booking.living(link.session) == [booked]
    # Its session is ended, as in a crash of the server.
    link.session.rows(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s", (booked.shown,)
    )
    until(
        lambda: life.epoch == 1 and booking.living(link.session) == [booked],
        seconds=20,
        what="it to come back",
    )
    life.show(Booking(RUN, 7, 2, 50).shown)
    assert booking.living(link.session) == [Booking(RUN, 7, 2, 50)]
    life.close()
    assert booking.living(link.session) == []


def test_nobody_else_books_by_calling_himself_so(link: Link, clones: Clones, made: Template) -> None:
    with make_lease(clones, made, RUN) as lease, psycopg.connect(lease.url) as connection:
        connection.execute(
            "select set_config('application_name', %s, false)", (Booking(RUN, 7, 4, 94).shown,)
        )
        assert booking.living(link.session) == []


def test_a_booking_stands_for_all_that_its_run_has_leased(
    link: Link, life: SignOfLife, clones: Clones, made: Template
) -> None:
    before = others(link)
    with make_lease(clones, made, RUN):
        # Five connections to each database of these clones.
        assert others(link) == before + 5 + PER_WORKER_RESERVE
        life.show(Booking(RUN, 7, 4, 94).shown)
        assert others(link) == before - booking.WAITING + 94
        life.close()
        # Dead, although the server was started a moment ago; and nobody is in its database.
        assert others(link) == before - booking.WAITING


def test_what_the_dead_have_counts_as_long_as_somebody_uses_it(
    link: Link, clones: Clones, made: Template
) -> None:
    before = others(link)
    with make_lease(clones, made, RUN) as lease:
        assert others(link) == before
        with psycopg.connect(lease.url), psycopg.connect(lease.url):
            assert others(link) == before + 2
