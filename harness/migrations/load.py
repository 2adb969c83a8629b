"""From the settings' entries to sources that can be hashed and applied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.errors import ConfigError
from harness.migrations.base import MigrationSource
from harness.migrations.files import digest
from harness.settings import SourceSpec


def load(spec: SourceSpec, root: Path, *, cache: Path | None = None) -> MigrationSource:
    """The source of one entry; nothing is read yet.

    Args:
        root: the project's root; relative paths start here.
        cache: a folder for what sources learn of a project (which files a warm fingerprint has to look
            at); None: they ask a child process each time.

    Raises:
        ConfigError: no such kind.
    """
    if spec.kind == "sql":
        from harness.migrations.sql import SqlSource

        return SqlSource(spec, root)
    if spec.kind == "command":
        from harness.migrations.command import CommandSource

        return CommandSource(spec, root)
    raise ConfigError(f"migrations: unknown kind of source {spec.kind!r}", key="migrations", value=spec.text)


def combined_fingerprint(sources: Sequence[MigrationSource]) -> str:
    """One hex digest for several sources in their order.

    Raises:
        MigrationError: one of them cannot be read.
    """
    return digest(["sources 1", *(source.fingerprint() for source in sources)])
