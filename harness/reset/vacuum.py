"""Dead rows: 2,000 resets without a VACUUM made a table of 40 kB one of 31 MB."""

from __future__ import annotations

from collections.abc import Mapping

from harness.catalog.restore_facts import Relation
from harness.catalog.session import Session, ident
from harness.errors import ServerRefused

EVERY_RESETS = 50
DEAD_ROWS = 2000
CATALOG_RESETS = 100
OWNERS = "pg_shdepend"


class Vacuum:
    """Counts what resets leave behind, and cleans up now and then."""

    def __init__(self) -> None:
        self._dead: dict[int, int] = {}
        self._resets: dict[int, int] = {}
        self._catalogs: dict[str, int] = {}

    def after(
        self,
        session: Session,
        put_back: Mapping[int, int],
        relations: Mapping[int, Relation],
        touched: Mapping[str, object],
    ) -> None:
        """Count one reset, and vacuum the tables and catalogs whose turn it is.

        Args:
            put_back: OID of each table that was put back → dead rows that are known of. An application that
                deletes, or rolls back, leaves some of which nobody tells: each reset counts as well.
            relations: OID → relation.
            touched: catalogs that were written since the clone.
        """
        due = []
        for oid, rows in put_back.items():
            self._dead[oid] = self._dead.get(oid, 0) + rows
            self._resets[oid] = self._resets.get(oid, 0) + 1
            if self._resets[oid] >= EVERY_RESETS or self._dead[oid] >= DEAD_ROWS:
                due.append(relations[oid].sql)
                self._dead[oid] = self._resets[oid] = 0
        # Every temporary table and large object has a row about its owner in a catalog of the whole server.
        for name in (*touched, OWNERS) if touched else ():
            self._catalogs[name] = self._catalogs.get(name, 0) + 1
            if self._catalogs[name] >= CATALOG_RESETS:
                due.append(ident("pg_catalog", name))
                self._catalogs[name] = 0
        if not due:
            return
        try:
            # Not truncating: it would wait seconds for readers. Locked tables have their turn later.
            session.execute(f"vacuum (skip_locked, truncate false) {', '.join(due)}")
        except ServerRefused:
            return  # it is only housekeeping: the rows are where they belong already
