"""What every run has, whether its workers share one server or have one each; and a run's part on one server.

On one server: the way in, the application's role, the templates, and what is left over there. What only the process
needs that opens the run is imported where it is used: each worker joins it.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from harness.config import environment as env
from harness.config import project
from harness.config.settings import DatabaseSettings, Settings, SourceSpec
from harness.databases import template
from harness.databases.clones import Clones
from harness.databases.lease import Lease
from harness.databases.spec import Owner, Recipe, fingerprint
from harness.databases.template import Template
from harness.errors import HarnessError, LeaseLost
from harness.migrations.port import Progress, unseen
from harness.postgres import databases, names
from harness.postgres.admin import Link
from harness.postgres.liveness import SignOfLife

if TYPE_CHECKING:
    from harness.databases.sweep import Doomed
    from harness.servers.handle import Server

logger = logging.getLogger("pg_harness.runs")


def first_free(taken: Iterable[str]) -> str:
    """The lowest number that names no worker yet."""
    names = set(taken)
    return next(str(number) for number in itertools.count(1) if str(number) not in names)


class How(TypedDict, total=False):
    """How a run is opened; every key may be left out.

    Attributes:
        purpose: ``"run"`` for tests (the default), ``"up"`` for a person's databases, which share one server.
        run: what names this run, for instance xdist's ``testrun_uid``; default: random.
        rebuild: migrate anew although a template, or a baked base, is there.
        workers: how many there will be, where that is known: memory for servers is reckoned for all of them.
        progress: takes (done, total, what) while migrations run.
    """

    purpose: str
    run: str | None
    rebuild: bool
    workers: int
    progress: Progress


class Run(ABC):
    """One run: its settings, its name, and a lease for each of its workers.

    A context manager: what is still leased at its end is released.

    Attributes:
        settings: what it was opened with.
        run: sixteen hex digits that name it.
        project: ten hex digits of the checkout.
        workers: how many there will be, where that is known.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        *,
        run: str,
        workers: int = 1,
        progress: Progress = unseen,
    ) -> None:
        self.settings = settings
        self.run = run
        self.project = project.project_id(settings.root)
        self.workers = workers
        self._environ = dict(environ)
        self._progress = progress
        self._lock = threading.RLock()
        self._closed = False

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment that it was opened with, for programs that are started on its behalf."""
        return self._environ

    @classmethod
    def open(
        cls,
        *,
        root: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        purpose: str = "run",
        run: str | None = None,
        rebuild: bool = False,
        workers: int = 1,
        progress: Progress = unseen,
        **overrides: Any,
    ) -> Self:
        """Have everything ready for leases: servers or what they start from, and migrated templates.

        Args:
            root: where to look for the project; default: the working directory.
            environ: default: ``os.environ``.
            purpose, run, rebuild, workers, progress: see :class:`How`.
            overrides: settings, as in the file, for instance ``migrations=["sql:db/migrations"]``.

        Raises:
            ConfigError, BackendUnavailable, ServerStartError, MigrationError, TemplateBusy, PoolTimeout.
        """
        from harness.config.load import load
        from harness.databases import freshness
        from harness.migrations.registry import check_settings

        environment = os.environ if environ is None else environ
        start = Path(root) if root is not None else Path.cwd()
        settings = load(environment, start=start, overrides={**overrides, **cls._stated(purpose)})
        check_settings(settings)
        freshness.check_settings(settings)
        return cls.open_with(
            settings,
            environment,
            purpose=purpose,
            run=run,
            rebuild=rebuild,
            workers=workers,
            progress=progress,
        )

    @classmethod
    def _stated(cls, purpose: str) -> Mapping[str, Any]:
        """Settings that this kind of run implies."""
        return {}

    @classmethod
    @abstractmethod
    def open_with(cls, settings: Settings, environ: Mapping[str, str], **how: Unpack[How]) -> Self:
        """As :meth:`open`, with settings that were read already."""

    @abstractmethod
    def lease(self, worker: str | None = None) -> Lease:
        """Lease a fresh clone of every database for one worker."""

    @abstractmethod
    def leases(self, count: int, *, first: int = 1) -> list[Lease]:
        """Leases for workers ``first`` … ``first + count - 1``, made side by side."""

    @abstractmethod
    def fingerprints(self) -> dict[str, str]:
        """Database name → fingerprint of its migrations as they are now. Builds and changes nothing."""

    @abstractmethod
    def sweep(self, *, dry_run: bool = False) -> list[Doomed]:
        """Remove what dead runs of this checkout have left."""

    @abstractmethod
    def close(self) -> None:
        """Release what is still leased, and let go. Twice is once."""

    # --- environment -------------------------------------------------------------------------------

    def slot(self, worker: str) -> env.Slot:
        """What env templates may say of a worker."""
        return env.Slot(worker, self.workers, self.settings.connections_per_worker)

    def variables(self, lease: Lease) -> dict[str, str]:
        """``DATABASE_URL``, ``PG*`` and the user's own variables of a lease."""
        tables = {database.name: database.env for database in self.settings.databases}
        return env.variables(lease.dsns, tables, self.slot(lease.worker))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except HarnessError:
            # The block's own error matters more than a server that went away under it.
            if error is None:
                raise


