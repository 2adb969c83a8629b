"""Keep what a failed test left, as a copy: the test's database stays where it is, with all its sessions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness import names
from harness.catalog import copying, databases
from harness.catalog.session import Session
from harness.errors import HarnessError, LeaseLost

if TYPE_CHECKING:
    from harness.core import Harness
    from harness.lease import Lease
    from harness.template import Template

MOST_BYTES = 512 * 1024**2
"""Databases larger than this are not copied: keeping must not take longer than the test."""


@dataclass(frozen=True)
class Kept:
    """A copy for people.

    Attributes:
        name: of the database.
        database: which of the lease's databases it is of.
        rows: how many were copied.
        lacking: tables of the test's database that the copy does not have (the test created them).
    """

    name: str
    database: str
    rows: int
    lacking: tuple[str, ...] = ()


def keep_copies(
    harness: Harness, lease: Lease, why: str, *, changed: Sequence[str] | None = None
) -> list[Kept]:
    """Copy every database of a lease: a new clone of its template, and the rows of the changed tables.

    Of what was kept by failed tests, the newest ``keep_failed`` stay.

    Args:
        why: for people, for instance the test's id.
        changed: names of the tables that differ from the template; None: unknown, all are copied.

    Raises:
        HarnessError: a copy could not be made; nothing is left of it.
    """
    kept = [_keep(harness, lease, name, why, changed) for name in lease.databases]
    _drop_surplus(harness, keep=max(harness.settings.keep_failed, len(kept)))
    return kept


def _keep(harness: Harness, lease: Lease, database: str, why: str, changed: Sequence[str] | None) -> Kept:
    admin = harness.link.session
    leased = lease[database]
    found = databases.find(admin, leased.dsn.database)
    if found is None:
        raise LeaseLost(f"database {leased.dsn.database} is gone: it cannot be kept")
    size = admin.value("select pg_database_size(%s::name)", (leased.dsn.database,))
    if size > MOST_BYTES:
        raise HarnessError(f"database {leased.dsn.database} is too large to be kept ({size / 1e6:.0f} MB)")
    name = _claimed(harness, leased.template)
    try:
        rows, lacking = _copy(harness, leased.dsn.database, name, changed)
        mark = {**(found.mark or {}), "kind": "kept", "why": why[:500], "created": _now()}
        admin.script(databases.comment_statement(name, mark, found.comment))
    except BaseException:
        databases.drop(admin, name, harness.project)
        raise
    return Kept(name, database, rows, lacking)


def _claimed(harness: Harness, template: Template) -> str:
    """A clone under its final name. As a spare, another worker would take it with half of the rows in it."""
    name = names.kept(harness.project, harness.run)
    while not databases.rename(harness.link.session, harness.clones.make_spare(template), name):
        pass  # somebody took the spare before we could
    return name


def _copy(
    harness: Harness, source: str, target: str, changed: Sequence[str] | None
) -> tuple[int, tuple[str, ...]]:
    dsn = harness.link.dsn
    with (
        Session.connect(dsn.with_database(source)) as old,
        Session.connect(dsn.with_database(target)) as new,
    ):
        # A test may have left a lock on a table, in an idle session: the copy must not wait for it.
        old.execute("set lock_timeout = '1s'")
        there = set(copying.tables(new))
        wanted = [t for t in copying.tables(old) if changed is None or _named(t, changed)]
        rows = copying.copy(old, new, [t for t in wanted if t in there])
        return rows, tuple(str(t) for t in copying.tables(old) if t not in there)


def _named(table: copying.Table, changed: Sequence[str]) -> bool:
    return str(table) in changed or f"{table.schema}.{table.name}" in changed or table.name in changed


def _drop_surplus(harness: Harness, *, keep: int) -> None:
    mine = [
        found
        for found in databases.list_ours(harness.link.session, harness.project)
        if found.parsed is not None
        and found.parsed.kind is names.Kind.KEPT
        # What a failed migration left is kept apart: there is one at most.
        and found.parsed.owner != names.PERSON
    ]
    mine.sort(key=lambda found: str((found.mark or {}).get("created", "")), reverse=True)
    for surplus in mine[keep:]:
        # Somebody looks at it: it goes another time.
        if surplus.sessions == 0:
            databases.drop(harness.link.session, surplus.name, harness.project)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
