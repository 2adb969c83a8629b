"""What the server's own catalogs say about one database and one role, and how its settings are put back."""

from __future__ import annotations

import json

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
    found = session.value(statement(database, role))
    return tuple((what, who, detail) for what, who, detail in found)


def statement(database: int, role: int) -> str:
    """The query of :func:`shared`, to be sent with others."""
    return _SHARED.format(db=database, role=role).strip()


def parse(printed: bytes) -> Shared:
    """What :func:`shared` returns, from what the server printed."""
    return tuple((what, who, detail) for what, who, detail in json.loads(printed))


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