def parallel() -> int:
    """How many clones are made side by side."""
    return min(4, os.cpu_count() or 1)


def run_all(acts: Sequence[Callable[[], object]]) -> None:
    """Run several acts side by side; the first error is raised after all have ended."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max(1, len(acts))) as threads:
        for future in [threads.submit(act) for act in acts]:
            future.result()


class OneServer(Run):
    """The part of :class:`harness.runs.harness.Harness` that concerns the server as a whole.

    Attributes:
        server: the server it works on.
        templates: database name → template, ready to be cloned.
    """

    def __init__(
        self,
        settings: Settings,
        server: Server,
        *,
        run: str,
        environ: Mapping[str, str],
        workers: int = 1,
        progress: Progress = unseen,
    ) -> None:
        super().__init__(settings, environ, run=run, workers=workers, progress=progress)
        self.server = server
        self.templates: dict[str, Template] = {}
        self._leases: list[Lease] = []
        self._link = Link(server.admin_dsn, server.info.server_id, session=server.session)
        self._life: SignOfLife | None = None
        self._owner: Owner | None = None
        self._clones: Clones | None = None

    @property
    def link(self) -> Link:
        """The admin's way to the maintenance database of the server."""
        return self._link

    @property
    def owner(self) -> Owner:
        """The role that the application logs in as: made or put right here, when it is first needed."""
        if self._owner is None:
            from harness.databases import role

            self._owner = role.ensure(self._link.session, self.server.info, self.settings, self.project)
        return self._owner

    def expected_owner(self) -> tuple[Owner, bool]:
        """The role that the application logs in as, without touching it; and whether we may make it."""
        if self._owner is not None:
            return self._owner, False
        from harness.databases import role

        return role.expected(self._link.session, self.server.info, self.settings, self.project)

    @property
    def clones(self) -> Clones:
        """What makes, claims and retires clones on this server."""
        if self._clones is None:
            self._clones = self._clones_over(self._link)
        return self._clones

    def _clones_over(self, link: Link) -> Clones:
        return Clones(
            link,
            self.project,
            self.owner,
            connections=self.settings.connections_per_worker,
            remake=partial(self._remake, link),
        )

    def _remake(self, link: Link, emptied: Template) -> Template:
        """A template of this run, made again: by whichever worker notices first."""
        settings = next(d for d in self.settings.databases if d.name == emptied.database)
        recipe = self.recipe(settings)
        if fingerprint(link.session, recipe) != emptied.fingerprint:
            raise LeaseLost(
                f"a crash of the server has emptied the unlogged tables of the template {emptied.name}, and the "
                "migrations are others now: run again"
            )
        return self._template(link, recipe)

    # --- templates ---------------------------------------------------------------------------------

    def recipe(self, database: DatabaseSettings) -> Recipe:
        """How one of the databases is made."""
        from harness.databases import recipes

        return recipes.make(
            self.settings,
            self._environ,
            database,
            role=self.expected_owner()[0].name,
            binaries=self.server.info.binaries,
            slot=self.slot("1"),
        )

    def sources(self, database: DatabaseSettings) -> tuple[SourceSpec, ...]:
        """The configured sources, or those that were found in the project where none is configured."""
        from harness.databases import recipes

        return recipes.sources(self.settings, database)

    def fingerprints(self) -> dict[str, str]:
        """Database name → fingerprint of its migrations as they are now. Builds and changes nothing.

        Raises:
            MigrationError: a source cannot be read.
        """
        return {
            database.name: fingerprint(self._link.session, self.recipe(database))
            for database in self.settings.databases
        }

    def prepare(self, *, rebuild: bool = False) -> None:
        """Show the sign of life, clean up after dead runs, and have every database's template ready."""
        self._show_life()
        self._clean_up()
        for database in self.settings.databases:
            made = self.templates[database.name] = self._template(
                self._link, self.recipe(database), rebuild=rebuild
            )
            if not made.built:
                template.touch(self._link.session, made)

    def _template(self, link: Link, recipe: Recipe, *, rebuild: bool = False) -> Template:
        return template.ensure(
            link.session,
            self.project,
            recipe,
            self.owner,
            rebuild=rebuild,
            probe_strategy=self.server.info.backend == "external",
            progress=self._progress,
        )

    def _show_life(self) -> None:
        if self.run == names.PERSON or self._life is not None:
            return
        held = [("run", self.run)]
        if self.server.info.server_id:
            held.append(("server", self.server.info.server_id))
        self._life = SignOfLife(self._link.another(), held)

    def _epoch(self) -> int:
        return self._life.epoch if self._life is not None else self._link.epoch

    # --- what is left over -------------------------------------------------------------------------

    def _clean_up(self) -> None:
        try:
            for item in self.sweep():
                logger.info("dropped %s: %s", item.database.name, item.reason)
            for name in self._drop_created_by_tests():
                logger.info("dropped %s: a test of an earlier run created it", name)
        except HarnessError as error:
            # What is left over is no reason not to run: the next run tries again.
            logger.info("what earlier runs left could not be dropped: %s", error)

    def sweep(self, *, dry_run: bool = False) -> list[Doomed]:
        """Drop what dead runs of this checkout left on this server."""
        from harness.databases import sweep

        limits = sweep.Limits(
            self.settings.keep_templates, self.settings.template_age, self.settings.keep_failed
        )
        return sweep.sweep(self._link.session, self.project, limits, dry_run=dry_run)

    def release_run(self, workers: Sequence[str] | None = None) -> list[str]:
        """Drop every database that this run has leased, in whatever process; return their names.

        Args:
            workers: only those of these workers (one that has crashed); None: all.
        """
        session = self._link.session
        wanted = (
            None
            if workers is None
            else {
                names.lease(self.project, self.run, worker, index)
                for worker in workers
                for index in range(len(self.settings.databases))
            }
        )
        dropped = []
        for found in databases.list_ours(session, self.project):
            if found.kind is not names.Kind.LEASE or found.owner != self.run:
                continue
            if wanted is None or found.name in wanted:
                self.clones.release(found.name)
                dropped.append(found.name)
        return dropped

    def _drop_created_by_tests(self) -> list[str]:
        """Databases that tests created carry no run's name: only the last run of a server may drop them."""
        if not self._tests_own_databases or self._others_alive():
            return []
        return self.clones.drop_created_by_tests()

    @property
    def _tests_own_databases(self) -> bool:
        """Whether databases of the application's role can only be the tests': nobody else is that role."""
        if self.run == names.PERSON:
            return False
        if self.server.info.backend != "external":
            return True
        # Somebody else's server: only a role that is named after this checkout is nobody else's.
        return self.owner.name == f"{names.PREFIX}_{self.project}"

    def _others_alive(self) -> bool:
        from harness.databases import sweep

        everything = databases.list_ours(self._link.session, self.project)
        runs = {d.owner for d in everything if d.kind is names.Kind.LEASE}
        return bool(sweep.alive_runs(self._link.session, sorted(runs - {self.run})))

    def _leave(self) -> None:
        """Log out everywhere."""
        if self._life is not None:
            self._life.close()
        self._link.close()
        self.server.close()
