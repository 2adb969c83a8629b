"""``status --watch``: connections by worker and state, live."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.cli import lookup
from harness.cli.context import Context
from harness.errors import ServerLost
from harness.postgres import activity
from harness.postgres.activity import Connections
from harness.runs.places import Place, places_on
from harness.runs.session import ServerSession

COLUMNS = ("active", "waiting", "idle in transaction", "idle")
"""What a session may be doing: at work, waiting for a lock, holding a transaction open, nothing."""

_CLEAR = "\x1b[2J\x1b[H"


@dataclass(frozen=True)
class Line:
    """The connections of one worker.

    Attributes:
        limit: how many its database allows the application; None: no limit of its own.
        longest: seconds that its oldest open transaction has lasted.
    """

    server: str
    worker: str
    run: str
    states: Mapping[str, int] = field(default_factory=dict)
    limit: int | None = None
    longest: float = 0.0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.states.values())


@dataclass(frozen=True)
class Look:
    """What one look saw.

    Attributes:
        used, most: connections of clients on all servers, and how many these allow.
    """

    at: float
    lines: Sequence[Line]
    used: int
    most: int


def watch(context: Context, interval: float) -> int:
    """Show it again and again, until Ctrl-C."""
    try:
        while True:
            began = time.monotonic()
            show(context, _surely(context))
            time.sleep(max(0.05, interval - (time.monotonic() - began)))
    except KeyboardInterrupt:
        # How it is meant to end.
        return 0


def _surely(context: Context) -> Look:
    """One look; a server that ends in the middle of it is one that is not there, and no reason to stop."""
    try:
        return look(context)
    except ServerLost:
        return Look(time.time(), [], 0, 0)


def look(context: Context) -> Look:
    """Look once.

    Raises:
        ServerLost: a server ended meanwhile.
    """
    lines: list[Line] = []
    used = most = 0
    # Anew each time: a run that begins meanwhile may start a server.
    with lookup.servers(context, guard=False) as found:
        for server in found:
            counted = activity.connections(server.link.session)
            lines += [_line(server, place, counted) for place in places_on(server) if place.worker]
            used += sum(sum(one.states.values()) for one in counted.values())
            most += int(server.link.session.value("select current_setting('max_connections')"))
    return Look(time.time(), lines, used, most)


def _line(server: ServerSession, place: Place, counted: Mapping[str, Connections]) -> Line:
    states = dict.fromkeys(COLUMNS, 0)
    longest, limits = 0.0, []
    for database in place.databases.values():
        if (one := counted.get(database.name)) is None:
            continue
        for state, number in one.states.items():
            states[state] = states.get(state, 0) + number
        longest = max(longest, one.longest)
        if one.limit is not None:
            limits.append(one.limit)
    run = "" if place.sandbox else place.run[:8]
    return Line(
        server.server.info.purpose, place.worker, run, states, sum(limits) if limits else None, longest
    )


def show(context: Context, seen: Look) -> None:
    """One look, for people or for programs: a line of JSON each."""
    if context.json:
        context.console.answer(json.dumps(_told(seen)))
    else:
        terminal = sys.stdout is not None and sys.stdout.isatty()
        context.console.answer((_CLEAR if terminal else "") + "\n".join(_table(seen)))
    if sys.stdout is not None:
        sys.stdout.flush()


def _told(seen: Look) -> dict[str, Any]:
    return {
        "time": round(seen.at, 3),
        "connections": seen.used,
        "max_connections": seen.most,
        "workers": [
            {
                "server": line.server,
                "worker": line.worker,
                "run": line.run or None,
                "states": dict(line.states),
                "total": line.total,
                "limit": line.limit,
                "longest_transaction": round(line.longest, 3),
            }
            for line in seen.lines
        ],
    }


def _table(seen: Look) -> list[str]:
    head = ("worker", *COLUMNS, "total", "limit", "oldest transaction")
    rows = [
        (
            f"{line.run}:{line.worker}" if line.run else f"{line.worker} (yours)",
            *(str(line.states.get(column, 0)) for column in COLUMNS),
            str(line.total),
            "-" if line.limit is None else str(line.limit),
            f"{line.longest:.1f} s" if line.longest else "-",
        )
        for line in seen.lines
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    at = time.strftime("%H:%M:%S", time.localtime(seen.at))
    said = f"{at}  {seen.used} of {seen.most} connections" if seen.most else f"{at}  no server runs"
    return [said, *("  ".join(_padded(row, widths)).rstrip() for row in (head, *rows))] if rows else [said]


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *rest = zip(row, widths, strict=True)
    return [f"{first[0]:<{first[1]}}", *(f"{word:>{width}}" for word, width in rest)]
