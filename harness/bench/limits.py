"""What a reset by rewind may take, and both engines beside it: told, never asserted."""

from __future__ import annotations

from typing import Any

from harness.bench.measuring import REWIND, ROWS, SELECT, WIDTH, Row, Table, kilobytes, middle, number

OF_SELECT: dict[str, float] = {
    "reset, only read": 3,
    "reset, one insert": 4,
    "reset, one insert, rolled back": 4,
    "reset, 3 tables and a seeded row, committed": 6,
    "reset, one of 1,000 seeded rows updated": 5,
    "reset, 30 dirty tables": 15,
    "reset, a temporary table": 10,
    "reset, CREATE and DROP of a table": 10,
    "reset, TRUNCATE of five tables": 12,
    "reset, REFRESH of a materialised view": 12,
    "reset, 10,000 new rows": 15,
    "reset, 1,000 scattered rows of a million": 40,
    "reset, ALTER TABLE that stays": 20,
    "reset, CREATE INDEX that stays": 20,
    "reset, DROP TABLE that stays": 20,
    "set a mark over 3 tables of 1,000 rows": 20,
    "reset to it, 3 rows changed": 5,
}
"""Name of a row → how many times ``SELECT 1`` its median may be."""

OF_APART = 1.15
"""How many times as long a reset may take where busy workers share one server's log."""


def limit(row: Row) -> float | None:
    """What its ratio may be; None where it is not a row of rewind's, or has no limit."""
    if row.engine != REWIND:
        return None
    return OF_APART if "of_apart" in row.more else OF_SELECT.get(row.name)


def judge(table: Table) -> None:
    """Note with each row of rewind's its limit, and whether it is kept."""
    for row in table.rows:
        most, ratio = limit(row), _ratio(table, row)
        if most is not None:
            row.more |= {"at_most": most, "met": None if ratio is None else ratio <= most}


def tell(table: Table) -> None:
    """Print both engines side by side, for the rows that have a limit; nothing where rewind was not measured."""
    judged = [row for row in table.rows if "at_most" in row.more]
    if not judged:
        return
    table.say(f"\n{table.title}: rows beside rewind, SELECT 1 = 1\n{HEAD}")
    for row in judged:
        table.say(_line(table, row))
    met = sum(bool(row.more["met"]) for row in judged)
    table.say(f"{met} of {len(judged)} limits are kept")


def _ratio(table: Table, row: Row) -> float | None:
    if "of_apart" in row.more:
        found: Any = row.more["of_apart"]
        return None if found is None else float(found)
    return table.ratio(row, SELECT)


def _line(table: Table, row: Row) -> str:
    other = table.row(row.name, ROWS)
    sides = [other if other is not None and other.engine == ROWS else None, row]
    shown = []
    for side in sides:
        if side is None:
            shown.append(f"{'-':>8} {'-':>8} {'':8}")
            continue
        tail = None if "of_apart" in side.more else table.tail(side, SELECT)
        by = next(iter(side.strategies)) if len(side.strategies) == 1 else "mixed" if side.strategies else ""
        shown.append(f"{number(_ratio(table, side), 8)} {number(tail, 8)} {by:<8}")
    verdict = {True: "kept", False: "MORE", None: "-"}[row.more["met"]]
    return (
        f"{row.name:<{WIDTH}} {'  '.join(shown)} {row.more['at_most']:>8g} {verdict:>5} "
        f"{number(middle(row.compared), 9, 0)} {number(middle(row.written), 8, 0)} {number(kilobytes(row), 8, 1)}"
    ).rstrip()


HEAD = (
    f"{'':<{WIDTH}} {'rows':>8} {'p95':>8} {'':8}  {'rewind':>8} {'p95':>8} {'':8} {'at most':>8} {'':5} "
    f"{'compared':>9} {'written':>8} {'log kB':>8}"
)
