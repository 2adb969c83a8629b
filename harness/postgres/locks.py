"""Advisory locks on the maintenance database: the sign of life of runs and servers.

Advisory locks are per database: one taken in ``postgres`` does not hold in ``template1``. A session's
locks vanish within milliseconds of its end, SIGKILL included; pids and timestamps do not.

Whoever may log in to the maintenance database can take them as well, and one who merely queues for one exclusively keeps
everybody out who wants it shared: no wait for one is without a limit, and its end names the session that was waited for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import PoolTimeout, ServerRefused
from harness.postgres import sqlstate
from harness.postgres.session import APPLICATION_NAME, LOCK_LIMIT, Session, lock_key

NOBODY = "nobody"
"""What stands for no session at all."""

LIFE_LIMIT = 10.0
"""Seconds to wait for a sign of life: only who ends a server ever keeps it from others, and is soon done."""


@contextmanager
def exclusive(session: Session, kind: str, name: str, *, timeout: float, waiting_for: str) -> Iterator[None]:
    """Hold the lock around the block.

    Args:
        timeout: seconds to wait for it.
        waiting_for: what the holder does, for the error.

    Raises:
        PoolTimeout: somebody else held it all that time; the text names the holder's session.
    """
    key = lock_key(kind, name)
    session.script(f"set lock_timeout = {max(1, int(timeout * 1000))}; set statement_timeout = 0")
    try:
        session.execute("select pg_advisory_lock(%s)", (key,))
    except ServerRefused as error:
        if error.sqlstate != sqlstate.LOCK_NOT_AVAILABLE:
            raise
        raise PoolTimeout(
            f"somebody else is still busy with {waiting_for} after {timeout:.0f} s: {holders(session, kind, name)}"
        ) from error
    finally:
        if not session.closed:
            session.script("reset lock_timeout; reset statement_timeout")
    try:
        yield
    finally:
        if not session.closed:
            session.execute("select pg_advisory_unlock(%s)", (key,))


def hold_shared(session: Session, *held: tuple[str, str], shown: str = APPLICATION_NAME) -> None:
    """Take locks shared, as a sign of life, for as long as the session lives. Waits for an exclusive holder.

    Args:
        held: the locks, as (kind, name).
        shown: what ``pg_stat_activity`` says of the session.

    Raises:
        PoolTimeout: somebody kept one of them for :data:`LIFE_LIMIT` seconds; the text names his session.
    """
    # The server's keepalives notice a client machine that has vanished, but only where nothing is under way: with one
    # packet that was not acknowledged, the kernel repeats it for 15 minutes instead (tcp(7)). Not a setting of the
    # server's: it would also end an application that stops in a debugger while it reads a large result.
    taken = ", pg_advisory_lock_shared(%s)" * len(held)
    try:
        session.execute(
            "select set_config('tcp_user_timeout', '15s', false), set_config('application_name', %s, false), "
            f"set_config('lock_timeout', '{LIFE_LIMIT:.0f}s', false){taken}, "
            f"set_config('lock_timeout', '{LOCK_LIMIT:.0f}s', false)",
            (shown, *(lock_key(kind, name) for kind, name in held)),
        )
    except ServerRefused as error:
        if error.sqlstate != sqlstate.LOCK_NOT_AVAILABLE:
            raise
        found = ((kind, blockers(session, kind, name)) for kind, name in held)
        who = " and ".join(f"the {kind}'s: {shown}" for kind, shown in found if shown != NOBODY)
        raise PoolTimeout(
            f"the sign of life could not be shown: somebody holds its advisory lock exclusively, or waits for it, since "
            f"{LIFE_LIMIT:.0f} s ({who or 'he is gone now'}). End that session"
        ) from error


def is_held(session: Session, kind: str, name: str) -> bool:
    """Whether any session holds the lock, in any mode. Takes nothing."""
    return bool(session.value(f"select exists ({_HOLDERS})", (lock_key(kind, name),) * 2))


def holders(session: Session, kind: str, name: str) -> str:
    """Who holds the lock, for people."""
    return _shown(session, _HOLDERS, kind, name)


def blockers(session: Session, kind: str, name: str) -> str:
    """Who keeps it from those who want it shared: holds it exclusively, or waits to do so; for people."""
    return _shown(session, f"{_WANTED} and l.mode = 'ExclusiveLock'", kind, name)


def _shown(session: Session, pids: str, kind: str, name: str) -> str:
    rows = session.rows(
        "select a.pid, a.application_name, a.usename, a.client_port, left(regexp_replace(a.query, '\\s+', ' ', 'g'), 80) "
        f"from pg_stat_activity a where a.pid in ({pids})",
        (lock_key(kind, name),) * 2,
    )
    return (
        "; ".join(
            f"session {pid} ({name or 'unnamed'}, role {role}, client port {port}), last query: {query}"
            for pid, name, role, port, query in rows
        )
        or NOBODY
    )


# A 64-bit key is shown in two halves (PostgreSQL docs, pg_locks): classid high, objid low, objsubid 1.
_WANTED = """
select l.pid from pg_locks l
 where l.locktype = 'advisory' and l.objsubid = 1
   and l.classid = ((%s::int8 >> 32) & 4294967295)::oid and l.objid = (%s::int8 & 4294967295)::oid
   and l.database = (select oid from pg_database where datname = current_database())
"""

_HOLDERS = f"{_WANTED} and l.granted"
