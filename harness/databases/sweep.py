"""What is left over, and whether it may go: a pure plan, then the deed. A template goes with its spares and its roles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from harness.errors import HarnessError, MigrationError
from harness.postgres import databases, incarnation, locks, names, roles
from harness.postgres.databases import Database
from harness.postgres.names import Kind
from harness.postgres.session import Session

Item = TypeVar("Item")

GRACE = timedelta(seconds=30)
"""After a crash of the server every sign of life is gone at once; holders take theirs again within this time. What was leased
since then shows one, or is a dead run's."""


@dataclass(frozen=True)
class Leftover(Generic[Item]):
    """A database, or a baked server, that may go; and why, for people."""

    item: Item
    reason: str


@dataclass(frozen=True)
class Retention:
    """How many of one kind may stay; those that were used last do.

    Attributes:
        count: at most.
        age: seconds since one was last used. Where all are older, it says nothing: a clock that was set forward makes all of
            them old at once, and what is needed now is among them.
        size: bytes of all together.
        settings: what the settings call ``count`` and ``size``, for people.
    """

    count: int
    age: float = math.inf
    size: float = math.inf
    settings: tuple[str, str] = ("", "")

    def beyond(
        self,
        items: Iterable[Item],
        now: float,
        *,
        used: Callable[[Item], float],
        size: Callable[[Item], int] = lambda item: 0,
        stays: Callable[[Item], bool] = lambda item: False,
    ) -> list[Leftover[Item]]:
        """What is too much, the newest first.

        Args:
            now: seconds since 1970, as ``used``: when one was last used.
            stays: what stays in any case; it counts all the same.
        """
        found: list[Leftover[Item]] = []
        total = 0
        items = sorted(items, key=used, reverse=True)
        known = bool(items) and now - used(items[0]) <= self.age
        for place, item in enumerate(items):
            age = now - used(item)
            if stays(item):
                total += size(item)
            elif known and age > self.age:
                found.append(Leftover(item, f"not used for {age // 86400:.0f} days"))
            elif place >= self.count:
                found.append(Leftover(item, f"more than {self.settings[0]} = {self.count}"))
            elif total + size(item) > self.size:
                found.append(Leftover(item, f"more than {self.settings[1]} = {self.size // 2**20:.0f} MB"))
            else:
                total += size(item)
        return found


def plan(
    observed: Sequence[Database],
    alive: frozenset[str],
    building: bool,
    now: datetime,
    templates: Retention,
    keep_failed: int,
) -> list[Leftover[Database]]:
    """Decide what goes. Touches nothing.

    Args:
        observed: all databases of one checkout.
        alive: ids of the runs that show a sign of life; of ``up``'s, where a command changes a person's databases.
        building: whether somebody builds a template just now.
        now: with time zone.
        templates: how many of them may stay.
        keep_failed: of how many failed tests the databases stay; those of the last one do in any case.
    """
    there = [d for d in observed if d.kind is Kind.TEMPLATE]
    # Whoever goes back to a mark goes back to what it was made from.
    in_use = {d.label.short_fingerprint for d in observed if d.kind in (Kind.LEASE, Kind.MARK)}
    evicted = templates.beyond(
        there,
        now.timestamp(),
        used=lambda d: d.label.used_at.timestamp(),
        stays=lambda d: d.owner in in_use,
    )
    fingerprints = {d.owner for d in there} - {left.item.owner for left in evicted}
    leases = {d.name for d in observed if d.kind is Kind.LEASE}
    too_many = {d.name for d in surplus(observed, max(1, keep_failed))}
    leftovers = []
    for database in observed:
        if database.kind is Kind.MARK:
            reason = _reason_of_mark(database, alive, leases)
        else:
            reason = _reason(database, alive, building, now, fingerprints, too_many)
        # A session in it: somebody still looks. It goes another time.
        if reason and database.sessions == 0:
            leftovers.append(Leftover(database, reason))
    return [*leftovers, *evicted]


