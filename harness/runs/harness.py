"""The whole, wired: settings → server → templates → leases → environment → release."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Self, Unpack

from harness.config.settings import Settings
from harness.databases import freshness
from harness.databases.clones import Claim
from harness.databases.lease import Lease, LeasedDatabase
from harness.databases.resetting import ensure_baseline
from harness.databases.spec import Owner
from harness.databases.template import Template
from harness.errors import ConfigError, HarnessError
from harness.migrations.port import unseen
from harness.postgres import databases, names
from harness.runs.session import How, OneServer, first_free, parallel

if TYPE_CHECKING:
    from harness.databases.pool import Filler
    from harness.runs.placement import Fleet
    from harness.servers.port import Backend, ServerInfo

logger = logging.getLogger("pg_harness.runs")

BeforeHandingOver = Callable[[Template, str, str], None]


class Harness(OneServer):
    """One server, the templates of one checkout, and the leases of one run.

    Made by :meth:`open`; a context manager. Leases that are still there at :meth:`close` are released.

    Attributes:
        settings: what it was opened with.
        server: the server it works on.
        run: sixteen hex digits that name this run; its sign of life is held until :meth:`close`.
        templates: database name → template, ready to be cloned.
    """

    _filler: Filler | None = None
    _guest = False

    @classmethod
    def open_with(cls, settings: Settings, environ: Mapping[str, str], **how: Unpack[How]) -> Self:
        """As :meth:`open`, with settings that were read already."""
        from harness.runs import spill
        from harness.servers import acquire

        purpose, rebuild = how.get("purpose", "run"), how.get("rebuild", False)
        if settings.isolation == "server" and purpose == "run":
            raise ConfigError(
                'isolation = "server" gives each worker a server: open it with harness.Fleet.open(), which has '
                "the same methods",
                key="isolation",
                origin=settings.origin("isolation"),
                value="server",
            )
        settings = spill.settings_for(settings, environ)
        found = acquire.ensure(
            settings,
            environ,
            purpose=purpose,
            base=lambda backend: None if rebuild else baked_base(settings, environ, backend),
        )
        this = cls(
            settings,
            found,
            run=names.PERSON if purpose == "up" else names.run_id(how.get("run")),
            environ=environ,
            workers=how.get("workers", 1),
            progress=how.get("progress", unseen),
        )
        try:
            moving = this._prepare_or_move(rebuild=rebuild, may_move=purpose == "run")
        except BaseException:
            this.abandon()
            raise
        if not moving:
            return this
        this.abandon()
        # The server in memory is replaced there, or left to the runs that use it: see docs/decisions/0013.
        return cls.open_with(replace(settings, storage="disk"), environ, **how)

    def _prepare_or_move(self, *, rebuild: bool, may_move: bool) -> bool:
        """Have the templates ready; True where everything has to be done again on disk."""
        from harness.runs import spill

        settings, environ, server = self.settings, self._environ, self.server
        try:
            self.prepare(rebuild=rebuild)
        except HarnessError as error:
            if may_move and spill.ran_out(error, settings, environ, server):
                return True
            spill.explain(error, server)
            raise
        templates = list(self.templates.values())
        return may_move and spill.must_move(settings, environ, server, templates)

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
    ) -> Self:
        """Join a run that another process has opened: one log-in, nothing is looked for or computed.

        What a guest leases belongs to the run: :meth:`close` leaves it to the host's :meth:`release_run`.

        Args:
            run, info, owner, templates: as the host has them (``harness.runs.runfile``).
            workers: how many workers the run has.

        Raises:
            ServerLost: the server is gone, or another one answers at its address.
        """
        from harness.servers.handle import join

        found = join(settings, environ, info)
        this = cls(settings, found, run=run, environ=environ, workers=workers)
        this._owner = owner
        this._guest = True
        this.templates = dict(templates)
        return this

    # --- leases ------------------------------------------------------------------------------------

    def lease(self, worker: str | None = None, *, watch: bool | None = None) -> Lease:
        """Lease a fresh clone of every database for one worker.

        Args:
            worker: any text that is unique in the run, for instance ``"gw2"``; the same once more is a fresh
                clone under the same name. None: the lowest number that this object has not leased.
            watch: whether resets will be asked for (see :meth:`harness.databases.lease.Lease.watch`);
                None: where the strategy that ``fresh`` names does so.
        """
        with self._lock:
            if worker is None:
                worker = first_free(lease.worker for lease in self._leases)
            for index, database in enumerate(self.settings.databases):
                self.clones.claim(self.templates[database.name], self._claim(worker, index))
            lease = self._lease_of(worker)
        if freshness.of(self.settings).watches if watch is None else watch:
            lease.watch()
        return lease

    def leases(self, count: int, *, first: int = 1) -> list[Lease]:
        """Leases for workers ``first`` … ``first + count - 1``; their clones are made side by side."""
        for found in self.templates.values():
            self.clones.fill(found, count, parallel=parallel())
        self.workers = count
        # Whoever leases many hands them to other programs: those cannot ask for a reset.
        return [self.lease(str(number), watch=False) for number in range(first, first + count)]

    def limit_connections(self, each: int) -> None:
        """Every worker of this run may open ``each`` connections to each of its databases, from here on."""
        if each == self.settings.connections_per_worker:
            return
        self.settings = replace(self.settings, connections_per_worker=each)
        leased = [dsn.database for lease in self._leases for dsn in lease.dsns.values()]
        self.clones.limit(each, leased)

    def fill_aside(self, count: int) -> None:
        """Have ``count`` spares of each template, made over a connection of its own: for another thread.

        And what the first reset of every worker would wait for, where the tests are reset.
        """
        link = self._link.another()
        try:
            clones = self._clones_over(link)
            for found in list(self.templates.values()):
                clones.fill(found, count, parallel=parallel())
                if freshness.of(self.settings).watches and found.settled:
                    ensure_baseline(clones, found)
        finally:
            link.close()

    def existing(self, worker: str) -> Lease | None:
        """The lease that this run's worker holds already (``up`` again); None where there is none."""
        lease = self._lease_of(worker)
        if lease.exists():
            return lease
        self._leases.remove(lease)
        return None

    def complete(self, worker: str, *, before: BeforeHandingOver | None = None) -> Lease:
        """The lease of a worker whose databases are there in part, or not at all: only the missing ones are made.

        Args:
            before: called for each of those, with its template, its name, and what it is called until it has that.
        """
        with self._lock:
            for index, database in enumerate(self.settings.databases):
                claim = self._claim(worker, index)
                name = names.lease(self.project, claim.run, worker, index)
                if databases.find(self._link.session, name) is None:
                    made = self.templates[database.name]
                    told = partial(before, made, name) if before is not None else None
                    self.clones.claim(made, claim, before=told)
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
            filler=self._filling if self.run != names.PERSON else None,
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
            self._filler = self._new_filler(list(self.templates.values()), count)

    def _filling(self) -> Filler:
        """What works in the background; a run that never replaces a database has none."""
        with self._lock:
            if self._filler is None:
                self._filler = self._new_filler([], 1)
            return self._filler

    def _new_filler(self, templates: Sequence[Template], wanted: int) -> Filler:
        from harness.databases.pool import Filler

        return Filler(self._clones_over(self._link.another()), templates, wanted=wanted)

    def _claim(self, worker: str, index: int) -> Claim:
        return Claim(self.run, worker, index, str(self.settings.root))

    def _forget(self, lease: Lease) -> None:
        if lease in self._leases:
            self._leases.remove(lease)

    # --- the end -----------------------------------------------------------------------------------

    def release_run(self, workers: Sequence[str] | None = None) -> list[str]:
        """As :meth:`OneServer.release_run`; the leases of this process log out before their databases go."""
        for lease in list(self._leases):
            if workers is None or lease.worker in workers:
                lease.disconnect()
        return super().release_run(workers)

    def close(self) -> None:
        """Release what is still leased, and let go of the server. Twice is once. A person's databases stay."""
        if self._closed:
            return
        self._closed = True
        if self._filler is not None:
            self._filler.close()
        try:
            if self.run != names.PERSON and not self._guest:
                for lease in list(self._leases):
                    lease.release()
                self._drop_created_by_tests()
        finally:
            for lease in self._leases:
                # Not released, because its server is gone: its sessions would stay open.
                lease.disconnect()
            self._leave()

    def abandon(self) -> None:
        """Let go of a server that is about to be ended: nothing in it needs to be released."""
        self._closed = True
        if self._filler is not None:
            self._filler.close(drop=False)
        for lease in self._leases:
            lease.disconnect()
        self._leave()

    def __repr__(self) -> str:
        return (
            f"<Harness {self.project} run {self.run}: {len(self.templates)} templates, {len(self._leases)} leases, "
            f"{self.server.info.description}>"
        )


def open_run(settings: Settings, environ: Mapping[str, str], **how: Unpack[How]) -> Harness | Fleet:
    """What the settings' ``isolation`` asks for: databases in one server, or a server for each worker.

    A person's (``purpose="up"``) databases always share one server.

    Raises:
        As :meth:`harness.runs.session.Run.open`.
    """
    if settings.isolation != "server" or how.get("purpose") == "up":
        return Harness.open_with(settings, environ, **how)
    from harness.runs.placement import Fleet

    return Fleet.open_with(settings, environ, **how)


def baked_base(settings: Settings, environ: Mapping[str, str], backend: Backend) -> str | None:
    """What a new server can start from, migrated already; a hint only: without it, it is migrated."""
    from harness.runs import bake

    try:
        found = bake.oven_of(settings, environ, backend).look()
    except HarnessError:
        # Whatever is wrong is said where it matters: at the start, or by the migrations.
        return None
    if found is not None:
        logger.info("starting from a baked server (%s)", found.facts.get("databases", found.key[:8]))
    return found.ref if found is not None else None
