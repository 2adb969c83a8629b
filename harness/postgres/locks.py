"""Advisory locks on the maintenance database: the sign of life of runs and servers.

Advisory locks are per database: one taken in ``postgres`` does not hold in ``template1``. A session's
locks vanish within milliseconds of its end, SIGKILL included; pids and timestamps do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import PoolTimeout, ServerRefused
from harness.postgres import sqlstate
from harness.postgres.session import Session, lock_key


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
    session.execute(f"set lock_timeout = {max(1, int(timeout * 1000))}")
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
            session.execute("set lock_timeout = 0")
    try:
        yield
    finally:
        if not session.closed:
            session.execute("select pg_advisory_unlock(%s)", (key,))


def hold_shared(session: Session, kind: str, name: str) -> None:
    """Take the lock shared, as a sign of life, for as long as the session lives. Waits for an exclusive holder."""
    # The server's keepalives notice a client machine that has vanished, but only where nothing is under way: with one
    # packet that was not acknowledged, the kernel repeats it for 15 minutes instead (tcp(7)). Not a setting of the
    # server's: it would also end an application that stops in a debugger while it reads a large result.
    session.execute(
        "select set_config('tcp_user_timeout', '15s', false), pg_advisory_lock_shared(%s)",
        (lock_key(kind, name),),
    )


def is_held(session: Session, kind: str, name: str) -> bool:
    """Whether any session holds the lock, in any mode. Takes nothing."""
    return bool(session.value(f"select exists ({_HOLDERS})", (lock_key(kind, name),) * 2))


def holders(session: Session, kind: str, name: str) -> str:
    """Who holds the lock, for people."""
    rows = session.rows(
        f"select a.pid, a.application_name, a.client_port from pg_stat_activity a where a.pid in ({_HOLDERS})",
        (lock_key(kind, name),) * 2,
    )
    return (
        "; ".join(f"session {pid} ({name or 'unnamed'}, client port {port})" for pid, name, port in rows)
        or "nobody"
    )


# A 64-bit key is shown in two halves (PostgreSQL docs, pg_locks): classid high, objid low, objsubid 1.
_HOLDERS = """
select l.pid from pg_locks l
 where l.locktype = 'advisory' and l.granted and l.objsubid = 1
   and l.classid = ((%s::int8 >> 32) & 4294967295)::oid and l.objid = (%s::int8 & 4294967295)::oid
   and l.database = (select oid from pg_database where datname = current_database())
"""
