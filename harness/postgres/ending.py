"""Whatever is in the way of a database ended: its sessions, all at once, and looked after until they are gone; transactions
that are prepared, which belong to no session. Nothing else of ours does it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from harness.postgres.session import Session, literal

PATIENCE = 5.0
"""Seconds that terminated sessions have to go away."""


def end(session: Session, pids: Sequence[int]) -> list[int]:
    """Terminate these sessions; return the pids of those that are still there after :data:`PATIENCE`."""
    # Only of those that are there: for others the server would write a warning into its log.
    found = session.column(
        "select pid, pg_terminate_backend(pid) from pg_stat_get_activity(null) where pid = any(%s)",
        (list(pids),),
    )
    return _wait(session, found)


def end_all(session: Session, database: str, *, but: Sequence[int] = ()) -> list[int]:
    """Terminate every session of a database; return the pids of those that are still there after :data:`PATIENCE`.

    Args:
        but: pids of sessions that stay; the asking one always does.
    """
    found = session.column(
        """
        select pid, pg_terminate_backend(pid) from pg_stat_get_activity(null)
         where datid = (select oid from pg_database where datname = %s)
           and pid <> pg_backend_pid() and pid <> all(%s) and backend_type <> 'autovacuum worker'
        """,
        (database, list(but)),
    )
    return _wait(session, found)


def cancel_autovacuum(session: Session, pids: Sequence[int]) -> None:
    """Stop those of these that are autovacuum workers; they begin again later.

    PostgreSQL does it for whoever waits for ``deadlock_timeout``; a reset never waits that long.
    """
    session.rows(
        "select pg_cancel_backend(pid) from pg_stat_get_activity(null) "
        "where pid = any(%s) and backend_type = 'autovacuum worker'",
        (list(pids),),
    )


def prepared(session: Session, database: int) -> list[str]:
    """Names of the prepared transactions of a database."""
    return session.column("select gid from pg_prepared_xact() where dbid = %s", (database,))


def prepared_by_name(session: Session, database: str) -> list[str]:
    """:func:`prepared`, of the database of that name."""
    return session.column("select gid from pg_prepared_xacts where database = %s", (database,))


def roll_back(inside: Session, gid: str) -> None:
    """Roll a prepared transaction back.

    Args:
        inside: a session in its database: from another one, PostgreSQL refuses.
    """
    inside.execute(f"rollback prepared {literal(gid)}")


def _wait(session: Session, pids: list[int]) -> list[int]:
    # pg_terminate_backend's own waiting looks once in 100 ms; most sessions end within two.
    deadline, pause = time.monotonic() + PATIENCE, 0.001
    while pids:
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
        pids = session.column("select pid from pg_stat_get_activity(null) where pid = any(%s)", (pids,))
        if time.monotonic() > deadline:
            break
    return pids
