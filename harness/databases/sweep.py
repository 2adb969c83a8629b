"""What is left over, and whether it may go: a pure plan, then the deed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from harness.databases import eviction
from harness.errors import HarnessError
from harness.postgres import databases, locks, names
from harness.postgres.databases import Database
from harness.postgres.names import Kind
from harness.postgres.session import Session

GRACE = timedelta(seconds=30)
"""After a crash of the server every sign of life is gone at once; holders take theirs again within this time."""

CUT_OFF = timedelta(seconds=60)
"""How old a retired or half-made database must be before somebody else than its maker drops it."""


@dataclass(frozen=True)
class Limits:
    """How much may stay.

    Attributes:
        keep_templates: how many templates at most.
        template_age: seconds since a template was last used.
        keep_failed: how many databases of failed tests.
    """

    keep_templates: int = 8
    template_age: float = 14 * 24 * 3600
    keep_failed: int = 3


@dataclass(frozen=True)
class Doomed:
    """A database that may go.

    Attributes:
        database: as it was observed.
        reason: why, for people.
    """

    database: Database
    reason: str


def plan(
    observed: Sequence[Database], alive: frozenset[str], building: bool, now: datetime, limits: Limits
) -> list[Doomed]:
    """Decide what goes. Touches nothing.

    Args:
        observed: all databases of one checkout.
        alive: ids of the runs that show a sign of life.
        building: whether somebody builds a template just now.
        now: with time zone.
    """
    doomed: list[Doomed] = []
    templates = [d for d in observed if d.kind is Kind.TEMPLATE]
    in_use = {d.label.short_fingerprint for d in observed if d.kind is Kind.LEASE}
    evicted = _evicted(templates, in_use, now, limits)
    fingerprints = {d.owner for d in templates} - {e.database.owner for e in evicted}
    kept = sorted(
        (d for d in observed if d.kind is Kind.KEPT), key=lambda d: d.label.created_at, reverse=True
    )
    surplus = {d.name for d in kept[max(1, limits.keep_failed) :]}
    leases = {d.name for d in observed if d.kind is Kind.LEASE}
    for database in observed:
        if database.kind is Kind.MARK:
            reason = "" if database.marked_lease in leases else "the database that was marked is gone"
        else:
            reason = _reason(database, alive, building, now, fingerprints, surplus)
        # A session in it: somebody still looks. It goes another time.
        if reason and database.sessions == 0:
            doomed.append(Doomed(database, reason))
    return [*doomed, *evicted]


def _reason(
    database: Database,
    alive: frozenset[str],
    building: bool,
    now: datetime,
    fingerprints: set[str],
    surplus: set[str],
) -> str:
    kind = database.kind
    if kind is Kind.LEASE:
        run = database.owner
        return "" if run == names.PERSON or run in alive else f"its run {run} is dead"
    if kind is Kind.BUILDING:
        return "" if building else "its migration was cut off"
    if kind in (Kind.SPARE, Kind.BASELINE) and not building:
        return "" if database.owner in fingerprints else "its template is gone"
    if kind is Kind.RETIRED:
        return "retired" if now - database.label.created_at > CUT_OFF else ""
    return "more are kept than keep_failed allows" if database.name in surplus else ""


def _evicted(templates: Sequence[Database], in_use: set[str], now: datetime, limits: Limits) -> list[Doomed]:
    idle = [t for t in templates if t.owner not in in_use]
    newest_first = sorted(templates, key=lambda d: d.label.used_at, reverse=True)
    over = {t.name for t in newest_first[limits.keep_templates :]}
    result: list[Doomed] = []
    for item in idle:
        age = now - item.label.used_at
        if age > timedelta(seconds=limits.template_age):
            result.append(Doomed(item, f"not used for {age.days} days"))
        elif item.name in over:
            result.append(Doomed(item, f"more than keep_templates = {limits.keep_templates}"))
    return result


def alive_runs(session: Session, runs: Sequence[str]) -> frozenset[str]:
    """Which of the runs show a sign of life on this server."""
    return frozenset(run for run in set(runs) if locks.is_held(session, "run", run))


def in_grace(session: Session) -> bool:
    """Whether the server's sessions were all lost a moment ago (start, or crash and recovery).

    ``pg_postmaster_start_time()`` does not change in a crash; the checkpointer is started anew.
    """
    seconds = session.value(
        "select extract(epoch from now() - backend_start) from pg_stat_activity where backend_type = 'checkpointer'"
    )
    return seconds is not None and timedelta(seconds=float(seconds)) < GRACE


def sweep(session: Session, project: str, limits: Limits, *, dry_run: bool = False) -> list[Doomed]:
    """Drop what is left over of one checkout on one server; return what went (or would go).

    Only databases whose name carries this checkout's id are looked at.
    """
    observed = databases.list_ours(session, project)
    if in_grace(session):
        # Marks too: without their leases they would look abandoned.
        observed = [d for d in observed if d.kind not in (Kind.LEASE, Kind.MARK)]
    runs = [d.owner for d in observed if d.kind is Kind.LEASE]
    building = locks.is_held(session, "build", "")
    doomed = plan(observed, alive_runs(session, runs), building, datetime.now(UTC), limits)
    if dry_run:
        return doomed
    return [item for item in doomed if _drop(session, project, item.database)]


def _drop(session: Session, project: str, database: Database) -> bool:
    try:
        if database.kind is Kind.TEMPLATE:
            eviction.drop(session, project, database)
            return True
        return databases.drop(session, database.name, project)
    except HarnessError:
        # Another sweep was faster, or somebody has just entered it: the next sweep sees.
        return False
