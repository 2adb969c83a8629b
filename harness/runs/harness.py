"""The whole, wired: settings → server → templates → leases → environment → release."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count as counting
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from harness.config import environment as env
from harness.config.project import Project
from harness.config.settings import DatabaseSettings, Settings, SourceSpec
from harness.databases import freshness
from harness.databases.clones import Claim, Clones
from harness.databases.lease import Lease, LeasedDatabase
from harness.databases.spec import Owner, Recipe
from harness.databases.template import Template
from harness.errors import ConfigError, HarnessError
from harness.migrations.port import Progress, unseen
from harness.postgres import databases, names
from harness.postgres.admin import Link
from harness.runs.placement import How, Placement, PlacementKind, SharedServer, run_all
from harness.runs.session import ServerSession

if TYPE_CHECKING:
    from harness.databases.sweep import Doomed
    from harness.runs.bake import Baked
    from harness.runs.per_worker import ServerPerWorker
    from harness.runs.runfile import RunFile
    from harness.servers.handle import Server
    from harness.servers.port import Backend, ServerInfo

BeforeHandingOver = Callable[[Template, str, str], None]


class Harness:
    """One run: the leases of its workers, wherever their databases are.

    Made by :meth:`open`; a context manager. Leases that are still there at :meth:`close` are released.

    Attributes:
        run: sixteen hex digits that name this run; its sign of life is held until :meth:`close`.
        project: ten hex digits of the checkout.
        workers: how many there will be, where that is known.
    """

    def __init__(self, placement: Placement, *, run: str, workers: int = 1) -> None:
        self.run = run
        self.project = placement.project.id
        self.workers = workers
        self._placement = placement
        self._lock = threading.RLock()
        self._reserved: set[str] = set()
        self._closed = False

    # --- the beginning -----------------------------------------------------------------------------

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
            purpose, run, rebuild, workers, progress: see :class:`harness.runs.placement.How`.
            overrides: settings, as in the file, for instance ``migrations=["sql:db/migrations"]``.

        Raises:
            ConfigError, BackendUnavailable, ServerStartError, MigrationError, TemplateBusy, PoolTimeout.
        """
        from harness.config.load import load
        from harness.migrations import registry as sources
        from harness.servers import registry as backends

        environment = os.environ if environ is None else environ
        start = Path(root) if root is not None else Path.cwd()
        settings = load(environment, start=start, overrides={**overrides, **cls._stated()})
        sources.check_settings(settings)
        backends.check_settings(settings)
        freshness.check_settings(settings)
        return cls._open(
            Project.of(settings, environment),
            purpose=purpose,
            run=run,
            rebuild=rebuild,
            workers=workers,
            progress=progress,
        )

    @classmethod
    def _stated(cls) -> Mapping[str, Any]:
        """Settings that this kind of run implies."""
        return {}

    @classmethod
    def open_with(cls, settings: Settings, environ: Mapping[str, str], **how: Unpack[How]) -> Self:
        """As :meth:`open`, with settings that were read already."""
        return cls._open(Project.of(settings, environ), **how)

    @classmethod
    def _open(cls, project: Project, **how: Unpack[How]) -> Self:
        """As :meth:`open`, of a project that is known already."""
        settings = project.settings
        if chosen(settings, how.get("purpose", "run")) is not SharedServer:
            raise ConfigError(
                'isolation = "server" gives each worker a server: open it with harness.Fleet.open(), which has '
                "the same methods",
                key="isolation",
                origin=settings.origin("isolation"),
                value=settings.isolation,
            )
        run = _digits(how)
        placement = SharedServer.open(project, run, **how)
        return cls(placement, run=run, workers=how.get("workers", 1))

    @classmethod
    def on(
        cls,
        project: Project,
        server: Server,
        *,
        run: str,
        progress: Progress = unseen,
    ) -> Self:
        """A run on a server that was found already. Nothing is prepared there, and no sign of life is shown.

        Args:
            run: sixteen hex digits; with :data:`harness.postgres.names.PERSON`, closing it releases nothing.
        """
        session = ServerSession(project, server, run=run, progress=progress)
        return cls(SharedServer(session), run=run)

    @classmethod
    def attach(
        cls,
        project: Project,
        *,
        run: str,
        info: ServerInfo,
        owner: Owner,
        templates: Mapping[str, Template],
        workers: int = 1,
    ) -> Self:
        """Join a run that another process has opened: one log-in, nothing is looked for or computed.

        What a guest leases belongs to the run: :meth:`close` leaves it to the host's :meth:`release_run`.

        Args:
            run, info, owner, templates: as the host has them (``harness.runs.runfile``).
            workers: how many workers the run has.

        Raises:
            ServerLost: the server is gone, or another one answers at its address.
        """
        placement = SharedServer.join(
            project, run=run, info=info, owner=owner, templates=templates, workers=workers
        )
        return cls(placement, run=run, workers=workers)

    @classmethod
    def join(cls, run: RunFile, project: Project, *, worker: str) -> Self:
        """Join the run of a controller as one of its workers, on the server that they share or on an own one.

        Args:
            project: with the run's settings.

        Raises:
            ServerLost: as :meth:`attach`. ServerStartError, BackendError: as :meth:`lease`.
        """
        if run.server is not None and run.owner is not None:
            return cls.attach(
                project,
                run=run.run,
                info=run.server,
                owner=run.owner,
                templates=run.templates,
                workers=run.workers,
            )
        from harness.runs.per_worker import ServerPerWorker

        placement = ServerPerWorker.open(project, run.run, worker=worker)
        return cls(placement, run=run.run, workers=run.workers)

    # --- what there is -----------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """What it was opened with, and what was found out since."""
        return self._placement.project.settings

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment that it was opened with, for programs that are started on its behalf."""
        return self._placement.project.environ

    @property
    def shared(self) -> ServerSession | None:
        """The server that all workers share; None where each has its own."""
        return self._placement.shared

    @property
    def session(self) -> ServerSession:
        """The one server that this process works on.

        Raises:
            LeaseError: each worker has a server of its own, and this process has none, or several.
        """
        return self._placement.one()

    @property
    def server(self) -> Server:
        """The server that this process works on; see :attr:`session`."""
        return self.session.server

    @property
    def link(self) -> Link:
        """The admin's way to the maintenance database of the server."""
        return self.session.link

    @property
    def owner(self) -> Owner:
        """The role that the application logs in as: made or put right here, when it is first needed."""
        return self.session.owner

    def expected_owner(self) -> tuple[Owner, bool]:
        """The role that the application logs in as, without touching it; and whether we may make it."""
        return self.session.expected_owner()

    @property
    def clones(self) -> Clones:
        """What makes, claims and retires clones on this server."""
        return self.session.clones

    @property
    def templates(self) -> Mapping[str, Template]:
        """Database name → template, ready to be cloned; empty before there is a server."""
        return self._placement.templates

    @property
    def description(self) -> str:
        """Where the databases are, for people."""
        return self._placement.description

    def made(self, database: str) -> str:
        """What the migrations of a database came from, for people: ``"template found"``, ``"base built in 3.1 s"``."""
        return self._placement.made(database)

    def recipe(self, database: DatabaseSettings) -> Recipe:
        """How one of the databases is made."""
        return self.session.recipe(database)

    def sources(self, database: DatabaseSettings) -> tuple[SourceSpec, ...]:
        """The configured sources, or those that were found in the project where none is configured."""
        return self.session.sources(database)

    def fingerprints(self) -> dict[str, str]:
        """Database name → fingerprint of its migrations as they are now. Builds and changes nothing.

        Raises:
            MigrationError: a source cannot be read.
        """
        return self._placement.fingerprints()

    def prepare(self, *, rebuild: bool = False) -> None:
        """Show the sign of life, clean up after dead runs, and have every database's template ready."""
        self.session.prepare(rebuild=rebuild)

    # --- leases ------------------------------------------------------------------------------------

    def lease(self, worker: str | None = None, *, watch: bool | None = None) -> Lease:
        """Lease a fresh clone of every database for one worker, on its server.

        Args:
            worker: any text that is unique in the run, for instance ``"gw2"``; the same once more is a fresh
                clone under the same name. None: the lowest number that this object has not leased.
            watch: whether resets will be asked for (see :meth:`harness.databases.lease.Lease.watch`);
                None: where the strategy that ``fresh`` names does so.

        Raises:
            ServerStartError, BackendError: the worker's own server cannot be started, or memory does not suffice.
        """
        with self._named(worker) as name:
            return self._lease(self._placement.session(name), name, watch)

    def leases(self, count: int, *, first: int = 1, watch: bool | None = False) -> list[Lease]:
        """Leases for workers ``first`` … ``first + count - 1``; clones and servers are made side by side.

        Args:
            watch: as for :meth:`lease`. Whoever leases many hands them to other programs: those cannot ask for
                a reset.
        """
        workers = [str(number) for number in range(first, first + count)]
        places = list(zip(workers, self._placement.sessions(workers), strict=True))
        self.workers = max(count, self.workers)
        found: dict[str, Lease] = {}

        def on(session: ServerSession) -> None:
            for worker, its in places:
                if its is session:
                    found[worker] = self._lease(session, worker, watch)

        try:
            run_all([partial(on, session) for session in dict.fromkeys(its for _, its in places)])
        except BaseException:
            # All or none: a server without a lease would stay for nobody.
            self._placement.give_up(workers)
            raise
        return [found[worker] for worker in workers]

    def existing(self, worker: str) -> Lease | None:
        """The lease that this run's worker holds already (``up`` again); None where there is none."""
        session = self._placement.session(worker)
        lease = self._lease_of(session, worker)
        if lease.exists():
            return lease
        session.leases.remove(lease)
        return None

    def complete(self, worker: str, *, before: BeforeHandingOver | None = None) -> Lease:
        """The lease of a worker whose databases are there in part, or not at all: only the missing ones are made.

        Args:
            before: called for each of those, with its template, its name, and what it is called until it has that.
        """
        session = self._placement.session(worker)
        with session.lock:
            for index, database in enumerate(self.settings.databases):
                claim = self._claim(worker, index)
                name = names.lease(self.project, claim.run, worker, index)
                if databases.find(session.link.session, name) is None:
                    made = session.templates[database.name]
                    told = partial(before, made, name) if before is not None else None
                    session.clones.claim(made, claim, before=told)
            return self._lease_of(session, worker)

    @contextmanager
    def _named(self, worker: str | None) -> Iterator[str]:
        """The worker's name; the lowest free number stays taken until its lease is there."""
        if worker is not None:
            yield worker
            return
        with self._lock:
            taken = {lease.worker for session in self._sessions() for lease in session.leases}
            number = _first_free({*taken, *self._placement.members, *self._reserved})
            self._reserved.add(number)
        try:
            yield number
        finally:
            self._reserved.discard(number)

    def _sessions(self) -> list[ServerSession]:
        shared = self._placement.shared
        return [shared] if shared is not None else list(self._placement.members.values())

    def _lease(self, session: ServerSession, worker: str, watch: bool | None) -> Lease:
        with session.lock:
            for index, database in enumerate(self.settings.databases):
                session.clones.claim(session.templates[database.name], self._claim(worker, index))
            lease = self._lease_of(session, worker)
        if freshness.of(self.settings).watches if watch is None else watch:
            lease.watch()
        return lease

    def _lease_of(self, session: ServerSession, worker: str) -> Lease:
        leased = {}
        for index, database in enumerate(self.settings.databases):
            claim = self._claim(worker, index)
            name = names.lease(self.project, claim.run, worker, index)
            dsn = session.link.dsn.with_user(session.owner.name, session.owner.password).with_database(name)
            leased[database.name] = LeasedDatabase(
                database.name, dsn, session.templates[database.name], claim
            )
        lease = Lease(
            session.clones,
            leased,
            run=self.run,
            worker=worker,
            epoch=session.epoch,
            on_release=partial(self._forget, session),
            filler=session.filling if self.run != names.PERSON else None,
            reset_timeout=self.settings.reset_timeout,
        )
        session.leases.append(lease)
        return lease

    def _claim(self, worker: str, index: int) -> Claim:
        return Claim(self.run, worker, index, str(self.settings.root))

    def _forget(self, session: ServerSession, lease: Lease) -> None:
        if lease in session.leases:
            session.leases.remove(lease)
        if not session.leases:
            self._placement.unused(session)

    # --- what workers share ------------------------------------------------------------------------

    def check_room(self, count: int) -> None:
        """Whether memory suffices for ``count`` workers more; told where each has a server.

        Raises:
            BackendError: it does not.
        """
        self._placement.check_room(count)

    def limit_connections(self, each: int) -> None:
        """Every worker of this run may open ``each`` connections to each of its databases, from here on."""
        self.session.limit_connections(each)

    def fill_aside(self, count: int) -> None:
        """Have ``count`` spares of each template, made over a connection of its own: for another thread.

        And what the first reset of every worker would wait for, where the tests are reset. Where each worker has a
        server, spares here would be nobody's, and none are made.
        """
        if self.shared is not None:
            self.shared.fill_aside(count)

    def keep_spares(self, count: int = 1) -> None:
        """Keep that many spares ready in the background from now on, and drop what is retired there too.

        For a worker that takes a new clone for every test: without it, each waits for CREATE DATABASE.
        Call it before :meth:`lease`. Where each worker has a server, none are kept: they take its memory.
        """
        if self.shared is not None:
            self.shared.keep_spares(count)

    # --- environment -------------------------------------------------------------------------------

    def slot(self, worker: str) -> env.Slot:
        """What env templates may say of a worker."""
        return env.Slot(worker, self.workers, self.settings.connections_per_worker)

    def variables(self, lease: Lease) -> dict[str, str]:
        """``DATABASE_URL``, ``PG*`` and the user's own variables of a lease."""
        tables = {database.name: database.env for database in self.settings.databases}
        return env.variables(lease.dsns, tables, self.slot(lease.worker))

    # --- the end -----------------------------------------------------------------------------------

    def sweep(self, *, dry_run: bool = False) -> list[Doomed]:
        """Remove what dead runs of this checkout have left."""
        return self._placement.sweep(dry_run=dry_run)

    def release_run(self, workers: Sequence[str] | None = None) -> list[str]:
        """Remove what workers of this run have leased, in whatever process; return what went.

        In a server that they share, these are databases; else servers of other processes' workers.

        Args:
            workers: only what these workers have (one that has crashed); None: of all, but for servers, which
                end with their worker.
        """
        return self._placement.crashed(workers)

    def close(self) -> None:
        """Release what is still leased, and let go of the server. Twice is once. A person's databases stay."""
        with self._lock:
            already, self._closed = self._closed, True
        if not already:
            self._placement.close()

    def abandon(self) -> None:
        """Let go of a server that is about to be ended: nothing in it needs to be released."""
        self._closed = True
        self._placement.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except HarnessError:
            # The block's own error matters more than a server that went away under it.
            if error is None:
                raise

    def __repr__(self) -> str:
        leases = sum(len(session.leases) for session in self._sessions())
        return (
            f"<{type(self).__name__} {self.project} run {self.run}: {self._placement!r}, "
            f"{len(self.templates)} templates, {leases} leases>"
        )


