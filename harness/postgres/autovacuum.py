"""Autovacuum: kept away from databases that nobody writes to."""

from __future__ import annotations

from harness.postgres.session import Session


def spare_shared_catalogs(session: Session) -> None:
    """Keep autovacuum from the server's own catalogs in this database, and in copies of it.

    A worker visits every database, templates too, and vacuums ``pg_database`` and the like from whichever it is in: that writes
    to this database's ``pg_statistic`` and ``pg_class``, though nobody has entered it, and a copy that was made before differs
    from one that is made after. From the maintenance database they are vacuumed as ever. Needs a superuser; does nothing for
    others.
    """
    if session.value("select current_setting('is_superuser')") != "on":
        return
    session.script(
        """
        begin;
        set local allow_system_table_mods = on;
        update pg_catalog.pg_class set reloptions = '{autovacuum_enabled=false}'
         where relisshared and relkind in ('r', 't') and reloptions is null;
        commit
        """
    )


__all__ = ["spare_shared_catalogs"]
