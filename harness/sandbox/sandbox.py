"""A developer's own databases on one server: made, replaced, marked, reset. Whoever calls asks the person first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from harness.config.project import Project
from harness.databases import role, sweep
from harness.errors import LeaseError, LeaseLost
from harness.migrations.port import Progress, unseen
from harness.postgres import databases, locks
from harness.postgres.session import ident
from harness.reset.report import ResetReport
from harness.runs import rewinding
from harness.runs.bake import baked_base
from harness.runs.places import Place, places_on
from harness.runs.session import ServerSession
from harness.sandbox import forks, marks, reset, upgrade
from harness.sandbox.marks import SavedMark
from harness.sandbox.reset import SandboxReset
from harness.sandbox.upgrade import Pending
from harness.sandbox.watermarks import Provenance, WatermarkStore
from harness.servers import acquire, explaining
from harness.servers.handle import Server

if TYPE_CHECKING:
    from harness.reset.changes import Changes

PATIENCE = 120
"""Seconds to wait for another command that changes these databases."""


@dataclass(frozen=True)
class Returned:
    """A worker whose databases were brought back.

    Attributes:
        mark: where to; None is the migrations' state.
        reports: name in the settings → what was done.
    """

    mark: SavedMark | None
    reports: Mapping[str, ResetReport]


@dataclass(frozen=True)
class Differences:
    """What a reset of a worker's databases would undo.

    Attributes:
        mark: since when; None is the migrations' state.
        databases: name in the settings → what changed, or why it cannot be told: a reset would be a clone.
    """

    mark: SavedMark | None
    databases: Mapping[str, Changes | LeaseError]


class Sandbox:
    """The databases of ``pg-harness up`` in one checkout: some for each worker, ``"1"``, ``"2"`` …

    Made by :meth:`open`, which has the server running; a context manager, whose end leaves server and databases as
    they are. What changes them waits for other processes that do so.
    """

    def __init__(self, session: ServerSession) -> None:
        """
        Args:
            session: of no run. The caller closes it.
        """
        self._session = session
        self._store = WatermarkStore.of(session.project)

    @classmethod
    def open(
        cls,
        project: Project,
        *,
        ttl: float | None = None,
        progress: Progress = unseen,
    ) -> Self:
        """Find or start the checkout's server for these databases. None is made yet.

        Args:
            ttl: seconds without use after which a server that is started now ends itself; None: never.
            progress: takes (done, total, what) while migrations run.

        Raises:
            ConfigError, BackendUnavailable, ServerStartError.
        """
        server = acquire.ensure(
            project,
            purpose="up",
            ttl=ttl,
            base=partial(baked_base, project),
            files=partial(rewinding.files, project),
        )
        session = ServerSession(project, server, progress=progress)
        try:
            # After a `stop` the server is there again, and its standbys are not.
            if (standbys := session.standbys) is not None:
                standbys.ensure()
        except BaseException:
            session.close(release=False)
            raise
        return cls(session)

    @property
    def rewinding(self) -> rewinding.Rewinding:
        """What resets these databases by pages; or why they are reset row-wise."""
        return self._session.rewinding

    @property
    def server(self) -> Server:
        """The server that the databases are on."""
        return self._session.server

    # --- which are there ---------------------------------------------------------------------------

    def workers(self) -> dict[str, Place]:
        """Worker → its databases, for those that are there, at least in part."""
        return {name: place for name, place in self.everything().items() if not place.fork}

    def forks(self) -> dict[str, Place]:
        """Name → the databases of a fork, likewise."""
        return {name: place for name, place in self.everything().items() if place.fork}

    def everything(self) -> dict[str, Place]:
        """Both."""
        return {place.worker: place for place in places_on(self._session) if place.sandbox}

    def missing(self, workers: Sequence[str], there: Mapping[str, Place] | None = None) -> list[str]:
        """Those of the workers of which a database is missing, or shut: a command that changed it was killed.

        Args:
            there: what :meth:`workers` found; None: look now.
        """
        there = self.workers() if there is None else there
        wanted = {database.name for database in self._session.settings.databases}
        return [
            worker
            for worker in workers
            if worker not in there or wanted - there[worker].databases.keys() or _shut(there[worker])
        ]

    def shut(self) -> bool:
        """Whether a command that changed one of them was killed, so that nobody can enter it: :meth:`ensure` opens it again."""
        return any(map(_shut, self.everything().values()))

    def stale(self, places: Sequence[Place]) -> list[Place]:
        """Those that were made from other migrations than today's.

        Raises:
            MigrationError: a source cannot be read.
        """
        wanted = self._session.fingerprints()
        return [
            place
            for place in places
            if any(
                database.label.fingerprint != wanted.get(name)
                for name, database in place.databases.items()
                if name in wanted
            )
        ]

    # --- made and replaced -------------------------------------------------------------------------

    def ensure(self, workers: Sequence[str], *, rebuild: bool = False) -> None:
        """Make what is missing, and nothing else.

        Args:
            rebuild: run the migrations again although nothing changed; databases that are there stay as they are.

        Raises:
            MigrationError, TemplateBusy, PoolTimeout.
        """
        # Before any migration, which may fail: those that are there do not depend on it.
        if self.shut():
            with self._alone():
                self._open_again(self.everything().values())
        if not rebuild and not self.missing(workers):
            return
        self._session.prepare(rebuild=rebuild)
        # Two `up` at once: the second one finds the first one's databases, and must not make them again.
        with self._alone():
            self._open_again(self.everything().values())
            missing = self.missing(workers)
            if len(missing) > 1:
                self._session.fill(len(missing))
            self._complete(missing)
        self._session.sweep()

    def fresh(self, workers: Sequence[str], *, doomed: Sequence[Place], rebuild: bool = False) -> None:
        """Drop databases, with their marks, and make them again from today's migrations under the same names.

        Args:
            workers: those that there shall be, besides those that are replaced.
            doomed: what is dropped, as :meth:`workers` found it and the person was told.
            rebuild: run the migrations again although nothing changed.

        Raises:
            MigrationError, TemplateBusy, PoolTimeout: nothing was dropped.
        """
        session, project = self._session, self._session.project.id
        # The template first: a migration that fails must not cost the databases that work.
        session.prepare(rebuild=rebuild)
        with self._alone():
            for place in doomed:
                for database in place.databases.values():
                    # Marks of other migrations' databases would bring those back.
                    marks.drop_of(session.link.session, project, database.name)
                    databases.drop(session.link.session, database.name, project)
            self._complete([*workers, *(place.worker for place in doomed)])
        session.sweep()

    def _complete(self, workers: Sequence[str]) -> None:
        # So that a reset can put back what changes from here on: nobody knows the new databases yet.
        storing = partial(reset.store_new, self._session.clones, self._store)
        for worker in dict.fromkeys(workers):
            self._session.complete(worker, before=storing)

    # --- saved marks -------------------------------------------------------------------------------

    def marks(self, place: Place) -> list[SavedMark]:
        """The saved marks of a worker, the lowest first."""
        return marks.stack(self._session.link.session, self._session.project.id, place.databases)

    def mark(self, place: Place, name: str | None = None) -> tuple[SavedMark, list[str]]:
        """Make the present state of a worker's databases the one that :meth:`reset` comes back to.

        Args:
            name: what to call it; None for its number in the stack.

        Returns:
            The mark; the sessions that were ended, one line each.

        Raises:
            LeaseError: the databases are a test run's, or a mark of that name is set.
            LeaseInUse: a session cannot be ended.
        """
        session = self._session
        with self._changing(place):
            before = Provenance.of(session.link.session, session.link.server_id, "")
            made, ended, noted = marks.save(
                session.link.session,
                session.project.id,
                place.databases,
                name,
                strategy=reset.strategy_of(place),
                reset_timeout=session.settings.reset_timeout,
            )
            reset.store_marks(session.clones, self._store, before, noted)
        return made, ended

    def release(
        self, place: Place, name: str | None = None, *, everything: bool = False, dry_run: bool = False
    ) -> tuple[list[SavedMark], list[SavedMark]]:
        """Forget a mark and those above it; the databases stay as they are.

        Args:
            name: None for the top mark.
            everything: forget all marks, also where there is none.
            dry_run: only tell what would be.

        Returns:
            What was released, the top first; what is left, the lowest first.

        Raises:
            LeaseError: the databases are a test run's, nothing is marked, or there is no mark of that name.
        """
        with self._changing(place):
            there = self.marks(place)
            if not there and not everything:
                raise LeaseError(f"{place.what}: nothing is marked")
            lowest = None if everything else marks.choose(there, name) if name else there[-1]
            if dry_run:
                gone = [mark for mark in reversed(there) if lowest is None or mark.number >= lowest.number]
            else:
                gone = self._release(there, lowest)
        return gone, there[: len(there) - len(gone)]

    def _release(self, there: Sequence[SavedMark], lowest: SavedMark | None) -> list[SavedMark]:
        gone = marks.release(self._session.link.session, self._session.project.id, there, lowest)
        for mark in gone:
            for copy in mark.databases.values():
                self._store.forget(copy.name)
        return gone

    # --- brought back ------------------------------------------------------------------------------

    def reset(self, place: Place, to: str | None = None) -> Returned:
        """Bring a worker's databases back under the same URLs, with sessions kept where that is possible.

        Args:
            to: a mark's name: those above it are released once it worked. ``"template"``: the migrations' state,
                all marks are released. None: the top mark, else the migrations' state.

        Raises:
            LeaseError: the databases are a test run's, or there is no such mark. LeaseLost: the mark, the template or
                a database is gone.
        """
        with self._changing(place):
            there = self.marks(place)
            mark = marks.target(there, to)
            reports = {}
            for name in place.databases:
                with SandboxReset(place, name, mark, self._store) as back:
                    reports[name] = back.reset()
            above = [other for other in there if mark is None or other.number > mark.number]
            if above:
                self._release(above, None)
        self._session.follow([database.name for database in place.databases.values()])
        return Returned(mark, reports)

    def changes(self, place: Place, to: str | None = None) -> Differences:
        """What :meth:`reset` would undo; nothing is reset.

        Raises:
            LeaseError: the databases are a test run's, or there is no such mark. LeaseLost: as for :meth:`reset`.
        """
        found: dict[str, Changes | LeaseError] = {}
        with self._changing(place):
            mark = marks.target(self.marks(place), to)
            for name in place.databases:
                with SandboxReset(place, name, mark, self._store) as back:
                    try:
                        found[name] = back.changes()
                    except LeaseError as error:
                        found[name] = error
        return Differences(mark, found)

    # --- brought up to date ------------------------------------------------------------------------

    def prepare(self) -> None:
        """Have the templates of today's migrations, which a database that is brought up to date is reset to from then on.

        Raises:
            MigrationError: they fail on an empty database. TemplateBusy, PoolTimeout.
        """
        self._session.prepare()

    def pending(self, place: Place, *, out_of_order: bool = False) -> dict[str, Pending]:
        """Name in the settings → what of today's migrations one of a worker's databases lacks; those that lack nothing are left out.

        Raises:
            MigrationError: a source cannot be read, or what was applied to the database was changed since.
        """
        return upgrade.pending(self._session, place, out_of_order=out_of_order)

    def migrate(self, place: Place, *, out_of_order: bool = False) -> tuple[dict[str, Pending], list[str]]:
        """Apply what is pending to a worker's databases; all that is in them stays. Call :meth:`prepare` before.

        It runs on copies, which take the databases' places in the end: where anything fails, the databases are as they were.
        Nobody can enter them meanwhile.

        Returns:
            What was applied, as :meth:`pending`; the sessions that were ended, one line each.

        Raises:
            MigrationError, TemplateBusy: a migration failed, and nothing was changed. LeaseError: a database cannot be copied.
        """
        with self._changing(place):
            # Looked at again: another `migrate` may have been faster.
            there = self._again(place)
            plan = self.pending(there, out_of_order=out_of_order)
            ended = upgrade.apply(self._session, there, plan)
            for name, what in plan.items():
                if what.steps:
                    self._store.forget(there.databases[name].name)
        return plan, ended

    # --- forks -------------------------------------------------------------------------------------

    def fork(self, place: Place, name: str, mark: str | None = None) -> tuple[Place, list[str]]:
        """Copy a worker's databases, as they are or as a mark holds them, to ones of another name beside them.

        Args:
            name: see :func:`harness.sandbox.forks.check`.
            mark: of which mark; then nobody's session ends.

        Returns:
            The fork; the sessions that were ended, one line each: PostgreSQL copies no database that somebody is in.

        Raises:
            ConfigError: the name cannot be one, or is taken. LeaseError: there is no such mark, or no copy can be made.
        """
        with self._changing(place):
            there = self._again(place)
            forks.check(name, places_on(self._session))
            saved = marks.choose(self.marks(there), mark) if mark is not None else None
            ended = forks.make(self._session, there, name, saved)
            return self.forks()[name], ended

    def drop_fork(self, place: Place) -> None:
        """Drop a fork's databases, with their marks.

        Raises:
            LeaseError: it is no fork.
        """
        if not place.fork:
            raise LeaseError(f"{place.words[0]} is no fork ({place.what})")
        with self._alone():
            self._release(self.marks(place), None)
            session, project = self._session.link.session, self._session.project.id
            for database in place.databases.values():
                marks.drop_of(session, project, database.name)
                databases.drop(session, database.name, project)
                self._store.forget(database.name)
            if role.shared(self._session.server.info):
                sweep.drop_logins(session, project, sandbox=True)

    # --- one at a time -----------------------------------------------------------------------------

    @contextmanager
    def _changing(self, place: Place) -> Iterator[None]:
        """Marks and resets are for what `up` has made."""
        if not place.sandbox:
            raise LeaseError(
                f"{place.words[0]} is not yours ({place.what}): marks are for databases of `pg-harness up`; "
                "a test takes lease.mark()"
            )
        # Both copy databases, and a copy that found the disk full says so in the server's log only.
        with explaining.explaining(self.server), self._alone():
            self._open_again([place])
            yield

    def _again(self, place: Place) -> Place:
        """The same place as it is now, under the lock."""
        found = self.everything().get(place.worker)
        if found is None:
            raise LeaseLost(f"{place.what}: somebody else has dropped it")
        return found

    def _open_again(self, places: Iterable[Place]) -> None:
        """Let people into databases that a killed command has shut: nobody else changes them now, nor did it get further."""
        for name in (name for place in places for name in _shut(place)):
            self._session.link.session.execute(f"alter database {ident(name)} with allow_connections true")

    def _alone(self) -> AbstractContextManager[None]:
        """Only one of `up`, `mark` and `reset` at a time changes these databases."""
        return locks.exclusive(
            self._session.link.session,
            "person",
            self._session.project.id,
            timeout=PATIENCE,
            waiting_for="another `up`, `mark`, `reset`, `migrate` or `fork` of this checkout",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close(release=False)


def _shut(place: Place) -> list[str]:
    return [database.name for database in place.databases.values() if not database.allows_connections]
