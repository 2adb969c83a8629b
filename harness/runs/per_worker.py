"""A whole server for each worker of a run (``isolation = "server"``).

Every server starts from one baked base in which the templates are there already, and is the run's own: it
ends with its last lease, with the run, or by its dead-man's switch soon after the run was killed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Self, Unpack

from harness.config.project import Project
from harness.databases.sweep import Doomed
from harness.databases.template import Template
from harness.errors import HarnessError, LeaseClosed, LeaseError
from harness.migrations.port import Progress, unseen
from harness.postgres import names
from harness.postgres.session import literal
from harness.runs.bake import Baked, Oven, oven_of
from harness.runs.placement import How, had, run_all
from harness.runs.session import ServerSession
from harness.servers import acquire, inventory, memory, registry
from harness.servers.port import Backend

logger = logging.getLogger("pg_harness.runs")

TTL = 60.0
"""Seconds at most after which a worker's server ends itself when its run was killed."""

_EXTRA_CONNECTIONS = 30
"""What a private server allows beyond its one worker's budget: the harness's own and PostgreSQL's reserve."""


class ServerPerWorker:
    """The servers of one run, one for each worker.

    Attributes:
        project: what it was opened with.
        backend: what starts them.
        baked: what they start from.
    """

    def __init__(
        self,
        project: Project,
        backend: Backend,
        baked: Baked,
        *,
        run: str,
        workers: int = 1,
        worker: str = "",
        progress: Progress = unseen,
    ) -> None:
        """
        Args:
            workers: how many of them will have servers that this process starts.
            worker: whose process this is: all that is leased here is on its server. Empty: of none.
        """
        self.backend = backend
        self.baked = baked
        self.project = project
        self._settings = project.settings
        self._run = run
        self._workers = workers
        self._worker = worker
        self._progress = progress
        self._members: dict[str, ServerSession] = {}
        self._reckoned: memory.Room | None = None
        self._lock = threading.RLock()
        self._closed = False

    @classmethod
    def open(cls, project: Project, digits: str, **how: Unpack[How]) -> Self:
        """Find or bake the base; no server is started before a worker asks for one.

        Args:
            digits: sixteen hex digits that name the run; another process may have opened it.

        Raises:
            ConfigError, BackendUnavailable, ServerStartError, MigrationError, PoolTimeout.
        """
        progress = how.get("progress", unseen)
        backend = registry.choose(project)
        oven = oven_of(project, backend)
        baked = oven.ensure(rebuild=how.get("rebuild", False), progress=progress)
        return cls(
            project,
            backend,
            baked,
            run=digits,
            workers=how.get("workers", 1),
            worker=how.get("worker", ""),
            progress=progress,
        )

    @property
    def shared(self) -> ServerSession | None:
        """None: no two workers share one."""
        return None

    @property
    def members(self) -> Mapping[str, ServerSession]:
        """Worker → its server, of those that this process has started."""
        return self._members

    @property
    def templates(self) -> Mapping[str, Template]:
        """Database name → template, as the first server has them; empty before there is one."""
        for session in list(self._members.values()):
            return session.templates
        return {}

    @property
    def description(self) -> str:
        """For people."""
        return f"{self.backend.name}, a server for each worker"

    def made(self, database: str) -> str:
        """How the template was had, where there is a server; else the base of them all."""
        found = self.templates.get(database)
        return had("base", self.baked) if found is None else had("template", found)

    # --- servers -----------------------------------------------------------------------------------

    def session(self, worker: str) -> ServerSession:
        """The worker's server, started where it has none."""
        worker = self._worker or worker
        if (found := self._members.get(worker)) is not None:
            return found
        self.check_room(1)
        return self._start(worker)

    def sessions(self, workers: Sequence[str]) -> list[ServerSession]:
        """The servers of several workers, started side by side; this worker's, with a spare for each, where it is one."""
        if self._worker:
            mine = self.session(self._worker)
            mine.fill(len(workers))
            return [mine] * len(workers)
        self.check_room(len(workers))
        self._workers = max(len(workers), self._workers)
        missing = [worker for worker in workers if worker not in self._members]
        try:
            run_all([partial(self._start, worker) for worker in missing])
        except BaseException:
            self.give_up(workers)
            raise
        return [self._members[worker] for worker in workers]

    def _start(self, worker: str) -> ServerSession:
        session = self._started(worker)
        with self._lock:
            if not self._closed:
                self._members[worker] = session
                return session
        self._stop([session])
        raise LeaseClosed("the run was closed while a server was started")

    def _started(self, worker: str) -> ServerSession:
        found = acquire.private(
            self._project_of_one(),
            self.backend,
            purpose=purpose_of(self._run, worker),
            ttl=min(TTL, self._settings.ttl),
            base=self.baked.base.ref,
            memory=self._room().tmpfs(self._workers),
        )
        session = ServerSession(self.project, found, run=self._run, progress=self._progress)
        try:
            session.prepare(clean_up=False)
        except BaseException:
            self._stop([session])
            raise
        if any(found.built for found in session.templates.values()):
            # Its name or label promised what it does not hold: right all the same, but slow every time.
            logger.info("bake: the base %s did not hold its templates: removed", self.baked.base.key[:8])
            self._oven().bakery.remove(self.baked.base)
        return session

    def _project_of_one(self) -> Project:
        settings, storage = self._settings, self._room().storage(max(1, self._workers))
        if settings.origin("max_connections") != "default":
            return self.project.having(storage=storage)
        fewer = max(100, settings.connections_per_worker + _EXTRA_CONNECTIONS)
        return self.project.having(storage=storage, max_connections=min(settings.max_connections, fewer))

    def one(self) -> ServerSession:
        """The server of the worker whose process this is, or the only one that there is."""
        members = list(self._members.values())
        if len(members) != 1:
            raise LeaseError(
                f"each worker has a server of its own, and this process has {len(members)} of them: lease one first, "
                "or ask one of `members`"
            )
        return members[0]

    # --- memory ------------------------------------------------------------------------------------

    def check_room(self, count: int) -> None:
        """Reckon memory for ``count`` servers more; tell it."""
        with self._lock:
            more = max(count, self._workers - len(self._members))
            # Reckoned anew: what is free has changed since the last start.
            self._reckoned = None
        self._room().check(more)

    def _room(self) -> memory.Room:
        # Once for all that start together: a daemon takes 8 ms to tell its memory.
        with self._lock:
            if self._reckoned is None:
                self._reckoned = memory.Room.of(self._settings, self.backend, self.baked.base.size)
            return self._reckoned

    def _oven(self) -> Oven:
        return oven_of(self.project, self.backend)

    # --- what is left over -------------------------------------------------------------------------

    def fingerprints(self) -> dict[str, str]:
        """As they are for the version that is baked."""
        return self._oven().key()[1]

    def sweep(self, *, dry_run: bool) -> list[Doomed]:
        """Remove what starts that were cut off have left. Databases: none, they go with their servers."""
        if not dry_run:
            self._oven().bakery.leftovers()
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

    def unused(self, session: ServerSession) -> None:
        """It ends, unless a database in it is kept for people: then it stays until the run ends."""
        if not self._kept(session):
            self.give_up([worker for worker, its in list(self._members.items()) if its is session])

    def give_up(self, workers: Sequence[str]) -> None:
        """End the servers of these workers; those that have none are left out."""
        with self._lock:
            sessions = [self._members.pop(worker) for worker in workers if worker in self._members]
        self._stop(sessions)

    def close(self) -> None:
        """End all servers that this process has started."""
        with self._lock:
            self._closed = True
            sessions = list(self._members.values())
            self._members.clear()
        self._stop(sessions)

    def abandon(self) -> None:
        """As :meth:`close`: they are nobody else's."""
        self.close()

    def _stop(self, sessions: Sequence[ServerSession]) -> None:
        def end(session: ServerSession) -> None:
            kept = self._kept(session)
            session.abandon()
            if kept:
                logger.info(
                    "%s: kept, with its server, for %g s (setting ttl)", ", ".join(kept), self._settings.ttl
                )
            else:
                session.server.stop()

        run_all([partial(end, session) for session in sessions])

    def _kept(self, session: ServerSession) -> list[str]:
        """Databases that stay for people; the server outlives its run then, for ``ttl``."""
        try:
            found = session.kept()
            if found:
                session.link.session.execute(
                    f"alter database postgres set harness.ttl = {literal(f'{self._settings.ttl:g}')}"
                )
        except HarnessError:
            # It is gone, and so is all that was kept.
            return []
        return found

    def __repr__(self) -> str:
        return f"{len(self._members)} servers of {self.backend.name} from base {self.baked.base.key[:8]}"


def purpose_of(run: str, worker: str) -> str:
    """The purpose of a worker's server; ten workers of two runs have twenty."""
    # The worker's word is a user's text: only its plain form or its hash goes into a container's name.
    return f"run-{run[:8]}-{names.plain(worker)}"
