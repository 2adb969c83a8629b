"""Keep what a failed test left, as a copy: the test's database stays where it is, with all its sessions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from harness.databases import kept_dump, kept_rows, sweep
from harness.errors import HarnessError, LeaseLost
from harness.postgres import databases, names
from harness.postgres.databases import Database
from harness.postgres.session import Session, ident

if TYPE_CHECKING:
    from harness.databases.lease import Lease, LeasedDatabase
    from harness.runs.session import ServerSession

MOST_BYTES = 512 * 1024**2
"""Databases larger than this are not copied: keeping must not take longer than the test."""


@dataclass(frozen=True)
class Kept:
    """A copy for people.

    Attributes:
        name: of the database.
        database: which of the lease's databases it is of.
        whole: whether it is a dump of everything; else a clone of the template with the rows of the test.
        lacking: what the copy does not have, one line each.
    """

    name: str
    database: str
    whole: bool = False
    lacking: tuple[str, ...] = ()


def has_room(server: ServerSession) -> bool:
    """Whether fewer than ``keep_failed`` tests of this run have a copy: the first failures tell most."""
    there = databases.list_ours(server.link.session, server.project.id)
    return _tests_of_run(server, there) < server.settings.keep_failed


def _tests_of_run(server: ServerSession, there: Iterable[Database]) -> int:
    return sum(test[0].owner == server.run for test in sweep.kept_tests(there))


def keep_copies(server: ServerSession, lease: Lease, why: str, *, schema_changed: bool = False) -> list[Kept]:
    """Copy every database of a lease: a new clone of its template with the rows of all tables; or a dump, where
    the schema is not the template's any more. Only what is committed is in it.

    They count against ``keep_failed`` together with those of earlier runs, of which the oldest go.

    Args:
        why: for people, for instance the test's id.
        schema_changed: whether it is known that the schema was changed; where tables differ, it is seen here.

    Raises:
        HarnessError: a copy could not be made; nothing is left of it.
    """
    kept = [_keep(server, lease, name, why, schema_changed) for name in lease.databases]
    there = databases.list_ours(server.link.session, server.project.id)
    # What a failed migration left is kept apart: there is one at most.
    earlier = [found for found in there if not found.sandbox and found.owner != server.run]
    for old in sweep.surplus(earlier, max(0, server.settings.keep_failed - _tests_of_run(server, there))):
        # Somebody looks at it: it goes another time.
        if old.sessions == 0:
            databases.drop(server.link.session, old.name, server.project.id)
    return kept


def _keep(server: ServerSession, lease: Lease, database: str, why: str, schema_changed: bool) -> Kept:
    admin = server.link.session
    leased = lease[database]
    found = databases.find(admin, leased.dsn.database)
    if found is None:
        raise LeaseLost(f"database {leased.dsn.database} is gone: it cannot be kept")
    size = admin.value("select pg_database_size(%s::name)", (leased.dsn.database,))
    if size > MOST_BYTES:
        raise HarnessError(f"database {leased.dsn.database} is too large to be kept ({size / 1e6:.0f} MB)")
    label = replace(found.label, kind="kept", why=why[:500], created=_now())
    name = _claimed(server, leased)
    try:
        whole, lacking = _fill(server, leased, name, schema_changed)
        admin.script(databases.label_statement(name, label, found.comment))
    except BaseException:
        databases.drop(admin, name, server.project.id)
        raise
    return Kept(name, database, whole, lacking)


def _claimed(server: ServerSession, leased: LeasedDatabase) -> str:
    """A clone under its final name. As a spare, another worker would take it with half of the rows in it."""
    name = names.kept(server.project.id, server.run)
    while not databases.rename(server.link.session, server.clones.make_spare(leased.template), name):
        pass  # somebody took the spare before we could
    # Whose role stays as long as it does.
    server.link.session.execute(f"alter database {ident(name)} owner to {ident(leased.dsn.user)}")
    return name


def _fill(
    server: ServerSession, leased: LeasedDatabase, name: str, schema_changed: bool
) -> tuple[bool, tuple[str, ...]]:
    """Whether all of it was copied, and what the copy lacks."""
    source = leased.dsn.database
    if not schema_changed and _copy_rows(server, source, name) is not None:
        return False, ()
    session = server.link.session
    binaries = server.server.info.binaries
    programs = kept_dump.find(
        session.server_version, Path(binaries) if binaries else None, server.project.environ
    )
    if programs is None:
        lacking = _copy_rows(server, source, name, what_fits=True) or ()
        needed = f"pg_dump {session.server_version // 10000} or later was not found on this machine"
        return False, (f"the test changed the schema, which is not in the copy: {needed}", *lacking)
    databases.drop(session, name, server.project.id)
    databases.create_empty(
        session, name, owner=leased.dsn.user, locale=databases.deterministic_locale(session)
    )
    for statement in server.clones.closing(name):
        session.execute(statement)
    dsn = server.link.dsn
    problem = kept_dump.copy_whole(
        programs, dsn.with_database(source), dsn.with_database(name), server.project.environ
    )
    return True, (problem,) if problem else ()


def _copy_rows(
    server: ServerSession, source: str, target: str, *, what_fits: bool = False
) -> tuple[str, ...] | None:
    """Copy the rows of all tables; None, and nothing copied, where the tables are not the same.

    Args:
        what_fits: copy the rows of those tables that are the same; return the others.
    """
    dsn = server.link.dsn
    with (
        Session.connect(dsn.with_database(source)) as old,
        Session.connect(dsn.with_database(target)) as new,
    ):
        # A test may have left a lock on a table, in an idle session: the copy must not wait for it.
        old.execute("set lock_timeout = '1s'")
        wanted, there = kept_rows.tables(old), kept_rows.tables(new)
        if wanted != there and not what_fits:
            return None
        kept_rows.copy(old, new, [table for table in wanted if table in there])
        return tuple(f"rows of {table}" for table in wanted if table not in there)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