class Fleet(Harness):
    """A :class:`Harness` whose workers have a server each, whatever ``isolation`` says.

    Attributes:
        backend: what starts the servers.
        baked: what the servers start from.
    """

    def __init__(self, placement: ServerPerWorker, *, run: str, workers: int = 1) -> None:
        super().__init__(placement, run=run, workers=workers)
        self.backend: Backend = placement.backend
        self.baked: Baked = placement.baked
        self._servers = placement

    @classmethod
    def _stated(cls) -> Mapping[str, Any]:
        return {"isolation": "server"}

    @classmethod
    def _open(cls, project: Project, **how: Unpack[How]) -> Self:
        """Find or bake the base; no server is started before a worker asks for one.

        Raises:
            ConfigError, BackendUnavailable, ServerStartError, MigrationError, PoolTimeout.
        """
        from harness.runs.per_worker import ServerPerWorker

        run = names.run_id(how.get("run"))
        placement = ServerPerWorker.open(project, run, **how)
        return cls(placement, run=run, workers=how.get("workers", 1))

    @property
    def members(self) -> Mapping[str, ServerSession]:
        """Worker → its server, of those that this process has started."""
        return self._servers.members

    def leases(self, count: int, *, first: int = 1, watch: bool | None = None) -> list[Lease]:
        """As :meth:`Harness.leases`; watched where the strategy that ``fresh`` names does so."""
        return super().leases(count, first=first, watch=watch)

    def end(self, worker: str) -> None:
        """End one worker's server."""
        self._servers.give_up([worker])


def open_run(project: Project, **how: Unpack[How]) -> Harness:
    """What the settings' ``isolation`` asks for: databases in one server, or a server for each worker.

    A person's (``purpose="up"``) databases always share one server.

    Raises:
        As :meth:`Harness.open`.
    """
    run = _digits(how)
    placement = chosen(project.settings, how.get("purpose", "run")).open(project, run, **how)
    return Harness(placement, run=run, workers=how.get("workers", 1))


def chosen(settings: Settings, purpose: str = "run") -> PlacementKind:
    """Where the settings' ``isolation`` wants the workers' databases; a person's always share one server."""
    if settings.isolation != "server" or purpose == "up":
        return SharedServer
    from harness.runs.per_worker import ServerPerWorker

    return ServerPerWorker


def _digits(how: How) -> str:
    return names.PERSON if how.get("purpose") == "up" else names.run_id(how.get("run"))


def _first_free(taken: Iterable[str]) -> str:
    """The lowest number that names no worker yet."""
    return next(str(number) for number in counting(1) if str(number) not in taken)
