"""Databases: listing, creating, cloning, marking, retiring. All statements run in the maintenance database."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness import names
from harness.catalog.session import Session, ident, literal
from harness.errors import LeaseInUse, ServerRefused

MARK = "pg-harness "
"""What the comment of every database of ours ends with: a line of this word and JSON.

A comment lives in a shared catalog: it is seen from the maintenance database, follows a rename, and
goes with the database. A comment that migrations wrote themselves stays above it.
"""

UNDEFINED_DATABASE = "3D000"
OBJECT_IN_USE = "55006"


@dataclass(frozen=True)
class Database:
    """One row of ``pg_database``, with what our mark says.

    Attributes:
        sessions: how many sessions are connected to it now, ours included.
        mark: the JSON of our mark; None where the database carries none.
        comment: the comment without our mark; None where there is none.
        connection_limit: its CONNECTION LIMIT; -1 for none.
    """

    name: str
    oid: int
    is_template: bool
    allows_connections: bool
    owner: str
    sessions: int
    mark: Mapping[str, Any] | None = field(default=None)
    comment: str | None = None
    connection_limit: int = -1

    @property
    def parsed(self) -> names.DatabaseName | None:
        """The parts of its name; None where the name is not of our grammar."""
        return names.parse(self.name)


_SELECT = """
select d.datname, d.oid::int8, d.datistemplate, d.datallowconn, pg_get_userbyid(d.datdba),
       (select count(*) from pg_stat_get_activity(null) a where a.datid = d.oid)::int,
       shobj_description(d.oid, 'pg_database'), d.datconnlimit
  from pg_database d
"""


def find(session: Session, name: str) -> Database | None:
    """The database of that name; None where there is none."""
    row = session.row(_SELECT + " where d.datname = %s", (name,))
    return None if row is None else _database(row)


def list_ours(session: Session, project: str | None) -> list[Database]:
    """Databases whose names are of our grammar: of one checkout, or of all with None. Sorted by name."""
    pattern = f"{names.PREFIX}_{project or ''}%"
    rows = session.rows(
        _SELECT + " where d.datname like %s order by d.datname", (pattern.replace("_", r"\_"),)
    )
    found = [_database(row) for row in rows]
    return [d for d in found if d.parsed is not None and (project is None or d.parsed.project == project)]


def _database(row: tuple[Any, ...]) -> Database:
    comment, mark = split_comment(row[6])
    return Database(row[0], row[1], row[2], row[3], row[4], row[5], mark, comment, row[7])


def split_comment(text: str | None) -> tuple[str | None, Mapping[str, Any] | None]:
    """The user's own comment, and our mark, of a database's comment."""
    if not text:
        return None, None
    head, _, last = text.rpartition("\n")
    if not last.startswith(MARK):
        return text, None
    try:
        mark = json.loads(last.removeprefix(MARK))
    except ValueError:
        return text, None
    return head or None, mark if isinstance(mark, dict) else None


def comment_statement(name: str, mark: Mapping[str, Any], comment: str | None = None) -> str:
    """``COMMENT ON DATABASE`` with our mark below the user's comment."""
    line = MARK + json.dumps(mark, separators=(",", ":"), sort_keys=True)
    text = f"{comment}\n{line}" if comment else line
    return f"comment on database {ident(name)} is {literal(text)}"


def create_empty(session: Session, name: str, *, owner: str, locale: str) -> None:
    """An empty UTF8 database, from ``template0``: a session in ``template1`` would stall it."""
    session.execute(
        f"create database {ident(name)} owner {ident(owner)} template template0 encoding 'UTF8' {locale}"
    )


def deterministic_locale(session: Session) -> str:
    """The options of CREATE DATABASE for a locale that sorts by code point on every machine.

    The built-in ``C.UTF-8`` where the server has it (17 and later), else the C library's, else plain ``C``.
    """
    if session.server_version >= 170000:
        return "locale_provider builtin builtin_locale 'C.UTF-8' lc_collate 'C' lc_ctype 'C'"
    named = session.value(
        "select collname from pg_collation where collprovider = 'c' and collname in ('C.utf8', 'C.UTF-8') limit 1"
    )
    return (
        f"lc_collate {literal(named)} lc_ctype {literal(named)}" if named else "lc_collate 'C' lc_ctype 'C'"
    )


def clone(session: Session, name: str, *, template: str, owner: str, strategy: str | None) -> None:
    """``CREATE DATABASE … TEMPLATE``.

    Args:
        strategy: ``"file_copy"`` or ``"wal_log"`` (15 and later); None for the server's own choice.
    """
    how = f" strategy {strategy}" if strategy and session.server_version >= 150000 else ""
    session.execute(f"create database {ident(name)} owner {ident(owner)} template {ident(template)}{how}")


def rename(session: Session, old: str, new: str) -> bool:
    """Atomic: exactly one of several claimants wins. False where ``old`` is not there (any more)."""
    try:
        session.execute(f"alter database {ident(old)} rename to {ident(new)}")
    except ServerRefused as error:
        if error.sqlstate == UNDEFINED_DATABASE:
            return False
        raise
    return True


