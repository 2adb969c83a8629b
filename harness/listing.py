"""Lists for people: a noun with its number, and lines that say the same once, with a count."""

from __future__ import annotations

import re
from collections.abc import Iterable

NAMED = 3
"""How many process numbers a line names that stands for several sessions."""


def counted(number: int, noun: str) -> str:
    """``"1 session"``, ``"2 sessions"``, ``"no sessions"``."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


_PID = re.compile(r"\bpid (\d+)(, | )")
_SECONDS = re.compile(r"\bfor ([\d.]+) s\b")


def together(lines: Iterable[str]) -> list[str]:
    """Lines about sessions (``"pid 7, web, idle for 3 s, …"``); those that differ in pid and seconds alone are one.

    A pool of fifty that sleeps is one thing to know, and hides the session that is another.
    """
    groups: dict[str, list[str]] = {}
    for line in lines:
        key = _SECONDS.sub("for s", _PID.sub("pid", line, count=1))
        groups.setdefault(key, []).append(line)
    return [members[0] if len(members) == 1 else _alike(members) for members in groups.values()]


def _alike(members: list[str]) -> str:
    pids = [found[1] for line in members if (found := _PID.search(line))]
    more = f" and {len(pids) - NAMED} more" if len(pids) > NAMED else ""
    ages = [float(found[1]) for line in members if (found := _SECONDS.search(line))]
    text = _PID.sub(f"pids {', '.join(pids[:NAMED])}{more}, ", members[0], count=1)
    if ages and min(ages) != max(ages):
        text = _SECONDS.sub(f"for {min(ages):g} to {max(ages):g} s", text, count=1)
    return f"{counted(len(members), 'session')}: {text}"