def surplus(observed: Iterable[Database], keep: int) -> list[Database]:
    """The databases of failed tests beyond so many tests, of which the newest stay."""
    tests = kept_tests(observed)
    return [database for test in tests[keep:] for database in test]


def kept_tests(observed: Iterable[Database]) -> list[list[Database]]:
    """The databases that are kept, those of one test of one run together, the newest test first."""
    tests: dict[tuple[str, str], list[Database]] = {}
    for database in observed:
        if database.kind is Kind.KEPT:
            tests.setdefault((database.owner, database.label.why or database.name), []).append(database)
    return sorted(tests.values(), key=lambda test: max(d.label.created_at for d in test), reverse=True)


def _reason(
    database: Database,
    alive: frozenset[str],
    building: bool,
    now: datetime,
    fingerprints: set[str],
    too_many: set[str],
) -> str:
    kind = database.kind
    if kind is Kind.LEASE:
        run = database.owner
        if run in alive:
            return ""
        if run == names.SANDBOX:
            half = database.parsed is not None and database.parsed.claiming
            return "the command that made it was cut off" if half else ""
        return f"its run {run} is dead"
    if (
        kind is Kind.BUILDING
        and database.parsed
        and database.name == names.scheduler(database.parsed.project)
    ):
        # What pg_cron's jobs are noted for, see harness.databases.background.
        return ""
    if kind is Kind.BUILDING:
        return "" if building else "its migration was cut off"
    if kind is Kind.SPARE and not database.label:
        # Whoever is at work on it just now makes another one.
        return "the command that made it was cut off"
    if kind in (Kind.SPARE, Kind.BASELINE) and not building:
        return "" if database.owner in fingerprints else "its template is gone"
    if kind is Kind.RETIRED:
        # Whoever retired it, and drops it now, is told that it is gone, which is success.
        return "retired"
    return "more are kept than keep_failed allows" if database.name in too_many else ""


def _reason_of_mark(mark: Database, alive: frozenset[str], leases: set[str]) -> str:
    if mark.marked_lease not in leases:
        return "the database that was marked is gone"
    # The label comes last.
    return (
        "" if mark.label.kind == "mark" or names.SANDBOX in alive else "the command that made it was cut off"
    )


def alive_runs(session: Session, runs: Sequence[str]) -> frozenset[str]:
    """Which of the runs show a sign of life on this server."""
    return frozenset(run for run in set(runs) if locks.is_held(session, "run", run))


def alive_owners(session: Session, observed: Iterable[Database], *, graceful: bool = True) -> frozenset[str]:
    """The runs, of those that these databases were leased by, that are alive or have a moment left to show it again.

    Args:
        graceful: whether they have that moment.
    """
    leases = [d for d in observed if d.kind is Kind.LEASE and not d.sandbox]
    alive = alive_runs(session, [d.owner for d in leases])
    silent = [d for d in leases if d.owner not in alive]
    if not graceful or not silent or not in_grace(session):
        return alive
    life = session.value(f"select {incarnation.LIFE}")
    # One without a label was cut off while it was copied, and its run takes it for that too.
    return alive | {d.owner for d in silent if d.label and d.label.claimed != life}


def in_grace(session: Session) -> float:
    """For how many seconds more the dead are not told from the living: their sessions were all lost (start, or crash and recovery).

    ``pg_postmaster_start_time()`` does not change in a crash; the checkpointer is started anew.
    """
    seconds = session.value(
        "select extract(epoch from now() - backend_start) from pg_stat_activity where backend_type = 'checkpointer'"
    )
    return 0.0 if seconds is None else max(0.0, GRACE.total_seconds() - float(seconds))


def waiting(session: Session, project: str) -> tuple[list[str], float]:
    """Databases of runs that show no sign of life and have a moment left to show it again; and how many seconds."""
    observed = databases.list_ours(session, project)
    spared = alive_owners(session, observed) - alive_owners(session, observed, graceful=False)
    return [d.name for d in observed if d.kind is Kind.LEASE and d.owner in spared], in_grace(session)


