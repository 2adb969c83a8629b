"""What a run has to tell at its end: counted and collected in each process, shown once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_NOTICES = 20
"""Lines at most: a summary is read, a flood is not."""


@dataclass
class Summary:
    """Of one process; a controller adds those of its workers.

    Attributes:
        counts: strategy of a reset → how often.
        milliseconds: of all resets together, but for the first of each process.
        first: milliseconds of the first reset of each process, which also opens what the others use.
        notices: lines for people, in order; one per group.
        kept: name of a kept database → the test it is of.
    """

    counts: dict[str, int] = field(default_factory=dict)
    milliseconds: float = 0.0
    first: list[float] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    _groups: dict[str, int] = field(default_factory=dict)

    def count(self, strategy: str, milliseconds: float) -> None:
        """One reset."""
        self.counts[strategy] = self.counts.get(strategy, 0) + 1
        if self.first:
            self.milliseconds += milliseconds
        else:
            self.first.append(milliseconds)

    def notice(self, line: str, *, group: str = "") -> None:
        """Tell it at the end; of a group, only the first, and how many there were."""
        key = group or line
        self._groups[key] = self._groups.get(key, 0) + 1
        if self._groups[key] == 1:
            self.notices.append(line)

    def sendable(self) -> dict[str, Any]:
        """For xdist's channel."""
        return {
            "counts": self.counts,
            "milliseconds": self.milliseconds,
            "first": self.first,
            "notices": self.lines(),
            "kept": self.kept,
        }

    def add(self, worker: str, other: Mapping[str, Any]) -> None:
        """Take in what a worker has sent."""
        for strategy, count in other["counts"].items():
            self.counts[strategy] = self.counts.get(strategy, 0) + count
        self.milliseconds += other["milliseconds"]
        self.first += other["first"]
        for line in other["notices"]:
            self.notice(f"{worker}: {line}", group=line)
        self.kept.update(other["kept"])

    def lines(self) -> list[str]:
        """The notices, with how often each came up."""
        counted = [
            line + (f" (and {times - 1} more)" if times > 1 else "")
            for line, times in zip(self.notices, self._groups.values(), strict=True)
        ]
        if len(counted) > MOST_NOTICES:
            counted[MOST_NOTICES:] = [f"… and {len(counted) - MOST_NOTICES} more of this kind"]
        return counted

    def resets(self) -> str:
        """One line about the resets; empty where there were none."""
        total = sum(self.counts.values())
        if not total:
            return ""
        words = {
            "nothing": "nothing to do",
            "rewind": "rewound",
            "restore": "put back",
            "clone": "new clones",
        }
        parts = ", ".join(f"{count} {words.get(s, s)}" for s, count in sorted(self.counts.items()))
        later = total - len(self.first)
        # Apart: a mean of both would tell of neither, in a short run above all.
        first = f"{sum(self.first) / len(self.first):.0f} ms the first of each process"
        each = f"{self.milliseconds / later:.1f} ms each, {first}" if later else first
        return f"{total} resets, {each} ({parts})"
