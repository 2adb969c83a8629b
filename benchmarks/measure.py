"""Two things in turn, A B A B …, and what A costs in B's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def timed(act: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def compare(
    name: str, ours: Callable[[], float], theirs: Callable[[], float], *, pairs: int, aim: float
) -> float:
    """Run both in turn, print a line, return the median of the pairs' ratios.

    Args:
        ours: does the thing our way; returns seconds.
        theirs: does the same by hand; returns seconds.
        pairs: how often; one pair more goes first and is not counted.
        aim: the ratio to stay below.
    """
    measured = [(ours(), theirs()) for _ in range(pairs + 1)][1:]
    ratios = sorted(a / b for a, b in measured)
    a, b = (statistics.median(column) for column in zip(*measured, strict=True))
    median = statistics.median(ratios)
    verdict = "ok" if median <= aim else "ABOVE THE AIM"
    print(
        f"{name:44} {1000 * a:8.1f} ms {1000 * b:8.1f} ms   {median:5.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})   aim {aim:.2f}   {verdict}",
        flush=True,
    )
    return median


def head(title: str) -> None:
    """The heading of a table."""
    print(f"\n{title}\n{'':44} {'ours':>11} {'by hand':>11}   ratio (spread)", flush=True)
