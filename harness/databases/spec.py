"""What decides a template's content: how it is made, and by whom; and the hash over all of that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from harness.config import environment as env
from harness.config.project import Project
from harness.config.settings import DEFAULT_DATABASE, DatabaseSettings, Settings, SourceSpec
from harness.dsn import Dsn
from harness.postgres import names, roles
from harness.postgres.session import Session

if TYPE_CHECKING:
    from harness.migrations.port import MigrationSource

FORMAT = 2
"""Part of every fingerprint: raised when templates are built differently from the same."""


@dataclass(frozen=True)
class Owner:
    """The application's role, and how to log in as it.

    Attributes:
        name: role name.
        password: in clear text; never in ``repr``.
        attributes, superuser: what it was made with.
        managed: whether it is ours to put right; False where the application uses the admin's own role.
        each: whether every worker logs in as a role of its own, a member of this one: see :meth:`of`.
        group: of a worker's role: the role that it is a member of.
        rounds: of hashing, on a server of ours; 1: a random password gains nothing from more.
    """

    name: str
    password: str = field(repr=False)
    attributes: tuple[str, ...] = ()
    superuser: bool = False
    managed: bool = False
    each: bool = False
    group: str = ""
    rounds: int = 1

    @property
    def confined(self) -> bool:
        """Whether rights keep it out of anything: nobody keeps a superuser out, nor who gives himself what rights he likes."""
        return not self.superuser and "CREATEROLE" not in {a.upper() for a in self.attributes}

    def of(self, project: str, run: str, worker: str) -> Owner:
        """The role that one worker of one run logs in as, or did: this one, where all have the same."""
        return self.named(names.role(project, run, worker)) if self.each else self

    def named(self, role: str) -> Owner:
        """The worker's role of that name; this one, where it is none."""
        if not self.each or not names.run_of_role(role):
            return self
        password = roles.derived_password(self.password, role)
        return replace(self, name=role, password=password, each=False, group=self.name)


@dataclass(frozen=True)
class TemplateSpec:
    """All that decides what a template holds, and how to make it.

    Attributes:
        database: which of the worker's databases this is for, ``"default"`` first of all.
        sources: in the order in which they are applied.
        extensions: created by the admin before the sources run.
        migrate_as: ``"role"`` or ``"admin"``.
        decisive: further text that decides the outcome (settings of the server, attributes of the role).
        environment: makes the environment of child processes from the address to migrate.
        binaries: folder of ``psql``, where there is one.
        timeout: seconds for all sources together.
        keep_failed: whether a half-migrated database stays for people to look at.
        seeds: how many of the sources, the last ones, are data: see :attr:`schema`.
    """

    database: str
    sources: Sequence[MigrationSource]
    extensions: Sequence[str] = ()
    migrate_as: str = "role"
    decisive: str = ""
    environment: Callable[[Dsn], Mapping[str, str]] = lambda dsn: {}
    binaries: Path | None = None
    timeout: float = 300
    keep_failed: bool = True
    seeds: int = 0

    @property
    def schema(self) -> Sequence[MigrationSource]:
        """The sources but the seeds: what a database that people work with is brought up to date by."""
        return self.sources[: len(self.sources) - self.seeds]

    @classmethod
    def of(
        cls,
        project: Project,
        database: DatabaseSettings,
        *,
        role: str,
        binaries: str | None = None,
        slot: env.Slot | None = None,
    ) -> Self:
        """As the settings have it; no server is needed to know it.

        Args:
            role: the application's.
            slot: what env templates may say; None: the first worker's.
        """
        # A worker that joins a run makes no template: it does not import the kinds of migrations.
        from harness.migrations.registry import load

        settings = project.settings
        where = slot or env.Slot("1", 1, settings.connections_per_worker)
        decisive: dict[str, object] = {
            "role": role,
            "attributes": sorted(settings.role_attributes),
            "superuser": settings.superuser,
            "postgres": dict(settings.postgres),
        }
        if settings.preload:
            decisive["preload"] = list(settings.preload)
        return cls(
            database=database.name,
            sources=[
                load(source, settings.root, cache=project.cache, environment=project.environ)
                for source in sources(settings, database)
            ],
            extensions=database.extensions,
            migrate_as=settings.migrate_as,
            decisive=json.dumps(decisive, sort_keys=True, default=str),
            environment=lambda dsn: _migration_environment(project, database, dsn, where),
            binaries=Path(binaries) if binaries else None,
            timeout=settings.migration_timeout,
            seeds=len(database.seeds),
        )

    def fingerprint(self, server: Session | int) -> str:
        """64 hex digits over all that decides the outcome on a server.

        Args:
            server: a session on it; or its major version (17), where it need not run yet.

        Raises:
            MigrationError: a source cannot be read.
        """
        major = server if isinstance(server, int) else server.server_version // 10000
        parts = [
            f"format {FORMAT}",
            f"server {major}",
            f"database {self.database}",
            f"extensions {list(self.extensions)}",
            f"migrate_as {self.migrate_as}",
            f"decisive {self.decisive}",
            *(f"source {source.text} {source.fingerprint()}" for source in self.sources),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def sources(settings: Settings, database: DatabaseSettings) -> tuple[SourceSpec, ...]:
    """The configured sources, or those that were found in the project where none is configured."""
    if database.migrations is not None:
        return database.migrations
    if database.name != DEFAULT_DATABASE:
        return database.seeds
    # Only where nothing is configured: it knows every tool's files, which takes a while to import.
    from harness.migrations.detect import detect

    found = detect(settings.root)
    return (*(finding.spec for finding in found[:1]), *database.seeds)


def _migration_environment(
    project: Project, database: DatabaseSettings, dsn: Dsn, slot: env.Slot
) -> dict[str, str]:
    # While one database is migrated, the worker's other ones do not exist yet.
    dsns = {d.name: dsn.with_database("not_migrated_yet") for d in project.settings.databases}
    dsns |= {DEFAULT_DATABASE: dsn, database.name: dsn}
    tables = {d.name: d.env for d in project.settings.databases}
    return env.child_environment(project.environ, env.variables(dsns, tables, slot))
