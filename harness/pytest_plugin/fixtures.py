"""The fixtures. Public names only alias private ones: whoever overrides ``pg`` changes nothing of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import HarnessError
from harness.postgres.session import open_application
from harness.pytest_plugin.state import state_of

if TYPE_CHECKING:
    import psycopg

    from harness.databases.lease import Lease
    from harness.databases.replicas import Replica
    from harness.runs.harness import Harness


@pytest.fixture(scope="session")
def _pg_harness_session(pytestconfig: pytest.Config) -> Harness:
    # Here: most tests want a database, and nothing of the run.
    from harness.runs.harness import Harness

    return Harness(state_of(pytestconfig).running[0])


@pytest.fixture(scope="session")
def _pg_harness_lease(pytestconfig: pytest.Config) -> Lease:
    return state_of(pytestconfig).running[1]


@pytest.fixture
def _pg_harness_connection(_pg_harness_lease: Lease) -> Iterator[psycopg.Connection[Any]]:
    try:
        connection = open_application(_pg_harness_lease.dsn)
    except HarnessError as error:
        pytest.fail(f"pg_conn: {error}", pytrace=False)
    try:
        yield connection
    finally:
        # Not committed: what a test wants to stay, it commits itself.
        connection.close()


@pytest.fixture(scope="session")
def pg_harness(_pg_harness_session: Harness) -> Harness:
    """The :class:`harness.Harness` of this run."""
    return _pg_harness_session


@pytest.fixture(scope="session")
def pg(_pg_harness_lease: Lease) -> Lease:
    """This worker's :class:`harness.Lease`: ``pg.url``, ``pg["analytics"].url``, ``pg.connect()``."""
    return _pg_harness_lease


@pytest.fixture(scope="session")
def pg_url(_pg_harness_lease: Lease) -> str:
    """``postgresql://…`` of this worker's database; the same for the whole run."""
    return _pg_harness_lease.url


@pytest.fixture(scope="session")
def pg_replica(_pg_harness_lease: Lease) -> Replica:
    """This worker's database on the server's standby (setting ``replicas``): ``pg_replica.url``, ``pg_replica.connect()``.
    ``pg.wait_for_replica()`` waits until it shows what was committed."""
    if (found := _pg_harness_lease.replica) is None:
        pytest.fail(
            "pg_replica: the server has no standby: set `replicas = 1` (docs/stack.md)", pytrace=False
        )
    return found


@pytest.fixture(scope="session")
def pg_version(_pg_harness_lease: Lease, pytestconfig: pytest.Config) -> int:
    """PostgreSQL's major version that the test runs on: 15, 17 …"""
    return state_of(pytestconfig).running[0].link.session.server_version // 10000


@pytest.fixture(scope="session")
def _pg_harness_version(request: pytest.FixtureRequest) -> str:
    # What `--pg-harness-each-version` multiplies tests by.
    return str(request.param)


@pytest.fixture
def pg_conn(_pg_harness_connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """A psycopg connection to this worker's database, as the application's role; closed after the test."""
    return _pg_harness_connection
