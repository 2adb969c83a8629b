"""From what changed to what is to be done: a pure function."""

from __future__ import annotations

from harness.listing import counted
from harness.reset.changes import (
    Baseline,
    Changes,
    How,
    Nothing,
    Plan,
    Reclone,
    Restore,
    TableChange,
    TableState,
)
from harness.reset.sql.catalogs import LARGE_OBJECTS, STATISTICS
from harness.reset.sql.objects import sentence

BLOCK_MS = 0.045
"""Milliseconds for each block that is compared: its rows are read here and in the baseline, 16 to 25 microseconds each."""

ROW_MS = 0.025
"""Milliseconds for each row that is put back: fetched, deleted, inserted with its indexes."""

EXTRA_MS = 0.002
"""Milliseconds for each row that is only deleted."""

MOST_BYTES = 32 << 20
"""Bytes of rows that one reset takes into this process for a table that is not held as a whole."""

GROWN_ROWS = 4000
GROWN_BLOCKS = 50
"""From here on TRUNCATE is cheaper than DELETE, its log and the VACUUM after it: 10,000 rows cost 2 ms, not 9."""

HEAVY_PAGES = 2048
"""Blocks of long values from which a clone is cheaper than writing all rows of a small table: 60 MB took 2 to 3.5 s."""

MOST_ALONG = 3
"""Tables that may be truncated for each other's sake: every new file costs, and on some file systems a lot."""


def plan(changes: Changes, baseline: Baseline) -> Plan:
    """Decide.

    Everything that is not understood is a :class:`Reclone`: a wrong reset is worse than a slow one.
    """
    if changes.ddl:
        return Reclone(sentence(changes.ddl))
    catalogs = {
        name: blocks
        for name, blocks in changes.catalogs.items()
        if name not in STATISTICS and name not in LARGE_OBJECTS
    }
    if changes.unknown and not catalogs:
        return Reclone(f"the log names a file that no relation has ({min(changes.unknown)})")
    tables: dict[int, How] = {}
    cost = 0.0
    for oid in sorted(changes.tables):
        relation = baseline.relations.get(oid)
        if relation is None:
            return Reclone(f"a table that the template does not have was written (OID {oid})")
        if relation.obstacle:
            return Reclone(f"table {relation} was written, and {relation.obstacle}")
        how = _table(changes.tables[oid], baseline, oid)
        if isinstance(how, Reclone):
            return how
        tables[oid] = how
        if (state := baseline.states.get(oid)) is not None:
            cost += estimate(how, changes.tables[oid], state)
    along = _truncated_along(tables, baseline)
    for oid in changes.sequences:
        if oid not in baseline.sequences:
            return Reclone(f"a sequence that the template does not have was used (OID {oid})")
    large_objects = any(name in LARGE_OBJECTS for name in changes.catalogs)
    if not (tables or changes.sequences or catalogs or large_objects):
        return Nothing()
    if cost > baseline.worth:
        return Reclone(
            f"putting the rows back would take about {cost:.0f} ms, and a clone is worth {baseline.worth:.0f}"
        )
    return Restore(tables, tuple(sorted(changes.sequences)), catalogs, large_objects, along, cost)


def estimate(how: How, change: TableChange, state: TableState) -> float:
    """Milliseconds that one table takes: of all that is read, deleted and inserted."""
    gone = change.gone if state.rows is None else min(change.gone, state.rows)
    if how is How.REWRITE and state.rows is not None:
        return state.rows * (ROW_MS if change.rewritten else EXTRA_MS) + gone * ROW_MS
    if how is How.BLOCKS:
        return len(change.blocks) * BLOCK_MS + gone * ROW_MS + change.inserts * EXTRA_MS
    return 0.0 if how is How.TRUNCATE else change.inserts * EXTRA_MS


def _truncated_along(tables: dict[int, How], baseline: Baseline) -> frozenset[int]:
    """What has to be truncated with those that are to be; where that is not possible or too much, DELETE it is."""
    wanted = {oid for oid, how in tables.items() if how is How.TRUNCATE}
    reached, pending = set(wanted), list(wanted)
    while pending:
        for by in baseline.relations[pending.pop()].referenced_by - reached:
            relation = baseline.relations.get(by)
            if (
                relation is None
                or relation.kind != "r"
                or relation.pages
                or relation.obstacle
                or by in baseline.held
            ):
                reached = set()
                pending = []
                break
            reached.add(by)
            pending.append(by)
    along = frozenset(reached - wanted)
    if not reached or len(along) > MOST_ALONG * len(wanted):
        tables.update(dict.fromkeys(wanted, How.EMPTY))
        return frozenset()
    tables.update({oid: How.TRUNCATE for oid in along if oid in tables})
    return along - tables.keys()


def _table(change: TableChange, baseline: Baseline, oid: int) -> How | Reclone:
    relation = baseline.relations[oid]
    if relation.kind == "m":
        return How.REFRESH
    if relation.kind != "r":
        return Reclone(f"{relation} was written and is no table (kind {relation.kind})")
    state = baseline.states.get(oid)
    if state is None:
        return Reclone(f"it is not known what table {relation} held")
    if state.rows == 0:
        grown = change.inserts >= GROWN_ROWS or len(change.blocks) >= GROWN_BLOCKS
        return How.TRUNCATE if grown and baseline.may_truncate else How.EMPTY
    whole = change.rewritten or change.unlogged or not state.tidy
    if state.rows is not None:
        if change.only_inserts and state.tidy and state.rows <= baseline.small:
            return How.EXTRAS
        if whole and relation.toast > HEAVY_PAGES:
            return Reclone(
                f"{relation} was rewritten, and {relation.toast >> 7} MB of long values would be written anew"
            )
        return How.REWRITE if whole else How.BLOCKS
    if change.rewritten:
        return Reclone(f"the large table {relation} was truncated or rewritten")
    if change.unlogged:
        return Reclone(f"the large table {relation} is unlogged: what changed in it is not known")
    if change.gone * relation.row_bytes > MOST_BYTES:
        return Reclone(
            f"{counted(change.gone, 'row')} of the large table {relation} changed, about "
            f"{change.gone * relation.row_bytes / 1e6:.0f} MB"
        )
    return How.BLOCKS
