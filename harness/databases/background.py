"""Background workers of extensions (pg_cron, timescaledb) in databases of ours: PostgreSQL copies and renames no database that one
is in, and what they do is none of a test's business once it has ended."""

from __future__ import annotations

import time
from collections.abc import Sequence

from harness.errors import LeaseInUse, ServerRefused
from harness.postgres import databases, ending, names, sqlstate
from harness.postgres.session import CATALOG_ONLY, Session, ident, literal

PATIENCE = 0.25
"""Seconds that a worker's transaction may go on into a reset: bookkeeping takes milliseconds, a job is ended."""

ATTEMPTS = 5

_WORKERS = """
select pid from pg_stat_activity
 where datname = %s and backend_type not in ('client backend', 'walsender', 'autovacuum worker', 'parallel worker')
"""
_BUSY = _WORKERS + " and (backend_xid is not null or backend_xmin is not null)"


def workers(session: Session, database: str) -> list[int]:
    """Pids of background workers in a database."""
    return session.column(_WORKERS, (database,))


def end(session: Session, database: str, *, but: Sequence[int] = ()) -> None:
    """End the background workers of a database, and let none in any more: it is about to be renamed, or copied.

    Nothing is done where there is none. Else all other sessions there end too.

    Args:
        but: pids of sessions that stay.

    Raises:
        LeaseInUse: one comes back again and again.
    """
    for _ in range(ATTEMPTS):
        if not workers(session, database):
            return
        # Before: whoever starts them would start them again.
        session.execute(f"alter database {ident(database)} with allow_connections false")
        ending.end_all(session, database, but=but)
    raise LeaseInUse(
        f"background workers do not let go of database {database}",
        sessions=[f"pid {pid}" for pid in workers(session, database)],
    )


def shut(session: Session, database: str, *, but: Sequence[int] = ()) -> None:
    """Let nobody into a database that is about to be renamed, or copied: a worker may come at any moment. :func:`open_again` undoes it.

    Args:
        but: pids of sessions that stay.

    Raises:
        LeaseInUse: as :func:`end`.
    """
    try:
        session.execute(f"alter database {ident(database)} with allow_connections false")
    except ServerRefused as error:
        # Somebody else has it now, which the rename will find out.
        if error.sqlstate != sqlstate.INVALID_CATALOG_NAME:
            raise
        return
    end(session, database, but=but)


def open_again(session: Session, database: str) -> None:
    """Let people in."""
    session.execute(f"alter database {ident(database)} with allow_connections true")


def end_jobs(session: Session, database: str) -> list[int]:
    """End what background workers are in the middle of in a database, but for what ends by itself; return whom."""
    busy = session.column(_BUSY, (database,))
    deadline = time.monotonic() + PATIENCE
    while busy and time.monotonic() < deadline:
        time.sleep(0.005)
        now = session.column(_BUSY, (database,))
        busy = [pid for pid in busy if pid in now]
    if busy:
        ending.end(session, busy)
    return list(busy)


# --- pg_cron ---------------------------------------------------------------------------------------


def scheduler_database(session: Session) -> str:
    """The one database that pg_cron serves on a server; empty where it is not loaded."""
    return session.value("select current_setting('cron.database_name', true)") or ""


def another_database(message: str) -> str:
    """What to do where pg_cron says that it can be created in another database only; empty where it does not."""
    if "can only create extension in database" not in message:
        return ""
    return (
        "pg_cron serves one database of a server. On a server that we start, leave cron.database_name out of "
        '[tool.pg-harness.postgres] and set preload = ["pg_cron"]: then it can be created where the migrations run. On another '
        "(server_url) it can be created in none of ours."
    )


def stand_in(session: Session, project: str) -> None:
    """Have the database that pg_cron was told to serve, where it is none of anybody's: jobs that nobody runs can be scheduled then.

    ``cron.schedule()`` fails where there is no such database.
    """
    name = names.scheduler(project)
    if scheduler_database(session) != name or databases.find(session, name) is not None:
        return
    try:
        owner = session.dsn.user
        databases.clone(session, name, template="template0", owner=owner, strategy="file_copy")
    except ServerRefused as error:
        # Another worker of the run, or a migration that is going on.
        if error.sqlstate != sqlstate.DUPLICATE_DATABASE and not error.sqlstate.startswith(
            sqlstate.INTEGRITY_CONSTRAINT_VIOLATION
        ):
            raise


def tell_scheduler(session: Session, database: str) -> None:
    """Have pg_cron read its jobs again, after a reset that put them back behind its back."""
    with Session.connect(session.dsn.with_database(database), settings=CATALOG_ONLY) as inside:
        if inside.value("select to_regclass('cron.job') is not null"):
            # Its trigger is the statement's, and needs no row.
            inside.execute("delete from cron.job where false")


def move_jobs(inside: Session, database: str) -> None:
    """Have the jobs that migrations have scheduled run in the database that is a clone of this one."""
    if inside.value("select to_regclass('cron.job') is not null"):
        built = literal(f"^{names.PREFIX}_[0-9a-f]{{10}}_{names.scheduler('')[len(names.PREFIX) + 2 :]}$")
        inside.execute(f"update cron.job set database = {literal(database)} where database ~ {built}")
        inside.execute("vacuum (freeze, analyze) cron.job")
