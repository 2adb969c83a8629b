"""How each database of a checkout is made, from the settings alone: no server is needed to know it."""

from __future__ import annotations

from pathlib import Path

from harness.config import environment
from harness.config.project import Project
from harness.config.settings import DEFAULT_DATABASE, DatabaseSettings, Settings, SourceSpec
from harness.databases.spec import Recipe, decisive_text
from harness.dsn import Dsn
from harness.migrations.registry import load


def make(
    project: Project,
    database: DatabaseSettings,
    *,
    role: str,
    binaries: str | None = None,
    slot: environment.Slot | None = None,
) -> Recipe:
    """How one of the databases is made.

    Args:
        role: the application's.
        binaries: folder of ``psql``, where there is one.
        slot: what env templates may say; None: the first worker's.
    """
    settings = project.settings
    where = slot or environment.Slot("1", 1, settings.connections_per_worker)
    return Recipe(
        database=database.name,
        sources=[
            load(spec, settings.root, cache=project.cache, environment=project.environ)
            for spec in sources(settings, database)
        ],
        extensions=database.extensions,
        migrate_as=settings.migrate_as,
        decisive=decisive_text(
            {
                "role": role,
                "attributes": sorted(settings.role_attributes),
                "superuser": settings.superuser,
                "postgres": dict(settings.postgres),
            }
        ),
        environment=lambda dsn: _migration_environment(project, database, dsn, where),
        binaries=Path(binaries) if binaries else None,
        timeout=settings.migration_timeout,
    )


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
    project: Project,
    database: DatabaseSettings,
    dsn: Dsn,
    slot: environment.Slot,
) -> dict[str, str]:
    # While one database is migrated, the worker's other ones do not exist yet.
    dsns = {d.name: dsn.with_database("not_migrated_yet") for d in project.settings.databases}
    dsns |= {DEFAULT_DATABASE: dsn, database.name: dsn}
    tables = {d.name: d.env for d in project.settings.databases}
    return environment.child_environment(project.environ, environment.variables(dsns, tables, slot))
