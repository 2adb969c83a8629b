"""When a test fails: its database as it was then, in the report, and a copy to look at."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from datetime import UTC, datetime
from typing import Any

import pytest

from harness.config import drivers
from harness.databases.changed import LeaseChanges
from harness.errors import HarnessError, ServerLost
from harness.listing import counted, together
from harness.postgres import activity, databases, names
from harness.postgres.session import open_application
from harness.pytest_plugin.freshness import Refresher
from harness.pytest_plugin.state import State

LOG_LINES = 20
"""Lines of the server's log in a report, the newest."""

OUTLIVED = frozenset({"ObjectDeletedError", "StaleDataError", "FlushError", "PendingRollbackError"})
"""Errors of SQLAlchemy's sessions that hold rows, or a connection, of an earlier test."""

ENDED = "terminating connection due to administrator command"
"""What the next statement of a session meets that was idle in a transaction, and in a reset's way."""

READ_ONLY = "in a read-only transaction"
"""What PostgreSQL says of a statement that writes (25006), on a standby too."""

MOST_LOGS = 10
"""Failures per process whose log is read: a server in a container has to be asked for all of it each time."""


class Failures:
    """Adds a section to the report of a failed test. A test that passes costs nothing."""

    def __init__(self, state: State, refresher: Refresher) -> None:
        self._state = state
        self._refresher = refresher
        self._began = 0.0
        self._logs = 0

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logstart(self) -> Generator[None]:
        """When the test began, for its lines in the log."""
        self._began = time.time()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[Any]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """At the moment of the failure: before any fixture cleans up."""
        report = yield
        state = self._state
        if report.failed and call.when in ("setup", "call") and not state.in_fork and state.lease is not None:
            lines = [*self._wrong_form(call, item.nodeid), *self._read_only(call), *self._describe(item)]
            report.sections.append(("pg-harness", "\n".join(lines)))
            self._tell_what_outlived(item, call)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """An application makes its engine where it is imported: the form of its URL fails there."""
        report = yield
        call: pytest.CallInfo[Any] | None = getattr(report, "call", None)
        if report.failed and call is not None and (lines := self._wrong_form(call, collector.nodeid)):
            report.sections.append(("pg-harness", "\n".join(lines)))
        return report

    def _wrong_form(self, call: pytest.CallInfo[Any], where: str) -> list[str]:
        """Which setting gives the right form of the URL, where the driver of ours is not the application's."""
        if call.excinfo is None:
            return []
        told = drivers.remedy_of(call.excinfo.value, self._state.settings)
        if told:
            self._state.summary.notice(f"{where}: {told}", group=told)
        return [told] if told else []

    def _read_only(self, call: pytest.CallInfo[Any]) -> list[str]:
        """That a standby cannot be written to, where the test may have tried it."""
        lease = self._state.lease
        if call.excinfo is None or lease is None or lease.replica is None:
            return []
        if READ_ONLY not in str(call.excinfo.value):
            return []
        replica, primary = lease.replica.dsn, lease.dsn
        told = (
            f"a standby can only be read from: was that statement meant for {replica.host}:{replica.port} (DATABASE_REPLICA_URL, "
            f"lease.replica)? What writes goes to {primary.host}:{primary.port} (DATABASE_URL), SELECT … FOR UPDATE and nextval() too"
        )
        return [told]

    def _tell_what_outlived(self, item: pytest.Item, call: pytest.CallInfo[Any]) -> None:
        """An ORM's session of an earlier test is the usual reason for some errors, and they do not say so."""
        error = call.excinfo.value if call.excinfo is not None else None
        if error is None or not self._refresher.mode.refreshes:
            return
        name = next((cls.__name__ for cls in type(error).__mro__ if cls.__name__ in OUTLIVED), "")
        # Of several versions, a change ends sessions too, which `versions.Switch` tells.
        if not name and ENDED in str(error) and self._state.several is None:
            name = type(error).__name__
        if name:
            self._state.summary.notice(
                f"{item.nodeid} failed with {name}, as it happens where a session of an ORM lives on from test to test and holds what a "
                "reset has undone. End it after each test (SQLAlchemy: Session.remove()), or let such tests share their rows: "
                'pytest.mark.pg(fresh="none"); docs/fails-with-resets.md',
                group="outlived",
            )

    def _describe(self, item: pytest.Item) -> Iterable[str]:
        harness, lease = self._state.running
        lines: list[str] = []
        if self._refresher.lost:
            # The test's own report says it.
            return lines
        try:
            for name, leased in lease.databases.items():
                title = "database" if name == "default" else f"database {name}"
                lines.append(f"{title} {leased.dsn.database} of worker {lease.worker}")
                if databases.find(harness.link.session, leased.dsn.database) is None:
                    # Without this, every later test of an unfresh run would fail without telling why.
                    lease.renew()
                    lines.append(
                        f"it was gone: {item.nodeid} or a test before it dropped it; it is there again, new"
                    )
                    return lines
            changed = self._changes(lines)
            self._sessions(lines)
            self._login(lines)
            self._keep(item, lines, changed)
            self._log(lines)
        except HarnessError as error:
            if isinstance(error, ServerLost) and (fate := self._state.fate):
                lines.append(fate)
            lines.append(f"more cannot be told: {error}")
        return lines

    def _changes(self, lines: list[str]) -> LeaseChanges | None:
        """Tell what the test changed; None where that is not known."""
        if not self._refresher.mode.refreshes:
            return None
        lease = self._state.running[1]
        try:
            changes = lease.changes()
        except HarnessError:
            return None
        lines.append("changed by this test:")
        lines += [f"  {line}" for line in str(changes).splitlines()]
        return changes

    def _sessions(self, lines: list[str]) -> None:
        harness, lease = self._state.running
        for leased in lease.databases.values():
            sessions = [
                line
                for line in databases.sessions_of(harness.link.session, leased.dsn.database)
                if ", pg-harness, " not in line
            ]
            limit = harness.settings.connections_per_worker
            if sessions:
                lines.append(f"sessions ({len(sessions)} of {limit}):")
                lines += [f"  {line}" for line in together(sessions)]
            if held := activity.locks_held(harness.link.session, leased.dsn.database):
                lines += ["locks:", *(f"  {line}" for line in held)]

    def _login(self, lines: list[str]) -> None:
        """A role is the whole server's: a test of another worker may have changed its password, or its rights."""
        harness, lease = self._state.running
        try:
            open_application(lease.dsn).close()
        except HarnessError as error:
            if "too many connections" in str(error):
                return
            lines.append(f"the role {lease.dsn.user} cannot log in: {error}")
        else:
            return
        for database, pid in activity.changers_of_roles(harness.link.session, lease.dsn.user):
            worker = parsed.worker if (parsed := names.parse(database)) else ""
            lines.append(f"  altered by pid {pid}" + (f", in a test of worker {worker}" if worker else ""))
        harness.clones.restore_role(lease.dsn.user)
        lines.append("  it was put right")

    def _keep(self, item: pytest.Item, lines: list[str], changed: LeaseChanges | None) -> None:
        harness, lease = self._state.running
        most = self._state.settings.keep_failed
        # A template is no evidence.
        if most < 1 or (changed is not None and not changed):
            return
        if changed is not None and not changed.committed:
            lines.append("no copy was kept: nothing of it was committed")
            return
        try:
            # Here: a run in which no test fails copies nothing.
            from harness.databases.kept import has_room, keep_copies

            if not has_room(harness.session):
                lines.append(
                    f"no copy was kept: {counted(most, 'test')} of this run {'has' if most == 1 else 'have'} one (keep_failed)"
                )
                return
            ddl = any(change.schema for change in changed.values()) if changed else False
            kept = keep_copies(harness.session, lease, item.nodeid, schema_changed=ddl)
        except HarnessError as error:
            lines.append(f"no copy was kept: {error}")
            return
        for copy in kept:
            self._state.summary.kept[copy.name] = item.nodeid
            what = "all that is committed, by pg_dump" if copy.whole else "committed rows"
            lines.append(
                f"kept as {copy.name} ({what}); look at it: pg-harness psql {names.short(copy.name)}"
            )
            lines += [f"  not in it: {lacking}" for lacking in copy.lacking]

    def _log(self, lines: list[str]) -> None:
        harness, lease = self._state.running
        self._logs += 1
        if self._logs > MOST_LOGS or not harness.server.info.ours:
            return
        wanted = [f"@{leased.dsn.database} " for leased in lease.databases.values()]
        since = datetime.fromtimestamp(self._began, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:23]
        found = lines_since(harness.server.logs(), since, wanted)
        if found:
            lines += ["the server's log:", *(f"  {line}" for line in found[-LOG_LINES:])]


def lines_since(log: Iterable[str], since: str, wanted: list[str]) -> list[str]:
    """Lines of a log from ``since`` on (``2026-01-31 12:00:00.000``) that belong to the databases named.

    Lines without a time go on with the line above them: statements of several lines.
    """
    found: list[str] = []
    taking = False
    for line in log:
        if line[:2] == "20" and line[4:5] == "-" and line[13:14] == ":":
            taking = line[:23] >= since and any(mark in line for mark in wanted)
        if taking:
            found.append(line)
    return found
