"""``isolation = "server"``: the same interface as a harness, with a whole server for each worker.

Every server starts from one baked base in which the templates are there already, and is the run's own: it
ends with its lease, with the run, or by its dead-man's switch soon after the run was killed. Below: one worker's
harness on its server.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, Unpack

from harness.config.settings import Settings
from harness.databases.lease import Lease
from harness.databases.sweep import Doomed
from harness.databases.template import Template
from harness.errors import HarnessError, LeaseClosed
from harness.migrations.port import Progress, unseen
from harness.postgres import databases, names
from harness.postgres.session import literal
from harness.runs.bake import Baked, Oven, oven_of
from harness.runs.harness import Harness
from harness.runs.session import How, Run, first_free, run_all
from harness.servers import acquire, inventory, memory, registry
from harness.servers.port import Backend

logger = logging.getLogger("pg_harness.runs")

TTL = 60.0
"""Seconds at most after which a worker's server ends itself when its run was killed."""

_EXTRA_CONNECTIONS = 30
"""What a private server allows beyond its one worker's budget: the harness's own and PostgreSQL's reserve."""


class Fleet(Run):
    """The servers of one run, one for each worker.

    Made by :meth:`open` or :func:`harness.runs.harness.open_run`; a context manager.

    Attributes:
        settings: what it was opened with.
        run: sixteen hex digits that name this run.
        baked: what the servers start from.
        members: worker → the harness on its own server.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        backend: Backend,
        baked: Baked,
        *,
        run: str,
        workers: int = 1,
        progress: Progress = unseen,
    ) -> None:
        super().__init__(settings, environ, run=run, workers=workers, progress=progress)
        self.baked = baked
        self.backend = backend
        self.members: dict[str, Member] = {}
        self._reckoned: memory.Room | None = None

    @classmethod
    def _stated(cls, purpose: str) -> Mapping[str, Any]:
        return {"isolation": "server"}

    @classmethod
    def open_with(cls, settings: Settings, environ: Mapping[str, str], **how: Unpack[How]) -> Self:
        """Find or bake the base; no server is started before a worker asks for one.

        Raises:
            ConfigError, BackendUnavailable, ServerStartError, MigrationError, PoolTimeout.
        """
        return cls.joining(settings, environ, names.run_id(how.get("run")), **how)

    @classmethod
    def joining(cls, settings: Settings, environ: Mapping[str, str], digits: str, **how: Unpack[How]) -> Self:
        """As :meth:`open_with`, for the run of these sixteen digits, which another process may have opened."""
        progress = how.get("progress", unseen)
        backend = registry.choose(settings, environ)
        oven = oven_of(settings, environ, backend)
        baked = oven.ensure(rebuild=how.get("rebuild", False), progress=progress)
        workers = how.get("workers", 1)
        return cls(settings, environ, backend, baked, run=digits, workers=workers, progress=progress)

    # --- leases ------------------------------------------------------------------------------------

    def lease(self, worker: str | None = None) -> Lease:
        """Lease a server of its own, with a fresh clone of every database, for one worker.

        Args:
            worker: any text that is unique in the run, for instance ``"gw2"``; None: the lowest number that
                has no server yet.

        Raises:
            ServerStartError, BackendError: the server cannot be started, or memory does not suffice.
        """
        self.check_room(1)
        return self._lease(first_free(self.members) if worker is None else worker)

    def leases(self, count: int, *, first: int = 1) -> list[Lease]:
        """Leases for workers ``first`` … ``first + count - 1``; their servers start side by side."""
        self.check_room(count)
        self.workers = max(count, self.workers)
        workers = [str(number) for number in range(first, first + count)]
        found: dict[str, Lease] = {}

        def start(worker: str) -> None:
            found[worker] = self._lease(worker)

        try:
            run_all([lambda worker=worker: start(worker) for worker in workers])  # type: ignore[misc]
        except BaseException:
            # All or none: a server without a lease would stay for nobody.
            self._stop([self.members.pop(worker) for worker in workers if worker in self.members])
            raise
        return [found[worker] for worker in workers]

    def _lease(self, worker: str) -> Lease:
        member = self.members.get(worker)
        if member is None:
            member = self.start(worker)
        member.workers = self.workers
        return member.lease(worker)

    def start(self, worker: str) -> Member:
        """The harness on a new server of this worker's.

        Raises:
            ServerStartError, BackendError: it cannot be started. LeaseClosed: the run was closed meanwhile.
        """
        member = self._start(worker)
        with self._lock:
            if not self._closed:
                self.members[worker] = member
                return member
        self._stop([member])
        raise LeaseClosed("the run was closed while a server was started")

    def _start(self, worker: str) -> Member:
        settings = self._settings_of_one()
        found = acquire.private(
            settings,
            self._environ,
            self.backend,
            purpose=purpose_of(self.run, worker),
            ttl=min(TTL, settings.ttl),
            base=self.baked.base.ref,
            memory=self._room().tmpfs(self.workers),
        )
        member = Member(
            self.settings,
            found,
            run=self.run,
            environ=self._environ,
            progress=self._progress,
        )
        member.fleet, member.worker = self, worker
        try:
            member.prepare()
        except BaseException:
            self._stop([member])
            raise
        if any(found.built for found in member.templates.values()):
            # Its name or label promised what it does not hold: right all the same, but slow every time.
            logger.info("bake: the base %s did not hold its templates: removed", self.baked.base.key[:8])
            self._oven().bakery.remove(self.baked.base)
        return member

    def _settings_of_one(self) -> Settings:
        settings = replace(self.settings, storage=self._room().storage(max(1, self.workers)))
        if settings.origin("max_connections") != "default":
            return settings
        fewer = max(100, settings.connections_per_worker + _EXTRA_CONNECTIONS)
        return replace(settings, max_connections=min(settings.max_connections, fewer))

    def check_room(self, count: int) -> None:
        """Reckon memory for ``count`` servers more; tell it.

        Raises:
            BackendError: they do not fit.
        """
        with self._lock:
            more = max(count, self.workers - len(self.members))
            # Reckoned anew: what is free has changed since the last start.
            self._reckoned = None
        self._room().check(more)

    def _room(self) -> memory.Room:
        # Once for all that start together: a daemon takes 8 ms to tell its memory.
        with self._lock:
            if self._reckoned is None:
                self._reckoned = memory.Room.of(self.settings, self.backend, self.baked.base.size)
            return self._reckoned

    def _oven(self) -> Oven:
        return oven_of(self.settings, self._environ, self.backend)

    def end(self, worker: str) -> None:
        """End one worker's server: its last lease was released."""
        with self._lock:
            member = self.members.pop(worker, None)
        if member is not None:
            self._stop([member])

    # --- as a harness --------------------------------------------------------------------------------

    @property
    def templates(self) -> dict[str, Template]:
        """Database name → template, as the first member has them; empty before there is one."""
        for member in list(self.members.values()):
            return member.templates
        return {}

    def fingerprints(self) -> dict[str, str]:
        """Database name → fingerprint of its migrations as they are now."""
        return self._oven().key()[1]

    def sweep(self, *, dry_run: bool = False) -> list[Doomed]:
        """Remove what starts that were cut off have left. Databases: none, they go with their servers."""
        if not dry_run:
            self._oven().bakery.leftovers()
            inventory.forget_gone(self.settings, self._environ)
        return []

    def release_run(self, workers: Sequence[str] = ()) -> list[str]:
        """End the servers of other processes' workers (of one that has crashed); return their descriptions.

        Those that nobody ends go with their worker, or by their switch.
        """
        wanted = {purpose_of(self.run, worker) for worker in workers}
        doomed = (
            [info for info in self.backend.list(self.project) if info.purpose in wanted] if wanted else []
        )
        for info in doomed:
            inventory.stop(self.settings, self._environ, purpose=info.purpose)
        return [info.description for info in doomed]

    def close(self) -> None:
        """End all servers of this run. Twice is once."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            members = list(self.members.values())
            self.members.clear()
        self._stop(members)

    def _stop(self, members: Sequence[Member]) -> None:
        def end(member: Member) -> None:
            kept = member.kept()
            member.abandon()
            if kept:
                logger.info(
                    "%s: kept, with its server, for %g s (setting ttl)", ", ".join(kept), self.settings.ttl
                )
            else:
                member.server.stop()

        run_all([lambda member=member: end(member) for member in members])  # type: ignore[misc]

    def __repr__(self) -> str:
        return (
            f"<Fleet {self.project} run {self.run}: {len(self.members)} servers of {self.backend.name} "
            f"from base {self.baked.base.key[:8]}>"
        )


def open_worker(
    settings: Settings, environ: Mapping[str, str], *, worker: str, joined: str = "", **how: Unpack[How]
) -> Member:
    """The harness of a process that is one worker of a run, on a server of its own; see :class:`Fleet`.

    Args:
        joined: the sixteen digits of a run that another process has opened.
    """
    fleet = Fleet.joining(settings, environ, joined or names.run_id(how.get("run")), **how)
    try:
        fleet.check_room(1)
        return fleet.start(worker)
    except BaseException:
        fleet.close()
        raise


class Member(Harness):
    """One worker's harness: its server ends with its last lease, and with it.

    Attributes:
        fleet: the run that it belongs to.
        worker: whose server this is.
    """

    fleet: Fleet
    worker: str

    def _forget(self, lease: Lease) -> None:
        super()._forget(lease)
        if not self._leases and not self.kept():
            self.fleet.end(self.worker)

    def _clean_up(self) -> None:
        """A new server holds nothing that anybody has left."""

    def fill_aside(self, count: int) -> None:
        """The other workers have servers of their own: spares here would be nobody's."""

    def kept(self) -> list[str]:
        """Databases that stay for people; the server outlives its run then, for ``ttl``."""
        try:
            session = self.link.session
            found = [
                database.name
                for database in databases.list_ours(session, self.project)
                if database.kind is names.Kind.KEPT
            ]
            if found:
                session.execute(
                    f"alter database postgres set harness.ttl = {literal(f'{self.settings.ttl:g}')}"
                )
        except HarnessError:
            # It is gone, and so is all that was kept.
            return []
        return found

    def release_run(self, workers: Sequence[str] | None = None) -> list[str]:
        """End the servers of other workers (one that has crashed), or let go of this one with None."""
        if workers is None:
            return []
        return self.fleet.release_run(workers)

    def close(self) -> None:
        """End the server. Twice is once."""
        self.fleet.close()


def purpose_of(run: str, worker: str) -> str:
    """The purpose of a worker's server; ten workers of two runs have twenty."""
    # The worker's word is a user's text: only its plain form or its hash goes into a container's name.
    return f"run-{run[:8]}-{names.plain(worker)}"
