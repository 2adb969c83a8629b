"""What a database looks like from inside, as hashes: written apart from the engine, so as to judge it."""

from __future__ import annotations

from harness.postgres.session import Session, ident

# Planner statistics, file numbers and freezing are not restored, and no test sees them.
_SKIPPED = ("pg_statistic", "pg_statistic_ext_data", "pg_largeobject", "pg_largeobject_metadata")
_CLASS_COLUMNS = """
    select 'c.' || attname from pg_attribute where attrelid = 'pg_class'::regclass and attnum > 0
       and attname not in ('relfilenode','relpages','reltuples','relallvisible','relallfrozen','relfrozenxid','relminmxid')
     order by attnum
"""
_TEMP_NAME = "^pg_(toast_)?temp_[0-9]+$"


class Picture:
    """Takes pictures of databases that share one template.

    Args:
        ordered: the most rows of a table that are compared as they lie; tables with more are sets, however large their
            files are. None: it goes by the size of the file alone.
    """

    def __init__(self, session: Session, *, ordered: int | None = None) -> None:
        self.ordered = ordered
        self.tables = session.rows(
            "select n.nspname, c.relname, pg_relation_size(c.oid) from pg_class c join pg_namespace n on n.oid = relnamespace "
            "where relkind in ('r', 'm') and c.oid >= 16384 and nspname not like 'pg_%' order by 1, 2"
        )
        self.sequences = session.rows(
            "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = relnamespace "
            "where relkind = 'S' order by 1, 2"
        )
        self.catalogs = [
            name
            for (name,) in session.rows(
                "select relname from pg_class where relkind = 'r' and relnamespace = 'pg_catalog'::regnamespace "
                "and not relisshared and relname <> all(%s) order by 1",
                (list(_SKIPPED),),
            )
        ]
        self.class_columns = ", ".join(c for (c,) in session.rows(_CLASS_COLUMNS))

    def take(self, session: Session, *, catalogs: bool = True) -> dict[str, object]:
        """Name of a thing → hash or value; two databases are the same where these are.

        Args:
            catalogs: look at them too: that takes twenty times as long as all the rest.
        """
        parts: list[str] = []
        for schema, name, size in self.tables:
            parts.append(f"select 'rows of {name}', {self._rows(ident(schema, name), size)}")
        parts.extend(
            f"select 'sequence {name}', last_value || ' ' || is_called from {ident(schema, name)}"
            for schema, name in self.sequences
        )
        for name in self.catalogs if catalogs else ():
            row = f"concat_ws('|', {self.class_columns})" if name == "pg_class" else "c::text"
            where = f" where nspname !~ '{_TEMP_NAME}'" if name == "pg_namespace" else ""
            parts.append(
                f"select 'catalog {name}', count(*) || ' ' || coalesce(sum(hashtextextended(concat(c.tableoid, {row}), 7)), 0) "
                f"from pg_catalog.{name} c{where}"
            )
        parts.append(
            "select 'large objects', string_agg(concat_ws(' ', m.oid, lomowner, lomacl, "
            "(select md5(string_agg(data, '' order by pageno)) from pg_largeobject where loid = m.oid)), ',' order by m.oid) "
            "from pg_largeobject_metadata m"
        )
        parts.append(
            "select 'settings', string_agg(concat_ws(' ', setrole, setconfig), ',' order by setrole) "
            "from pg_db_role_setting join pg_database d on d.oid = setdatabase where datname = current_database()"
        )
        parts.append(
            "select 'prepared', count(*)::text from pg_prepared_xacts where database = current_database()"
        )
        found: dict[str, object] = {}
        # A statement of thousands of branches exceeds the parser's stack.
        for start in range(0, len(parts), 200):
            chunk = parts[start : start + 200]
            found.update(session.rows(" union all ".join(f"({part})" for part in chunk)))
        return found

    def _rows(self, table: str, size: int) -> str:
        """As they come for tables that are restored in their order; a large one's as a set."""
        large = size >= 128 * 8192
        if self.ordered is None:
            order = "t::text" if large else "ctid"
            return f"count(*) || ' ' || coalesce(md5(string_agg(t::text, '|' order by {order})), '') from only {table} t"
        # Without a sort, which takes the longest by far: rows are numbered as they lie.
        if large:
            return f"count(*) || ' ' || coalesce(sum(hash_record_extended(t, 7)), 0) from only {table} t"
        seed = f"case when total > {self.ordered} then 7 else n end"
        return (
            f"count(*) || ' ' || coalesce(sum(hashtextextended(t, {seed})), 0) from "
            f"(select t::text, row_number() over () as n, count(*) over () as total from only {table} t) t"
        )


def difference(one: dict[str, object], two: dict[str, object]) -> list[str]:
    """What differs, one line each."""
    return [
        f"{name}: {one.get(name)} instead of {two.get(name)}"
        for name in sorted({*one, *two})
        if one.get(name) != two.get(name)
    ]
