"""What may stand between the application and its database: a pooler, which keeps sessions of its own there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Front(Protocol):
    """A pooler, as far as resets and clones have to do with it."""

    def settle(self, database: str) -> None:
        """No session that it keeps in the database serves a client that asks from now on.

        What one test has set in a session (``SET``, temporary tables, ``LISTEN``), the next one must not find there.
        """

    def aside(self, database: str) -> AbstractContextManager[None]:
        """As long as the block lasts it keeps out of the database, and lets its clients wait."""


class NoFront:
    """None: the application is in the database itself."""

    def settle(self, database: str) -> None:
        """Nothing is kept."""

    def aside(self, database: str) -> AbstractContextManager[None]:
        """Nobody has to wait."""
        return nullcontext()


NO_FRONT = NoFront()
