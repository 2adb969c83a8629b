"""The whole, wired: settings → server → templates → leases → environment → release."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count as counting
from typing import TYPE_CHECKING, Any, Self, Unpack

from harness.config import environment as env
from harness.config.project import Project
from harness.config.settings import Settings
from harness.databases.clones import Clones, run_all
from harness.databases.lease import Lease
from harness.databases.spec import Owner
from harness.databases.sweep import Leftover
from harness.databases.template import Template
from harness.errors import HarnessError, LeaseError
from harness.migrations.port import Progress, unseen
from harness.postgres.admin import Link
from harness.postgres.databases import Database
from harness.runs.placement import Placement, SharedServer, had
from harness.runs.session import ServerSession
from harness.servers.handle import join

if TYPE_CHECKING:
    from harness.runs.opening import Purpose, RunOptions
    from harness.runs.refused import Refused
    from harness.runs.runfile import RunFile
    from harness.servers.handle import Server


class Run:
    """One run: the leases of its workers, wherever their databases are. What a user holds is a :class:`harness.Harness` of it.

    Made by :meth:`open`; a context manager. Leases that are still there at :meth:`close` are released.

    Attributes:
        run: sixteen hex digits that name this run; its sign of life is held until :meth:`close`.
        project: ten hex digits of the checkout.
        workers: how many there will be, where that is known.
        placement: where the workers' databases are.
    """

    def __init__(self, placement: Placement, *, run: str, workers: int = 1) -> None:
        self.run = run
        self.project = placement.project.id
        self.workers = workers
        self.placement = placement
        self._lock = threading.RLock()
        self._reserved: set[str] = set()
        self._closed = False

    # --- the beginning -----------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        *,
        root: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str],
        purpose: Purpose = "run",
        run: str | None = None,
        rebuild: bool = False,
        workers: int = 1,
        progress: Progress = unseen,
        **overrides: Any,
    ) -> Self:
        """Have everything ready for leases: servers or what they start from, and migrated templates.

        Args:
            root: where to look for the project; None: the working directory.
            purpose, run, rebuild, workers, progress: see :class:`harness.runs.opening.RunOptions`.
            overrides: settings, as in the file, for instance ``migrations=["sql:db/migrations"]``.

        Raises:
            ConfigError, BackendUnavailable, ServerStartError, MigrationError, TemplateBusy, PoolTimeout.
        """
        # What only the process needs that opens the run: each worker joins it.
        from harness.runs import opening

        return cls.open_with(
            opening.settings_of(root, environ, overrides),
            environ,
            purpose=purpose,
            run=run,
            rebuild=rebuild,
            workers=workers,
            progress=progress,
        )

    @classmethod
    def open_with(cls, settings: Settings, environ: Mapping[str, str], **options: Unpack[RunOptions]) -> Self:
        """As :meth:`open`, with settings that were read already."""
        return cls.open_project(Project.of(settings, environ), **options)

    @classmethod
    def open_project(cls, project: Project, **options: Unpack[RunOptions]) -> Self:
        """As :meth:`open`, of a project that is known already."""
        from harness.runs import opening  # as in `open`

        run, placement = opening.placed(project, options)
        return cls(placement, run=run, workers=options.get("workers", 1))

    @classmethod
    def join(cls, run: RunFile, project: Project, *, worker: str) -> Self:
        """Join the run of a controller as one of its workers, on the server that they share or on an own one.

        What is leased on a shared server belongs to the run: :meth:`close` leaves it to the controller's
        :meth:`release_run`. One log-in; nothing is looked for or computed.

        Args:
            project: with the run's settings.

        Raises:
            ServerLost: the server is gone, or another one answers at its address.
            ServerStartError, BackendError: as :meth:`lease`.
        """
        placement: Placement
        if run.hosts:
            # Here: runs without hosts have none.
            from harness.runs.joining import on_a_host

            placement = on_a_host(run, project, worker)
        elif run.server is not None and run.owner is not None:
            session = ServerSession(
                project,
                join(project, run.server),
                run=run.run,
                workers=run.workers,
                owner=run.owner,
                templates=run.templates,
            )
            placement = SharedServer(session, guest=True)
        else:
            # Workers that share a server start none.
            from harness.runs.per_worker import ServerPerWorker

            placement = ServerPerWorker(project, run=run.run, worker=worker, places=run.places)
        return cls(placement, run=run.run, workers=run.workers)

    # --- what there is -----------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """What it was opened with, and what was found out since."""
        return self.placement.project.settings

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment that it was opened with, for programs that are started on its behalf."""
        return self.placement.project.environ

    @property
    def shared(self) -> ServerSession | None:
        """The server that all workers share; None where each has its own."""
        return self.placement.shared

    @property
    def session(self) -> ServerSession:
        """The one server that this process works on.

        Raises:
            LeaseError: each worker has a server of its own, and this process has none, or several.
        """
        members = list(self.placement.members.values())
        if len(members) != 1:
            raise LeaseError(
                f"each worker has a server of its own, and this process has {len(members)} of them: lease one first, "
                "or ask one of `members`"
            )
        return members[0]

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

    @property
    def clones(self) -> Clones:
        """What makes, claims and retires clones on this server."""
        return self.session.clones

    @property
    def templates(self) -> Mapping[str, Template]:
        """Database name → template, ready to be cloned; empty before there is a server."""
        for session in list(self.placement.members.values()):
            return session.templates
        return {}

    @property
    def description(self) -> str:
        """Where the databases are, for people."""
        return self.placement.description

    def made(self, database: str) -> str:
        """What the migrations of a database came from, for people: ``"template found"``, ``"base built in 3.1 s"``."""
        found = self.templates.get(database)
        return had("template", found.built, found.seconds) if found else self.placement.unmade

    @property
    def reset_told(self) -> str:
        """How databases are reset, for people: ``"rewind"``, ``"rows (why)"``; empty where it is not known yet.

        Raises:
            BackendUnavailable: the settings ask for a way that cannot be had. ServerLost: the server is gone.
        """
        return self.placement.reset

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
            return self.placement.session(name).lease(name, watch=watch)

    def leases(
        self, count: int, *, first: int = 1, watch: bool | None = None, apart: bool = False
    ) -> list[Lease]:
        """Leases for workers ``first`` … ``first + count - 1``; clones and servers are made side by side.

        Args:
            watch: as for :meth:`lease`.
            apart: each is reset over a connection of its own, so that they can be reset side by side, in threads.
        """
        workers = [str(number) for number in range(first, first + count)]
        places = list(zip(workers, self.placement.sessions(workers), strict=True))
        self.workers = max(count, self.workers)
        # On a server of its own, a lease has its connection to itself anyway.
        shared = self.placement.together
        found: dict[str, Lease] = {}

        def on(session: ServerSession) -> None:
            for worker, its in places:
                if its is session:
                    found[worker] = session.lease(worker, watch=watch, apart=apart and shared)

        try:
            run_all([partial(on, session) for session in dict.fromkeys(its for _, its in places)])
        except BaseException:
            # All or none: a server without a lease would stay for nobody.
            self.placement.give_up(workers)
            raise
        return [found[worker] for worker in workers]

    @contextmanager
    def _named(self, worker: str | None) -> Iterator[str]:
        """The worker's name; the lowest free number stays taken until its lease is there."""
        if worker is not None:
            yield worker
            return
        with self._lock:
            members = dict(self.placement.members)
            taken = {lease.worker for session in members.values() for lease in session.leases}
            taken |= {*members, *self._reserved}
            number = next(str(number) for number in counting(1) if str(number) not in taken)
            self._reserved.add(number)
        try:
            yield number
        finally:
            self._reserved.discard(number)

    # --- what workers share ------------------------------------------------------------------------

    def check_room(self, count: int) -> None:
        """Whether memory suffices for ``count`` workers more; told where each has a server.

        Raises:
            BackendError: it does not.
        """
        self.placement.check_room(count)

    def place(self, workers: Sequence[str]) -> Mapping[str, str]:
        """Worker → word of its Docker host, decided for all of them at once; empty where there are no hosts.

        Raises:
            BackendError: there is no room for them, or no host can be used.
        """
        return self.placement.place(workers)

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

    def refused(self) -> list[Refused]:
        """Connections of the run's workers that were refused, on the servers that this process has.

        Raises:
            ServerLost: one of them has gone.
        """
        # Here: for who ends a run.
        from harness.runs.refused import refused

        return [found for session in list(self.placement.members.values()) for found in refused(session)]

    # --- environment -------------------------------------------------------------------------------

    def slot(self, worker: str) -> env.Slot:
        """What env templates may say of a worker."""
        return env.Slot(worker, self.workers, self.settings.connections_per_worker)

    def variables(self, lease: Lease) -> dict[str, str]:
        """``DATABASE_URL``, ``PG*`` and the user's own variables of a lease."""
        tables = {database.name: database.env for database in self.settings.databases}
        return env.variables(lease.addresses, tables, self.slot(lease.worker))

    # --- the end -----------------------------------------------------------------------------------

    def sweep(self, *, dry_run: bool = False) -> list[Leftover[Database]]:
        """Remove what dead runs of this checkout have left."""
        return self.placement.sweep(dry_run=dry_run)

    def release_run(self, workers: Sequence[str] | None = None) -> list[str]:
        """Remove what workers of this run have leased, in whatever process; return what went.

        In a server that they share, these are databases; else servers of other processes' workers.

        Args:
            workers: only what these workers have (one that has crashed); None: of all, but for servers, which
                end with their worker.
        """
        return self.placement.crashed(workers)

    def close(self) -> None:
        """Release what is still leased, and let go of the server. Twice is once. A person's databases stay."""
        with self._lock:
            already, self._closed = self._closed, True
        if not already:
            self.placement.close()

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
        leases = sum(len(session.leases) for session in self.placement.members.values())
        return (
            f"<{type(self).__name__} {self.project} run {self.run}: {self.placement!r}, "
            f"{len(self.templates)} templates, {leases} leases>"
        )
