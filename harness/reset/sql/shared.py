"""What the server's own catalogs say about one database and one role; and a note of it while all is pristine."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.postgres.incarnation import CRASHED, STARTED, Incarnation
from harness.postgres.session import Session, literal

_SHARED = """
select coalesce(json_agg(json_build_array(what, who, detail) order by what, who, detail), '[]')
  from (
    select 'database' as what, '' as who,
           concat_ws('|', datdba, encoding, datistemplate, datallowconn, datconnlimit, dattablespace, datacl) as detail
      from pg_database where oid = {db}
    union all
    select 'setting', case when setdatabase = 0 then 'role' else 'database' end || ':' || setrole, setconfig::text
      from pg_db_role_setting where setdatabase = {db} or (setdatabase = 0 and setrole = {role})
    union all
    select 'comment', '', description from pg_shdescription
     where classoid = 'pg_database'::regclass and objoid = {db}
    union all
    select 'role', rolname, concat_ws('|', rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin,
           rolreplication, rolbypassrls, rolconnlimit, md5(rolpassword), rolvaliduntil) from pg_authid where oid = {role}
    union all
    select 'subscription', subname, concat_ws('|', subowner, subenabled, subpublications) from pg_subscription
     where subdbid = {db}
    union all
    select 'membership', roleid::text, concat_ws('|', member, admin_option) from pg_auth_members where member = {role}
  ) shared
"""

Shared = tuple[tuple[str, str, str], ...]
"""What the server's own catalogs say about one database and one role: kind, whose, and what."""


def shared(session: Session, database: int, role: int) -> Shared:
    """Settings, rights and comment of a database and a role, from any session of the server."""
    found = session.value(_SHARED.format(db=database, role=role))
    return tuple((what, who, detail) for what, who, detail in found)


def put_back_settings(database: int, role: int, wanted: Shared) -> list[str]:
    """Statements that make ``pg_db_role_setting`` say what it said.

    Written as rows, not as ALTER … SET: the catalog keeps list-valued settings already quoted, and quoting
    them again would change them.
    """
    statements = [
        f"delete from pg_db_role_setting where setdatabase = {database} or (setdatabase = 0 and setrole = {role})"
    ]
    for what, who, detail in wanted:
        if what == "setting":
            scope, _, owner = who.partition(":")
            target = database if scope == "database" else 0
            statements.append(
                f"insert into pg_db_role_setting values ({target}, {int(owner)}, {literal(detail)})"
            )
    return statements


@dataclass(frozen=True)
class Note:
    """What was true of a database when it was pristine; all that a later reset has to know from that moment.

    Attributes:
        position: end of the log; whatever changes the database comes after it.
        database, role: OIDs.
        shared: what :func:`shared` said.
        life: of the server. After a crash the log has other records at the same positions, and counters begin anew.
    """

    position: str
    database: int
    role: int
    shared: Shared
    life: Incarnation = field(default=Incarnation(), kw_only=True, compare=False)


def note(session: Session, database: str, role: str) -> Note:
    """Take note of a pristine database, from a session elsewhere. Two round trips.

    Raises:
        ServerRefused: only a superuser may read all of it.
    """
    row = session.row(
        "select d.oid::int8, coalesce(r.oid, 0)::int8, pg_current_wal_insert_lsn()::text, "
        f"{STARTED}, {CRASHED} "
        "from pg_database d left join pg_roles r on r.rolname = %s where d.datname = %s",
        (role, database),
    )
    oid, role_oid, position, *life = row or (0, 0, "0/0", "", "")
    return Note(position, oid, role_oid, shared(session, oid, role_oid), life=Incarnation(*life))


def entered(session: Session, name: str, noted: Note) -> bool:
    """Whether anybody has logged in to a database since it was made, or put another one in its place.

    True as well where nobody can tell: in another life of the server than that of the note.

    A session counts itself when it begins, and what it has counted is there before it is gone from
    ``pg_stat_activity`` (PostgreSQL 15: pgstat_report_connect, pgstat_shutdown_hook). One of the replication protocol
    runs any SQL and counts itself as none; its transactions are counted. Making a clone leaves all of them at zero.
    """
    database, life = noted.database, noted.life
    return bool(
        session.value(
            "select exists (select from pg_stat_get_activity(null) where datid = %s) "
            "or coalesce(pg_stat_get_db_sessions(%s::oid), 0) > 0 "
            "or coalesce(pg_stat_get_db_xact_commit(%s::oid) + pg_stat_get_db_xact_rollback(%s::oid), 0) > 0 "
            # Whoever calls pg_stat_reset() was there, and the counter no longer says so.
            "or pg_stat_get_db_stat_reset_time(%s::oid) is not null "
            # As does a crash, for all databases.
            f"or ({STARTED}, {CRASHED}) is distinct from (%s, %s) "
            "or not exists (select from pg_database where oid = %s and datname = %s)",
            (*[database] * 5, life.started, life.crashed, database, name),
        )
    )
