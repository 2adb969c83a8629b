"""What a checkout has on one server: the way in, the role, the templates, the clones, the leases, what is left over."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Self

from harness.config import environment as env
from harness.config.project import Project
from harness.config.settings import DEFAULT_DATABASE, DatabaseSettings, Settings
from harness.databases import background, freshness, role, sweep, template
from harness.databases.clones import Claim, Clones
from harness.databases.front import NO_FRONT
from harness.databases.lease import Lease, LeasedDatabase
from harness.databases.resetting import ensure_baseline
from harness.databases.spec import Owner, TemplateSpec
from harness.databases.sweep import Leftover, Retention
from harness.databases.template import Template
from harness.dsn import Dsn
from harness.errors import HarnessError, LeaseLost
from harness.migrations.port import Progress, unseen
from harness.postgres import databases, names
from harness.postgres.admin import Link
from harness.postgres.databases import Database
from harness.postgres.liveness import SignOfLife
from harness.runs import rewinding
from harness.runs.booking import Booking

if TYPE_CHECKING:
    from harness.databases.pool import Filler
    from harness.servers.handle import Server
    from harness.servers.pooler.front import Pooler
    from harness.servers.replica.following import Following
    from harness.servers.replica.standbys import Standbys

logger = logging.getLogger("pg_harness.runs")


def parallel() -> int:
    """How many clones are made side by side."""
    return min(4, os.cpu_count() or 1)


class ServerSession:
    """One process's way into one server: to look at what is there, or as a part of a run.

    Attributes:
        project: with what was found out for this server, see :meth:`limit_connections`.
        server: the server it works on.
        run: sixteen hex digits that name the run. :data:`harness.postgres.names.SANDBOX`: there is none behind it. It
            shows no sign of life, and what is leased here stays there.
        link: the admin's way to the maintenance database of the server.
        templates: database name → template, ready to be cloned.
        leases: those of this process that are on this server.
        filler: what works in the background; None as long as nothing did.
        lock: held while a lease is made here: a claim is several statements.
    """

    def __init__(
        self,
        project: Project,
        server: Server,
        *,
        run: str = names.SANDBOX,
        workers: int = 1,
        progress: Progress = unseen,
        owner: Owner | None = None,
        templates: Mapping[str, Template] | None = None,
        unused: Callable[[ServerSession], None] = lambda session: None,
    ) -> None:
        """
        Args:
            workers: how many there will be, as migrations are told.
            owner, templates: where another process has made them already.
            unused: called when the last lease has gone.
        """
        self.project = project
        self.server = server
        self.run = run
        self.link = Link(server.admin_dsn, server.info.server_id, session=server.session)
        self.templates = dict(templates or {})
        self.leases: list[Lease] = []
        self._links: dict[Lease, Link] = {}
        self.lock = threading.RLock()
        self.workers = workers
        self._progress = progress
        self._unused = unused
        self._life: SignOfLife | None = None
        self._owner = owner
        self._clones: Clones | None = None
        self._rewinding: rewinding.Rewinding | None = None
        self._front: Pooler | None = None
        self._standbys: Standbys | None = None
        self.filler: Filler | None = None

    @property
    def settings(self) -> Settings:
        """The project's."""
        return self.project.settings

    @property
    def owner(self) -> Owner:
        """The role that the application logs in as: made or put right here, when it is first needed."""
        if self._owner is None:
            self._owner = role.ensure(self.link.session, self.server.info, self.project)
        return self._owner

    def expected_owner(self) -> tuple[Owner, bool]:
        """The role that the application logs in as, without touching it; and whether we may make it."""
        if self._owner is not None:
            return self._owner, False
        return role.expected(self.link.session, self.server.info, self.project)

    @property
    def clones(self) -> Clones:
        """What makes, claims and retires clones on this server."""
        if self._clones is None:
            self._clones = self._clones_over(self.link)
        return self._clones

    def _clones_over(self, link: Link) -> Clones:
        return Clones(
            link,
            self.project.id,
            self.owner,
            connections=self.settings.connections_per_worker,
            remake=partial(self._remake, link),
            rewinds=self._rewinds,
            explain=self._explain,
            front=self.front or NO_FRONT,
            workers=bool(self.settings.preload),
        )

    @property
    def front(self) -> Pooler | None:
        """The pooler in front of this server, where the settings ask for one: found or started when it is first needed."""
        if self._front is None and self.settings.pooled:
            # Here: a run without it pays for nothing of it.
            from harness.servers.pooler.front import Pooler

            each = self.settings.connections_per_worker
            self._front = Pooler.of(self.project, self.server.info, connections=each)
        return self._front

    @property
    def standbys(self) -> Standbys | None:
        """The standbys of this server, where the settings ask for some and it has them."""
        if self._standbys is None and self.settings.replicas:
            # Here: a run without them pays for nothing of it.
            from harness.servers.replica.standbys import Standbys

            self._standbys = Standbys.of(self.project, self.server)
        return self._standbys

    def on_standbys(self, direct: Dsn) -> tuple[Dsn, ...]:
        """The address of a database on each of them."""
        standbys = self.standbys
        return () if standbys is None else standbys.dsns(direct)

    def follow(self, names: Sequence[str]) -> None:
        """Wait until the standbys show these databases as they were just reset.

        Raises:
            ReplicaBehind: one of them does not come to it.
        """
        if (following := self._following(self.link)) is not None:
            try:
                following.settle(names)
            finally:
                following.close()

    def _following(self, link: Link) -> Following | None:
        if self.standbys is None:
            return None
        from harness.servers.replica.following import Following  # as in `standbys`

        return Following(self.standbys, link, patience=self.settings.reset_timeout)

    def through_front(self, direct: Dsn, login: Owner) -> Dsn:
        """The application's address of a database: through the pooler, where there is one.

        Raises:
            BackendUnavailable: there is no such program. ServerStartError: it does not start.
        """
        if (front := self.front) is None:
            return direct
        # Elsewhere what is stored may be hashed in another way.
        rounds = login.rounds if login.managed and self.server.info.ours else None
        return front.through(direct, rounds=rounds)

    def _explain(self, error: HarnessError) -> None:
        # Here: a worker that joins pays for it only where something is wrong.
        from harness.servers import explaining

        explaining.explain(error, self.server)

    def _rewinds(self) -> str:
        answer = self.rewinding
        return "" if isinstance(answer, str) else answer.schema

    def _remake(self, link: Link, emptied: Template) -> Template:
        """A template of this run, made again: by whichever worker notices first."""
        settings = next((d for d in self.settings.databases if d.name == emptied.database), None)
        spec = self.spec(settings) if settings is not None else None
        if spec is None or spec.fingerprint(link.session) != emptied.fingerprint:
            raise LeaseLost(
                f"a crash of the server has emptied the unlogged tables of the template {emptied.name}, and the "
                "migrations are others now: run again"
            )
        return self._template(link, spec)

    @property
    def rewinding(self) -> rewinding.Rewinding:
        """What resets by pages on this server; or why they are row-wise. Found out when it is first asked for.

        Raises:
            BackendUnavailable: the settings ask for it, and it cannot be had. ServerLost: the server is gone.
        """
        if self._rewinding is None:
            self._rewinding = rewinding.prepare(self.project, self.server, self.link.session)
        return self._rewinding

    @property
    def resets(self) -> bool:
        """Whether databases here will be reset, as far as the settings tell: a person's may be at any time."""
        return self.run == names.SANDBOX or freshness.of(self.settings).watches

    # --- templates ---------------------------------------------------------------------------------

    def spec(self, database: DatabaseSettings) -> TemplateSpec:
        """How one of the databases is made."""
        return TemplateSpec.of(
            self.project,
            database,
            role=self.expected_owner()[0].name,
            binaries=self.server.info.binaries,
            slot=env.Slot("1", self.workers, self.settings.connections_per_worker),
        )

    def fingerprints(self) -> dict[str, str]:
        """Database name → fingerprint of its migrations as they are now. Builds and changes nothing.

        Raises:
            MigrationError: a source cannot be read.
        """
        return {
            database.name: self.spec(database).fingerprint(self.link.session)
            for database in self.settings.databases
        }

    def prepare(self, *, rebuild: bool = False, clean_up: bool = True) -> None:
        """Show the sign of life, clean up after dead runs, have every database's template ready, and what resets them.

        Args:
            rebuild: migrate anew although a template is there.
            clean_up: False on a new server, which holds nothing that anybody has left.
        """
        self._show_life()
        if clean_up:
            self._clean_up()
        if self.resets or self.settings.engine == "rewind":
            # Asked for now: a run that cannot have what its settings ask for ends before it migrates.
            _ = self.rewinding
        if (front := self.front) is not None:
            front.ensure()
        if (standbys := self.standbys) is not None:
            # Before anything is migrated: what there is by now is copied, the rest is streamed.
            standbys.ensure()
        elif self.settings.replicas:
            from harness.servers.replica.standbys import Standbys  # as in `standbys`

            Standbys.demand(self.project, self.server)
        for database in self.settings.databases:
            try:
                made = self._template(self.link, self.spec(database), rebuild=rebuild)
            except HarnessError as error:
                self._explain(error)
                raise
            self.templates[database.name] = made
            if not made.built:
                template.touch(self.link.session, made)
        if self.settings.preload:
            background.stand_in(self.link.session, self.project.id)

    def _template(self, link: Link, spec: TemplateSpec, *, rebuild: bool = False) -> Template:
        return template.ensure(
            link.session,
            self.project.id,
            spec,
            self.owner,
            rebuild=rebuild,
            probe_strategy=not self.server.info.ours,
            progress=self._progress,
        )

    def _show_life(self) -> None:
        if self.run == names.SANDBOX or self._life is not None:
            return
        held = [("run", self.run)]
        if self.server.info.server_id:
            held.append(("server", self.server.info.server_id))
        self._life = SignOfLife(self.link.another(), held, Booking(self.run, os.getpid()).shown)

    def leave_life(self) -> None:
        """Take the sign of life away: whoever still holds the server is another run."""
        if self._life is not None:
            self._life.close()
            self._life = None

    def book(self, workers: int, connections: int) -> None:
        """Say that this run takes so many of the server's connections, until it ends."""
        self._show_life()
        if self._life is not None:
            self._life.show(Booking(self.run, os.getpid(), workers, connections).shown)

    def epoch(self) -> int:
        """How many times the server's sessions were lost so far."""
        return self._life.epoch if self._life is not None else self.link.epoch

    # --- leases ------------------------------------------------------------------------------------

    def lease(self, worker: str, *, watch: bool | None = None, apart: bool = False) -> Lease:
        """A fresh clone of every database for one worker.

        Args:
            watch: see :meth:`harness.runs.run.Run.lease`.
            apart: it is reset over a connection of its own, so that leases can be reset side by side, in threads.
        """
        with self.lock:
            for index, database in enumerate(self.settings.databases):
                self.clones.claim(self.templates[database.name], self._claim(worker, index))
            lease = self._leased(worker, apart=apart)
        if freshness.of(self.settings).watches if watch is None else watch:
            lease.watch()
        return lease

    def lease_of(self, template: Template, worker: str) -> Lease:
        """A fresh clone of one template, whatever the settings' databases are; reset over a connection of its own."""
        claim = self._claim(worker, 0)
        with self.lock:
            self.clones.claim(template, claim)
            lease = self._leased(worker, {DEFAULT_DATABASE: (template, claim)}, apart=True)
        if freshness.of(self.settings).watches:
            lease.watch()
        return lease

    def complete(self, worker: str, before: Callable[[Template, str, str], None]) -> None:
        """Make the databases of a worker that are not there.

        Args:
            before: called for each of those, with its template, its name, and what it is called until it has that.
        """
        with self.lock:
            for index, database in enumerate(self.settings.databases):
                claim = self._claim(worker, index)
                name = claim.name(self.project.id)
                if databases.find(self.link.session, name) is None:
                    made = self.templates[database.name]
                    self.clones.claim(made, claim, before=partial(before, made, name))

    def _leased(
        self, worker: str, chosen: Mapping[str, tuple[Template, Claim]] | None = None, *, apart: bool = False
    ) -> Lease:
        """The lease of databases that were claimed already: of the settings', or of others."""
        if chosen is None:
            chosen = {
                database.name: (self.templates[database.name], self._claim(worker, index))
                for index, database in enumerate(self.settings.databases)
            }
        # An advisory lock belongs to a connection: two threads on one would both have it.
        link = self.link.another() if apart else None
        leased = {}
        for name, (made, claim) in chosen.items():
            login = self.clones.login(claim)
            direct = self.link.dsn.with_user(login.name, login.password)
            direct = direct.with_database(claim.name(self.project.id))
            dsn = self.through_front(direct, login)
            leased[name] = LeasedDatabase(name, dsn, made, claim, direct, self.on_standbys(direct))
        following = self._following(self.link if link is None else link)
        lease = Lease(
            self.clones if link is None else self._clones_over(link),
            leased,
            run=self.run,
            worker=worker,
            epoch=self.epoch,
            on_release=self._released,
            filler=self._filling if self.run != names.SANDBOX else None,
            reset_timeout=self.settings.reset_timeout,
            following=following,
        )
        self.leases.append(lease)
        if link is not None:
            self._links[lease] = link
        if following is not None and self.run != names.SANDBOX:
            try:
                following.settle([d.dsn.database for d in leased.values()])
            except BaseException:
                lease.release()
                raise
        return lease

    def _claim(self, worker: str, index: int) -> Claim:
        return Claim(self.run, worker, index, str(self.settings.root))

    def _released(self, lease: Lease) -> None:
        if lease in self.leases:
            self.leases.remove(lease)
        if (link := self._links.pop(lease, None)) is not None:
            link.close()
        if not self.leases:
            self._unused(self)

    # --- spares ------------------------------------------------------------------------------------

    def limit_connections(self, each: int) -> None:
        """Every worker of the run may open ``each`` connections to each of its databases, from here on."""
        if each == self.settings.connections_per_worker:
            return
        self.project = self.project.having(connections_per_worker=each)
        leased = [dsn.database for lease in self.leases for dsn in lease.dsns.values()]
        self.clones.limit(each, leased)
        if self._front is not None:
            self._front.fit(each)

    def fill(self, count: int) -> None:
        """Have ``count`` spares of each template."""
        for found in self.templates.values():
            self.clones.fill(found, count, parallel=parallel())

    def fill_aside(self, count: int) -> None:
        """As :meth:`fill`, over a connection of its own: for another thread.

        And what the first reset of every worker would wait for, where the tests are reset.
        """
        link = self.link.another()
        try:
            clones = self._clones_over(link)
            for found in list(self.templates.values()):
                clones.fill(found, count, parallel=parallel())
                if freshness.of(self.settings).watches and found.settled:
                    ensure_baseline(clones, found)
        finally:
            link.close()

    def keep_spares(self, count: int) -> None:
        """Keep that many spares ready in the background from now on, and drop what is retired there too."""
        self._filling(list(self.templates.values()), count)

    def _filling(self, templates: Sequence[Template] = (), wanted: int = 1) -> Filler:
        """What works in the background, begun by the first replacement; a run that never replaces has none."""
        with self.lock:
            if self.filler is None:
                # Most runs reset, and never replace a database.
                from harness.databases.pool import Filler

                self.filler = Filler(self._clones_over(self.link.another()), templates, wanted=wanted)
            return self.filler

    # --- what is left over -------------------------------------------------------------------------

    def _clean_up(self) -> None:
        try:
            for left in self.sweep():
                logger.info("dropped %s: %s", left.item.name, left.reason)
            for name in self._drop_created_by_tests():
                logger.info("dropped %s: a test of an earlier run created it", name)
        except HarnessError as error:
            # What is left over is no reason not to run: the next run tries again.
            logger.info("what earlier runs left could not be dropped: %s", error)

    def sweep(self, *, dry_run: bool = False, graceful: bool = True) -> list[Leftover[Database]]:
        """Drop what dead runs of this checkout left on this server.

        Args:
            graceful: see :func:`harness.databases.sweep.sweep`.
        """
        settings = self.settings
        templates = Retention(settings.keep_templates, settings.template_age, settings=("keep_templates", ""))
        left = sweep.sweep(
            self.link.session,
            self.project.id,
            templates,
            settings.keep_failed,
            dry_run=dry_run,
            graceful=graceful,
        )
        if not dry_run:
            # After the databases: a mark whose database is gone is left over.
            rewinding.sweep(self.project, self.server, self.link.session)
            for name in sweep.drop_logins(self.link.session, self.project.id, graceful=graceful):
                logger.info("dropped %s: a test of an earlier run created it", name)
        return left

    def drop_leases(self, workers: Sequence[str] | None = None) -> list[str]:
        """Drop every database that this run has leased here, in whatever process; return their names.

        The leases of this process log out before their databases go.

        Args:
            workers: only those of these workers (one that has crashed); None: all.
        """
        for lease in list(self.leases):
            if workers is None or lease.worker in workers:
                lease.disconnect()
        session = self.link.session
        wanted = (
            None
            if workers is None
            else {
                self._claim(worker, index).name(self.project.id)
                for worker in workers
                for index in range(len(self.settings.databases))
            }
        )
        dropped = []
        for found in databases.list_ours(session, self.project.id):
            if found.kind is not names.Kind.LEASE or found.owner != self.run:
                continue
            if wanted is None or found.name in wanted:
                self.clones.release(found.name)
                dropped.append(found.name)
        if workers is None:
            self.clones.drop_logins(self.run)
        return dropped

    def kept(self) -> list[str]:
        """Names of the databases here that are kept for people."""
        return [
            database.name
            for database in databases.list_ours(self.link.session, self.project.id)
            if database.kind is names.Kind.KEPT
        ]

    def _drop_created_by_tests(self) -> list[str]:
        """Databases that tests created carry no run's name: only the last run of a server may drop them."""
        if self.owner.each:
            return self.clones.drop_logins(self.run) if self.run != names.SANDBOX else []
        if not self._tests_own_databases or self._others_alive():
            return []
        return self.clones.drop_created_by_tests()

    @property
    def _tests_own_databases(self) -> bool:
        """Whether databases of the application's role can only be the tests': nobody else is that role."""
        if self.run == names.SANDBOX:
            return False
        if self.server.info.ours:
            return True
        # Somebody else's server: only a role that is named after this checkout is nobody else's.
        return self.owner.name == f"{names.PREFIX}_{self.project.id}"

    def _others_alive(self) -> bool:
        everything = databases.list_ours(self.link.session, self.project.id)
        runs = {d.owner for d in everything if d.kind is names.Kind.LEASE}
        return bool(sweep.alive_runs(self.link.session, sorted(runs - {self.run})))

    # --- the end -----------------------------------------------------------------------------------

    def close(self, *, release: bool) -> None:
        """Log out everywhere, and let go of the server.

        Args:
            release: drop first what this process has leased, and what tests created.
        """
        if self.filler is not None:
            self.filler.close()
        try:
            if release:
                for lease in list(self.leases):
                    lease.release()
                self._drop_created_by_tests()
        finally:
            # Not released, because it is not ours or its server is gone: its sessions would stay open.
            self._leave()

    def abandon(self) -> None:
        """Let go of a server that is about to be ended: nothing in it needs to be released."""
        if self.filler is not None:
            self.filler.close(drop=False)
        self._leave()

    def _leave(self) -> None:
        for lease in self.leases:
            lease.disconnect()
        for link in self._links.values():
            link.close()
        if self._front is not None:
            self._front.close()
        if self._life is not None:
            self._life.close()
        self.link.close()
        self.server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(release=False)

    def __repr__(self) -> str:
        return (
            f"<ServerSession {self.project.id} run {self.run}: {len(self.templates)} templates, "
            f"{len(self.leases)} leases, {self.server.info.description}>"
        )
