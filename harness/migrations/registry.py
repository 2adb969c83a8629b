"""From the settings' entries to sources that can be hashed and applied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness.config.settings import SourceSpec
from harness.errors import ConfigError
from harness.migrations.port import MigrationSource


def load(
    spec: SourceSpec, root: Path, *, cache: Path | None = None, environment: Mapping[str, str] | None = None
) -> MigrationSource:
    """The source of one entry; nothing is read yet.

    Args:
        root: the project's root; relative paths start here.
        cache: a folder for what sources learn of a project (which files a warm fingerprint has to look
            at); None: they ask a child process each time.
        environment: for child processes that only look (Django's settings are imported to learn which apps
            there are); DATABASE_URL and PG* in it are replaced, so that nothing can be reached with it.

    Raises:
        ConfigError: no such kind.
    """
    if spec.kind == "sql":
        from harness.migrations.sql.source import SqlSource

        return SqlSource(spec, root)
    if spec.kind == "command":
        from harness.migrations.tools.command import CommandSource

        return CommandSource(spec, root)
    if spec.kind == "alembic":
        from harness.migrations.tools.alembic import AlembicSource

        return AlembicSource(spec, root)
    if spec.kind == "django":
        from harness.migrations.tools.django import DjangoSource

        return DjangoSource(spec, root, cache=cache, environment=environment or {})
    if spec.kind == "python":
        from harness.migrations.tools.python import PythonSource

        return PythonSource(spec, root)
    if spec.kind == "dump":
        from harness.migrations.dump.source import DumpSource

        return DumpSource(spec, root)
    raise ConfigError(f"migrations: unknown kind of source {spec.kind!r}", key="migrations", value=spec.text)
