"""Databases: listing, creating, cloning, labelling, retiring; and what a clone silently loses: grants, settings, comment.

All statements run in the maintenance database, but that which settles sequences.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.errors import LeaseInUse, ServerLost, ServerRefused
from harness.postgres import ending, names, sqlstate
from harness.postgres import label as labels
from harness.postgres.label import Label
from harness.postgres.session import CATALOG_ONLY, Session, ident, literal


@dataclass(frozen=True)
class Database:
    """One row of ``pg_database``, with what its name and our label say.

    Attributes:
        role: whom it belongs to in PostgreSQL.
        sessions: how many sessions are connected to it now, ours included.
        label: what we have written of it; false where the database carries no label.
        comment: the comment without our label; None where there is none.
        connection_limit: its CONNECTION LIMIT; -1 for none.
        written: the transaction that wrote its row of ``pg_database`` last.
    """

    name: str
    oid: int
    is_template: bool
    allows_connections: bool
    role: str
    sessions: int
    label: Label = field(default_factory=Label)
    comment: str | None = None
    connection_limit: int = -1
    written: str = ""

    @property
    def parsed(self) -> names.DatabaseName | None:
        """The parts of its name; None where the name is not of our grammar."""
        return names.parse(self.name)

    @property
    def kind(self) -> names.Kind | None:
        """What it is, by its name; None where the name is not of our grammar."""
        return parsed.kind if (parsed := self.parsed) else None

    @property
    def owner(self) -> str:
        """The run or the fingerprint in its name, sixteen hex digits; empty where the name is not of our grammar."""
        return parsed.owner if (parsed := self.parsed) else ""

    @property
    def sandbox(self) -> bool:
        """Whether it belongs to what ``up`` has made, and to no test run."""
        return self.owner == names.SANDBOX

    @property
    def marked_lease(self) -> str:
        """The name of the lease's database that a mark is a copy of; empty for what is no mark."""
        return parsed.marked_lease if (parsed := self.parsed) else ""


_SELECT = """
select d.datname, d.oid::int8, d.datistemplate, d.datallowconn, pg_get_userbyid(d.datdba),
       (select count(*) from pg_stat_get_activity(null) a where a.datid = d.oid)::int,
       shobj_description(d.oid, 'pg_database'), d.datconnlimit, d.xmin::text
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
    comment, label = labels.split(row[6])
    return Database(row[0], row[1], row[2], row[3], row[4], row[5], label, comment, row[7], row[8])


def label_statement(name: str, label: Label, comment: str | None = None) -> str:
    """``COMMENT ON DATABASE`` with our label below the user's comment."""
    return f"comment on database {ident(name)} is {literal(labels.join(comment, label))}"


def seal(session: Session, name: str, label: Label, comment: str | None, statements: Sequence[str]) -> None:
    """Run statements on a database and label it, in one act; the label tells the transaction (:attr:`Label.sealed`).

    Args:
        name: what it is called afterwards.
    """
    # The last one writes the database's row in any case.
    acts = [*statements, f"alter database {ident(name)} with allow_connections false"]
    noted = literal(label_statement(name, replace(label, sealed=_XID), comment))
    body = "".join(f"execute {literal(act)}; " for act in acts)
    body += f"execute replace({noted}, '{_XID}', pg_current_xact_id()::xid::text);"
    session.execute(f"do {literal(f'begin {body} end')}")


_XID = "@transaction@"
"""What stands for the transaction's own id until it runs."""


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
        if error.sqlstate == sqlstate.INVALID_CATALOG_NAME:
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
    return [
        f"pid {pid}, {application or 'no application_name'}, role {user}, {state} for {seconds or 0} s"
        + (f", last query: {text}" if (text := " ".join((query or "").split())) else "")
        for pid, application, user, state, query, seconds in rows
    ]


