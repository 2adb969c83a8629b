"""The end of a server's log, as far as it is about some databases, without passwords."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable

from harness.postgres.session import without_secrets

MOST = 500
"""Lines that one answer may have."""

SIZE = 100_000
"""Bytes that they may have together."""

_RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ \S+ \[\d+\] (?:\S*@(?P<database>\S+) )?")
"""What a record begins with, as the setting ``log_line_prefix`` of our servers has it; other lines belong to the one before."""


def last(lines: Iterable[str], databases: frozenset[str], wanted: int) -> list[str]:
    """The last lines that are the server's own, or of sessions in these databases.

    Args:
        databases: their names.
    """
    kept: deque[str] = deque(maxlen=max(1, min(wanted, MOST)))
    ours = True
    for line in lines:
        record = _RECORD.match(line)
        if record is not None:
            ours = record["database"] is None or record["database"] in databases
        if ours:
            kept.append(without_secrets(line)[:2000])
    size = 0
    for place in range(len(kept) - 1, -1, -1):
        size += len(kept[place]) + 1
        if size > SIZE:
            return list(kept)[place + 1 :]
    return list(kept)