def sweep(
    session: Session,
    project: str,
    templates: Retention,
    keep_failed: int,
    *,
    dry_run: bool = False,
    graceful: bool = True,
) -> list[Leftover[Database]]:
    """Drop what is left over of one checkout on one server; return what went (or would go). See :func:`plan`.

    Only databases whose name carries this checkout's id are looked at.

    Args:
        graceful: whether runs whose sign of life a crash may have ended have a moment to show it again.
    """
    observed = databases.list_ours(session, project)
    alive = alive_owners(session, observed, graceful=graceful)
    building = locks.is_held(session, "build", "")
    if locks.is_held(session, "person", project):
        alive |= {names.SANDBOX}
    left = plan(observed, alive, building, datetime.now(UTC), templates, keep_failed)
    if dry_run:
        return left
    return [found for found in left if _drop(session, project, found.item)]


def drop_logins(session: Session, project: str, *, sandbox: bool = False, graceful: bool = True) -> list[str]:
    """Drop the roles of dead runs' workers, with the databases that tests created as them; return the names of those.

    A role of which something is kept for people stays as long as that does.

    Args:
        sandbox: those of a person's databases that are gone, too. The caller sees to it that none are made meanwhile.
        graceful: as for :func:`sweep`.
    """
    runs = {name: names.run_of_role(name) for name in roles.of_workers(session, project)}
    persons = [name for name, run in runs.items() if run == names.SANDBOX]
    tests = [name for name in runs if name not in persons]
    dropped: list[str] = []
    if tests and not (graceful and in_grace(session)):
        alive = alive_runs(session, sorted({runs[name] for name in tests}))
        dead = [name for name in tests if runs[name] not in alive]
        dropped = databases.created_by_tests(session, dead)
        for name in dropped:
            databases.drop(session, name, project)
        roles.drop_idle(session, dead)
    if sandbox:
        roles.drop_idle(session, persons)
    return dropped


def _drop(session: Session, project: str, database: Database) -> bool:
    try:
        if database.kind is Kind.TEMPLATE:
            drop_template(session, project, database)
            return True
        return databases.drop(session, database.name, project)
    except HarnessError:
        # Another sweep was faster, or somebody has just entered it: the next sweep sees.
        return False


def drop_template(session: Session, project: str, template: Database) -> list[str]:
    """Drop a template with its spares, its baseline, and the roles that no other template uses.

    Returns:
        Roles of the template that had to stay, because something else depends on them.
    """
    for other in databases.list_ours(session, project):
        if other.owner == template.owner and other.kind in (Kind.SPARE, Kind.BASELINE):
            databases.drop(session, other.name, project)
    databases.drop(session, template.name, project)
    mine_roles = set(template.label.roles or ())
    for other in databases.list_ours(session, None):
        mine_roles -= set(other.label.roles or ())
    return roles.drop(session, sorted(mine_roles))


def drop_new_roles(session: Session, before: set[str]) -> None:
    """Drop the roles that were not there before: a migration that failed must not fail the next one too."""
    roles.drop(session, sorted(roles.all_roles(session) - before))


def make_room(session: Session, project: str, existing: set[str]) -> list[str]:
    """Drop idle templates that brought roles which still exist; return those roles that are gone now."""
    everything = databases.list_ours(session, project)
    leased = {d.label.short_fingerprint for d in everything if d.kind is Kind.LEASE}
    brought: set[str] = set()
    for found in everything:
        own = set(found.label.roles or ()) & existing
        if not own or found.kind is not Kind.TEMPLATE or found.owner in leased:
            continue
        drop_template(session, project, found)
        brought |= own
    return sorted(brought - roles.all_roles(session))


def hint(session: Session, project: str, existing: set[str], error: MigrationError) -> str:
    """What to do where a role that another template brought is in the way of this migration."""
    brought = {role for d in databases.list_ours(session, project) for role in d.label.roles or ()}
    in_the_way = sorted(role for role in brought & existing if role in error.message)
    if not in_the_way:
        return ""
    return (
        f"Roles belong to the whole server, and {', '.join(in_the_way)} came with another template whose "
        f'databases are in use. End that run and try again, or set isolation = "server".'
    )
