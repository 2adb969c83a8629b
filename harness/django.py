"""Django's test runner with databases of ours: ``TEST_RUNNER = "harness.django.Runner"``, then ``manage.py test`` as ever.

The template of the migrations serves each process of ``--parallel`` with a clone of its own, and each alias. Nothing is
created, migrated or destroyed by Django. Inside of ``pg-harness run`` the run's databases are taken, else leased for this run.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from django.core.management import CommandError
from django.db import connections
from django.test import runner, testcases

from harness.config import environment
from harness.config.run_variables import LEASE
from harness.control.client import ControlClient, numbers
from harness.control.current import CurrentLease
from harness.control.serving import Serving
from harness.databases import django_aliases
from harness.dsn import Dsn
from harness.errors import HarnessError, LeaseError
from harness.runs import budget
from harness.runs.opening import settings_of
from harness.runs.run import Run

Addresses = Sequence[tuple[int, Mapping[str, str]]]
"""For each process the number of its lease, and the URL of each of its databases."""


class ParallelSuite(runner.ParallelTestSuite):  # type: ignore[misc] # Django has no types
    """Django's, each of whose processes is led to a lease of its own."""

    addresses: Addresses = ()

    @property
    def init_worker(self) -> types.MethodType:
        """What each process calls first; Django takes the function of the method, and pickles it where it has to."""
        return types.MethodType(partial(_begin_worker, self.addresses), self)


class Runner(runner.DiscoverRunner):  # type: ignore[misc]
    """Django's ``DiscoverRunner``; a ``TransactionTestCase`` is followed by a reset where Django would flush all tables."""

    parallel_test_suite = ParallelSuite

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._undo = ExitStack()
        self._addresses: Addresses = ()

    def setup_databases(self, **given: Any) -> Any:
        """Lease, and point the connections there; Django makes only those aliases that we have no database for.

        Raises:
            CommandError: what a user can put right.
        """
        aliases = given.get("aliases")
        if aliases is not None and not aliases:
            return super().setup_databases(**given)
        try:
            with self._undo:
                self._undo.callback(_as_before(os.environ.get(LEASE)))
                self._lease(max(self.parallel, 1))
                left = _enter(*self._addresses[0])
                wanted = [alias for alias in left if aliases is None or alias in aliases]
                made = self._make(wanted, given) if wanted else []
                if self.debug_sql:
                    for alias in connections:
                        connections[alias].force_debug_cursor = True
                # Kept until teardown_databases; undone at once where something failed.
                self._undo = self._undo.pop_all()
        except HarnessError as error:
            raise CommandError(f"pg-harness: {error.full_text}") from None
        return made

    def _lease(self, processes: int) -> None:
        client = ControlClient.of(os.environ)
        if client is None:
            client = self._run_of_our_own(processes)
        found = [client.lease] if client.lease else list(numbers(client.status()))
        if len(found) < processes:
            raise LeaseError(
                f"manage.py test --parallel {processes} needs {processes} databases, and this run has {len(found)}: start it by "
                f"`pg-harness run -n {processes} -- …`, or leave `pg-harness run` away"
            )
        self._addresses = [(number, client.environment(number)["urls"]) for number in found[:processes]]
        client.close()

    def _run_of_our_own(self, processes: int) -> ControlClient:
        harness = Run.open_with(settings_of(None, os.environ, {}), os.environ, workers=processes)
        self._undo.callback(harness.close)
        if harness.shared is not None:
            budget.check(harness.shared, processes, controller=False)
        self.log(f"pg-harness: {harness.description}, {harness.made('default')}")
        leases = harness.leases(processes, watch=None, apart=True)
        # Its tests, and the processes of --parallel, ask for resets there.
        serving = self._undo.enter_context(Serving(harness, leases))
        variables = serving.environment()
        self._undo.callback(environment.patch(os.environ, variables))
        client = ControlClient.of(variables)
        assert client is not None
        return client

    def _make(self, wanted: list[str], given: Mapping[str, Any]) -> Any:
        self.log(
            f"pg-harness: Django makes {', '.join(wanted)} itself, on the server that its settings name: there is no "
            f"[tool.pg-harness.databases.{wanted[0]}]"
        )
        django_aliases.without_ours(wanted)
        serialized = given.get("serialized_aliases")
        if serialized is not None:
            given = {**given, "serialized_aliases": set(serialized) & set(wanted)}
        return super().setup_databases(**{**given, "aliases": wanted})

    def run_suite(self, suite: Any, **options: Any) -> Any:
        """Tell the processes of ``--parallel`` where their databases are."""
        if isinstance(suite, ParallelSuite):
            suite.addresses = self._addresses
            # A process would else end this one's sessions, which it inherits.
            connections.close_all()
        return super().run_suite(suite, **options)

    def teardown_databases(self, old_config: Any, **options: Any) -> None:
        """Give back what was leased; Django destroys what it has made."""
        try:
            super().teardown_databases(old_config, **options)
        finally:
            connections.close_all()
            self._undo.close()


def _begin_worker(addresses: Addresses, counter: Any, *arguments: Any, **options: Any) -> None:
    """What a process of ``--parallel`` does first: what Django does, then to the lease of its number."""
    runner._init_worker(counter, *arguments, **options)
    _enter(*addresses[(runner._worker_id - 1) % len(addresses)])


def _enter(number: int, urls: Mapping[str, str]) -> list[str]:
    """Lead this process to a lease; return the aliases that it has no database for."""
    os.environ[LEASE] = str(number)
    left = django_aliases.adopt({name: Dsn.parse(url) for name, url in urls.items()})
    connections.close_all()
    _reset_instead_of_flush(left)
    return left


def _as_before(number: str | None) -> Callable[[], None]:
    """The undo of :func:`_enter` in the process of the runner."""

    def undo() -> None:
        os.environ.pop(LEASE, None)
        if number is not None:
            os.environ[LEASE] = number
        testcases.TransactionTestCase._fixture_setup = _BEGIN
        testcases.TransactionTestCase._fixture_teardown = _FLUSH

    return undo


# A method of the class from Django 5.2 on, of the object before.
_BEGIN: Any = vars(testcases.TransactionTestCase)["_fixture_setup"]
_FLUSH: Callable[[Any], None] = testcases.TransactionTestCase._fixture_teardown


def _reset_instead_of_flush(left: Sequence[str]) -> None:
    """A flush takes as long as there are tables, and the rows that migrations have inserted with it."""
    client = ControlClient.of(os.environ)
    assert client is not None
    assert client.lease is not None
    lease = CurrentLease(client, client.lease)

    def reset() -> None:
        if lease.reset().strategy == "clone":
            # Its sessions went with the database.
            connections.close_all()

    def begin(case: Any) -> None:
        # A TestCase before it was rolled back, and its sequences were not.
        reset()
        getattr(_BEGIN, "__func__", _BEGIN)(case)

    def teardown(case: Any) -> None:
        if set(left) & set(case._databases_names(include_mirrors=False)):
            _FLUSH(case)
        reset()

    testcases.TransactionTestCase._fixture_setup = (
        classmethod(begin) if isinstance(_BEGIN, classmethod) else begin
    )
    testcases.TransactionTestCase._fixture_teardown = teardown
