"""The planner, alone: what a reset does about what changed."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from harness.reset import detect
from harness.reset.changes import (
    Baseline,
    Changes,
    How,
    Nothing,
    Reclone,
    RecloneNeeded,
    Restore,
    TableChange,
    TableState,
)
from harness.reset.plan import MOST_BYTES, plan
from harness.reset.sql.batch import parse_tid
from harness.reset.sql.catalogs import CatalogRow, judge
from harness.reset.sql.objects import Difference, sentence, told
from harness.reset.sql.relations import Relation, SequenceState, in_blocks, runs
from harness.reset.sql.rows import array_literal, tid_array
from harness.reset.wal.reader import RelationRecords

RELATIONS = {
    1: Relation(1, "public", "empty", "r", owner=1),
    2: Relation(2, "public", "seeded", "r", owner=2),
    3: Relation(3, "public", "large", "r", owner=3, pages=9000, rows=9000 * 64),
    20: Relation(20, "public", "parent", "r", owner=20, referenced_by=frozenset({21})),
    21: Relation(21, "public", "child", "r", owner=21, referenced_by=frozenset({22})),
    22: Relation(22, "public", "grandchild", "r", owner=22, referenced_by=frozenset({20})),
    23: Relation(23, "public", "colour", "r", owner=23, referenced_by=frozenset({2})),
    4: Relation(4, "public", "always", "r", owner=4, obstacle="trigger t is enabled ALWAYS or REPLICA"),
    5: Relation(5, "public", "seen", "m", owner=5),
    6: Relation(6, "public", "counter", "S", owner=6),
    7: Relation(7, "pg_toast", "pg_toast_2", "t", owner=2),
    8: Relation(8, "public", "seeded_pkey", "i", owner=8),
    9: Relation(9, "pg_catalog", "pg_class", "r", catalog=True, owner=9),
    10: Relation(10, "pg_catalog", "pg_statistic", "r", catalog=True, owner=10),
    11: Relation(11, "pg_catalog", "pg_largeobject", "r", catalog=True, owner=11),
}
STATES = {
    1: TableState(0),
    2: TableState(100),
    3: TableState(None),
    4: TableState(0),
    20: TableState(0),
    22: TableState(0),
    23: TableState(0),
}
BASELINE = Baseline(RELATIONS, STATES, {6: SequenceState(1, False)})


@pytest.mark.parametrize(
    ("oid", "change", "how"),
    [
        (1, TableChange(inserts=10), How.EMPTY),
        (1, TableChange(rewritten=True), How.EMPTY),
        (2, TableChange(inserts=10), How.EXTRAS),
        (2, TableChange(inserts=10, updates=1), How.BLOCKS),
        (2, TableChange(deletes=1), How.BLOCKS),
        (2, TableChange(other=1), How.BLOCKS),
        (2, TableChange(unlogged=True), How.REWRITE),
        (2, TableChange(rewritten=True), How.REWRITE),
        (3, TableChange(inserts=1, blocks=frozenset({8})), How.BLOCKS),
    ],
)
def test_each_table_in_its_way(oid: int, change: TableChange, how: How) -> None:
    found = plan(Changes(tables={oid: change}), BASELINE)
    assert isinstance(found, Restore)
    assert found.tables == {oid: how}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (Changes(tables={4: TableChange(inserts=1)}), "ALWAYS"),
        (Changes(tables={99: TableChange(inserts=1)}), "does not have"),
        (Changes(sequences=frozenset({99})), "does not have"),
        (Changes(unknown=frozenset({77})), "no relation has"),
        (Changes(ddl=("pg_class: relation x",)), "schema differs"),
        (Changes(tables={3: TableChange(rewritten=True)}), "truncated"),
        (Changes(tables={3: TableChange(unlogged=True)}), "unlogged"),
        (Changes(tables={3: TableChange(updates=9000, blocks=frozenset(range(9000)))}), "a clone is worth"),
        (Changes(tables={3: TableChange(updates=1 + MOST_BYTES // 128)}), "rows of the large table"),
        (
            Changes(tables={2: TableChange(inserts=9000, deletes=9, blocks=frozenset(range(4000)))}),
            "a clone is worth",
        ),
        (Changes(tables={6: TableChange(inserts=1)}), "no table"),
    ],
)
def test_what_is_not_understood_is_a_clone(changes: Changes, reason: str) -> None:
    found = plan(changes, replace(BASELINE, worth=150.0))
    assert isinstance(found, Reclone)
    assert reason in found.reason


def test_nothing_and_statistics_are_nothing() -> None:
    assert plan(Changes(), BASELINE) == Nothing()
    assert plan(Changes(catalogs={"pg_statistic": frozenset({1})}), BASELINE) == Nothing()


def test_catalogs_are_compared_and_large_objects_put_back() -> None:
    found = plan(Changes(catalogs={"pg_class": frozenset({1}), "pg_largeobject": frozenset({0})}), BASELINE)
    assert found == Restore(catalogs={"pg_class": frozenset({1})}, large_objects=True)


def records(filenode: int, *, own: bool = False, shared: bool = False, **kinds: int) -> RelationRecords:
    names = {kind.replace("_", "/", 1): count for kind, count in kinds.items()}
    return RelationRecords(filenode, shared, own, names, frozenset({1}))


FILES = {100 + oid: oid for oid in RELATIONS}


@pytest.mark.parametrize(
    "kind",
    [
        "Heap_LOCK",
        "Heap_INPLACE",
        "Heap2_PRUNE_ON_ACCESS",
        "Heap2_VISIBLE",
        "XLOG_FPI_FOR_HINT",
        "Heap2_PRUNE",
    ],
)
def test_housekeeping_is_no_change(kind: str) -> None:
    found = detect.changes([records(102, **{kind: 3})], by_file=FILES, relations=RELATIONS)
    assert not found


def test_records_become_changes() -> None:
    window = [
        records(102, Heap_INSERT=2, Heap_HOT_UPDATE=1, Heap_LOCK=5),
        records(107, Heap_INSERT=1),
        records(108, Btree_INSERT_LEAF=1),
        records(106, Sequence_LOG=1),
        records(101, own=True, Heap_DELETE=4),
        records(109, own=True, Heap_UPDATE=1),
        records(555, Heap_INSERT=1),
        records(700, shared=True, Heap_UPDATE=1),
    ]
    found = detect.changes(window, by_file=FILES, relations=RELATIONS)
    assert found.tables == {2: TableChange(inserts=2, updates=1, blocks=frozenset({1}))}
    assert found.sequences == {6}
    # Our own writes to catalogs ask for no comparison; the next one has to know them.
    assert found.catalogs == {}
    assert detect.own_catalogs(window, by_file=FILES, relations=RELATIONS) == {"pg_class": frozenset({1})}
    assert found.unknown == {555}
    assert found.shared


def test_an_unknown_kind_of_record_counts_as_a_change() -> None:
    found = detect.changes([records(102, Custom_THING=1)], by_file=FILES, relations=RELATIONS)
    assert not found.tables[2].only_inserts


def test_a_new_file_is_a_change_of_the_table() -> None:
    found = detect.changes([], by_file=FILES, relations=RELATIONS, rewritten=[2, 6, 7, 8])
    assert found.tables == {2: TableChange(rewritten=True)}
    assert found.sequences == {6}


def test_catalog_rows_are_judged_as_sets() -> None:
    same, temporary, new = (
        CatalogRow("a", False, "a"),
        CatalogRow("t", True, "t"),
        CatalogRow("n", False, "relation n"),
    )
    assert judge("pg_class", [same, temporary], [same]) == []
    assert [str(one) for one in judge("pg_class", [same, new], [same])] == ["relation n was created"]
    assert [str(one) for one in judge("pg_class", [], [new])] == ["relation n was dropped"]
    other = CatalogRow("n of more columns", False, "relation n")
    assert [str(one) for one in judge("pg_class", [other], [new])] == ["relation n was altered"]


def test_what_came_with_a_table_is_not_told() -> None:
    table = Difference("pg_class", "table extra", "", "created")
    index = Difference("pg_class", "index extra_pkey", "extra", "created")
    column = Difference("pg_attribute", "column extra.id", "extra", "created")
    row = Difference("pg_depend")
    assert told([row, column, index, table]) == ["table extra was created"]
    email = Difference("pg_attribute", "column users.email", "users", "created")
    altered = Difference("pg_class", "table users", "", "altered")
    assert told([row, altered, email]) == ["column users.email was created"]
    assert told([row, row]) == ["pg_depend was written"]


def test_the_sentence_names_a_few_and_says_what_would_avoid_it() -> None:
    lines = [f"table t{n} was created" for n in range(5)]
    assert sentence(lines) == (
        "the schema differs from the template's (table t0 was created; table t1 was created; table t2 was created and 2 more): "
        "a temporary table needs no clone, nor what a migration creates"
    )
    assert sentence(["function f() was altered"]).endswith("what a migration does needs no clone")


def test_literals() -> None:
    assert (
        array_literal([b"a'b", None, b'c"\\d', b"NULL"]) == '\'{"a\'\'b",NULL,"c\\"\\\\d","NULL"}\'::text[]'
    )
    assert tid_array([(1, 2), (3, 4)]) == """'{"(1,2)","(3,4)"}'::tid[]"""
    assert parse_tid(b"(12,3)") == (12, 3)


def test_scattered_blocks_do_not_become_a_range() -> None:
    assert runs([1, 2, 3, 7]) == [(1, 3), (7, 7)]
    assert in_blocks("select 1 from t where true", [1, 2, 3, 7]) == (
        "(select 1 from t where true and ctid >= '(1,0)' and ctid < '(4,0)') union all "
        "(select 1 from t where true and ctid >= '(7,0)' and ctid < '(8,0)')"
    )
    many = in_blocks("select 1 from t where true", range(0, 400, 2))
    assert '"(398,0)"' in many
    assert "(399,0)" in many
    assert "lateral" in many


def test_the_errand_for_a_clone_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(RecloneNeeded("why", remedy="do this", lasting=True)))
    assert (error.reason, error.remedy, error.lasting, str(error)) == ("why", "do this", True, "why. do this")


GROWN = TableChange(inserts=10000)


def test_a_table_that_grew_is_truncated() -> None:
    assert plan(Changes(tables={1: GROWN}), BASELINE) == Restore({1: How.TRUNCATE})
    assert plan(
        Changes(tables={1: TableChange(inserts=80, blocks=frozenset(range(80)))}), BASELINE
    ) == Restore({1: How.TRUNCATE})


def test_what_points_to_a_truncated_table_is_truncated_along() -> None:
    found = plan(Changes(tables={20: GROWN, 22: TableChange(inserts=1)}), BASELINE)
    assert found == Restore({20: How.TRUNCATE, 22: How.TRUNCATE}, along=frozenset({21}))


def test_a_table_that_full_ones_point_to_is_not_truncated() -> None:
    relations = {**RELATIONS, 2: replace(RELATIONS[2], pages=1)}
    found = plan(Changes(tables={23: GROWN}), replace(BASELINE, relations=relations))
    assert found == Restore({23: How.EMPTY})
    held = replace(BASELINE, held=frozenset({21}))
    assert plan(Changes(tables={20: GROWN}), held) == Restore({20: How.EMPTY})
    somebody_reads = replace(BASELINE, may_truncate=False)
    assert plan(Changes(tables={1: GROWN}), somebody_reads) == Restore({1: How.EMPTY})