def sessions_of(session: Session, database: str) -> list[str]:
    """One line for each session that is connected to the database: pid, application, state, last query."""
    rows = session.rows(
        """
        select pid, application_name, usename, coalesce(state, backend_type), left(query, 200),
               extract(epoch from now() - coalesce(state_change, backend_start))::int
          from pg_stat_activity
         where datname = %s and pid <> pg_backend_pid() and backend_type = 'client backend'
         order by pid
        """,
        (database,),
    )
    return [describe_session(*row) for row in rows]


def describe_session(
    pid: int,
    application: str | None,
    user: str | None,
    state: str | None,
    query: str | None,
    seconds: int | None,
) -> str:
    """One line that lets a person find the program that holds a session."""
    text = " ".join((query or "").split())
    what = f", last query: {text}" if text else ""
    return (
        f"pid {pid}, {application or 'no application_name'}, role {user}, {state} for {seconds or 0} s{what}"
    )


def terminate(session: Session, database: str, *, wait_ms: int = 5000) -> int:
    """End every session of the database; return how many there were. Waits until they are gone.

    Raises:
        LeaseInUse: some are still there after ``wait_ms`` milliseconds.
    """
    rows = session.rows(
        """
        select pid, pg_terminate_backend(pid) from pg_stat_activity
         where datname = %s and pid <> pg_backend_pid() and backend_type not in ('autovacuum worker')
        """,
        (database,),
    )
    ended = [pid for pid, _ in rows]
    # pg_terminate_backend's own waiting looks every 100 ms only; most sessions end within two.
    deadline, pause = time.monotonic() + wait_ms / 1000, 0.001
    while ended and session.value(
        "select exists (select from pg_stat_activity where pid = any(%s) and datname = %s)", (ended, database)
    ):
        if time.monotonic() > deadline:
            left = sessions_of(session, database)
            if left:
                raise LeaseInUse(f"sessions of database {database} could not be ended", sessions=left)
            break
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return len(rows)


def retire(session: Session, name: str, new_name: str) -> bool:
    """Take a database out of use under any circumstances, so that it can be dropped later.

    One routine for re-clone, release and sweep: prepared transactions are rolled back, subscriptions
    and logical slots dropped, connections disallowed *before* sessions are ended (pools reconnect in
    between otherwise), and the name is freed.

    Returns:
        False where there is no such database.
    """
    obstacles = session.row(
        """
        select (select count(*) from pg_prepared_xacts where database = %(db)s),
               (select count(*) from pg_subscription s join pg_database d on d.oid = s.subdbid
                 where d.datname = %(db)s),
               (select count(*) from pg_replication_slots where database = %(db)s),
               exists (select from pg_database where datname = %(db)s)
        """.replace("%(db)s", literal(name))
    )
    if obstacles is None or not obstacles[3]:
        return False
    if obstacles[0] or obstacles[1]:
        _clear_inside(session, name)
    statement = f"alter database {ident(name)} with is_template false allow_connections false"
    session.execute(statement)
    terminate(session, name)
    if obstacles[2]:
        session.rows(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = %s",
            (name,),
        )
    return rename(session, name, new_name)


def _clear_inside(session: Session, name: str) -> None:
    # ROLLBACK PREPARED and ALTER SUBSCRIPTION work only from inside the database.
    session.execute(f"alter database {ident(name)} with allow_connections true")
    with Session.connect(session.dsn.with_database(name)) as inside:
        for (gid,) in inside.rows("select gid from pg_prepared_xacts where database = %s", (name,)):
            inside.execute(f"rollback prepared {literal(gid)}")
        for (subscription,) in inside.rows(
            "select subname from pg_subscription s join pg_database d on d.oid = s.subdbid where d.datname = %s",
            (name,),
        ):
            # A slot on the publisher cannot be dropped from here if the publisher is gone: detach first.
            inside.execute(f"alter subscription {ident(subscription)} disable")
            inside.execute(f"alter subscription {ident(subscription)} set (slot_name = none)")
            inside.execute(f"drop subscription {ident(subscription)}")


def drop_retired(session: Session, name: str) -> None:
    """Drop a database that :func:`retire` has prepared; one that is gone already is success."""
    try:
        session.execute(f"drop database if exists {ident(name)}")
    except ServerRefused as error:
        if error.sqlstate not in (UNDEFINED_DATABASE, "XX000"):
            raise  # XX000: "tuple concurrently deleted", somebody else was faster


def drop(session: Session, name: str, project: str) -> bool:
    """Retire and drop at once; False where it was not there."""
    away = names.retired(project)
    if not retire(session, name, away):
        return False
    drop_retired(session, away)
    return True


def created_by_tests(session: Session, owner: str, keep: Sequence[str]) -> list[str]:
    """Databases that the application's role created itself: not of our grammar, owned by that role."""
    rows = session.rows(
        "select datname from pg_database where pg_get_userbyid(datdba) = %s and not datistemplate", (owner,)
    )
    return [name for (name,) in rows if names.parse(name) is None and name not in keep]
