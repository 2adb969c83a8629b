"""A whole server for each worker of a run (``isolation = "server"``).

Every server starts from one baked snapshot in which the templates are there already, and is the run's own: it
ends with its last lease, with the run, or by its dead-man's switch soon after the run was killed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from harness.config.project import Project
from harness.config.settings import DEFAULT_DATABASE
from harness.databases import background, template
from harness.databases.clones import Claim, run_all
from harness.databases.sweep import Leftover
from harness.errors import BackendError, HarnessError, LeaseClosed
from harness.migrations.port import Progress, unseen
from harness.postgres import names
from harness.postgres.databases import Database
from harness.postgres.session import literal
from harness.runs.bake import Baker
from harness.runs.placement import had
from harness.runs.session import ServerSession
from harness.servers import acquire, inventory, memory, preload, registry

if TYPE_CHECKING:
    from harness.runs.runfile import Joined

logger = logging.getLogger("pg_harness.runs")

TTL = 60.0
"""Seconds at most after which a worker's server ends itself when its run was killed."""

_EXTRA_CONNECTIONS = 30
"""What a private server allows beyond its one worker's budget: the harness's own and PostgreSQL's reserve."""


class ServerPerWorker:
    """The servers of one run, one for each worker.

    Attributes:
        project: what the run was opened with.
        members: worker → its server, of those that this process has started.
        backend: what starts them.
        baked: what they start from.
    """

    shared = None
    together = False

    def __init__(
        self,
        project: Project,
        *,
        run: str,
        rebuild: bool = False,
        workers: int = 1,
        worker: str = "",
        places: Mapping[str, str] | None = None,
        progress: Progress = unseen,
    ) -> None:
        """Find or bake the snapshot; no server is started before a worker asks for one.

        Args:
            run: sixteen hex digits; another process may have opened it.
            rebuild: bake anew.
            workers: how many of them will have servers that this process starts.
            worker: whose process this is: all that is leased here is on its server. Empty: of none.
            places: worker → Docker host, as the process that knows all workers has planned it.

        Raises:
            ConfigError, BackendUnavailable, ServerStartError, MigrationError, PoolTimeout.
        """
        self.backend, self._baker, self.baked = Baker.with_backend(
            project, rebuild=rebuild, progress=progress
        )
        # Named from here on: each worker that joins would ask the same registry for the same image once more.
        named = registry.wanted(project.settings) != registry.AUTO
        self.project = project if named else project.having(backend=self.backend.name)
        self.members: dict[str, ServerSession] = {}
        self._run = run
        self._workers = workers
        self._worker = worker
        self._places = dict(places or {})
        self._progress = progress
        self._reckoned: memory.Room | None = None
        self._lock = threading.RLock()
        self._starting: dict[str, threading.RLock] = {}
        self._closed = False

    @property
    def description(self) -> str:
        """For people."""
        return f"{self.backend.name}, a server for each worker"

    @property
    def unmade(self) -> str:
        """What they all start from."""
        if self.baked.fetched:
            return f"base pulled in {self.baked.seconds:.1f} s"
        return had("base", self.baked.built, self.baked.seconds)

    @property
    def reset(self) -> str:
        """As was found out when what they all start from was baked."""
        return self.baked.snapshot.facts.get("reset", "")

    # --- places ------------------------------------------------------------------------------------

    def place(self, workers: Sequence[str]) -> Mapping[str, str]:
        """Plan where these workers' servers go, and bring there what they start from."""
        room = self._room()
        need = room.each(max(self._workers, len(workers)))
        places = self.backend.places(workers, need=need, placed=self._places)
        if places:
            self.backend.spread(self.baked.snapshot, [*dict.fromkeys(places.values())])
            # Whoever cannot have it is left out by now, and its workers go to the others.
            places = self.backend.places(workers, need=need, placed=places)
            hosts = tuple(host.word for host in self.backend.hosts() if host.ok)
            self.project = self.project.having(hosts=hosts)
        with self._lock:
            self._places |= places
            return dict(self._places)

    def joined(self) -> Mapping[str, Joined]:
        """Nobody joins another's server."""
        return {}

    # --- servers -----------------------------------------------------------------------------------

    def session(self, worker: str) -> ServerSession:
        """The worker's server, started where it has none."""
        worker = self._worker or worker
        with self._start_of(worker):
            if worker not in self.members:
                self.check_room(1)
            return self._start(worker)

    def _start_of(self, worker: str) -> threading.RLock:
        """Held while that worker's server is started: else two threads would start two, and one be nobody's."""
        with self._lock:
            return self._starting.setdefault(worker, threading.RLock())

    def sessions(self, workers: Sequence[str]) -> list[ServerSession]:
        """The servers of several workers, started side by side; this worker's, with a spare for each, where it is one."""
        if self._worker:
            mine = self.session(self._worker)
            mine.fill(len(workers))
            return [mine] * len(workers)
        self.check_room(len(workers))
        self._workers = max(len(workers), self._workers)
        self.place(workers)
        try:
            run_all([partial(self._start, worker) for worker in workers if worker not in self.members])
        except BaseException:
            self.give_up(workers)
            raise
        return [self.members[worker] for worker in workers]

    def _start(self, worker: str) -> ServerSession:
        """Its server: the one that it has, or a new one."""
        with self._start_of(worker):
            if (found := self.members.get(worker)) is not None:
                return found
            session = self._started(worker)
            with self._lock:
                if not self._closed:
                    self.members[worker] = session
                    return session
        self._stop([session])
        raise LeaseClosed("the run was closed while a server was started")

    def _started(self, worker: str) -> ServerSession:
        found = acquire.private(
            self._project_of_one(worker),
            self.backend,
            purpose=purpose_of(self._run, worker),
            ttl=min(TTL, self.project.settings.ttl),
            base=self.baked.snapshot.ref,
            memory=self._room().tmpfs(self._workers),
            host=self._places.get(worker, ""),
        )
        session = ServerSession(
            self.project,
            found,
            run=self._run,
            progress=self._progress,
            unused=self._end_unused,
        )
        try:
            session.prepare(clean_up=False)
            self._move_jobs(session, worker)
        except BaseException:
            self._stop([session])
            raise
        if any(found.built for found in session.templates.values()):
            # Its name or label promised what it does not hold: right all the same, but slow every time.
            logger.info("bake: the base %s did not hold its templates: removed", self.baked.snapshot.key[:8])
            self._baker.store.refuse(self.baked.snapshot, "it did not hold its templates")
        return session

    def _scheduled(self, worker: str) -> str:
        """The database of a worker that the scheduler of its server serves, by the name that it will have."""
        return Claim(self._run, worker).name(self.project.id)

    def _move_jobs(self, session: ServerSession, worker: str) -> None:
        """Jobs that the migrations have scheduled are noted for the database that they were made in, which was the template."""
        found = session.templates.get(DEFAULT_DATABASE)
        if preload.scheduling(self.project.settings) and found is not None:
            name = self._scheduled(worker)
            template.adapt(session.link.session, found, lambda inside: background.move_jobs(inside, name))

    def _project_of_one(self, worker: str) -> Project:
        settings, storage = self.project.settings, self._room().storage(max(1, self._workers))
        if preload.scheduling(settings):
            # Its own, so that jobs run there.
            served = {preload.SCHEDULER_DATABASE: self._scheduled(worker)}
            settings = replace(settings, postgres={**settings.postgres, **served})
        its = replace(settings, storage=storage)
        if settings.origin("max_connections") == "default":
            fewer = max(100, settings.connections_per_worker + _EXTRA_CONNECTIONS)
            its = replace(its, max_connections=min(settings.max_connections, fewer))
        return replace(self.project, settings=its)

    # --- memory ------------------------------------------------------------------------------------

    def check_room(self, count: int) -> None:
        """Reckon memory for ``count`` servers more; tell it."""
        with self._lock:
            more = max(count, self._workers - len(self.members))
            # Reckoned anew: what is free has changed since the last start.
            self._reckoned = None
        self._room().check(more)

    def _room(self) -> memory.Room:
        # Once for all that start together: a daemon takes 8 ms to tell its memory.
        with self._lock:
            if self._reckoned is None:
                self._reckoned = memory.Room.of(self.project.settings, self.backend, self.baked.snapshot.size)
            return self._reckoned

    # --- what is left over -------------------------------------------------------------------------

    def sweep(self, *, dry_run: bool) -> list[Leftover[Database]]:
        """Remove what starts that were cut off have left. Databases: none, they go with their servers."""
        if not dry_run:
            self._baker.store.leftovers()
            inventory.forget_gone(self.project)
        return []

    def crashed(self, workers: Sequence[str] | None) -> list[str]:
        """End the servers of other processes' workers; return their descriptions.

        Those that nobody ends go with their worker, or by their switch.
        """
        wanted = {purpose_of(self._run, worker) for worker in workers or ()}
        doomed = (
            [info for info in self.backend.list(self.project.id) if info.purpose in wanted] if wanted else []
        )
        for info in doomed:
            inventory.stop(self.project, purpose=info.purpose)
        return [info.description for info in doomed]

    # --- the end -----------------------------------------------------------------------------------

    def _end_unused(self, session: ServerSession) -> None:
        """Its last lease has gone: it ends, unless a database in it is kept for people: then it stays until the run ends."""
        if not self._kept(session):
            self.give_up([worker for worker, its in list(self.members.items()) if its is session])

    def give_up(self, workers: Sequence[str]) -> None:
        """End the servers of these workers; those that have none are left out."""
        with self._lock:
            sessions = [self.members.pop(worker) for worker in workers if worker in self.members]
        self._stop(sessions)

    def close(self) -> None:
        """End all servers that this process has started."""
        with self._lock:
            self._closed = True
            sessions = list(self.members.values())
            self.members.clear()
        self._stop(sessions)

    def _stop(self, sessions: Sequence[ServerSession]) -> None:
        def end(session: ServerSession) -> None:
            kept = self._kept(session)
            session.abandon()
            if kept:
                logger.info(
                    "%s: kept, with its server, for %g s (setting ttl)",
                    ", ".join(kept),
                    self.project.settings.ttl,
                )
            else:
                self._end(session)

        run_all([partial(end, session) for session in sessions])

    @staticmethod
    def _end(session: ServerSession) -> None:
        info = session.server.info
        try:
            session.server.stop()
        except BackendError as error:
            if not info.host:
                raise
            # The others' run goes on, and so does this one's end.
            logger.warning(
                "%s could not be ended, and ends by its switch once nobody uses it: %s",
                info.description,
                error.message.splitlines()[0],
            )

    def _kept(self, session: ServerSession) -> list[str]:
        """Databases that stay for people; the server outlives its run then, for ``ttl``."""
        try:
            found = session.kept()
            if found:
                session.link.session.execute(
                    f"alter database postgres set harness.ttl = {literal(f'{self.project.settings.ttl:g}')}"
                )
        except HarnessError:
            # It is gone, and so is all that was kept.
            return []
        return found

    def __repr__(self) -> str:
        return f"{len(self.members)} servers of {self.backend.name} from base {self.baked.snapshot.key[:8]}"


def purpose_of(run: str, worker: str) -> str:
    """The purpose of a worker's server; ten workers of two runs have twenty."""
    # The worker's word is a user's text: only its plain form or its hash goes into a container's name.
    return f"run-{run[:8]}-{names.plain(worker)}"
