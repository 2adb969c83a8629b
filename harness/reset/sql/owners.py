"""Who owns what in a database, and who was granted what: rows that each database has in the server's own ``pg_shdepend``.

A table that is made, a grant, a new owner writes there. CREATE DATABASE copies the rows of the template (copyTemplateDependencies in
catalog/pg_shdepend.c), so a lease and its baseline begin with the same ones.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from harness.postgres.session import Session

_COLUMNS = "classid, objid, objsubid, refclassid, refobjid, deptype"


CURRENT_ID = "pg_current_xact_id()::xid::text"
"""The present transaction's id, of 32 bits."""


class Owned(NamedTuple):
    """Who owns what in one state.

    Attributes:
        digest: what :func:`digest` gives.
        rows: a query that gives them.
        written: ids (32 bits) of the transactions that have written them since the state below.
    """

    digest: bytes
    rows: str
    written: frozenset[int] = frozenset()


def digest(database: int) -> str:
    """The query of one text that tells two databases' rows apart, whatever their order."""
    return (
        f"select count(*) || ' ' || coalesce(sum(hash_record_extended(row({_COLUMNS}), 0)), 0) "
        f"from pg_shdepend where dbid = {database}"
    )


def rows_of(database: int) -> str:
    """The rows of one database, as a query."""
    return f"select {_COLUMNS} from pg_shdepend where dbid = {database}"


def copied(database: int) -> str:
    """The query of one text: a query that gives the present rows of a database whenever it is asked."""
    listed = '(%s::oid,%s::oid,%s::int,%s::oid,%s::oid,%L::"char")'
    return (
        f"select coalesce('values ' || string_agg(format('{listed}', {_COLUMNS}), ','), "
        f"'select {_COLUMNS} from pg_shdepend where false') from pg_shdepend where dbid = {database}"
    )


def written(session: Session, database: int) -> set[int]:
    """Ids (32 bits) of the transactions that wrote the present rows of a database: of its CREATE DATABASE."""
    return set(session.column(f"select distinct xmin::text::int8 from pg_shdepend where dbid = {database}"))


def put_back(database: int, wanted: str, written: Collection[int]) -> list[str]:
    """Statements, for a superuser, that make the rows of a database those that are wanted.

    Args:
        wanted: :func:`rows_of` the baseline, or what :func:`copied` gave for a mark.
        written: ids (32 bits) of the transactions whose rows may go: what somebody writes later is none of this reset's.
    """
    same = " and ".join(f"s.{column} = b.{column}" for column in _COLUMNS.split(", "))
    ids = ",".join(f"'{xid}'" for xid in written)
    too_many = (
        f"delete from pg_shdepend s where dbid = {database} and xmin::text = any(array[{ids}]::text[]) and not exists "
        f"(select from ({wanted}) b ({_COLUMNS}) where {same})"
    )
    missing = (
        f"insert into pg_shdepend (dbid, {_COLUMNS}) select {database}, {_COLUMNS} from ({wanted}) b ({_COLUMNS}) "
        f"where not exists (select from pg_shdepend s where s.dbid = {database} and {same})"
    )
    return ["set local allow_system_table_mods = on", too_many, missing]
