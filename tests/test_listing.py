"""Lists for people: plural forms, and lines that say the same."""

from __future__ import annotations

import pytest

from harness.errors import LeaseInUse
from harness.listing import counted, together


@pytest.mark.parametrize(
    ("number", "text"), [(0, "no rows"), (1, "1 row"), (2, "2 rows"), (1000, "1000 rows")]
)
def test_plural_forms(number: int, text: str) -> None:
    assert counted(number, "row") == text


def test_fifty_equal_sessions_are_one_line_and_the_other_is_seen() -> None:
    pool = [f"pid {100 + n}, web, role app, idle for {n % 7} s, last query: select 1" for n in range(50)]
    other = "pid 7, psql, role app, idle in transaction for 3 s, last query: begin"
    assert together([*pool[:20], other, *pool[20:]]) == [
        "50 sessions: pids 100, 101, 102 and 47 more, web, role app, idle for 0 to 6 s, last query: select 1",
        other,
    ]


def test_other_queries_are_other_lines() -> None:
    lines = [f"pid {n}, web, idle for 1 s, last query: select {n}" for n in range(3)]
    assert together(lines) == lines


def test_two_of_the_same_age() -> None:
    lines = ["pid 1, web, active for 2.5 s", "pid 2, web, active for 2.5 s"]
    assert together(lines) == ["2 sessions: pids 1, 2, web, active for 2.5 s"]


def test_what_is_no_session_stays() -> None:
    assert together(["a prepared transaction 'x'", "a prepared transaction 'y'"]) == [
        "a prepared transaction 'x'",
        "a prepared transaction 'y'",
    ]


def test_an_error_lists_them_so_and_keeps_all() -> None:
    sessions = [f"pid {n}, web, idle for 1 s" for n in range(50)]
    error = LeaseInUse("sessions could not be ended", sessions=sessions)
    assert str(error).splitlines()[1:] == [
        "Sessions:",
        "  - 50 sessions: pids 0, 1, 2 and 47 more, web, idle for 1 s",
    ]
    assert len(error.sessions) == 50