def use_of(session: Session, database: str, role: str) -> tuple[int, int]:
    """How many sessions a role has in a database now, and how many sessions there ever were in it, whoever's."""
    row = session.row(
        "select (select count(*)::int from pg_stat_activity where datname = d.datname and usename = %s), s.sessions::int "
        "from pg_database d left join pg_stat_database s on s.datid = d.oid where d.datname = %s",
        (role, database),
    )
    return (row[0], row[1] or 0) if row else (0, 0)


def terminate(session: Session, database: str, *, but: Sequence[int] = ()) -> None:
    """End every session of the database, and wait until they are gone.

    Args:
        but: pids of sessions that stay.

    Raises:
        LeaseInUse: some are still there after :data:`harness.postgres.ending.PATIENCE` seconds.
    """
    if ending.end_all(session, database, but=but) and (shown := sessions_of(session, database)):
        raise LeaseInUse(f"sessions of database {database} could not be ended", sessions=shown)


def shut_out(session: Session, database: str, role: str) -> None:
    """Let nobody but superusers log in to the database until its limit of connections is raised again, and end what the role has
    there."""
    session.execute(f"alter database {ident(database)} with connection limit 0")
    ending.end(
        session,
        session.column(
            "select pid from pg_stat_activity where datname = %s and usename = %s and pid <> pg_backend_pid()",
            (database, role),
        ),
    )


RETIRE_PATIENCE = 20.0
"""Seconds after which a database that somebody enters again and again is given up."""

_AGAIN = (
    sqlstate.OBJECT_IN_USE,
    sqlstate.QUERY_CANCELED,
    sqlstate.TOO_MANY_CONNECTIONS,
    sqlstate.OBJECT_NOT_IN_PREREQUISITE_STATE,
    sqlstate.UNDEFINED_OBJECT,
    sqlstate.INTERNAL_ERROR,
)
"""In use; a rename that waited too long; no room for our session; and what says that another sweep is at it too."""


def retire(session: Session, name: str, new_name: str, *, successor: str = "") -> bool:
    """Take a database out of use under any circumstances, so that it can be dropped later.

    One routine for re-clone, release and sweep. Connections are disallowed *before* sessions are ended (pools
    reconnect in between otherwise), and only then prepared transactions, subscriptions and slots are looked for
    (what is looked for earlier may be there a moment later). They are cleared, and the name is freed.

    Args:
        successor: the database that is given the name, in the same act.

    Returns:
        False where there is no such database; the successor is called as before then.

    Raises:
        LeaseInUse: somebody is in it again and again, for :data:`RETIRE_PATIENCE` seconds.
    """
    statement = f"alter database {ident(name)} rename to {ident(new_name)}"
    if successor:
        statement += f"; alter database {ident(successor)} rename to {ident(name)}"
    deadline, timeout = time.monotonic() + RETIRE_PATIENCE, 250
    while True:
        try:
            session.execute(f"alter database {ident(name)} with is_template false allow_connections false")
            terminate(session, name)
            _clear(session, name)
            # Who was let in before the door closed may come to light only now. RENAME would wait five seconds for it.
            session.script(f"set local statement_timeout = {timeout}; {statement}")
            return True
        except (ServerRefused, ServerLost) as error:
            if isinstance(error, ServerRefused) and error.sqlstate == sqlstate.INVALID_CATALOG_NAME:
                if find(session, name) is None:
                    return False
                raise
            if session.closed or (isinstance(error, ServerRefused) and error.sqlstate not in _AGAIN):
                raise
            if time.monotonic() > deadline:
                raise LeaseInUse(
                    f"database {name} could not be taken out of use: {error}",
                    sessions=sessions_of(session, name),
                ) from error
        time.sleep(0.01)
        timeout = min(2 * timeout, 4000)


def _clear(session: Session, name: str) -> None:
    """Remove what keeps a database from being renamed or dropped. Nobody is in it, and nobody can come."""
    obstacles = session.row(
        """
        select exists (select from pg_prepared_xact() p where p.dbid = d.oid)
               or exists (select from pg_subscription s where s.subdbid = d.oid),
               exists (select from pg_replication_slots where database = d.datname),
               d.datconnlimit
          from pg_database d where d.datname = %s
        """,
        (name,),
    )
    if obstacles is None:
        return
    inside, slots, limit = obstacles
    if inside:
        _clear_inside(session, name, limit)
    if slots:
        session.rows(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = %s",
            (name,),
        )


