"""Rows that wider fixtures wrote are part of what a test starts from: a mark for each such fixture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import pytest

from harness.errors import HarnessError
from harness.pytest_plugin.state import State

_QUIET_MODULES = ("_pytest.", "xdist.", "anyio.", "pytest_asyncio.", "pytest_cov.", "pytest_timeout", "harness.",
                  "pytest_django.fixtures", "pytest_django.plugin", "pytest_django.live")  # fmt: skip
"""Whose fixtures write into no database of ours. setUpClass and setup_module are wrapped by ``_pytest`` too:
they are told apart by :func:`_writes`."""


_PYTESTS_OWN = ("_unittest_setUpClass_fixture", "_xunit_setup")


class Mark(Protocol):
    """What ``lease.mark()`` returns."""

    def release(self) -> None:
        """Forget it, and those above it."""


@dataclass
class Layer:
    """A mark, and the fixtures whose rows it holds; None stands for what was there before the first test."""

    fixtures: list[pytest.FixtureDef[Any] | None]
    mark: Mark


class WiderFixtures:
    """The stack of marks of one process.

    Attributes:
        off: no test of this run is ever reset: nothing needs to be marked.
        in_setup: whether a test is being set up just now.
        suspended: fixture → why no test is reset while it lives.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._layers: list[Layer] = []
        self._item = ""
        self._first = True
        self._blind = ""
        self._narrow = False
        self.off = False
        self.in_setup = False
        self.suspended: dict[object, str] = {}

    def begin(self, item: pytest.Item, *, blind: str = "") -> None:
        """A test begins.

        Args:
            blind: ``"class"`` where its class's rows cannot be seen from outside, and need not be; ``"all"``
                once the class's transaction is open: a mark would wait for it.
        """
        self._item = item.nodeid
        self._narrow = False
        self._blind = blind
        self.in_setup = True

    def first_test(self) -> bool:
        """Whether this is the first one: what conftests wrote at import or session start is marked then."""
        if not self._first:
            return False
        self._first = False
        if not self._state.running[1].untouched:
            self._mark(None)
        return True

    # --- around a fixture --------------------------------------------------------------------------

    def about_to_run(self, fixture: pytest.FixtureDef[Any]) -> str | None:
        """A fixture's set-up begins.

        Returns:
            None where it is of no concern; else what the running test has changed already (usually nothing:
            pytest sets wider fixtures up first). To be given to :meth:`has_run`: plugins for asynchronous
            tests exchange a fixture's function while it runs, so it cannot be asked again.
        """
        if fixture.scope == "function":
            self._narrow = self._narrow or _writes(fixture)
            return None
        if not self._watched(fixture):
            return None
        return "" if self.in_setup and not self._narrow else self._changes()

    def has_run(self, fixture: pytest.FixtureDef[Any], before: str | None) -> None:
        """A fixture has been set up."""
        if before is None or self.suspended:
            return
        if not before:
            self._mark(fixture)
        elif (after := self._changes()) and after != before:
            new = [line for line in after.splitlines() if line not in before.splitlines()]
            self._state.summary.notice(
                f"the {fixture.scope} fixture {fixture.argname!r} was first set up inside {self._item}, after that "
                f"test had written: its rows ({'; '.join(new)}) are lost at the next reset. Name the fixture in the "
                f"test's signature or with usefixtures, so that it runs first.",
                group=f"late {fixture.argname}",
            )

    def _watched(self, fixture: pytest.FixtureDef[Any]) -> bool:
        return (
            not self.off
            and self._blind not in ("all", fixture.scope)
            and not self.suspended
            and fixture.scope != "function"
            and _writes(fixture)
        )

    def _changes(self) -> str:
        try:
            changes = self._state.running[1].changes()
        except HarnessError:
            return ""
        return str(changes) if changes else ""

    # --- marks -------------------------------------------------------------------------------------

    def _mark(self, fixture: pytest.FixtureDef[Any] | None) -> None:
        lease = self._state.running[1]
        who = f"the {fixture.scope} fixture {fixture.argname!r}" if fixture else "a conftest (or a plugin)"
        if lease.reset_problem:
            if fixture is not None:
                self._state.summary.notice(
                    f"rows of {who} cannot be marked on this server, and are lost when the next test gets a new "
                    f"clone: {lease.reset_problem}",
                    group="no marks",
                )
            return
        try:
            if not lease.changes():
                return
            layer = Layer([fixture], lease.mark())
        except HarnessError as error:
            self.suspended[fixture] = str(error)
            self._state.summary.notice(
                f"{who} has written what cannot be marked: {error}. As long as it lives, tests are not reset: they "
                f"start from what the last one left. Remedy: put it into the migrations.",
                group=f"suspended {who}",
            )
            return
        self._layers.append(layer)
        if fixture is not None:
            # Added after its own teardown, hence run before it.
            fixture.addfinalizer(partial(self._about_to_end, fixture))

    def _find(self, fixture: pytest.FixtureDef[Any]) -> int | None:
        return next((i for i, layer in enumerate(self._layers) if fixture in layer.fixtures), None)

    def _shared(self, index: int) -> bool:
        """Whether other fixtures' rows are in this mark, or in marks above it."""
        return index < len(self._layers) - 1 or len(self._layers[index].fixtures) > 1

    def _about_to_end(self, fixture: pytest.FixtureDef[Any]) -> None:
        index = self._find(fixture)
        if index is None or not self._shared(index) or self.suspended:
            return
        # A wider fixture that began later lives on. Its rows are told apart by letting this one's teardown
        # work on a state without the last test's rows, and marking what is left.
        try:
            self._state.running[1].reset()
        except HarnessError as error:
            self._lost(fixture, error)

    def has_ended(self, fixture: pytest.FixtureDef[Any]) -> None:
        """A fixture is gone, and its rows shall be."""
        self.suspended.pop(fixture, None)
        index = self._find(fixture)
        if index is None:
            return
        lease = self._state.running[1]
        survivors = [f for layer in self._layers[index:] for f in layer.fixtures if f is not fixture]
        try:
            self._layers[index].mark.release()
            del self._layers[index:]
            if survivors:
                self._layers.append(Layer(survivors, lease.mark()))
            elif self.in_setup and not self._narrow:
                # Another parameter's turn: the new instance must not find the old one's rows.
                lease.reset()
        except HarnessError as error:
            del self._layers[index:]
            self._lost(fixture, error)

    def _lost(self, fixture: pytest.FixtureDef[Any], error: HarnessError) -> None:
        self._state.summary.notice(
            f"the end of the {fixture.scope} fixture {fixture.argname!r} could not be told from fixtures that live "
            f"on: their rows may be lost ({error})",
            group=f"end {fixture.argname}",
        )


def _writes(fixture: pytest.FixtureDef[Any]) -> bool:
    """Whether it may write: all fixtures but the ones of pytest and of well-known plugins."""
    module = getattr(fixture.func, "__module__", "") or ""
    if not module.startswith(_QUIET_MODULES):
        return True
    # pytest makes fixtures of setUpClass, setup_module and the like in modules of its own.
    return fixture.argname.startswith(_PYTESTS_OWN)
