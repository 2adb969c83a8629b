"""What a database looks like at the moment of a failure: who is in it, who waits for whom."""

from __future__ import annotations

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