def _clear_inside(session: Session, name: str, limit: int) -> None:
    # ROLLBACK PREPARED and ALTER SUBSCRIPTION work only from inside the database. The door is open for one log-in,
    # for superusers alone where we are one; whoever slips in with us is ended before anything is cleared.
    ours = 0 if session.superuser else -1
    session.execute(f"alter database {ident(name)} with allow_connections true connection limit {ours}")
    try:
        inside = Session.connect(session.dsn.with_database(name), settings=CATALOG_ONLY)
    finally:
        session.execute(f"alter database {ident(name)} with allow_connections false connection limit {limit}")
    with inside:
        terminate(session, name, but=(inside.pid,))
        for gid in ending.prepared_by_name(inside, name):
            ending.roll_back(inside, gid)
        for subscription in inside.column(
            "select subname from pg_subscription s join pg_database d on d.oid = s.subdbid where d.datname = %s",
            (name,),
        ):
            # A slot on the publisher cannot be dropped from here if the publisher is gone: detach first.
            inside.execute(f"alter subscription {ident(subscription)} disable")
            inside.execute(f"alter subscription {ident(subscription)} set (slot_name = none)")
            inside.execute(f"drop subscription {ident(subscription)}")
    # RENAME looks at processes, and has to find ours gone.
    terminate(session, name)


def drop_retired(session: Session, name: str) -> None:
    """Drop a database that :func:`retire` has prepared; one that is gone already is success."""
    try:
        session.execute(f"drop database if exists {ident(name)}")
    except ServerRefused as error:
        if error.sqlstate not in (sqlstate.INVALID_CATALOG_NAME, sqlstate.INTERNAL_ERROR):
            raise  # the latter: "tuple concurrently deleted", somebody else was faster


def drop(session: Session, name: str, project: str) -> bool:
    """Retire and drop at once; False where it was not there."""
    away = names.retired(project)
    if not retire(session, name, away):
        return False
    drop_retired(session, away)
    return True


def created_by_tests(session: Session, owners: Sequence[str]) -> list[str]:
    """Databases that an application's role created itself: not of our grammar, owned by one of these roles."""
    rows = session.rows(
        "select datname from pg_database where pg_get_userbyid(datdba) = any(%s) and not datistemplate",
        (list(owners),),
    )
    return [name for (name,) in rows if names.parse(name) is None]


@dataclass(frozen=True)
class Attributes:
    """What ``CREATE DATABASE … TEMPLATE`` does not copy, as statements with ``{db}`` for the name, ``{owner}`` for its owner's.

    Attributes:
        statements: GRANT, REVOKE and ALTER DATABASE/ROLE … SET, in order.
        comment: the user's own comment on the database.
    """

    statements: tuple[str, ...] = ()
    comment: str | None = None


def read_attributes(session: Session, name: str) -> Attributes:
    """Record grants, settings and comment of a database (trap: a clone silently loses them)."""
    statements: list[str] = []
    found = find(session, name)
    if found is None:
        return Attributes()

    def called(role: str) -> str:
        return "{owner}" if role == found.role else _name(role)

    grants = session.rows(
        """
        select case when grantee = 0 then null else pg_get_userbyid(grantee) end,
               privilege_type, is_grantable
          from pg_database d left join aclexplode(d.datacl) on true
         where datname = %s and d.datacl is not null order by 1 nulls first, 2
        """,
        (name,),
    )
    # One row at least where the database has grants of its own, were it that nobody has any.
    if grants:
        statements += [
            "revoke all on database {db} from public",
            "revoke all on database {db} from {owner}",
        ]
    for grantee, privilege, grantable in grants:
        if privilege is not None:
            option = " with grant option" if grantable else ""
            whom = "public" if grantee is None else called(grantee)
            statements.append(f"grant {privilege} on database {{db}} to {whom}{option}")
    for role, setting in session.rows(
        """
        select case when setrole = 0 then null else pg_get_userbyid(setrole) end, unnest(setconfig)
          from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase
         where d.datname = %s order by 1 nulls first, 2
        """,
        (name,),
    ):
        key, _, value = setting.partition("=")
        target = "alter database {db}" if role is None else f"{_TO_ROLE}{called(role)} in database {{db}}"
        statements.append(
            f"{target} set {_brace(_setting_name(key))} to {_brace(_setting_value(key, value))}"
        )
    return Attributes(tuple(statements), found.comment)


