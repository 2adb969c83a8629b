"""Copy rows from one database to another of the same schema, and leave everybody's sessions alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.postgres.session import Session, ident, translated


@dataclass(frozen=True)
class Table:
    """One table that can be copied.

    Attributes:
        schema, name: of the table.
        columns: those that can be written (generated ones are not).
    """

    schema: str
    name: str
    columns: tuple[str, ...]

    def __str__(self) -> str:
        return self.name if self.schema == "public" else f"{self.schema}.{self.name}"


def tables(session: Session) -> list[Table]:
    """All ordinary tables of the session's database that are not the server's own."""
    rows = session.rows(
        """
        select n.nspname, c.relname,
               coalesce(array_agg(a.attname::text order by a.attnum) filter (where a.attgenerated = ''), '{}')
          from pg_class c join pg_namespace n on n.oid = c.relnamespace
          left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
         where c.relkind = 'r' and c.relpersistence <> 't'
           and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname !~ '^pg_toast'
         group by 1, 2 order by 1, 2
        """
    )
    return [Table(schema, name, tuple(columns)) for schema, name, columns in rows]


def copy(source: Session, target: Session, wanted: Sequence[Table]) -> int:
    """Make the target's tables hold what the source's hold now; return the number of rows.

    One snapshot of the source; only what is committed there is seen. Triggers and foreign keys of the target
    do not fire. Sequences get the source's values.
    """
    rows = 0
    with source.transaction(), target.transaction():
        source.execute("set transaction isolation level repeatable read, read only")
        target.execute("set local session_replication_role = replica")
        for table in wanted:
            rows += _copy_table(source, target, table)
        _copy_sequences(source, target)
    return rows


def _copy_table(source: Session, target: Session, table: Table) -> int:
    name = ident(table.schema, table.name)
    target.execute(f"delete from only {name}")
    if not table.columns:
        return 0
    columns = ", ".join(ident(column) for column in table.columns)
    read = f"copy (select {columns} from only {name}) to stdout (format binary)"
    write = f"copy {name} ({columns}) from stdin (format binary)"
    with translated(read), source.connection.cursor() as out, target.connection.cursor() as into:
        with out.copy(read.encode()) as reader, into.copy(write.encode()) as writer:
            for block in reader:
                writer.write(block)
        return into.rowcount


def _copy_sequences(source: Session, target: Session) -> None:
    names = source.rows(
        """
        select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where c.relkind = 'S' and c.relpersistence <> 't'
        """
    )
    there = {
        tuple(row)
        for row in target.rows(
            "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace "
            "where c.relkind = 'S'"
        )
    }
    for schema, name in names:
        if (schema, name) not in there:
            continue
        value, called = source.row(f"select last_value, is_called from {ident(schema, name)}") or (1, False)
        target.value("select setval(%s::regclass, %s, %s)", (ident(schema, name), value, called))
