"""A database that nobody is in for a while: PostgreSQL copies no other one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import LeaseError, LeaseInUse, ServerRefused
from harness.postgres import databases, ending, sqlstate
from harness.postgres.session import Session, ident

PAUSE = 0.02
"""Seconds between two looks at sessions that are in the middle of a transaction."""


def wait(session: Session, database: str, patience: float) -> None:
    """Until nobody is in a transaction, for at most ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and session.value(
        "select exists (select from pg_stat_activity where datname = %s and backend_type = 'client backend' "
        "and state <> 'idle')",
        (database,),
    ):
        time.sleep(PAUSE)


@contextmanager
def closed(session: Session, database: str, patience: float) -> Iterator[list[str]]:
    """Nobody is in a person's database, and nobody can come, until the block ends: then it is open again.

    Yields:
        The sessions that had to end, one line each.

    Raises:
        LeaseError: a prepared transaction is open in it. LeaseInUse: a session cannot be ended.
    """
    # Rolled back it would be lost, and what is in it is a person's.
    if prepared := ending.prepared_by_name(session, database):
        raise LeaseError(
            f"prepared transactions are open in {database}: {', '.join(map(repr, prepared))}, and PostgreSQL copies no "
            "database that has one: COMMIT PREPARED or ROLLBACK PREPARED ends it"
        )
    wait(session, database, patience)
    ended = databases.sessions_of(session, database)
    with shut(session, database):
        yield ended


@contextmanager
def shut(session: Session, database: str) -> Iterator[None]:
    """Sessions in it are ended, and none comes, until the block ends: then it is open again.

    Raises:
        LeaseInUse: a session cannot be ended, or one kept it from being copied.
    """
    # Else a pool is back before the copy begins. `up` and `reset` open it again, should we be killed in between.
    session.execute(f"alter database {ident(database)} with allow_connections false")
    try:
        databases.terminate(session, database)
        yield
    except ServerRefused as error:
        if error.sqlstate == sqlstate.OBJECT_IN_USE:
            raise LeaseInUse(
                f"database {database} cannot be copied: {error.message}",
                sessions=databases.sessions_of(session, database),
            ) from error
        raise
    finally:
        # Where the block has put another one in its place, that one.
        if not session.closed and databases.find(session, database) is not None:
            session.execute(f"alter database {ident(database)} with allow_connections true")
