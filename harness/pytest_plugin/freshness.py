"""Each test starts from the same state: the reset runs first in the set-up of the *next* test.

Never in a fixture's teardown: the application's engines and pools are closed by then. What wider fixtures
have written is marked (:mod:`harness.pytest_plugin.fixture_marks`) and comes back with every reset.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Generator
from typing import Any

import pytest

from harness.databases import freshness
from harness.errors import ConfigError, HarnessError, ServerLost
from harness.listing import together
from harness.postgres import activity
from harness.pytest_plugin import django
from harness.pytest_plugin.fixture_marks import WiderFixtures
from harness.pytest_plugin.state import State
from harness.reset.report import ResetReport


class Refresher:
    """Resets, and knows which test made the database dirty.

    Attributes:
        mode: what the test that is running now was given.
        lost: whether the server did not answer when it was last asked to put back: each further question would wait as long.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._usual = freshness.of(state.settings)
        self._own: dict[pytest.Item, freshness.Freshness] = {}
        self._off = not self._usual.refreshes
        self._dirty_by = ""
        self._problem = ""
        self._began = 0.0
        self._known: set[int] = set()
        self._class: type | None = None
        self._elsewhere: dict[str, tuple[str, WiderFixtures]] = {}
        self.mode = self._usual
        self.lost = False
        self.wider = WiderFixtures(state)

    # --- what each test gets -----------------------------------------------------------------------

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Read the markers once: a test without a reset must not pay for the question.

        Raises:
            pytest.UsageError: a marker names a package's strategy that cannot be imported.
        """
        try:
            for item in session.items:
                if mode := self._marked(item):
                    self._own[item] = mode
        except ConfigError as error:
            raise pytest.UsageError(f"pg-harness: {error}") from None
        self._off = not any(self.mode_of(item).refreshes for item in session.items)
        self.wider.off = self._off
        if not self._off and not self._usual.watches:
            # Else it was done when the database was leased, before any conftest could write.
            self._state.running[1].watch()

    def mode_of(self, item: pytest.Item) -> freshness.Freshness:
        """That of its nearest marker, else that of the settings."""
        return self._own.get(item, self._usual)

    def turn(self, before: str, after: str) -> None:
        """The tests work elsewhere from now on: in databases that are dirty, or marked, by themselves.

        Args:
            before, after: what the places are called; all fixtures of the first have ended.
        """
        self._elsewhere[before] = self._dirty_by, self.wider
        lease = self._state.lease
        if after not in self._elsewhere and lease is not None and not self._off and not self._usual.watches:
            # As in the first place, see `pytest_collection_finish`.
            lease.watch()
        self._dirty_by, self.wider = self._elsewhere.pop(after, ("", WiderFixtures(self._state)))
        self.wider.off = self._off
        self._class = None

    def resets_next(self) -> bool:
        """Whether what the running test leaves is put back before the next one."""
        return not self._off and self.mode.refreshes and not self.wider.suspended and self._class is None

    def _marked(self, item: pytest.Item) -> freshness.Freshness | None:
        nearest = None
        for marker in item.iter_markers("pg"):
            given = dict(marker.kwargs)
            fresh = given.pop("fresh", None)
            wrong = [repr(argument) for argument in marker.args] + [f"{key}=…" for key in given]
            mode = freshness.find(fresh) if isinstance(fresh, str) else None
            if fresh is not None and mode is None:
                wrong.append(f"fresh={fresh!r}")
            if wrong:
                item.warn(
                    pytest.PytestUnknownMarkWarning(
                        f"pytest.mark.pg knows fresh={freshness.in_words(freshness.strategies())}, "
                        f"and not {', '.join(wrong)}"
                    )
                )
            nearest = nearest or mode
        return nearest

    # --- the set-up of a test ----------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None]:
        """Before every fixture of the test."""
        __tracebackhide__ = True
        if self._off or self._state.lease is None:
            return (yield)
        try:
            self._begin(item)
        except HarnessError as error:
            self._problem = f"pg-harness: the database could not be looked at: {error}"
        try:
            return (yield)
        finally:
            self.wider.in_setup = False
            self._dirty_by = item.nodeid

    @property
    def has_problem(self) -> bool:
        """Whether the running test cannot start from what it should."""
        return bool(self._problem)

    def take_problem(self) -> str:
        """Why the running test cannot start from what it should, once; empty where it can."""
        problem, self._problem = self._problem, ""
        return problem

    def _begin(self, item: pytest.Item) -> None:
        if self._state.in_fork:
            pytest.exit(
                f"pg-harness: this is a fork of pytest that went on after {self._dirty_by}: a child must leave by os._exit()",
                returncode=3,
            )
        since, self._began = self._began, time.monotonic()
        self.mode = self.mode_of(item)
        own: type | None = getattr(item, "cls", None)
        inside, self._class = own is not None and own is self._class, None
        if own is not None and django.keeps_transaction_open(own):
            self._class = own
        # Django's TestCase writes its class's rows into a transaction that is open until the class's end.
        inside = inside and self._class is not None
        self.wider.begin(item, blind="all" if inside else "class" if self._class is not None else "")
        if inside:
            return
        if self.wider.first_test():
            return
        if not self.mode.refreshes or self.wider.suspended or not self._dirty_by:
            return
        self._bring_back(since)

    def _bring_back(self, since: float) -> None:
        _, lease = self._state.running
        culprit = self._dirty_by
        self.lost = False
        try:
            report = self.mode.refresh(lease)
        except Exception as error:  # noqa: BLE001 — a package's strategy may raise anything
            # Still dirty: the next test tries again.
            said = error if isinstance(error, HarnessError) else traceback.format_exc()
            # What it was, first: the rest is libpq's.
            self.lost = isinstance(error, ServerLost)
            fate = f"{told}: " if self.lost and (told := self._state.fate) else ""
            self._problem = (
                f"pg-harness: {fate}the database could not be brought back after {culprit}: {said}"
            )
            return
        self._dirty_by = ""
        if report is None:
            return
        self._note(report, culprit)
        if new := set(report.idle) - self._known:
            self._known |= new
            self._tell_idle(new, culprit, since)

    def _tell_idle(self, pids: set[int], culprit: str, since: float) -> None:
        """In nobody's way today; but the next ALTER TABLE of the application will wait for it."""
        harness, _ = self._state.running
        try:
            # What began before the culprit did belongs to a wider fixture, or to the application itself.
            lines = activity.left_in_transaction(harness.link.session, pids, within=time.monotonic() - since)
        except HarnessError:
            return
        for line in lines:
            self._state.summary.notice(f"{culprit} left a session idle in transaction: {line}", group="idle")

    def _note(self, report: ResetReport, culprit: str) -> None:
        summary = self._state.summary
        summary.count(report.strategy, report.milliseconds)
        if report.reason:
            summary.notice(f"after {culprit} a new clone was needed: {report.reason}", group=report.reason)
        for session in together(report.ended):
            summary.notice(f"{culprit} left a session behind, which was ended: {session}")

    # --- fixtures ----------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
        """Wider fixtures run after the reset, and before anything that belongs to the test alone."""
        __tracebackhide__ = True
        if self._off:
            return (yield)
        before = self.wider.about_to_run(fixturedef)
        result = yield
        self.wider.has_run(fixturedef, before)
        if fixturedef.scope != "function":
            # A transaction that it keeps open is not the test's.
            self._began = time.monotonic()
        return result

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """What a fixture wrote goes with it. (pytest calls this also for fixtures that never ran.)"""
        if not self._off:
            self.wider.has_ended(fixturedef)


class Stop:
    """Fails a test whose database could not be brought back, before anything of it runs.

    Not from the wrapper of :class:`Refresher`: pytest's own wrappers would not have begun, and would fail in the
    teardown. And a class of its own, because pytest takes no hook whose name does not begin with ``pytest_``.
    """

    def __init__(self, refresher: Refresher) -> None:
        self._refresher = refresher

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        """Before every fixture."""
        if problem := self._refresher.take_problem():
            pytest.fail(problem, pytrace=False)
