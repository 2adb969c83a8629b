"""Sessions of the application in one database: who is busy, who holds what, who waits for whom. :mod:`harness.postgres.ending` ends them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from harness.listing import counted
from harness.postgres.session import Session


@dataclass(frozen=True)
class Busy:
    """One session of the application.

    Attributes:
        text: one line for messages: pid, application, state, age of its transaction, last query.
    """

    pid: int
    text: str


_DESCRIBE = """
select pid, format('pid %%s, %%s, %%s%%s, last query: %%s', pid, coalesce(nullif(application_name, ''), usename),
                   coalesce(state, 'unknown'),
                   case when xact_start is null then '' else
                       format(' for %%s s', round(extract(epoch from clock_timestamp() - xact_start)::numeric, 1)) end,
                   left(regexp_replace(query, '\\s+', ' ', 'g'), 80))
  from pg_stat_activity
 where datid = %s and backend_type in ('client backend', 'walsender') and pid <> all(%s)
"""

_BUSY = """
select pid from pg_stat_get_activity(null)
 where datid = {database} and backend_type in ('client backend', 'walsender') and pid <> all('{ours}'::int[])
   and (backend_xid is not null or (backend_xmin is not null and age(backend_xmin) >= age('{xid}'::xid)))
"""

PRESENT = """
select pid, backend_xid is not null, backend_xmin is not null, starts_with(state, 'idle in transaction')
  from pg_stat_get_activity(null)
 where datid = {database} and backend_type in ('client backend', 'walsender') and pid <> all('{ours}'::int[])
   and (backend_xid is not null or backend_xmin is not null or starts_with(state, 'idle in transaction'))
union all
select 0, true, true, false from pg_prepared_xact() where dbid = {database}
"""
"""Who is in a transaction in a database: pid (0 for one that is prepared), whether it has an id, a snapshot, and idles."""


class Present(NamedTuple):
    """Transactions of the application in a database.

    Attributes:
        writers: pids of sessions that hold a transaction id.
        readers: pids of sessions that hold a snapshot.
        idle: pids of sessions that are idle in a transaction.
        prepared: whether there is a prepared one.
    """

    writers: tuple[int, ...] = ()
    readers: tuple[int, ...] = ()
    idle: tuple[int, ...] = ()
    prepared: bool = False

    @classmethod
    def of(cls, rows: Sequence[tuple[int, bool, bool, bool]]) -> Self:
        """From what :data:`PRESENT` gives."""
        if not rows:
            return cls()
        return cls(
            tuple(pid for pid, has_id, _, _ in rows if pid and has_id),
            tuple(pid for pid, _, has_snapshot, _ in rows if pid and has_snapshot),
            tuple(pid for pid, _, _, idles in rows if pid and idles),
            any(not pid for pid, _, _, _ in rows),
        )


_HOLDERS = """
select distinct l.pid from pg_lock_status() l
 where l.database = %s and l.relation = any(%s) and l.granted and l.pid <> all(%s) and l.pid is not null
   and l.mode not in ('AccessShareLock', 'RowShareLock')
union
select distinct l.pid from pg_lock_status() l
 where l.locktype in ('transactionid', 'tuple') and l.granted and l.pid <> all(%s)
   and l.pid in (select pid from pg_stat_get_activity(null) where datid = %s and backend_xid is not null)
"""


def describe(
    session: Session, database: int, ours: Sequence[int], pids: Sequence[int] | None = None
) -> list[Busy]:
    """The application's sessions in a database; only these where ``pids`` is given."""
    statement, parameters = _DESCRIBE, [database, list(ours)]
    if pids is not None:
        statement += " and pid = any(%s)"
        parameters.append(list(pids))
    return [Busy(pid, text) for pid, text in session.rows(statement, parameters)]


def busy(session: Session, database: int, ours: Sequence[int], xid: int) -> list[int]:
    """Pids of sessions that hold a transaction id, or a snapshot as old as transaction ``xid``."""
    return session.column(_BUSY.format(database=database, ours=_array(ours), xid=xid % 2**32))


def present_statement(database: int, ours: Sequence[int]) -> str:
    """:data:`PRESENT`, to be sent with others."""
    return PRESENT.format(database=database, ours=_array(ours)).strip()


def present(session: Session, database: int, ours: Sequence[int]) -> Present:
    """Who is in a transaction in a database."""
    return Present.of(session.rows(present_statement(database, ours)))


def _array(pids: Sequence[int]) -> str:
    return "{" + ",".join(map(str, pids)) + "}"


def holders(session: Session, database: int, relations: Sequence[int], ours: Sequence[int]) -> list[int]:
    """Pids of sessions whose locks are in the way of writing to these relations."""
    mine = list(ours)
    return session.column(_HOLDERS, (database, list(relations), mine, mine, database))


