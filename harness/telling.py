"""How work tells people what it does. Only the edges (cli, pytest plugin) print."""

from __future__ import annotations

from collections.abc import Callable

Story = Callable[[str], None]
"""Takes one line for stderr: what is being done, and why."""

Progress = Callable[[int, int | None, str], None]
"""Takes how many steps are done, of how many (None: nobody knows), and what was done last."""


def silent(line: str) -> None:
    """A story that nobody reads."""


def unseen(done: int, total: int | None, what: str) -> None:
    """Progress that nobody looks at."""
