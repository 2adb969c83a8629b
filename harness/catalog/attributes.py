"""What ``CREATE DATABASE … TEMPLATE`` silently loses: grants, settings and comment, recorded and put back."""

from __future__ import annotations

from dataclasses import dataclass

from harness.catalog.databases import find
from harness.catalog.session import Session, ident, literal


@dataclass(frozen=True)
class Attributes:
    """What ``CREATE DATABASE … TEMPLATE`` does not copy, as statements with ``{db}`` for the name.

    Attributes:
        statements: GRANT, REVOKE and ALTER DATABASE/ROLE … SET, in order.
        comment: the user's own comment on the database.
    """

    statements: tuple[str, ...] = ()
    comment: str | None = None


def read_attributes(session: Session, name: str) -> Attributes:
    """Record grants, settings and comment of a database (trap: a clone silently loses them)."""
    statements: list[str] = []
    row = session.row(
        "select datacl is null, pg_get_userbyid(datdba) from pg_database where datname = %s", (name,)
    )
    if row is None:
        return Attributes()
    if not row[0]:
        statements += [
            "revoke all on database {db} from public",
            f"revoke all on database {{db}} from {_name(row[1])}",
        ]
        grants = session.rows(
            """
            select case when grantee = 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end,
                   privilege_type, is_grantable
              from pg_database d, aclexplode(d.datacl)
             where datname = %s order by 1, 2
            """,
            (name,),
        )
        for grantee, privilege, grantable in grants:
            option = " with grant option" if grantable else ""
            statements.append(f"grant {privilege} on database {{db}} to {_brace(grantee)}{option}")
    for role, setting in session.rows(
        """
        select case when setrole = 0 then null else pg_get_userbyid(setrole) end, unnest(setconfig)
          from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase
         where d.datname = %s order by 1 nulls first, 2
        """,
        (name,),
    ):
        key, _, value = setting.partition("=")
        target = "alter database {db}" if role is None else f"alter role {_name(role)} in database {{db}}"
        statements.append(
            f"{target} set {_brace(_setting_name(key))} to {_brace(_setting_value(key, value))}"
        )
    found = find(session, name)
    return Attributes(tuple(statements), found.comment if found else None)


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
    return value or "''"


def apply_statements(name: str, attributes: Attributes) -> list[str]:
    """The statements of :class:`Attributes` for one database."""
    return [statement.format(db=ident(name)) for statement in attributes.statements]