def harmless(session: Session, pids: Sequence[int]) -> bool:
    """Whether all of these are idle in a transaction that has written nothing."""
    found = session.column(
        "select coalesce(state, '') like 'idle in transaction%%' and backend_xid is null "
        "from pg_stat_get_activity(null) where pid = any(%s)",
        (list(pids),),
    )
    return len(found) == len(pids) and all(found)


def still_running(session: Session, statements: Sequence[tuple[int, str]]) -> list[int]:
    """Pids of those sessions that are still in the middle of the same statement.

    Args:
        statements: pid, and when its statement began, as PostgreSQL printed it.
    """
    found = session.rows(
        "select pid, query_start::text from pg_stat_get_activity(null) where state = 'active' and pid = any(%s)",
        ([pid for pid, _ in statements],),
    )
    return [pid for pid, began in found if (pid, began) in statements]


def in_progress(session: Session, ids: Sequence[int]) -> list[int]:
    """Which of these 64-bit transaction ids have not ended."""
    return session.column(
        "select id from unnest(%s::int8[]) id where pg_xact_status(id::text::xid8) = 'in progress'",
        (list(ids),),
    )


_UNENDED = """
select string_agg(id::text, ',') from (
    select unnest('{ids}'::int8[])
     union
    -- Of 32 bits: the one that is nearest to the next id.
    select near + ((short - near + 2147483648) % 4294967296 + 4294967296) % 4294967296 - 2147483648
      from unnest('{short}'::int8[]) short, (select pg_snapshot_xmax(pg_current_snapshot())::text::int8) n (near)
) ids (id) where pg_xact_status(id::text::xid8) = 'in progress'
"""


def in_progress_statement(ids: Collection[int], short: Collection[int]) -> str:
    """The query of :func:`in_progress`, to be sent with others; it gives one text, separated by commas, or NULL.

    Args:
        short: the lower 32 bits of more ids.
    """
    return _UNENDED.format(ids=_array(sorted(ids)), short=_array(sorted(short))).strip()


def advisory(session: Session, database: int, ours: Sequence[int]) -> list[tuple[int, str]]:
    """Advisory locks that sessions hold in a database: pid, and which lock, as :data:`harness.reset.wal.reader.PRESENCE` says it."""
    return session.rows(
        """
        select distinct pid, concat_ws(',', classid, objid, objsubid, mode) from pg_lock_status()
         where locktype = 'advisory' and database = %s and granted and pid <> all(%s)
        """,
        (database, list(ours)),
    )


def active(session: Session, database: int, ours: Sequence[int]) -> list[int]:
    """Pids of sessions that are in a transaction or in the middle of a statement."""
    return session.column(
        """
        select pid from pg_stat_get_activity(null)
         where datid = %s and state <> 'idle' and pid <> all(%s) and (backend_type = 'client backend'
               or backend_type = 'walsender' and (backend_xid is not null or backend_xmin is not null))
        """,
        (database, list(ours)),
    )


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
        f"pid {pid}, {application or 'no application_name'}: {modes} on {counted(relations, 'relation')}"
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


@dataclass(frozen=True)
class Connections:
    """The application's connections to one database.

    Attributes:
        states: ``"active"``, ``"waiting"`` (for a lock), ``"idle in transaction"``, ``"idle"`` → how many.
        limit: the database's CONNECTION LIMIT; None where it has none.
        longest: seconds since its oldest open transaction began.
    """

    states: dict[str, int]
    limit: int | None
    longest: float


def connections(session: Session) -> dict[str, Connections]:
    """Database → connections of clients that are not ours, on the whole server; also of databases that nobody is in."""
    rows = session.rows(
        """
        select d.datname, nullif(d.datconnlimit, -1), s.state, coalesce(s.number, 0)::int, coalesce(s.longest, 0)::float8
          from pg_database d
          left join (select datid,
                            case when state = 'active' and wait_event_type = 'Lock' then 'waiting'
                                 when starts_with(state, 'idle in transaction') then 'idle in transaction'
                                 when state in ('active', 'fastpath function call') then 'active'
                                 else coalesce(state, 'starting') end as state,
                            count(*) as number, max(extract(epoch from clock_timestamp() - xact_start)) as longest
                       from pg_stat_activity
                      where backend_type = 'client backend' and application_name !~ '^pg-harness( |$)'
                      group by 1, 2) s on s.datid = d.oid
        """
    )
    found: dict[str, Connections] = {}
    for name, limit, state, number, longest in rows:
        before = found.get(name, Connections({}, limit, 0.0))
        states = {**before.states, **({state: number} if state else {})}
        found[name] = Connections(states, limit, max(before.longest, longest))
    return found
