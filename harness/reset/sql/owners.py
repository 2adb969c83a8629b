"""Who owns what in a database, and who was granted what: rows that each database has in the server's own ``pg_shdepend``.

A table that is made, a grant, a new owner writes there. CREATE DATABASE copies the rows of the template (copyTemplateDependencies in
catalog/pg_shdepend.c), so a lease and its baseline begin with the same ones.
"""

from __future__ import annotations

from collections.abc import Collection

_COLUMNS = "classid, objid, objsubid, refclassid, refobjid, deptype"


def digest(database: int) -> str:
    """The query of one text that tells two databases' rows apart, whatever their order."""
    return (
        f"select count(*) || ' ' || coalesce(sum(hash_record_extended(row({_COLUMNS}), 0)), 0) "
        f"from pg_shdepend where dbid = {database}"
    )


def put_back(database: int, baseline: int, written: Collection[int]) -> list[str]:
    """Statements, for a superuser, that make the rows of a database those of its baseline.

    Args:
        written: ids (32 bits) of the transactions whose rows may go: what somebody writes later is none of this reset's.
    """
    same = " and ".join(f"s.{column} = b.{column}" for column in _COLUMNS.split(", "))
    ids = ",".join(f"'{xid}'" for xid in written)
    too_many = (
        f"delete from pg_shdepend s where dbid = {database} and xmin::text in ({ids}) and not exists "
        f"(select from pg_shdepend b where b.dbid = {baseline} and {same})"
    )
    missing = (
        f"insert into pg_shdepend (dbid, {_COLUMNS}) select {database}, {_COLUMNS} from pg_shdepend b "
        f"where dbid = {baseline} and not exists (select from pg_shdepend s where s.dbid = {database} and {same})"
    )
    return ["set local allow_system_table_mods = on", too_many, missing]
