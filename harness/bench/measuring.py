"""Medians and tails, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """What a number of calls took, in milliseconds."""

    p50: float
    p95: float
    count: int


def measured(
    prepare: Callable[[], object], act: Callable[[], object], rounds: int, *, warm: int = 3
) -> Timing:
    """Run ``prepare`` and ``act`` in turn; only ``act`` is timed.

    Args:
        rounds: how often it counts.
        warm: how often it is done before, uncounted.
    """
    taken = []
    for number in range(warm + rounds):
        prepare()
        began = time.perf_counter()
        act()
        if number >= warm:
            taken.append(1000 * (time.perf_counter() - began))
    return summary(taken)


def summary(taken: list[float]) -> Timing:
    """Median and 95th percentile of milliseconds."""
    ordered = sorted(taken)
    count = len(ordered)
    return Timing(ordered[count // 2], ordered[min(count - 1, int(count * 0.95))], count)


def line(name: str, timing: Timing, note: str = "") -> str:
    """One row of the table."""
    return f"{name:<52} {timing.p50:9.2f} {timing.p95:9.2f} {timing.count:7d}  {note}".rstrip()


HEAD = f"{'':<52} {'p50 ms':>9} {'p95 ms':>9} {'rounds':>7}"
