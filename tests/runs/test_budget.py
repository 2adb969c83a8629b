"""How many connections each worker gets, where nobody has said so."""

from __future__ import annotations

import pytest

from harness.runs.budget import HOST_RESERVE, PER_WORKER_RESERVE, USUAL, Budget


def budget(workers: int, *, maximum: int = 500, others: int = 0, per_worker: int = 50) -> Budget:
    return Budget(maximum=maximum, reserved=3, others=others, workers=workers, per_worker=per_worker)


@pytest.mark.parametrize(
    ("found", "each"),
    [
        (budget(1), 50),
        (budget(5), 46),  # -n 4 and its controller: half of the server
        (budget(9), 24),
        (budget(17), 20),  # more than half, for what most applications' pools want
        (budget(33), 12),  # what fits
        (budget(65), 5),
        (budget(5, others=5 * 48), 22),  # the second run beside one of the same size
        (budget(5, others=5 * 48 + 5 * 24), 20),
        (budget(5, maximum=60), 8),
        (budget(5, maximum=10), 0),
    ],
)
def test_what_fits(found: Budget, each: int) -> None:
    fitted = found.fitted()
    assert fitted.per_worker == each
    assert fitted.fits or each == 0
    assert replace_with_one_more(fitted) or each in (50, 0) or each >= USUAL


def replace_with_one_more(found: Budget) -> bool:
    """Whether one more for each worker would not fit any more."""
    return found.workers * (found.per_worker + 1 + PER_WORKER_RESERVE) + HOST_RESERVE > found.available
