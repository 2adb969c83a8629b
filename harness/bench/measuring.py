"""Medians and tails, side by side: rows that are measured in turn, and the table of all of them."""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from harness.bench.processes import ServerProcesses
from harness.errors import HarnessError

BLOCKS = 5
"""Parts in which each row's rounds are spread over the run, so that a busy minute hits all rows alike."""

LIMIT = 30.0
"""Seconds after which a row has rounds enough, however few."""

SLOW = 3.0
"""Seconds of a round that counts, though it was to warm up."""

READ_ONLY = "reset, only read"
SELECT = "SELECT 1"

ROWS = "rows"
REWIND = "rewind"


@dataclass
class Row:
    """One thing that is measured.

    Attributes:
        prepare, act: run in turn; only ``act`` is measured. What it returns is asked for its ``strategy``.
        engine: of the reset; empty where none is measured.
        position: asks where the server's log ends, in bytes; None: what is logged is not looked at.
        pages: tells how many pages the last act compared and wrote; None where it tells nothing of pages.
        rounds: how often it counts.
        warm: how often it is done before in each block, uncounted.
        note: more to tell, behind the figures.
        less: milliseconds that each round waited on purpose.
        taken: milliseconds of each round.
        client, server: milliseconds of processor time of this process and of the server, per round; None: not seen.
        logged: bytes of log that the server made in each round, whoever wrote them.
        compared, written: pages of each round.
        more: further figures of this row, by name.
        failed: why there are no figures.
        strategies: of the resets, and how often.
        reasons: why resets were clones although rewind was to do them, and how often.
    """

    name: str
    prepare: Callable[[], object] = lambda: None
    act: Callable[[], object] = lambda: None
    rounds: int = 0
    warm: int = 2
    note: str = ""
    less: float = 0.0
    engine: str = ""
    position: Callable[[], int] | None = None
    pages: Callable[[], tuple[int, int] | None] = lambda: None
    taken: list[float] = field(default_factory=list)
    logged: list[int] = field(default_factory=list)
    compared: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    client: float | None = None
    server: float | None = None
    more: dict[str, Any] = field(default_factory=dict)
    failed: str = ""
    strategies: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    _clients: list[float] = field(default_factory=list)
    _servers: list[float] = field(default_factory=list)

    @property
    def limit(self) -> float:
        """Seconds after which it has rounds enough; fewer where few are asked for."""
        return min(LIMIT, 1.5 * self.rounds)

    @property
    def enough(self) -> bool:
        """Whether it takes so long that what was measured has to do."""
        return bool(self.taken) and sum(self.taken) > 1000 * self.limit

    def once(self, processes: ServerProcesses | None, *, counts: bool, unless_slow: bool = False) -> None:
        """One round. An error of ours ends the row.

        Args:
            counts: whether it is one of the figures; else it warms up.
            unless_slow: it counts where it was so slow that warming up would double the row's time.
        """
        if self.failed or self.enough:
            return
        try:
            self.prepare()
            start = self.position() if self.position is not None else None
            busy = processes.seconds() if processes is not None else None
            own, began = time.process_time(), time.perf_counter()
            done = self.act()
            took, own = time.perf_counter() - began, time.process_time() - own
            # Before anything else is done: what the server does behind the act's back belongs to nobody.
            after = processes.seconds() if processes is not None else None
            stop = self.position() if self.position is not None else None
        except HarnessError as error:
            self.failed = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            return
        if not counts and not (unless_slow and took > SLOW):
            return
        self.taken.append(1000 * took - self.less)
        self._clients.append(1000 * own)
        self.client = statistics.fmean(self._clients)
        if busy is not None and after is not None:
            self._servers.append(1000 * (after - busy))
            self.server = statistics.fmean(self._servers)
        if start is not None and stop is not None:
            self.logged.append(stop - start)
        if strategy := getattr(done, "strategy", ""):
            self.strategies[strategy] += 1
        if self.engine == REWIND and (reason := getattr(done, "reason", "")):
            self.reasons[reason] += 1
        if (pages := self.pages()) is not None:
            self.compared.append(pages[0])
            self.written.append(pages[1])

    @property
    def p50(self) -> float | None:
        """The median; None where nothing was measured."""
        return statistics.median(self.taken) if self.taken and not self.failed else None

    @property
    def p95(self) -> float | None:
        """The 95th percentile."""
        ordered = sorted(self.taken)
        return (
            ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))] if ordered and not self.failed else None
        )


