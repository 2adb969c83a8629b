"""What decides a template's content: how it is made, and by whom; and the hash over all of that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.dsn import Dsn
from harness.postgres.session import Session

if TYPE_CHECKING:
    from harness.migrations.port import MigrationSource

FORMAT = 1
"""Part of every fingerprint: raised when templates are built differently from the same recipe."""


@dataclass(frozen=True)
class Owner:
    """The application's role, and how to log in as it.

    Attributes:
        name: role name.
        password: in clear text; never in ``repr``.
        attributes, superuser: what it was made with.
        managed: whether it is ours to put right; False where the application uses the admin's own role.
    """

    name: str
    password: str = field(repr=False)
    attributes: tuple[str, ...] = ()
    superuser: bool = False
    managed: bool = False


@dataclass(frozen=True)
class Recipe:
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


def fingerprint(session: Session, recipe: Recipe) -> str:
    """64 hex digits over all that decides the outcome of the recipe on this server.

    Raises:
        MigrationError: a source cannot be read.
    """
    return fingerprint_on(session.server_version // 10000, recipe)


def fingerprint_on(major: int, recipe: Recipe) -> str:
    """:func:`fingerprint` on a server of a major version (17), which need not run yet."""
    parts = [
        f"format {FORMAT}",
        f"server {major}",
        f"database {recipe.database}",
        f"extensions {list(recipe.extensions)}",
        f"migrate_as {recipe.migrate_as}",
        f"decisive {recipe.decisive}",
        *(f"source {source.text} {source.fingerprint()}" for source in recipe.sources),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def decisive_text(parts: Mapping[str, object]) -> str:
    """Settings that decide a template's outcome, as stable text."""
    return json.dumps(parts, sort_keys=True, default=str)
