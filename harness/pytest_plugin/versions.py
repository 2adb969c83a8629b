"""A session on several versions of PostgreSQL: which one the tests work on, and the change from one to the next.

Between two versions all fixtures end, those of the session too, whether they ask for one of ours or read
``os.environ``: then the variables lead to the next version, and nobody is let in to the last one's databases any more. So
a test cannot pass on another version than its name says: an engine that was made when a module was imported fails.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from harness.dsn import Dsn
from harness.errors import HarnessError
from harness.postgres import databases
from harness.pytest_plugin import django
from harness.pytest_plugin.freshness import Refresher
from harness.pytest_plugin.multiplied import version_of
from harness.pytest_plugin.state import Place, Role, State, let_go

NOT_TO_BE_HAD = "postgresql://nobody@127.0.0.1:1/version_that_is_missing"
"""Where the variables lead while tests of a version that is missing are refused."""

_SHUT = ("too many connections for database", "terminating connection due to administrator command")
"""What a test meets that wants the databases of another version than its own."""

_OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed", "xpassed", "rerun")
_COLUMNS = {"error": "errors", "rerun": "reruns"}


@dataclass
class Several:
    """The versions of one session.

    Attributes:
        versions: all of them, in the order of the settings.
        home: the first that is to be had: what the conftests see.
        open: leases on another one.
        missing: version → why it is not to be had.
        skips: whether tests of those are skipped, and not failed.
    """

    versions: Sequence[str]
    home: str
    open: Callable[[str], Place]
    missing: dict[str, str] = field(default_factory=dict)
    skips: bool = False


class Switch:
    """Turns from one version to the next between two tests.

    Args:
        state: of the session; what it names as the place of the tests is exchanged.
    """

    def __init__(self, state: State, several: Several, refresher: Refresher) -> None:
        self._state = state
        self._several = several
        self._refresher = refresher
        self._now = several.home
        self._told: set[str] = set()
        self._places: dict[str, Place] = {}
        if state.place is not None:
            self._places[several.home] = state.place
        state.before_end = self._end

    def _of(self, item: pytest.Item) -> str:
        return version_of(item) or self._several.home

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Whether what leads the tests to their databases can be exchanged at all.

        Raises:
            pytest.UsageError: somebody has set a variable of ours to something that leads to one version only.
        """
        changed = [name for name, value in self._state.exported.items() if os.environ.get(name) != value]
        if changed and len({self._of(item) for item in session.items}) > 1:
            raise pytest.UsageError(
                f"pg-harness: {', '.join(changed)} was changed by a conftest or a plugin when it was loaded, and would lead to "
                f"PostgreSQL {self._now} whatever the version of a test. Say in [tool.pg-harness.env] what form it shall have "
                f'(DATABASE_URL = "{{asyncpg}}"), or run each version in a process of its own: '
                f"pg-harness run --each-version -- pytest"
            )
        if len({self._of(item) for item in session.items}) > 1:
            self._tell_what_was_written()
        plain = [item for item in session.items if version_of(item) is None]
        if plain:
            kinds = ", ".join(sorted({type(item).__name__ for item in plain}))
            self._state.summary.notice(
                f"{len(plain)} items that are no Python tests ({kinds}) ran on PostgreSQL {self._several.home} only"
            )

    def _tell_what_was_written(self) -> None:
        """By whom, is not known: it was there before the first test."""
        lease = self._state.lease
        try:
            if lease is None or lease.untouched or not (changes := lease.changes()):
                return
        except HarnessError:
            # Nothing is watched there, or it cannot be told.
            return
        self._state.summary.notice(
            f"a conftest (or a plugin) wrote into the database of PostgreSQL {self._now} when it was loaded "
            f"({'; '.join(str(changes).splitlines())}): on the other versions that is missing. Write it in a fixture of the session"
        )

    # Outermost: turns are taken, and times are measured, on the version of the test.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, bool, bool]:
        """Before anything of the test begins."""
        if not self._state.in_fork:
            self._turn(self._of(item))
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """A test whose version is not to be had does not run, and has not passed."""
        version = self._of(item)
        if why := self._several.missing.get(version):
            told = f"pg-harness: PostgreSQL {version} is not to be had here: {why}"
            if self._several.skips:
                pytest.skip(told.splitlines()[0])
            if version in self._told:
                # A thousand tests need not say what to do.
                told = told.splitlines()[0]
            self._told.add(version)
            pytest.fail(told, pytrace=False)

    # Innermost: what the fixtures print belongs to the test's report.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Before another version's turn everything ends: an engine of the session leads to this one."""
        if nextitem is not None and self._of(nextitem) != self._of(item):
            item.session._setupstate.teardown_exact(None)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[Any]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """A test that wanted another version's database is told why it could not have it."""
        report = yield
        report.user_properties.append(("pg_version", self._of(item)))
        error = str(call.excinfo.value) if call.excinfo is not None else ""
        if report.failed and len(self._places) > 1 and any(word in error for word in _SHUT):
            told = (
                f"a test on PostgreSQL {self._now} may have wanted the database of another version, whose address it had from before: "
                "an engine, or a URL, that was made when a module was imported outlives the change. Make it in a fixture, or run each "
                "version in a process of its own: pg-harness run --each-version -- pytest"
            )
            report.sections.append(("pg-harness", told))
            self._state.summary.notice(f"{item.nodeid}: {told}", group="shut")
        return report

    # --- the change --------------------------------------------------------------------------------

    def _turn(self, version: str) -> None:
        if version == self._now:
            return
        before = self._places.get(self._now)
        self._state.undo()
        if before is not None:
            self._shut(before)
        place = self._place(version)
        if place is not None:
            self._state.enter(place)
        else:
            self._nowhere()
        self._refresher.turn(self._now, version)
        self._now = version
        django.turn(self._state)

    def _place(self, version: str) -> Place | None:
        """Where that version is, open to the application; None where it is not to be had (any more)."""
        if version in self._several.missing:
            return None
        try:
            if version not in self._places:
                self._places[version] = self._several.open(version)
                return self._places[version]
            place = self._places[version]
            clones = place.harness.clones
            clones.limit(clones.connections, [dsn.database for dsn in place.lease.dsns.values()])
        except HarnessError as error:
            self._several.missing[version] = error.full_text
            return None
        return place

    def _shut(self, place: Place) -> None:
        """Nobody is to be let in who has the address from before."""
        session = place.harness.link.session
        try:
            for dsn in place.lease.dsns.values():
                databases.shut_out(session, dsn.database, dsn.user)
        except HarnessError as error:
            # Gone, as a rule: nobody can use it then, either.
            self._state.summary.notice(f"PostgreSQL {place.project.settings.pg_version}: {error.full_text}")

    def _nowhere(self) -> None:
        state = self._state
        dsn = Dsn.parse(NOT_TO_BE_HAD)
        state.lease, state.serving = None, None
        state.closed = {database.name: dsn for database in state.settings.databases}
        state.export(dict.fromkeys(state.exported, "") | {"DATABASE_URL": NOT_TO_BE_HAD} | dict(dsn.libpq()))

    def _end(self) -> None:
        """All but the home's is let go of here; that goes with the rest of the session."""
        state, home = self._state, self._places.get(self._several.home)
        if home is not None and self._now != self._several.home:
            state.undo()
            state.enter(home)
        for version, place in self._places.items():
            if version == self._several.home:
                continue
            place.serving.close()
            if state.role is Role.WORKER:
                # What this process has opened itself is let go of with the rest of the session.
                let_go(place.harness, opened=False)


