"""The whole, wired: settings → server → templates → leases → environment → release."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import config, env, names, outgrown, project, reaper, recipes, template
from harness.catalog import databases, locks, roles
from harness.catalog.link import Link
from harness.clones import Claim, Clones
from harness.errors import ConfigError, HarnessError
from harness.lease import Lease, LeasedDatabase
from harness.life import SignOfLife
from harness.pool import Filler
from harness.settings import DatabaseSettings, Settings, SourceSpec
from harness.template import Owner, Progress, Recipe, Template

if TYPE_CHECKING:
    from harness.backends.base import Backend, ServerInfo
    from harness.fleet import Fleet
    from harness.server import Server

Story = Callable[[str], None]


def _silent(line: str) -> None:
    return None


class Harness:
    """One server, the templates of one checkout, and the leases of one run.

    Made by :meth:`open`; a context manager. Leases that are still there at :meth:`close` are released.

    Attributes:
        settings: what it was opened with.
        server: the server it works on.
        run: sixteen hex digits that name this run; its sign of life is held until :meth:`close`.
        templates: database name → template, ready to be cloned.
    """

    def __init__(
        self,
        settings: Settings,
        server: Server,
        *,
        run: str,
        environ: Mapping[str, str],
        story: Story = _silent,
        progress: Progress = lambda done, total, what: None,
    ) -> None:
        self.settings = settings
        self.server = server
        self.run = run
        self.project = project.project_id(settings.root)
        self.templates: dict[str, Template] = {}
        self.workers = 1
        self._environ = dict(environ)
        self._story = story
        self._progress = progress
        self._link = Link(server.admin_dsn, server.info.server_id, session=server.session)
        self._leases: list[Lease] = []
        self._life: SignOfLife | None = None
        self._lock = threading.RLock()
        self._closed = False
        self._filler: Filler | None = None
        self._guest = False
        self._owner: Owner | None = None
        self._clones: Clones | None = None

    @classmethod
    def open(
        cls,
        *,
        root: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        purpose: str = "run",
        run: str | None = None,
        rebuild: bool = False,
        story: Story = _silent,
        progress: Progress = lambda done, total, what: None,
        **overrides: Any,
    ) -> Harness:
        """Find or start the server, find or build the templates.

        Args:
            root: where to look for the project; default: the working directory.
            environ: default: ``os.environ``.
            purpose: ``"run"`` for tests, ``"up"`` for a person's databases.
            run: what names this run, for instance xdist's ``testrun_uid``; default: random.
            rebuild: migrate anew although a template is there.
            story: takes a line for people about what is being done.
            progress: takes (done, total, what) while migrations run.
            overrides: settings, as in the file, for instance ``migrations=["sql:db/migrations"]``.

        Raises:
            ConfigError, BackendUnavailable, ServerStartError, MigrationError, TemplateBusy, PoolTimeout.
        """
        environment = os.environ if environ is None else environ
        start = Path(root) if root is not None else Path.cwd()
        settings = config.load(environment, start=start, overrides=overrides)
        if settings.isolation == "server" and purpose == "run":
            raise ConfigError(
                'isolation = "server" gives each worker a server: open it with harness.Fleet.open(), which has '
                "the same methods",
                key="isolation",
                origin=settings.origin("isolation"),
                value="server",
            )
        return cls.open_with(
            settings,
            environment,
            purpose=purpose,
            run=run,
            rebuild=rebuild,
            story=story,
            progress=progress,
        )

    @classmethod
    def open_with(
        cls,
        settings: Settings,
        environ: Mapping[str, str],
        *,
        purpose: str = "run",
        run: str | None = None,
        rebuild: bool = False,
        story: Story = _silent,
        progress: Progress = lambda done, total, what: None,
    ) -> Harness:
        """As :meth:`open`, with settings that were read already."""
        from harness import server

        settings = outgrown.settings_for(settings, environ)
        found = server.ensure(
            settings,
            environ,
            purpose=purpose,
            base=lambda backend: None if rebuild else baked_base(settings, environ, backend, story),
            story=story,
        )
        this = cls(
            settings,
            found,
            run=names.PERSON if purpose == "up" else names.run_id(run),
            environ=environ,
            story=story,
            progress=progress,
        )
        try:
            try:
                this.prepare(rebuild=rebuild)
                moving = purpose == "run" and this._must_move_to_disk()
            except HarnessError as error:
                moving = purpose == "run" and this._ran_out_of_memory(error)
                if not moving:
                    outgrown.explain(error, found)
                    raise
        except BaseException:
            this.abandon()
            raise
        if not moving:
            return this
        this.abandon()
        # The server in memory is replaced there, or left to the runs that use it: see docs/decisions/0013.
        return cls.open_with(
            replace(settings, storage="disk"),
            environ,
            purpose=purpose,
            run=run,
            rebuild=rebuild,
            story=story,
            progress=progress,
        )

    @classmethod
    def attach(
        cls,
        settings: Settings,
        environ: Mapping[str, str],
        *,
        run: str,
        info: ServerInfo,
        owner: Owner,
        templates: Mapping[str, Template],
        workers: int = 1,
        story: Story = _silent,
    ) -> Harness:
        """Join a run that another process has opened: one log-in, nothing is looked for or computed.

        What a guest leases belongs to the run: :meth:`close` leaves it to the host's :meth:`release_run`.

        Args:
            run, info, owner, templates: as the host has them (``harness.runfile``).
            workers: how many workers the run has.

        Raises:
            ServerLost: the server is gone, or another one answers at its address.
        """
        from harness import server

        found = server.join(settings, environ, info)
        this = cls(settings, found, run=run, environ=environ, story=story)
        this._owner = owner
        this._guest = True
        this.templates = dict(templates)
        this.workers = workers
        return this

    @property
    def link(self) -> Link:
        """The admin's way to the maintenance database of the server."""
        return self._link

    @property
    def owner(self) -> Owner:
        """The role that the application logs in as: made or put right here, when it is first needed."""
        if self._owner is None:
            self._owner = self._find_owner()
        return self._owner

    @property
    def clones(self) -> Clones:
        """What makes, claims and retires clones on this server."""
        if self._clones is None:
            self._clones = Clones(
                self._link, self.project, self.owner, connections=self.settings.connections_per_worker
            )
        return self._clones

    def fingerprints(self) -> dict[str, str]:
        """Database name → fingerprint of its migrations as they are now. Builds and changes nothing.

        Raises:
            MigrationError: a source cannot be read.
        """
        return {
            database.name: template.fingerprint(self._link.session, self.recipe(database))
            for database in self.settings.databases
        }

    # --- templates ---------------------------------------------------------------------------------

    def prepare(self, *, rebuild: bool = False) -> None:
        """Show the sign of life, clean up after dead runs, and have every database's template ready."""
        self._show_life()
        self._clean_up()
        for database in self.settings.databases:
            made = self.templates[database.name] = template.ensure(
                self._link.session,
                self.project,
                self.recipe(database),
                self.owner,
                rebuild=rebuild,
                probe_strategy=self.server.info.backend == "external",
                story=self._story,
                progress=self._progress,
            )
            if not made.built:
                template.touch(self._link.session, made)

    def _clean_up(self) -> None:
        try:
            for item in self.sweep():
                self._story(f"dropped {item.database.name}: {item.reason}")
            if self._tests_own_databases and not self._others_alive():
                for name in self.clones.drop_created_by_tests():
                    self._story(f"dropped {name}: a test of an earlier run created it")
        except HarnessError as error:
            # What is left over is no reason not to run: the next run tries again.
            self._story(f"what earlier runs left could not be dropped: {error}")

    @property
    def _tests_own_databases(self) -> bool:
        """Whether databases of the application's role can only be the tests': nobody else is that role."""
        if self.run == names.PERSON:
            return False
        if self.server.info.backend != "external":
            return True
        # Somebody else's server: only a role that is named after this checkout is nobody else's.
        return self.owner.name == f"{names.PREFIX}_{self.project}"

    @property
    def _may_move_to_disk(self) -> bool:
        return self.settings.storage == "auto" and self.server.info.storage == "memory"

    def _must_move_to_disk(self) -> bool:
        """Whether the data has outgrown the memory that it may take."""
        if not self._may_move_to_disk:
            return False
        needed = outgrown.need(list(self.templates.values()), os.cpu_count() or 1)
        room = outgrown.room(self.settings)
        if needed <= room:
            return False
        outgrown.remember(self.settings, self._environ, needed)
        self._story(
            f"templates and clones need about {needed >> 20} MB, and {room >> 20} MB of memory may be used: "
            f'moving to disk, and migrating once more. storage = "disk" avoids this'
        )
        return True

    def _ran_out_of_memory(self, error: HarnessError) -> bool:
        """Whether a migration failed because its data did not fit into memory, where disk may do."""
        if not self._may_move_to_disk or not outgrown.full(error, self.server):
            return False
        # How much is needed is unknown: more than there is.
        outgrown.remember(self.settings, self._environ, 2 * outgrown.room(self.settings))
        self._story(
            "the data does not fit into memory: moving to disk, and migrating once more. "
            'storage = "disk" avoids this'
        )
        return True

    def recipe(self, database: DatabaseSettings) -> Recipe:
        """How one of the databases is made."""
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
        return recipes.sources(self.settings, database)

    # --- leases ------------------------------------------------------------------------------------

    def lease(self, worker: str = "1", *, watch: bool | None = None) -> Lease:
        """Lease a fresh clone of every database for one worker.

        Args:
            worker: any text that is unique in the run, for instance ``"gw2"``.
            watch: whether resets will be asked for (see :meth:`harness.lease.Lease.watch`);
                None: where the settings say ``fresh = "reset"``.
        """
        with self._lock:
            for index, database in enumerate(self.settings.databases):
                self.clones.claim(self.templates[database.name], self._claim(worker, index))
            lease = self._lease_of(worker)
        if self.settings.fresh == "reset" if watch is None else watch:
            lease.watch()
        return lease

    def leases(self, count: int, *, first: int = 1) -> list[Lease]:
        """Leases for workers ``first`` … ``first + count - 1``; their clones are made side by side."""
        for found in self.templates.values():
            self.clones.fill(found, count, parallel=_parallel())
        self.workers = count
        # Whoever leases many hands them to other programs: those cannot ask for a reset.
        return [self.lease(str(number), watch=False) for number in range(first, first + count)]

    def fill_aside(self, count: int) -> None:
        """Have ``count`` spares of each template, made over a connection of its own: for another thread."""
        link = self._link.another()
        try:
            clones = Clones(link, self.project, self.owner, connections=self.settings.connections_per_worker)
            for found in list(self.templates.values()):
                clones.fill(found, count, parallel=_parallel())
        finally:
            link.close()

    def existing(self, worker: str) -> Lease | None:
        """The lease that this run's worker holds already (``up`` again); None where there is none."""
        lease = self._lease_of(worker)
        if lease.exists():
            return lease
        self._leases.remove(lease)
        return None

    def complete(self, worker: str) -> Lease:
        """The lease of a worker whose databases are there in part, or not at all: only the missing ones are made."""
        with self._lock:
            for index, database in enumerate(self.settings.databases):
                claim = self._claim(worker, index)
                name = names.lease(self.project, claim.run, worker, index)
                if databases.find(self._link.session, name) is None:
                    self.clones.claim(self.templates[database.name], claim)
            return self._lease_of(worker)

    def _lease_of(self, worker: str) -> Lease:
        leased = {}
        for index, database in enumerate(self.settings.databases):
            claim = self._claim(worker, index)
            name = names.lease(self.project, claim.run, worker, index)
            dsn = self._link.dsn.with_user(self.owner.name, self.owner.password).with_database(name)
            leased[database.name] = LeasedDatabase(database.name, dsn, self.templates[database.name], claim)
        lease = Lease(
            self.clones,
            leased,
            run=self.run,
            worker=worker,
            epoch=self._epoch,
            on_release=self._forget,
            drop_later=self._filler.retire if self._filler is not None else None,
            reset_timeout=self.settings.reset_timeout,
        )
        self._leases.append(lease)
        return lease

    def keep_spares(self, count: int = 1) -> None:
        """Keep that many spares ready in the background from now on, and drop what is retired there too.

        For a worker that takes a new clone for every test: without it, each waits for CREATE DATABASE.
        Call it before :meth:`lease`.
        """
        if self._filler is None:
            own = Clones(
                self._link.another(),
                self.project,
                self.owner,
                connections=self.settings.connections_per_worker,
            )
            self._filler = Filler(own, list(self.templates.values()), wanted=count)

    def _claim(self, worker: str, index: int) -> Claim:
        return Claim(self.run, worker, index, {"root": str(self.settings.root)})

    def _forget(self, lease: Lease) -> None:
        if lease in self._leases:
            self._leases.remove(lease)

    def _epoch(self) -> int:
        return self._life.epoch if self._life is not None else self._link.epoch

    # --- environment -------------------------------------------------------------------------------

    def slot(self, worker: str) -> env.Slot:
        """What env templates may say of a worker."""
        return env.Slot(worker, self.workers, self.settings.connections_per_worker)

    def variables(self, lease: Lease) -> dict[str, str]:
        """``DATABASE_URL``, ``PG*`` and the user's own variables of a lease."""
        tables = {database.name: database.env for database in self.settings.databases}
        return env.variables(lease.dsns, tables, self.slot(lease.worker))

    # --- life --------------------------------------------------------------------------------------

    def _show_life(self) -> None:
        if self.run == names.PERSON or self._life is not None:
            return
        held = [("run", self.run)]
        if self.server.info.server_id:
            held.append(("server", self.server.info.server_id))
        self._life = SignOfLife(self._link.another(), held)

    def sweep(self, *, dry_run: bool = False) -> list[reaper.Doomed]:
        """Drop what dead runs of this checkout left on this server."""
        limits = reaper.Limits(
            self.settings.keep_templates, self.settings.template_age, self.settings.keep_failed
        )
        return reaper.sweep(self._link.session, self.project, limits, dry_run=dry_run)

    def close(self) -> None:
        """Release what is still leased, and let go of the server. Twice is once. A person's databases stay."""
        if self._closed:
            return
        self._closed = True
        if self._filler is not None:
            self._filler.close()
        try:
            if self.run != names.PERSON and not self._guest:
                self._release_all()
        finally:
            if self._life is not None:
                self._life.close()
            self._link.close()
            self.server.close()

    def abandon(self) -> None:
        """Let go of a server that is about to be ended: nothing in it needs to be released."""
        self._closed = True
        for lease in self._leases:
            lease.disconnect()
        if self._life is not None:
            self._life.close()
        self._link.close()
        self.server.close()

    def _release_all(self) -> None:
        for lease in list(self._leases):
            lease.release()
        if self._tests_own_databases and not self._others_alive():
            # Databases that tests created carry no run's name: only the last run of a server may drop them.
            self.clones.drop_created_by_tests()

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
            parsed = found.parsed
            if parsed is None or parsed.kind is not names.Kind.LEASE or parsed.owner != self.run:
                continue
            if wanted is None or found.name in wanted:
                self.clones.release(found.name)
                dropped.append(found.name)
        return dropped

    def _others_alive(self) -> bool:
        everything = databases.list_ours(self._link.session, self.project)
        runs = {d.parsed.owner for d in everything if d.parsed and d.parsed.kind is names.Kind.LEASE}
        return bool(reaper.alive_runs(self._link.session, sorted(runs - {self.run})))

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except HarnessError:
            # The block's own error matters more than a server that went away under it.
            if error is None:
                raise

    def __repr__(self) -> str:
        return (
            f"<Harness {self.project} run {self.run}: {len(self.templates)} templates, {len(self._leases)} leases, "
            f"{self.server.info.description}>"
        )

    # --- the application's role --------------------------------------------------------------------

    def expected_owner(self) -> tuple[Owner, bool]:
        """The role that the application logs in as, without touching it; and whether we may make it."""
        if self._owner is not None:
            return self._owner, False
        session = self._link.session
        # Servers that we start are ours: no need to ask.
        external = self.server.info.backend == "external"
        if external and not session.value(
            "select rolsuper or rolcreaterole from pg_roles where rolname = current_user"
        ):
            return Owner(session.dsn.user, session.dsn.password), False
        name = self.settings.role
        if external and self.settings.origin("role") == "default":
            name = f"{names.PREFIX}_{self.project}"
        return Owner(name, roles.derived_password(session.dsn.password, name)), True

    def _find_owner(self) -> Owner:
        """The application's role: made or put right here, unless the server forbids it."""
        session = self._link.session
        owner, may = self.expected_owner()
        if not may:
            self._story(f"role {session.dsn.user} may not create roles: the application uses it as well")
            return owner
        with locks.exclusive(session, "roles", "", timeout=60, waiting_for="the application's role"):
            roles.ensure(
                session,
                owner.name,
                password=owner.password,
                attributes=self.settings.role_attributes,
                superuser=self.settings.superuser,
                must_be_ours=self.server.info.backend == "external",
            )
        attributes = tuple(self.settings.role_attributes)
        return Owner(owner.name, owner.password, attributes, self.settings.superuser, managed=True)


