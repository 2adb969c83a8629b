"""Which rows a DELETE of all but some takes: checked place by place."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from harness.reset.sql.batch import Tid
from harness.reset.sql.relations import Relation
from harness.reset.sql.rows import delete_but, in_order, written_again

TABLE = Relation(1, "public", "t", "r")
PLACES = st.tuples(st.integers(0, 5), st.integers(1, 6))


def deletes(statement: str, tid: Tid) -> bool:
    """What PostgreSQL makes of the condition."""
    low, high, *kept = re.findall(r"\((\d+),(\d+)\)", statement)
    place = (str(tid[0]), str(tid[1]))
    inside = tuple(map(int, low)) <= tid < tuple(map(int, high))
    return inside and place not in kept


@given(st.sets(PLACES), st.sets(st.integers(0, 5), min_size=1))
def test_every_row_of_the_blocks_but_those(kept: set[Tid], blocks: set[int]) -> None:
    statements = delete_but(TABLE, sorted(kept), blocks)
    for block in range(7):
        for number in range(1, 8):
            tid = (block, number)
            wanted = block in blocks and tid not in kept
            assert any(deletes(statement, tid) for statement in statements) is wanted


def test_rows_that_lie_together_are_one_range() -> None:
    kept = [(0, number) for number in range(1, 101)]
    assert delete_but(TABLE, kept, [0]) == [
        "delete from only \"public\".\"t\" where ctid >= '(0,101)' and ctid < '(1,0)'"
    ]


@given(st.dictionaries(PLACES, st.integers(0, 9999), min_size=1), st.data(), st.integers(0, 999))
def test_a_row_that_is_written_again_in_its_place(
    rows: dict[Tid, int], data: st.DataObject, xmin: int
) -> None:
    tid = data.draw(st.sampled_from(sorted(rows)))
    assert written_again(in_order(rows.items()), (tid, xmin)) == in_order({**rows, tid: xmin}.items())