class Outcomes:
    """Tells at the end what came of the tests of each version.

    Args:
        missing: version → why it is not to be had, as far as the process knows that has opened the run.
    """

    def __init__(self, versions: Sequence[str], missing: Mapping[str, str]) -> None:
        self._versions = versions
        self._missing = missing

    def pytest_report_header(self) -> list[str]:
        """Which there are."""
        lines = [f"pg-harness: each test on PostgreSQL {', '.join(self._versions)}"]
        return lines + [
            f"pg-harness: PostgreSQL {version} is not to be had here: {why.splitlines()[0]}"
            for version, why in self._missing.items()
        ]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """One line for each version; with ``-q`` too, as the counts of all are."""
        counts: dict[str, Counter[str]] = {version: Counter() for version in self._versions}
        for outcome in _OUTCOMES:
            for report in terminalreporter.stats.get(outcome, ()):
                version = dict(getattr(report, "user_properties", ())).get("pg_version")
                if version in counts:
                    counts[version][outcome] += 1
        if not any(counts.values()):
            return
        terminalreporter.section("by version of PostgreSQL", sep="-")
        for version, found in counts.items():
            told = ", ".join(f"{found[o]} {_COLUMNS.get(o, o)}" for o in _OUTCOMES if found[o])
            why = self._missing.get(version, "")
            terminalreporter.write_line(
                f"pg{version}: {told or 'no tests'}{': ' + why.splitlines()[0] if why else ''}"
            )
