"""When Python looks for garbage in a process that is the command's own: seldom, and not as it ends.

Modules and classes do not become garbage. Looking for it while they are imported, and through everything once more at
the end, costs a warm ``up`` about as many instructions as click does (the figures: decision 58).
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

USUAL = gc.get_threshold()
"""When Python looks by itself."""

SELDOM = 50_000
"""New objects until it looks: more than a warm ``up`` makes, few enough for a command that runs for hours."""


def seldom() -> None:
    """Until this process ends: for a process that does nothing else than one command."""
    gc.set_threshold(SELDOM, *USUAL[1:])
    atexit.register(gc.disable)


@contextmanager
def as_usual() -> Iterator[None]:
    """As in a process that is not ours: for what is measured as a test run would see it."""
    before = gc.get_threshold()
    gc.set_threshold(*USUAL)
    try:
        yield
    finally:
        gc.set_threshold(*before)
