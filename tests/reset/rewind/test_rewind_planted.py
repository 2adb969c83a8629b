"""Planted bugs in the server module: a search that lets one of these pass would be worth nothing.

The module is compiled with ``-DPGH_PLANT_<NAME>``, which leaves out one thing that it does.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from fix_reset_servers import VERSIONS, Server
from fix_rewind_hurt import hurt
from fix_rewind_module import need_compiler
from rw_operations import generate
from rw_runner import Rounds
from test_killed import Killed

LONG = os.environ.get("PGHARNESS_TEST_LONG") == "1"
BUDGET = 600 if LONG else 150
"""Rounds in which a planted bug has to be found."""
CRASHES = 20
PER_SCHEMA = 30
SEED = 1

PLANTS = {
    "INDEX_HINTS": "pages of indexes that the log does not name are left as they are",
    "NO_RELCACHE": "sessions are not told that descriptions of relations went back",
    "NO_FSM": "the free space map is left as it is",
    "NO_VM": "the visibility map is left as it is",
    "ONE_RECORD_SHORT": "the log is read a record short",
}


def found_after(server: Server, plant: str) -> tuple[int, list[str]]:
    """In which round it was found, and by what; 0 where it was not."""
    number = 0
    for schema in range(SEED, SEED + BUDGET, PER_SCHEMA):
        rounds = Rounds(server, schema, (plant,))
        try:
            for seed in range(schema, min(schema + PER_SCHEMA, SEED + BUDGET)):
                number += 1
                if differences := rounds.round(seed, generate(seed, rounds.schema)):
                    return number, differences
        finally:
            rounds.close()
    return 0, []


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.timeout(120 + 3 * BUDGET)
def test_a_planted_bug_is_found(reset_server: Server, plant: str) -> None:
    need_compiler(reset_server.version)
    if plant == "NO_VM" and reset_server.version >= 18:
        pytest.skip("18.6 names the page of the map in the record that clears its bit")
    number, differences = found_after(reset_server, plant)
    assert number, f"{PLANTS[plant]}: {BUDGET} rounds, and nobody noticed"
    print(f"\nPostgreSQL {reset_server.version}, {plant}: found in round {number}: {differences[0][:200]}")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.timeout(600)
@pytest.mark.server
def test_a_copy_that_is_not_logged_is_found_by_a_crash(version: int) -> None:
    need_compiler(version)
    with hurt(version) as server:
        if server.server.data is None:
            pytest.skip("its files are in a container")
        rounds = Killed(server, SEED, ("UNLOGGED_COPY",))
        found: list[str] = []
        try:
            for seed in range(SEED, SEED + CRASHES):
                try:
                    found = rounds.one(seed, Counter(), "after and flushed", "application")
                except AssertionError as error:
                    found = [f"the server does not come back: {error}"]
                if found:
                    break
        finally:
            rounds.log_out()
    assert found, "pages that were copied without a record, and no crash showed it"
    print(f"\nPostgreSQL {version}: found in crash {seed}: {found[0][:200]}")
