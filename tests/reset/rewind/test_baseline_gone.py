"""What becomes of a rewind when its baseline is dropped, or made anew, while it is in use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from fix_reset_servers import Server, clone, dispose, drop
from fix_rewind import RewindCase

from harness.errors import HarnessError

SCHEMA = """
create table people (id serial primary key, v text);
insert into people (v) select 'row ' || i from generate_series(1, 30) i;
create table others (id serial primary key, v text);
"""


@pytest.fixture(scope="module")
def shared(reset_server: Server, rewind_schema: Callable[[Server], str]) -> Iterator[RewindCase]:
    case = RewindCase(reset_server, "rewindgone", SCHEMA, module=rewind_schema(reset_server))
    yield case
    dispose(case.bench)


def settle(case: RewindCase) -> int:
    """As a lease does, as often as it takes; how many clones."""
    for number in range(4):
        try:
            case.bench.engine.reset()
            return number
        except HarnessError:
            for _ in range(2):
                try:
                    case.bench.reclone()
                    break
                except HarnessError:
                    continue
    raise AssertionError(f"it does not get over it: {case.rewinder}")


@pytest.mark.parametrize("known", [True, False], ids=["its pages are known", "they are not"])
@pytest.mark.parametrize("back", [True, False], ids=["made anew", "gone for a while"])
def test_a_baseline_that_is_dropped_in_between_is_at_most_a_clone(
    case: RewindCase, *, known: bool, back: bool
) -> None:
    with case.bench.app() as app:
        app.execute("insert into people (v) values ('x')")
        if known:
            case.rewound("people")
        app.execute("insert into people (v) values ('x')")
        app.execute("insert into others (v) values ('x')")
        drop(case.bench.admin, f"{case.bench.name}_z")
        if back:
            clone(case.bench.admin, f"{case.bench.name}_t", f"{case.bench.name}_z")
        with suppress(HarnessError):
            case.reset()
            case.assert_pristine()
    if not back:
        clone(case.bench.admin, f"{case.bench.name}_t", f"{case.bench.name}_z")
    began = time.monotonic()
    assert settle(case) <= 2
    case.assert_exact()
    for _ in range(2):
        with case.bench.app() as app:
            app.execute("insert into people (v) values ('x')")
            case.rewound("people")
    assert time.monotonic() - began < 20
