"""What is in a database, as far as the application's role sees it: bounded, for one answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.dsn import Dsn
from harness.postgres.bounded import NAME
from harness.postgres.session import Session

TABLES = 200
"""Tables whose columns are told."""

COLUMNS = 100
"""Columns of a table."""

_SETTINGS = {"default_transaction_read_only": "on", "statement_timeout": "20s", "lock_timeout": "5s"}

_TABLES = """
select c.oid, n.nspname, c.relname,
       case c.relkind when 'r' then 'table' when 'p' then 'partitioned table' when 'v' then 'view'
                      when 'm' then 'materialized view' else 'foreign table' end,
       case when c.relkind in ('r', 'm') then greatest(c.reltuples, 0)::int8 end,
       case when c.relkind in ('r', 'm') then pg_total_relation_size(c.oid) end,
       obj_description(c.oid, 'pg_class')
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
   and (%s::text is null or c.relname = %s or n.nspname || '.' || c.relname = %s)
   and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
 order by n.nspname <> 'public', n.nspname, c.relname
"""

_COLUMNS = """
select a.attrelid, a.attname, format_type(a.atttypid, a.atttypmod), not a.attnotnull,
       left(pg_get_expr(d.adbin, d.adrelid), 200),
       case when a.attidentity <> '' then 'identity' when a.attgenerated <> '' then 'generated' end
  from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
 where a.attrelid = any(%s) and a.attnum > 0 and not a.attisdropped order by a.attrelid, a.attnum
"""

_KEYS = """
select conrelid, contype, conname, left(pg_get_constraintdef(oid), 300) from pg_constraint
 where conrelid = any(%s) and contype in ('p', 'f', 'u', 'c', 'x') order by conrelid, contype <> 'p', conname
"""

_INDEXES = """
select i.indrelid, left(pg_get_indexdef(i.indexrelid), 300) from pg_index i
 where i.indrelid = any(%s) and not exists (select from pg_constraint c where c.conindid = i.indexrelid)
 order by i.indrelid, i.indexrelid
"""


def describe(dsn: Dsn, table: str | None) -> Mapping[str, Any]:
    """Tables, columns, keys, sizes and extensions.

    Args:
        table: only this one, with or without its schema.

    Raises:
        ServerLost, ServerRefused: the database cannot be asked.
    """
    with Session.connect(dsn, application_name=NAME, settings=_SETTINGS) as session:
        found = session.rows(_TABLES, (table, table, table))
        told = found[:TABLES]
        oids = [oid for oid, *_ in told]
        columns = _by_table(session, _COLUMNS, oids)
        keys, indexes = _by_table(session, _KEYS, oids), _by_table(session, _INDEXES, oids)
        extensions = session.rows("select extname, extversion from pg_extension order by extname")
        version, size = session.rows("select version(), pg_database_size(current_database())")[0]
    return {
        "postgresql": version,
        "bytes": size,
        "extensions": [f"{name} {number}" for name, number in extensions],
        "tables": [
            {
                "schema": schema,
                "name": name,
                "kind": kind,
                "rows_estimated": rows,
                "bytes": size_,
                "comment": comment,
                "columns": [
                    {"name": n, "type": type_, "null": null, "default": default, "made_by": made}
                    for n, type_, null, default, made in columns.get(oid, [])[:COLUMNS]
                ],
                "columns_left_out": max(0, len(columns.get(oid, [])) - COLUMNS),
                "keys": [f"{key}: {definition}" for _, key, definition in keys.get(oid, [])],
                "indexes": [definition for (definition,) in indexes.get(oid, [])],
            }
            for oid, schema, name, kind, rows, size_, comment in told
        ],
        "tables_left_out": len(found) - len(told),
    }


def _by_table(session: Session, query: str, oids: list[int]) -> dict[int, list[tuple[Any, ...]]]:
    found: dict[int, list[tuple[Any, ...]]] = {}
    for oid, *rest in session.rows(query, (oids,)):
        found.setdefault(oid, []).append(tuple(rest))
    return found


def lines(told: Mapping[str, Any]) -> list[str]:
    """The same for a reader of text."""
    result = [
        f"{told['postgresql']}",
        f"{told['bytes']:,} bytes; extensions: {', '.join(told['extensions'])}",
    ]
    for table in told["tables"]:
        size = f", about {table['rows_estimated']:,} rows" if table["rows_estimated"] is not None else ""
        result.append(f"{table['schema']}.{table['name']} ({table['kind']}{size})")
        for column in table["columns"]:
            rest = ("" if column["null"] else " not null") + (
                f" default {column['default']}" if column["default"] else ""
            )
            made = f" ({column['made_by']})" if column["made_by"] else ""
            result.append(f"  {column['name']} {column['type']}{rest}{made}")
        result += [f"  {key}" for key in table["keys"]]
        result += [f"  {index}" for index in table["indexes"]]
    if told["tables_left_out"]:
        result.append(f"{told['tables_left_out']} further tables are left out: name one")
    return result