def _brace(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _name(role: str) -> str:
    return _brace(ident(role))


def _setting_name(key: str) -> str:
    return ".".join(ident(part) for part in key.split("."))


# PostgreSQL stores list-valued settings already quoted: a quoted list must not be quoted again (pg_dump does the same).
_LISTS = {"local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries",
          "temp_tablespaces", "unix_socket_directories", "datestyle"}  # fmt: skip


def _setting_value(key: str, value: str) -> str:
    if key.lower() not in _LISTS:
        return literal(value)
    # Word by word: what FROM CURRENT has stored is as somebody typed it, and may be a statement.
    words = _WORD.findall(value) if _WORDS.fullmatch(value) else [value]
    found = [word[1:-1].replace('""', '"') if word.startswith('"') else word for word in words]
    return ", ".join(map(literal, found)) or "''"


_WORD = re.compile(r'"(?:[^"]|"")*"|[^",\s][^,\s]*')
"""One word of a list, as PostgreSQL reads it (varlena.c: SplitGUCList)."""

_WORDS = re.compile(rf"\s*(?:(?:{_WORD.pattern})\s*(?:,\s*(?:{_WORD.pattern})\s*)*)?")


FOR_EACH = "/* for each worker */ "
"""What a statement begins with that is for a database of a worker with a role of its own only."""

_TO_ROLE = "alter role "

_TO_OWNER = (f"{_TO_ROLE}{{owner}} ", FOR_EACH)


def apply_statements(name: str, attributes: Attributes, owner: str) -> list[str]:
    """The statements of :class:`Attributes` for one database.

    Args:
        owner: whom it belongs to.
    """
    found = [s for s in attributes.statements if not s.startswith(FOR_EACH)]
    return [statement.format(db=ident(name), owner=ident(owner)) for statement in found]


def apply_unowned(name: str, attributes: Attributes, owner: str) -> list[str]:
    """Those of the statements that can be run while it belongs to somebody else than it will: :func:`apply_owned` runs the rest."""
    found = [s for s in attributes.statements if not s.startswith(_TO_OWNER)]
    return [statement.format(db=ident(name), owner=ident(owner)) for statement in found]


def apply_owned(name: str, attributes: Attributes, owner: str) -> list[str]:
    """Hand it to the owner that it will have, a worker's role of its own, with that role's settings."""
    found = [s for s in attributes.statements if s.startswith(_TO_OWNER)]
    statements = ["alter database {db} owner to {owner}", *found]
    return [statement.format(db=ident(name), owner=ident(owner)) for statement in statements]


def settle_sequences(inside: Session) -> bool:
    """Have every sequence write to the log when it next moves; whether that could be done.

    nextval logs 32 values ahead, and the next 31 moves are silent: a reset could not see them in a clone. Not for a
    database that somebody uses: a value that was taken in between would be given out again.
    """
    try:
        inside.execute(_SETTLE)
    except ServerRefused:
        # Not our server, and a sequence of somebody else's role: each lease settles its own then.
        return False
    return True


_SETTLE = """
do $settle$
declare
    sequence regclass;
    now record;
begin
    for sequence in select oid::regclass from pg_class where relkind = 'S' and relpersistence <> 't' loop
        execute format('select last_value, is_called, log_cnt from %s', sequence) into now;
        if now.log_cnt > 0 then
            perform setval(sequence, now.last_value, now.is_called);
        end if;
    end loop;
end $settle$
"""
