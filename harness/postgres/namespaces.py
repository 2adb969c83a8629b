"""Namespaces of temporary tables, made before any session needs one."""

from __future__ import annotations

from harness.postgres.session import Session

SPARE = 32
"""Numbers beyond ``max_connections``: those of workers of PostgreSQL's own are counted with the sessions'."""


def make_temporary(session: Session) -> None:
    """Make ``pg_temp_N`` and ``pg_toast_temp_N`` for every number that a session can have.

    PostgreSQL makes them with a session's first temporary table (``InitTempTableNamespace`` in catalog/namespace.c), where they
    are rows of a system catalog which a reset by pages takes away from a session that goes on using them. What is there already
    PostgreSQL takes. Needs a superuser; does nothing for others.
    """
    if session.value("select current_setting('is_superuser')") != "on":
        return
    session.script(
        f"""
        begin;
        set local allow_system_table_mods = on;
        insert into pg_namespace (oid, nspname, nspowner)
        select pg_nextoid('pg_namespace', 'oid', 'pg_namespace_oid_index'), name, 10
          from generate_series(0, current_setting('max_connections')::int + {SPARE}) number,
               lateral (values ('pg_temp_' || number), ('pg_toast_temp_' || number)) n (name)
         where not exists (select from pg_namespace where nspname = name);
        commit
        """
    )


__all__ = ["make_temporary"]
