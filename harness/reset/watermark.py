"""The watermark of a database: all that a reset, in this process or another, has to know to go on from there.

A first one is of a fresh clone (:func:`take`): every row lies where it lies in the baseline. A reset puts rows
elsewhere, gives files new numbers, and writes catalogs; one that is taken afterwards
(:meth:`harness.reset.tracker.Tracker.watermark`) says so. All that happens later is in the log, so a watermark stays true
however old it is, and whoever else resets in between.

It is a value: the tracker makes it, and takes it up. What is imported here is imported by runs that never reset.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.postgres.incarnation import CRASHED, STARTED, Incarnation
from harness.postgres.session import Session
from harness.reset.sql.shared import Shared, shared

POSITION = re.compile("[0-9A-F]{1,8}/[0-9A-F]{1,8}")
"""A position in the log, as text."""

Tid = tuple[int, int]
"""As :data:`harness.reset.sql.batch.Tid`, written out: what has a watermark has no need of the statements."""

Places = Mapping[Tid, tuple[Tid, int]]
"""Where a row lies in the baseline → where it lies now, and who wrote it there."""


@dataclass(frozen=True)
class Watermark:
    """What was true of a database when it was pristine.

    Attributes:
        position: end of the log; whatever changes the database comes after it.
        database, role: OIDs.
        shared: what :func:`harness.reset.sql.shared.shared` said.
        own: ids of the transactions of the reset that made it pristine: its records come after ``position`` too.
        files: OID → number of its file, of relations whose file is another one than the baseline's.
        touched: catalog → blocks of it that were written since the clone was made.
        places: OID of a table → its rows that lie elsewhere than in the baseline.
        clean: position at which the pages of its files last equalled the baseline's; empty where that is not known.
        rewinds: ids of the transactions since ``clean`` that have put pages back.
        life: of the server. After a crash the log has other records at the same positions, and counters begin anew.
    """

    position: str
    database: int
    role: int
    shared: Shared
    own: tuple[int, ...] = ()
    files: Mapping[int, int] = field(default_factory=dict)
    touched: Mapping[str, frozenset[int]] = field(default_factory=dict)
    places: Mapping[int, Places] = field(default_factory=dict)
    clean: str = field(default="", kw_only=True)
    rewinds: tuple[int, ...] = field(default=(), kw_only=True)
    life: Incarnation = field(default=Incarnation(), kw_only=True, compare=False)

    def carried(self) -> dict[str, Any] | None:
        """What resets have left, for a file: lists and text only. None for that of a fresh clone."""
        if not (self.own or self.files or self.touched or self.places):
            return None
        return {
            "own": list(self.own),
            "clean": self.clean,
            "rewinds": list(self.rewinds),
            "files": sorted(self.files.items()),
            "touched": {name: sorted(blocks) for name, blocks in self.touched.items()},
            "places": {
                str(oid): [[*home, *tid, xmin] for home, (tid, xmin) in sorted(places.items())]
                for oid, places in self.places.items()
            },
        }

    def carrying(self, found: Mapping[str, Any]) -> Watermark:
        """The same with what :meth:`carried` told.

        Raises:
            KeyError, TypeError, ValueError: it has another form.
        """
        return Watermark(
            self.position,
            self.database,
            self.role,
            self.shared,
            tuple(int(xid) for xid in found["own"]),
            {int(oid): int(node) for oid, node in found["files"]},
            {str(name): frozenset(map(int, blocks)) for name, blocks in found["touched"].items()},
            {
                int(oid): {
                    (int(block), int(number)): ((int(to), int(at)), int(xmin))
                    for block, number, to, at, xmin in places
                }
                for oid, places in found["places"].items()
            },
            clean=pages_position(found.get("clean", "")),
            rewinds=tuple(int(xid) for xid in found.get("rewinds", ())),
            life=self.life,
        )


def take(session: Session, database: str, role: str) -> Watermark:
    """The watermark of a database that is pristine, a fresh clone; from a session elsewhere. Two round trips.

    Raises:
        ServerRefused: only a superuser may read all of it.
    """
    row = session.row(
        "select d.oid::int8, coalesce(r.oid, 0)::int8, pg_current_wal_insert_lsn()::text, "
        f"{STARTED}, {CRASHED} "
        "from pg_database d left join pg_roles r on r.rolname = %s where d.datname = %s",
        (role, database),
    )
    oid, role_oid, position, *life = row or (0, 0, "0/0", "", "")
    return Watermark(
        position, oid, role_oid, shared(session, oid, role_oid), clean=position, life=Incarnation(*life)
    )


def pages_position(text: str) -> str:
    """What a note says of :attr:`Watermark.clean`.

    Raises:
        ValueError: it has another form. It becomes a part of statements.
    """
    if text and not POSITION.fullmatch(text):
        raise ValueError("position")
    return text


def entered(session: Session, name: str, watermark: Watermark) -> bool:
    """Whether anybody has logged in to a database since it was made, or put another one in its place.

    True as well where nobody can tell: in another life of the server than that of the watermark.

    A session counts itself when it begins, and what it has counted is there before it is gone from
    ``pg_stat_activity`` (PostgreSQL 15: pgstat_report_connect, pgstat_shutdown_hook). One of the replication protocol
    runs any SQL and counts itself as none; its transactions are counted. Making a clone leaves all of them at zero.
    """
    database, life = watermark.database, watermark.life
    return bool(
        session.value(
            "select exists (select from pg_stat_get_activity(null) where datid = %s) "
            "or coalesce(pg_stat_get_db_sessions(%s::oid), 0) > 0 "
            "or coalesce(pg_stat_get_db_xact_commit(%s::oid) + pg_stat_get_db_xact_rollback(%s::oid), 0) > 0 "
            # Whoever calls pg_stat_reset() was there, and the counter no longer says so.
            "or pg_stat_get_db_stat_reset_time(%s::oid) is not null "
            # As does a crash, for all databases.
            f"or ({STARTED}, {CRASHED}) is distinct from (%s, %s) "
            "or not exists (select from pg_database where oid = %s and datname = %s)",
            (*[database] * 5, life.started, life.crashed, database, name),
        )
    )
