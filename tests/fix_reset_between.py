"""What an engine asks while it resets, and something that happens between any two of its statements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from harness.postgres.watchdog import Connection
from harness.reset.engine import ResetEngine


@dataclass
class Asked:
    """Statements of an engine's own sessions, in order.

    Attributes:
        reader, lease, baseline: what each of them was asked.
        count: how many statements there were in all.
        fired: the statement after which ``act`` was run; empty where it was not.
    """

    reader: list[str] = field(default_factory=list)
    lease: list[str] = field(default_factory=list)
    baseline: list[str] = field(default_factory=list)
    count: int = 0
    fired: str = ""

    @property
    def all(self) -> list[str]:
        return [*self.reader, *self.lease, *self.baseline]


def _whose(engine: ResetEngine, connection: Connection, asked: Asked) -> list[str] | None:
    pid, ours = connection.info.backend_pid, engine._connections
    sessions = (
        (ours._reader.session if ours._reader else None, asked.reader),
        (ours._restorer, asked.lease),
        (ours._store._session if ours._store else None, asked.baseline),
    )
    return next((told for session, told in sessions if session is not None and session.pid == pid), None)


@contextmanager
def watched(
    engine: ResetEngine, act: Callable[[], object] | None = None, *, after: int = 0
) -> Iterator[Asked]:
    """Listen to an engine.

    Args:
        act: done once, when the engine's statement of this number (from 1) has been answered.
    """
    asked = Asked()
    ask, execute = Connection.ask, Connection.execute

    def noted(connection: Connection, query: object) -> None:
        told = None if connection.closed else _whose(engine, connection, asked)
        if told is None:
            return
        text = query.decode(errors="replace") if isinstance(query, bytes) else str(query)
        told.append(text)
        asked.count += 1
        if act is not None and asked.count == after:
            asked.fired = text or "-"
            act()

    def asking(self: Connection, query: bytes) -> Any:
        found = ask(self, query)
        noted(self, query)
        return found

    def executing(self: Connection, query: Any, *arguments: Any, **options: Any) -> Any:
        found = execute(self, query, *arguments, **options)
        noted(self, query)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "ask", asking)
        patch.setattr(Connection, "execute", executing)
        yield asked
