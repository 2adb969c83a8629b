"""pytest-django: its tests run in our databases, and its set-up creates and migrates nothing.

Used where the migrations are Django's. The module is registered after every other plugin: of fixtures of
the same name in two plugins, the later one is taken; a conftest's override still goes above it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness.databases import django_aliases
from harness.databases.replicas import words
from harness.databases.spec import sources
from harness.pytest_plugin.state import State, state_of

_RESTORE = pytest.StashKey[Callable[[], None]]()


def wanted(manager: pytest.PytestPluginManager, state: State) -> bool:
    """Whether pytest-django is there, and our template is what Django's migrations have made."""
    plugin = sys.modules.get("pytest_django.plugin")
    if plugin is None or not manager.is_registered(plugin):
        return False
    return any(source.kind == "django" for source in sources(state.settings, state.settings.default))


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """After django.setup(), before anything connects: a django_db_setup that calls nobody works too."""
    adopt(state_of(config))


def adopt(state: State) -> list[str]:
    """Point Django's connections to the leased databases; return the aliases for which there is none."""
    django_conf = sys.modules.get("django.conf")
    if django_conf is None or not django_conf.settings.configured:
        return []
    # An alias `replica` that mirrors nothing is the standby.
    on = words({"default": [each.dsn for each in state.lease.replicas]}) if state.lease is not None else {}
    return django_aliases.adopt({**on, **state.dsns})


def turn(state: State) -> None:
    """Let Django's connections go, which are to another server than the tests from now on; no test runs just now."""
    if "django.db" not in sys.modules or not adopt_is_wanted(state):
        return
    django_aliases.forget()
    adopt(state)


def adopt_is_wanted(state: State) -> bool:
    """Whether our databases are what Django's migrations have made, in a process where Django is set up."""
    django_conf = sys.modules.get("django.conf")
    if django_conf is None or not django_conf.settings.configured:
        return False
    return any(source.kind == "django" for source in sources(state.settings, state.settings.default))


@pytest.fixture(scope="session")
def django_db_setup(
    request: pytest.FixtureRequest, django_test_environment: None, django_db_blocker: Any
) -> Iterator[None]:
    """The databases are there and migrated; only aliases that we have none for are made by Django."""
    # Here and below: Django is there only where the project has it, and may be imported only once it is configured.
    from django.test.utils import setup_databases, teardown_databases

    state = state_of(request.config)
    left = adopt(state)
    if not left:
        yield
        return
    state.summary.notice(
        f"Django makes {', '.join(left)} itself, on the server that its settings name: there is no "
        f"[tool.pg-harness.databases.{left[0]}]"
    )
    django_aliases.without_ours(left)
    verbosity = request.config.option.verbose
    with django_db_blocker.unblock():
        made = setup_databases(verbosity=verbosity, interactive=False, aliases=left)
    yield
    with django_db_blocker.unblock():
        teardown_databases(made, verbosity=verbosity)


def keeps_transaction_open(cls: type) -> bool:
    """Whether it is a ``django.test.TestCase``: its tests share a transaction until the class ends.

    ``setUpClass`` opens it, ``setUpTestData`` writes into it, and each test is a savepoint.
    """
    testing = sys.modules.get("django.test.testcases")
    if testing is None or not issubclass(cls, testing.TestCase):
        return False
    # SimpleTestCase has none; a TestCase without databases opens none.
    return bool(getattr(cls, "databases", True))


class NoFlush:
    """``transactional_db`` and ``TransactionTestCase`` flush all tables after a test: the reset does that.

    (80 to 185 ms for 60 tables, and it loses what migrations have inserted.)
    """

    def __init__(self, state: State, resets: Callable[[], bool]) -> None:
        """
        Args:
            resets: whether the next test starts from a reset.
        """
        self._state = state
        self._resets = resets

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Django's test classes can be imported once its settings are there."""
        django_conf = sys.modules.get("django.conf")
        if django_conf is None or not django_conf.settings.configured:
            return
        from django.test.testcases import TransactionTestCase

        original = TransactionTestCase._fixture_teardown

        def teardown(case: Any) -> None:
            names = case._databases_names(include_mirrors=False)
            if self._resets() and not set(adopt(self._state)) & set(names):
                return
            original(case)

        TransactionTestCase._fixture_teardown = teardown
        session.config.stash[_RESTORE] = lambda: setattr(TransactionTestCase, "_fixture_teardown", original)

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """Put Django's own back."""
        if restore := config.stash.get(_RESTORE, None):
            restore()