def _parallel() -> int:
    return min(4, os.cpu_count() or 1)


def run_all(acts: Sequence[Callable[[], object]]) -> None:
    """Run several acts side by side; the first error is raised after all have ended."""
    with ThreadPoolExecutor(max(1, len(acts))) as threads:
        for future in [threads.submit(act) for act in acts]:
            future.result()


def open_run(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    purpose: str = "run",
    run: str | None = None,
    rebuild: bool = False,
    workers: int = 1,
    story: Story = _silent,
    progress: Progress = lambda done, total, what: None,
) -> Harness | Fleet:
    """What the settings' ``isolation`` asks for: databases in one server, or a server for each worker.

    Both have ``lease``, ``leases``, ``variables``, ``slot``, ``sweep``, ``close``, ``run``, ``settings`` and
    ``templates``. A person's (``purpose="up"``) databases always share one server.

    Args:
        workers: how many there will be, where that is known; memory for servers is reckoned for all.

    Raises:
        As :meth:`Harness.open`.
    """
    if settings.isolation != "server" or purpose == "up":
        return Harness.open_with(
            settings, environ, purpose=purpose, run=run, rebuild=rebuild, story=story, progress=progress
        )
    from harness.fleet import Fleet

    return Fleet.open_with(
        settings, environ, run=run, rebuild=rebuild, workers=workers, story=story, progress=progress
    )


def baked_base(settings: Settings, environ: Mapping[str, str], backend: Backend, story: Story) -> str | None:
    """What a new server can start from, migrated already; a hint only: without it, it is migrated."""
    from harness import fleet

    try:
        found = fleet.oven_of(settings, environ, backend).look()
    except HarnessError:
        # Whatever is wrong is said where it matters: at the start, or by the migrations.
        return None
    if found is not None:
        story(f"starting from a baked server ({found.facts.get('databases', found.key[:8])})")
    return found.ref if found is not None else None
