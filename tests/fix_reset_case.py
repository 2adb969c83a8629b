"""One leased database under test, and what it has to look like after each reset."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fix_reset_picture import Picture, difference
from fix_reset_servers import Bench, Server, make

from harness.postgres.session import Session
from harness.reset.changes import RecloneNeeded
from harness.reset.report import ResetReport


class Case:
    """A bench, and the picture of a fresh clone."""

    def __init__(
        self, server: Server, name: str, schema: str, *, as_admin: str = "", reset_timeout: float = 0.4
    ) -> None:
        self.bench: Bench = make(server, name, schema, reset_timeout=reset_timeout, as_admin=as_admin)
        with server.session(self.bench.clone_fresh()) as session:
            self.picture = Picture(session)
            self.wanted = self.picture.take(session)

    def reset(self, **options: object) -> ResetReport:
        return self.bench.engine.reset(**options)  # type: ignore[arg-type]

    def reset_or_clone(self) -> str:
        """What a lease does: reset, and where that is not certain a fresh clone; the reason, or the strategy."""
        try:
            return self.reset().strategy
        except RecloneNeeded as error:
            self.bench.reclone()
            return error.reason

    def differences(self) -> list[str]:
        with self.bench.superuser() as session:
            return difference(self.picture.take(session), self.wanted)

    def assert_pristine(self) -> None:
        assert self.differences() == []


def at(case: Case, stage: str, act: Callable[[], object]) -> None:
    """Do something once when the reset comes to a stage."""
    waiting = [act]

    def reached(name: str) -> None:
        if name == stage and waiting:
            waiting.pop()()

    case.bench.engine._stage = reached


@pytest.fixture
def case(shared: Case) -> Iterator[Case]:
    """The module's one (its fixture ``shared``), pristine."""
    shared.bench.reclone()
    yield shared
    shared.bench.engine._stage = lambda name: None


@pytest.fixture
def app(case: Case) -> Iterator[Session]:
    with case.bench.app() as session:
        yield session
