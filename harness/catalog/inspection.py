"""What a database looks like at the moment of a failure: who is in it, who waits for whom."""

from __future__ import annotations

from collections.abc import Collection

from harness.catalog.session import Session


def locks_held(session: Session, database: str) -> list[str]:
    """One line for each session of the application that holds a lock which keeps others from writing, or waits."""
    rows = session.rows(
        """
        select a.pid, a.application_name,
               string_agg(distinct l.mode || case when l.granted then '' else ' (waiting)' end, ', '),
               count(distinct l.relation),
               pg_blocking_pids(a.pid)
          from pg_locks l join pg_stat_activity a using (pid) join pg_database d on d.oid = l.database
         where d.datname = %s and l.locktype in ('relation', 'advisory', 'tuple')
           and (not l.granted or l.mode not in ('AccessShareLock', 'ShareLock') or l.locktype = 'advisory')
           and a.pid <> pg_backend_pid() and a.application_name <> 'pg-harness'
         group by a.pid, a.application_name order by a.pid
        """,
        (database,),
    )
    return [
        f"pid {pid}, {application or 'no application_name'}: {modes} on {relations} relations"
        + (f", blocked by {', '.join(map(str, blockers))}" if blockers else "")
        for pid, application, modes, relations, blockers in rows
    ]


def left_in_transaction(session: Session, pids: Collection[int], *, within: float) -> list[str]:
    """One line for each of these sessions that is idle in a transaction which began in the last ``within`` seconds."""
    rows = session.rows(
        """
        select pid, application_name, left(regexp_replace(query, '\\s+', ' ', 'g'), 80) from pg_stat_activity
         where pid = any(%s) and starts_with(state, 'idle in transaction')
           and xact_start >= clock_timestamp() - make_interval(secs => %s) order by pid
        """,
        (list(pids), within),
    )
    return [
        f"pid {pid}, {application or 'no application_name'}, last query: {query}"
        for pid, application, query in rows
    ]


def changers_of_roles(session: Session, role: str) -> list[tuple[str, int]]:
    """Database and pid of the role's sessions whose last statement altered a role."""
    rows = session.rows(
        r"""
        select datname, pid from pg_stat_activity
         where usename = %s and datname is not null and query ~* '\malter\s+(role|user)\M' order by pid
        """,
        (role,),
    )
    return [(database, pid) for database, pid in rows]
