"""What the harness tells while it works, as lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from harness.config import logs


class Lines(logging.Handler):
    """Keeps the text of every record.

    Attributes:
        lines: the texts, the oldest first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What a person would be told meanwhile."""
    handler = Lines()
    undo = logs.show(handler, logging.INFO)
    yield handler.lines
    undo()
