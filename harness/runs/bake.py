"""Bake: a migrated cluster, kept by the fingerprints of all that decides what it holds.

A base is built in a server of its own, which is stopped cleanly and kept by its backend: a data directory
or an image. It is marked last, so what was cut off never passes for finished.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.config.project import Project, file_lock, make_folder
from harness.config.settings import Settings
from harness.databases import recipes, template
from harness.databases.spec import FORMAT as RECIPE_FORMAT
from harness.databases.spec import Owner, Recipe, fingerprint_on
from harness.errors import BackendUnavailable, HarnessError, MigrationError, ServerLost
from harness.migrations.port import Progress, unseen
from harness.postgres import names, roles
from harness.postgres.session import Session, ident
from harness.servers import acquire, registry
from harness.servers.handle import Server
from harness.servers.port import Backend, Bakery, Base

logger = logging.getLogger("pg_harness.runs")

FORMAT = 1
"""Part of every key: raised when this module bakes differently."""

TTL = 60.0
"""Seconds after which the server that is being baked ends itself when we have died."""

_LEAN = {
    # Whatever lies in pg_wal is copied at every start.
    "min_wal_size": "8MB",
    "wal_keep_size": "0",
    # Writing statistics and freezing by themselves would only race with the clean stop.
    "autovacuum": "off",
}


@dataclass(frozen=True)
class Baked:
    """A base that fits the checkout's migrations as they are now.

    Attributes:
        fingerprints: database name → fingerprint of its migrations.
        built: whether this call baked it.
        seconds: what finding or baking it took.
    """

    base: Base
    fingerprints: Mapping[str, str]
    built: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Limits:
    """How many bases may stay.

    Attributes:
        count: at most.
        age: seconds since one was last used.
        size: bytes of all together.
    """

    count: int = 12
    age: float = 14 * 24 * 3600
    size: int = 4 * 1024**3


class Oven:
    """Looks for bases of one checkout, and bakes them.

    Args:
        backend: whose servers are started from them.
        recipes: how each database is made, in the order of the settings.

    Raises:
        BackendUnavailable: its servers' data cannot be kept.
    """

    def __init__(self, project: Project, backend: Backend, recipes: Sequence[Recipe]) -> None:
        self._project = project
        self._settings = project.settings
        self._backend = backend
        self._recipes = [replace(recipe, keep_failed=False) for recipe in recipes]
        self.bakery = _bakery(backend)

    def ensure(
        self,
        *,
        rebuild: bool = False,
        progress: Progress = unseen,
    ) -> Baked:
        """Find the base of these migrations, or bake it, once however many ask at the same time.

        Raises:
            MigrationError: a source failed, or cannot be read.
            BackendUnavailable, ServerStartError: the server to bake in cannot be started or kept.
            PoolTimeout: another process was still baking when the time was up.
        """
        began = time.monotonic()
        key, fingerprints = self.key()
        if not rebuild and (found := self._look(key)):
            return Baked(found, fingerprints, False, time.monotonic() - began)
        cache = self._project.cache
        # Before the lock makes it, closed to others: the server's own user copies its data there.
        make_folder(cache, 0o755)
        with file_lock(
            # Of bounded number: lock files stay for ever, because removing one is a race.
            cache / f"bake-{key[:2]}.lock",
            timeout=self._settings.migration_timeout + self._settings.start_timeout + 120,
            waiting_for="baking the migrated server",
        ):
            if not rebuild and (found := self._look(key)):
                return Baked(found, fingerprints, False, time.monotonic() - began)
            base = self._bake(key, fingerprints, progress)
        baked = Baked(base, fingerprints, True, time.monotonic() - began)
        logger.info("baked in %.1f s, %d MB: later servers start migrated", baked.seconds, base.size // 2**20)
        for doomed in evict(self.bakery, limits_of(self._settings), keep=key):
            logger.info("bake: removed %s (%s)", doomed.base.key[:8], doomed.reason)
        return baked

    def look(self) -> Base | None:
        """The base of these migrations, where there is one; bakes nothing."""
        key, _ = self.key()
        return self._look(key)

    def key(self) -> tuple[str, dict[str, str]]:
        """24 hex digits of all that decides what the base holds, and the fingerprint of each database.

        Raises:
            MigrationError: a source cannot be read. BackendUnavailable: no server could be started.
        """
        origin = self.bakery.origin()
        fingerprints = {r.database: fingerprint_on(origin.major, r) for r in self._recipes}
        parts = json.dumps([FORMAT, RECIPE_FORMAT, origin.text, fingerprints], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()[:24], fingerprints

    def _look(self, key: str) -> Base | None:
        found = self.bakery.find(key)
        if found is not None:
            self.bakery.touch(found)
        return found

    def _bake(self, key: str, fingerprints: Mapping[str, str], progress: Progress) -> Base:
        self.bakery.leftovers()
        lean = self._project.having(
            postgres={**self._settings.postgres, **_LEAN},
            storage="disk" if self.bakery.from_disk else self._settings.storage,
        )
        logger.info("bake: no migrated server is kept for these migrations: making one")
        kitchen = acquire.private(lean, self._backend, purpose=f"bake-{key[:8]}", ttl=TTL)
        try:
            self._fill(kitchen.session, kitchen.info.binaries, progress)
            kitchen.close()
            return self.bakery.keep(kitchen.info, key, self._facts(fingerprints))
        except (MigrationError, ServerLost) as error:
            if said := _no_room(error, kitchen):
                error.add_note(said)
            error.add_note(
                "It was migrated in a server of its own, which is gone. To look at the half-migrated "
                'database, run once with isolation = "database".'
            )
            raise
        finally:
            # Kept or failed, Ctrl-C too: it has no other use.
            kitchen.stop()

    def _fill(self, session: Session, binaries: str | None, progress: Progress) -> None:
        settings = self._settings
        # The password is forgotten below: who starts from the base sets another one.
        owner = Owner(settings.role, secrets.token_hex(16))
        roles.ensure(
            session,
            owner.name,
            password=owner.password,
            attributes=settings.role_attributes,
            superuser=settings.superuser,
        )
        for recipe in self._recipes:
            template.ensure(
                session,
                names.BAKED,
                replace(recipe, binaries=Path(binaries) if binaries else recipe.binaries),
                owner,
                progress=progress,
            )
        session.execute(f"alter role {ident(owner.name)} password null")

    def _facts(self, fingerprints: Mapping[str, str]) -> dict[str, str]:
        return {
            "root": str(self._settings.root),
            "databases": ", ".join(f"{name} {value[:8]}" for name, value in fingerprints.items()),
            "sources": ", ".join(source.text for recipe in self._recipes for source in recipe.sources),
        }


def _bakery(backend: Backend) -> Bakery:
    bakery = backend.snapshots()
    if bakery is not None:
        return bakery
    others = " or ".join(f'"{word}"' for word in registry.starting() if word != backend.name)
    raise BackendUnavailable(
        f"the {backend.name} backend cannot start servers of our own, one for each worker",
        remedies=[
            'isolation = "database": a database for each worker, in the server that is there',
            f"or backend = {others}, without server_url",
        ],
    )


def _no_room(error: HarnessError, kitchen: Server) -> str:
    """What the server's log says of a full disk: one that cannot write its WAL ends, and the client is not told why."""
    if isinstance(error, MigrationError):
        return ""
    try:
        said = [line for line in kitchen.logs() if "No space left on device" in line]
    except HarnessError:
        return ""
    return f"The server's log says: {said[-1]}" if said else ""


