"""One run on one server: the way in, the application's role, the templates, and what is left over there.

What only the process needs that opens the run is imported where it is used: each worker joins it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from harness.config.settings import DatabaseSettings, Settings, SourceSpec
from harness.databases import template
from harness.databases.clones import Clones
from harness.databases.lease import Lease
from harness.databases.spec import Owner, Recipe, fingerprint
from harness.databases.template import Template
from harness.errors import HarnessError, LeaseLost
from harness.postgres import databases, names
from harness.postgres.admin import Link
from harness.postgres.liveness import SignOfLife
from harness.runs import Run
from harness.telling import Progress, Story, silent, unseen

if TYPE_CHECKING:
    from harness.databases.sweep import Doomed
    from harness.servers.handle import Server


class OneServer(Run):
    """The part of :class:`harness.core.Harness` that concerns the server as a whole.

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
        story: Story = silent,
        progress: Progress = unseen,
    ) -> None:
        super().__init__(settings, environ, run=run, workers=workers, story=story, progress=progress)
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

            self._owner = role.ensure(
                self._link.session, self.server.info, self.settings, self.project, self._story
            )
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
            story=self._story,
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
                self._story(f"dropped {item.database.name}: {item.reason}")
            for name in self._drop_created_by_tests():
                self._story(f"dropped {name}: a test of an earlier run created it")
        except HarnessError as error:
            # What is left over is no reason not to run: the next run tries again.
            self._story(f"what earlier runs left could not be dropped: {error}")

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
            parsed = found.parsed
            if parsed is None or parsed.kind is not names.Kind.LEASE or parsed.owner != self.run:
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
        runs = {d.parsed.owner for d in everything if d.parsed and d.parsed.kind is names.Kind.LEASE}
        return bool(sweep.alive_runs(self._link.session, sorted(runs - {self.run})))

    def _leave(self) -> None:
        """Log out everywhere."""
        if self._life is not None:
            self._life.close()
        self._link.close()
        self.server.close()
