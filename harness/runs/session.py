"""What one run of a checkout has on one server: the way in, the role, the templates, the clones, what is left over."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from harness.config import environment as env
from harness.config.project import Project
from harness.config.settings import DatabaseSettings, Settings, SourceSpec
from harness.databases import freshness, template
from harness.databases.clones import Clones
from harness.databases.resetting import ensure_baseline
from harness.databases.spec import Owner, Recipe, fingerprint
from harness.databases.template import Template
from harness.errors import HarnessError, LeaseLost
from harness.migrations.port import Progress, unseen
from harness.postgres import databases, names
from harness.postgres.admin import Link
from harness.postgres.liveness import SignOfLife

if TYPE_CHECKING:
    from harness.databases.lease import Lease
    from harness.databases.pool import Filler
    from harness.databases.sweep import Doomed
    from harness.servers.handle import Server

# What only the process needs that opens the run is imported where it is used: each worker joins it.

logger = logging.getLogger("pg_harness.runs")


def parallel() -> int:
    """How many clones are made side by side."""
    return min(4, os.cpu_count() or 1)


class ServerSession:
    """The part of a run that one server has, seen from one process.

    Attributes:
        project: with what was found out for this server, see :meth:`limit_connections`.
        server: the server it works on.
        run: sixteen hex digits that name the run, or :data:`harness.postgres.names.PERSON`.
        link: the admin's way to the maintenance database of the server.
        templates: database name → template, ready to be cloned.
        leases: those of this process that are on this server.
        lock: held while a lease is made here: a claim is several statements.
    """

    def __init__(
        self,
        project: Project,
        server: Server,
        *,
        run: str,
        workers: int = 1,
        progress: Progress = unseen,
        owner: Owner | None = None,
        templates: Mapping[str, Template] | None = None,
    ) -> None:
        """
        Args:
            workers: how many there will be, as migrations are told.
            owner, templates: where another process has made them already.
        """
        self.project = project
        self.server = server
        self.run = run
        self.link = Link(server.admin_dsn, server.info.server_id, session=server.session)
        self.templates = dict(templates or {})
        self.leases: list[Lease] = []
        self.lock = threading.RLock()
        self._workers = workers
        self._progress = progress
        self._life: SignOfLife | None = None
        self._owner = owner
        self._clones: Clones | None = None
        self._filler: Filler | None = None

    @property
    def settings(self) -> Settings:
        """The project's."""
        return self.project.settings

    @property
    def owner(self) -> Owner:
        """The role that the application logs in as: made or put right here, when it is first needed."""
        if self._owner is None:
            from harness.databases import role

            self._owner = role.ensure(self.link.session, self.server.info, self.settings, self.project.id)
        return self._owner

    def expected_owner(self) -> tuple[Owner, bool]:
        """The role that the application logs in as, without touching it; and whether we may make it."""
        if self._owner is not None:
            return self._owner, False
        from harness.databases import role

        return role.expected(self.link.session, self.server.info, self.settings, self.project.id)

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
            self.project,
            database,
            role=self.expected_owner()[0].name,
            binaries=self.server.info.binaries,
            slot=env.Slot("1", self._workers, self.settings.connections_per_worker),
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
            database.name: fingerprint(self.link.session, self.recipe(database))
            for database in self.settings.databases
        }

    def prepare(self, *, rebuild: bool = False, clean_up: bool = True) -> None:
        """Show the sign of life, clean up after dead runs, and have every database's template ready.

        Args:
            rebuild: migrate anew although a template is there.
            clean_up: False on a new server, which holds nothing that anybody has left.
        """
        self._show_life()
        if clean_up:
            self._clean_up()
        for database in self.settings.databases:
            made = self.templates[database.name] = self._template(
                self.link, self.recipe(database), rebuild=rebuild
            )
            if not made.built:
                template.touch(self.link.session, made)

    def _template(self, link: Link, recipe: Recipe, *, rebuild: bool = False) -> Template:
        return template.ensure(
            link.session,
            self.project.id,
            recipe,
            self.owner,
            rebuild=rebuild,
            probe_strategy=not self.server.info.ours,
            progress=self._progress,
        )

    def _show_life(self) -> None:
        if self.run == names.PERSON or self._life is not None:
            return
        held = [("run", self.run)]
        if self.server.info.server_id:
            held.append(("server", self.server.info.server_id))
        self._life = SignOfLife(self.link.another(), held)

    def epoch(self) -> int:
        """How many times the server's sessions were lost so far."""
        return self._life.epoch if self._life is not None else self.link.epoch

    # --- spares ------------------------------------------------------------------------------------

    def limit_connections(self, each: int) -> None:
        """Every worker of the run may open ``each`` connections to each of its databases, from here on."""
        if each == self.settings.connections_per_worker:
            return
        self.project = self.project.having(connections_per_worker=each)
        leased = [dsn.database for lease in self.leases for dsn in lease.dsns.values()]
        self.clones.limit(each, leased)

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
        if self._filler is None:
            self._filler = self._new_filler(list(self.templates.values()), count)

    @property
    def filler(self) -> Filler | None:
        """What works in the background; None as long as nothing did."""
        return self._filler

    def filling(self) -> Filler:
        """What works in the background, begun by the first replacement; a run that never replaces has none."""
        with self.lock:
            if self._filler is None:
                self._filler = self._new_filler([], 1)
            return self._filler

    def _new_filler(self, templates: Sequence[Template], wanted: int) -> Filler:
        from harness.databases.pool import Filler

        return Filler(self._clones_over(self.link.another()), templates, wanted=wanted)

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
        return sweep.sweep(self.link.session, self.project.id, limits, dry_run=dry_run)

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
                names.lease(self.project.id, self.run, worker, index)
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
        if not self._tests_own_databases or self._others_alive():
            return []
        return self.clones.drop_created_by_tests()

    @property
    def _tests_own_databases(self) -> bool:
        """Whether databases of the application's role can only be the tests': nobody else is that role."""
        if self.run == names.PERSON:
            return False
        if self.server.info.ours:
            return True
        # Somebody else's server: only a role that is named after this checkout is nobody else's.
        return self.owner.name == f"{names.PREFIX}_{self.project.id}"

    def _others_alive(self) -> bool:
        from harness.databases import sweep

        everything = databases.list_ours(self.link.session, self.project.id)
        runs = {d.owner for d in everything if d.kind is names.Kind.LEASE}
        return bool(sweep.alive_runs(self.link.session, sorted(runs - {self.run})))

    # --- the end -----------------------------------------------------------------------------------

    def close(self, *, release: bool) -> None:
        """Log out everywhere, and let go of the server.

        Args:
            release: drop first what this process has leased, and what tests created.
        """
        if self._filler is not None:
            self._filler.close()
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
        if self._filler is not None:
            self._filler.close(drop=False)
        self._leave()

    def _leave(self) -> None:
        for lease in self.leases:
            lease.disconnect()
        if self._life is not None:
            self._life.close()
        self.link.close()
        self.server.close()

    def __repr__(self) -> str:
        return (
            f"<ServerSession {self.project.id} run {self.run}: {len(self.templates)} templates, "
            f"{len(self.leases)} leases, {self.server.info.description}>"
        )