@dataclass(frozen=True)
class Doomed:
    """A base that may go, and why, for people."""

    base: Base
    reason: str


def plan(bases: Sequence[Base], limits: Limits, now: float, keep: str = "") -> list[Doomed]:
    """Decide which bases go. Touches nothing.

    Args:
        now: seconds since 1970.
        keep: a key that stays in any case.
    """
    doomed: list[Doomed] = []
    size = 0
    newest_first = sorted(bases, key=lambda b: (b.key == keep, b.used), reverse=True)
    for place, base in enumerate(newest_first):
        if base.key == keep:
            size += base.size
        elif now - base.used > limits.age:
            doomed.append(Doomed(base, f"not used for {(now - base.used) / 86400:.0f} days"))
        elif place >= limits.count:
            doomed.append(Doomed(base, f"more than keep_baked = {limits.count}"))
        elif size + base.size > limits.size:
            doomed.append(Doomed(base, f"more than baked_size = {limits.size // 2**20} MB"))
        else:
            size += base.size
    return doomed


def evict(bakery: Bakery, limits: Limits, *, keep: str = "", dry_run: bool = False) -> list[Doomed]:
    """Remove what is beyond the limits; return what went (or would go)."""
    doomed = plan(bakery.list(), limits, time.time(), keep)
    return doomed if dry_run else [item for item in doomed if bakery.remove(item.base)]


def limits_of(settings: Settings) -> Limits:
    """What the settings allow."""
    return Limits(settings.keep_baked, settings.template_age, settings.baked_size)


def oven_of(project: Project, backend: Backend) -> Oven:
    """What bakes for these settings."""
    settings = project.settings
    made = [recipes.make(project, database, role=settings.role) for database in settings.databases]
    return Oven(project, backend, made)


def baked_base(project: Project, backend: Backend) -> str | None:
    """What a new server can start from, migrated already; a hint only: without it, it is migrated."""
    try:
        found = oven_of(project, backend).look()
    except HarnessError:
        # Whatever is wrong is said where it matters: at the start, or by the migrations.
        return None
    if found is not None:
        logger.info("starting from a baked server (%s)", found.facts.get("databases", found.key[:8]))
    return found.ref if found is not None else None