def alternate(rows: Sequence[Row], processes: ServerProcesses | None, block: int, blocks: int) -> None:
    """One block of rows that belong together: round by round in turn."""
    shares = {id(row): row.rounds // blocks + (block < row.rounds % blocks) for row in rows}
    for row in rows:
        for _ in range(row.warm if shares[id(row)] else 0):
            # Rows that are compared round by round must stay in step.
            row.once(processes, counts=False, unless_slow=len(rows) == 1)
    for number in range(max(shares.values())):
        for row in rows:
            if number < shares[id(row)]:
                row.once(processes, counts=True)


class Table:
    """All rows of one run on one server version; printed as they are done.

    Attributes:
        title: what was measured where.
        rows: what is done.
        missing: why the engine rewind was not measured; empty where it was, or was not asked for.
    """

    def __init__(self, title: str, out: TextIO | None = None) -> None:
        self.title = title
        self.rows: list[Row] = []
        self.missing = ""
        self._out = out or sys.stdout
        self.say(f"\n{title}\n{HEAD}")

    def measure(
        self, *groups: Row | Sequence[Row], processes: ServerProcesses | None = None, blocks: int = BLOCKS
    ) -> None:
        """Measure rows block by block, in turn, and print them.

        Args:
            groups: rows, or several rows of which a round is done in turn.
            processes: of the server.
        """
        lists = [[group] if isinstance(group, Row) else list(group) for group in groups]
        for block in range(blocks):
            for rows in lists:
                alternate(rows, processes, block, blocks)
        for rows in lists:
            for row in rows:
                self.add(row)

    def add(self, row: Row) -> None:
        """Take a row that is done, and print it."""
        self.rows.append(row)
        self.say(self.line(row))

    def row(self, name: str, engine: str = "") -> Row | None:
        """A row that is done; None where there is none of that name.

        Args:
            engine: whose row it is where there are several; else it is the first.
        """
        found = [row for row in self.rows if row.name == name]
        return next((row for row in found if row.engine == engine), found[0] if found else None)

    def ratio(self, row: Row, other: str) -> float | None:
        """Its median in those of another row of the same engine."""
        base = self.row(other, row.engine)
        return row.p50 / base.p50 if row.p50 is not None and base is not None and base.p50 else None

    def tail(self, row: Row, other: str) -> float | None:
        """Its 95th percentile in the medians of another row of the same engine."""
        base = self.row(other, row.engine)
        return row.p95 / base.p50 if row.p95 is not None and base is not None and base.p50 else None

    def line(self, row: Row) -> str:
        """One row, for people."""
        head = f"{row.name:<{WIDTH}} {row.engine:<6}"
        if row.failed:
            return f"{head} {'-':>9}  {row.failed}"
        told = [row.note] if row.note else []
        if set(row.strategies) - {"nothing", "restore" if row.engine == ROWS else row.engine}:
            told.append(", ".join(f"{what} {count}×" for what, count in sorted(row.strategies.items())))
        told += [reason[:100] for reason, _ in row.reasons.most_common(1)]
        figures = (
            f"{number(row.p50, 9)} {number(row.p95, 9)} {number(self.ratio(row, READ_ONLY), 7)} "
            f"{number(self.ratio(row, SELECT), 8)} {number(row.client, 8)} {number(row.server, 8)} "
            f"{number(kilobytes(row), 8, 1)} {len(row.taken):6d}"
        )
        return f"{head} {figures}  {'; '.join(told)}".rstrip()

    def told(self) -> dict[str, Any]:
        """All figures, for programs: milliseconds, ratios, bytes and pages."""
        return {
            "title": self.title,
            "missing": self.missing,
            "rows": [
                {
                    "name": row.name,
                    "engine": row.engine,
                    "p50": row.p50,
                    "p95": row.p95,
                    "rounds": len(row.taken),
                    "of_read_only": self.ratio(row, READ_ONLY),
                    "of_select": self.ratio(row, SELECT),
                    "client_cpu": row.client,
                    "server_cpu": row.server,
                    "strategies": dict(row.strategies),
                    "reasons": dict(row.reasons),
                    "logged": middle(row.logged),
                    "compared": middle(row.compared),
                    "written": middle(row.written),
                    **row.more,
                    "note": row.note,
                    "failed": row.failed,
                }
                for row in self.rows
            ],
        }

    def say_ratios(self, what: str, key: str, rows: Sequence[Row]) -> None:
        """Print a further ratio of rows that are done.

        Args:
            key: of :attr:`Row.more`.
        """
        for row in rows:
            if (ratio := row.more.get(key)) is not None:
                whose = f" ({row.engine})" if row.engine else ""
                self.say(f"    {row.name}{whose} / {what}: {ratio:.2f}")

    def say(self, text: str) -> None:
        """Print a line that is no row."""
        print(text, file=self._out, flush=True)


def paired(ours: Row, theirs: Row) -> float | None:
    """The median of the ratios of rounds that were done in turn."""
    ratios = [a / b for a, b in zip(ours.taken, theirs.taken, strict=False) if b]
    return statistics.median(ratios) if ratios and not ours.failed and not theirs.failed else None


def done(name: str, taken: Sequence[float], note: str = "", engine: str = "") -> Row:
    """A row of what was timed elsewhere, in milliseconds."""
    return Row(name, taken=list(taken), note=note, engine=engine)


def middle(found: Sequence[int]) -> float | None:
    """The median; None of nothing."""
    return statistics.median(found) if found else None


def kilobytes(row: Row) -> float | None:
    """Of log, the median of its rounds."""
    found = middle(row.logged)
    return None if found is None else found / 1000


def number(value: float | None, width: int, digits: int = 2) -> str:
    """A figure of the table, ``-`` where there is none."""
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


WIDTH = 58

HEAD = (
    f"{'':<{WIDTH}} {'':<6} {'p50 ms':>9} {'p95 ms':>9} {'x R':>7} {'x SELECT':>8} {'client':>8} {'server':>8} "
    f"{'log kB':>8} {'rounds':>6}\n"
    f"{'':<{WIDTH}} R: a reset by the same engine after a test that only read; client, server: processor time, ms for each round"
)
