"""Bake: a migrated cluster, kept by the fingerprints of all that decides what it holds.

A snapshot is made of a server of its own, which is migrated, stopped cleanly and kept by its backend: a data
directory or an image. It is marked last, so what was cut off never passes for finished.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from harness.config.project import Project, file_lock, make_folder
from harness.config.settings import Settings
from harness.databases import role, template
from harness.databases.spec import FORMAT as SPEC_FORMAT
from harness.databases.spec import Owner, TemplateSpec
from harness.databases.sweep import Leftover, Retention
from harness.errors import (
    BackendUnavailable,
    ConfigError,
    HarnessError,
    MigrationError,
    ServerLost,
    ServerRefused,
    ServerStartError,
)
from harness.migrations.port import Progress, unseen
from harness.postgres import names
from harness.postgres.admin import Link
from harness.postgres.session import Session, ident
from harness.runs import rewinding
from harness.servers import acquire, explaining, registry
from harness.servers.port import Backend, Shared, Snapshot, SnapshotStore

logger = logging.getLogger("pg_harness.runs")

FORMAT = 2
"""Part of every key: raised when this module bakes differently."""

TRIAL = 30.0
"""Seconds at most that a server may take to start from what somebody else has baked."""

TTL = 60.0
"""Seconds after which the server that is being baked ends itself when we have died."""

_LEAN = {
    # Whatever lies in pg_wal is copied at every start.
    "min_wal_size": "8MB",
    "wal_keep_size": "0",
    # A segment that is used again holds what was in it: the verifiers of passwords, see roles.forget_verifiers.
    "wal_recycle": "off",
    # Writing statistics and freezing by themselves would only race with the clean stop.
    "autovacuum": "off",
}


@dataclass(frozen=True)
class Baked:
    """A snapshot that fits the checkout's migrations as they are now.

    Attributes:
        built: whether this call baked it.
        seconds: what finding or baking it took.
        fetched: whether this call got it from where it is shared.
    """

    snapshot: Snapshot
    built: bool = False
    seconds: float = 0.0
    fetched: bool = False


class Baker:
    """Looks for the snapshot of one checkout's migrations, and bakes it.

    Attributes:
        store: of all snapshots of the backend.

    Args:
        backend: whose servers are started from them.

    Raises:
        BackendUnavailable: its servers' data cannot be kept.
    """

    def __init__(self, project: Project, backend: Backend) -> None:
        self._project = project
        self._settings = settings = project.settings
        self._backend = backend
        self._specs = [
            replace(TemplateSpec.of(project, database, role=settings.role), keep_failed=False)
            for database in settings.databases
        ]
        self.store = _store(backend, project)

    def ensure(self, *, rebuild: bool = False, progress: Progress = unseen) -> Baked:
        """Find the snapshot of these migrations, or bake it, once however many ask at the same time.

        Raises:
            MigrationError: a source failed, or cannot be read.
            BackendUnavailable, ServerStartError: the server to bake in cannot be started or kept.
            PoolTimeout: another process was still baking when the time was up.
        """
        began = time.monotonic()
        key, fingerprints = self.key()
        if not rebuild and (found := self._here(key)):
            return Baked(found, seconds=time.monotonic() - began)
        with self._alone(key):
            found = None if rebuild else self._look(key, fingerprints)
            made = found or self._bake(key, fingerprints, progress)
        baked = Baked(
            made,
            built=found is None,
            seconds=time.monotonic() - began,
            fetched=found is not None and found.fetched,
        )
        if baked.built:
            logger.info(
                "baked in %.1f s, %d MB: later servers start migrated", baked.seconds, made.size // 2**20
            )
            self._evict(key)
        return baked

    def _alone(self, key: str) -> AbstractContextManager[None]:
        """Held while that snapshot is baked or fetched."""
        cache = self._project.cache
        # Before the lock makes it, closed to others: the server's own user copies its data there.
        make_folder(cache, 0o755)
        return file_lock(
            # Of bounded number: lock files stay for ever, because removing one is a race.
            cache / f"bake-{key[:2]}.lock",
            timeout=self._settings.migration_timeout + self._settings.start_timeout + 120,
            waiting_for="baking the migrated server",
        )

    def _evict(self, key: str) -> None:
        for old in evict(self.store, retention(self._settings), keep=key):
            logger.info("bake: removed %s (%s)", old.item.key[:8], old.reason)

    @classmethod
    def with_backend(
        cls, project: Project, *, rebuild: bool = False, push: bool = False, progress: Progress = unseen
    ) -> tuple[Backend, Self, Baked]:
        """The backend that the settings mean, and the snapshot there, found or baked.

        ``auto`` goes on where a backend answers and cannot start a server (a daemon without the image), as it does
        for a server that all workers share.

        Args:
            push: it must be one whose snapshots can be pushed.

        Raises:
            As :meth:`ensure`; ConfigError: there is no such backend.
        """
        backend = registry.choose(project)
        while True:
            try:
                baker = cls(project, backend)
                if push and not baker.store.repository:
                    raise BackendUnavailable(
                        f"what the {backend.name} backend bakes cannot be pushed to a registry: it is no image",
                        remedies=['backend = "docker" (PGHARNESS_BACKEND=docker)'],
                    )
                return backend, baker, baker.ensure(rebuild=rebuild, progress=progress)
            except BackendUnavailable as error:
                backend = registry.fallback(error, backend, project)

    def look(self) -> Snapshot | None:
        """The snapshot of these migrations, where there is one, here or where it is shared; bakes nothing."""
        key, fingerprints = self.key()
        if (found := self._here(key)) is not None or not self.store.repository:
            return found
        with self._alone(key):
            return self._look(key, fingerprints)

    def key(self) -> tuple[str, dict[str, str]]:
        """24 hex digits of all that decides what the snapshot holds, and the fingerprint of each database.

        Raises:
            MigrationError: a source cannot be read. BackendUnavailable: no server could be started.
        """
        origin = self.store.origin()
        fingerprints = {spec.database: spec.fingerprint(origin.major) for spec in self._specs}
        tried = rewinding.mark(self._project, origin.major)
        parts = json.dumps([FORMAT, SPEC_FORMAT, origin.text, tried, fingerprints], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()[:24], fingerprints

    def ended_key(self, key: str) -> str:
        """Of what a server of test runs of this checkout leaves at its end: its databases are the checkout's own."""
        return hashlib.sha256(f"ended {key} {self._project.id}".encode()).hexdigest()[:24]

    def look_ended(self) -> Snapshot | None:
        """What a server of these migrations has left, see :mod:`harness.runs.ended`."""
        return self._here(self.ended_key(self.key()[0]))

    def _here(self, key: str) -> Snapshot | None:
        found = self.store.here(key)
        if found is not None:
            self.store.touch(found)
        return found

    def _look(self, key: str, fingerprints: Mapping[str, str]) -> Snapshot | None:
        """As :meth:`_here`, and where it is shared: what comes from there is tried before it is kept."""
        found = self.store.find(key)
        if found is None:
            return None
        if found.fetched and (why := self._refusal(found, fingerprints)):
            self.store.refuse(found, why)
            return None
        self.store.touch(found)
        if found.fetched:
            logger.info("bake: servers start from %s, migrated elsewhere", found.shared)
            self._evict(key)
        return found

    def _refusal(self, found: Snapshot, fingerprints: Mapping[str, str]) -> str:
        """Start a server from what somebody else has baked, and look whether it is as one of ours is; return what it lacks."""
        short = min(self._settings.start_timeout, TRIAL)
        tried = self._project.having(storage="disk", start_timeout=short)
        try:
            server = acquire.private(
                tried, self._backend, purpose=f"bake-{found.key[:8]}", ttl=TTL, base=found.ref
            )
        except (ServerStartError, ServerLost, ConfigError) as error:
            return f"no server starts from it: {error.message.splitlines()[0]}"
        try:
            with Session.connect(server.admin_dsn) as session:
                for database, wanted in fingerprints.items():
                    if not template.brought(session, wanted):
                        return f"its data does not hold what it says: there is no template {wanted[:8]} of {database}"
                return _open_doors(session)
        except (ServerLost, ServerRefused) as error:
            return f"its server does not answer as one of ours does: {error.message.splitlines()[0]}"
        finally:
            server.stop()

    def push(self, baked: Baked, *, replace: bool) -> tuple[Shared, bool]:
        """Put a snapshot where other machines find it, unless these migrations are there already.

        Raises:
            BackendUnavailable: it cannot be; the snapshot stays here.
        """
        try:
            return self.store.push(baked.snapshot, replace=replace)
        except BackendUnavailable as error:
            error.add_note(f"It stays on this machine, as {baked.snapshot.name or baked.snapshot.ref}.")
            raise

    def _bake(self, key: str, fingerprints: Mapping[str, str], progress: Progress) -> Snapshot:
        self.store.leftovers()
        lean = self._project.having(
            postgres={**self._settings.postgres, **_LEAN},
            storage="disk" if self.store.from_disk else self._settings.storage,
        )
        logger.info("bake: no migrated server is kept for these migrations: making one")
        server = acquire.private(
            lean, self._backend, purpose=f"bake-{key[:8]}", ttl=TTL, files=rewinding.files(lean)
        )
        try:
            # Tried here, once: servers that start from this know that it was.
            link = Link(server.admin_dsn, server.info.server_id, session=server.session)
            reset = rewinding.told(rewinding.prepare(lean, server, link.session))
            # A trial that crashes the server takes all sessions with it, and is no reason not to bake.
            link.surely(lambda: link.session.value("select 1"))
            self._fill(link.session, server.info.binaries, progress)
            link.close()
            server.close()
            return self.store.keep(server.info, key, self.facts(fingerprints, reset))
        except (MigrationError, ServerLost) as error:
            explaining.explain(error, server)
            error.add_note(
                "It was migrated in a server of its own, which is gone. To look at the half-migrated "
                'database, run once with isolation = "database".'
            )
            raise
        finally:
            # Kept or failed, Ctrl-C too: it has no other use.
            server.stop()

    def _fill(self, session: Session, binaries: str | None, progress: Progress) -> None:
        settings = self._settings
        # The password is forgotten below: who starts from the snapshot sets another one.
        owner = Owner(
            settings.role, secrets.token_hex(16), tuple(settings.role_attributes), settings.superuser
        )
        role.make(session, owner)
        for spec in self._specs:
            template.ensure(
                session,
                names.BAKED,
                replace(spec, binaries=Path(binaries) if binaries else spec.binaries),
                owner,
                progress=progress,
            )
        session.execute(f"alter role {ident(owner.name)} password null")

    def facts(self, fingerprints: Mapping[str, str], reset: str) -> dict[str, str]:
        """What a snapshot is, for people.

        Args:
            reset: what resets by pages there.
        """
        return {
            "root": str(self._settings.root),
            "databases": ", ".join(f"{name} {value[:8]}" for name, value in fingerprints.items()),
            "sources": ", ".join(source.text for spec in self._specs for source in spec.sources),
            # For whoever has no server of its own, and is asked.
            "reset": reset,
        }


def _open_doors(session: Session) -> str:
    """How others could log in to a server that somebody else has baked; a bake of ours leaves no way."""
    known = session.column(
        "select rolname from pg_authid where rolpassword is not null and rolname <> 'postgres'"
    )
    if known:
        return f"it brings passwords of its own, of {', '.join(ascii(name)[1:-1] for name in known[:3])}"
    if session.value(
        "select exists (select from pg_hba_file_rules where type like 'host%'"
        " and auth_method not in ('scram-sha-256', 'reject'))"
    ):
        return "its server lets in without a password"
    return ""


def _store(backend: Backend, project: Project) -> SnapshotStore:
    store = backend.snapshots()
    if store is not None:
        return store
    keeping = (
        word
        for word in registry.starting()
        if not registry.kinds()[word].elsewhere and registry.named(word, project).snapshots() is not None
    )
    others = " or ".join(f'"{word}"' for word in keeping)
    raise BackendUnavailable(
        f"the {backend.name} backend cannot start servers of our own, one for each worker",
        remedies=[
            'isolation = "database": a database for each worker, in the server that is there',
            f"or backend = {others}, without server_url",
        ],
    )


def retention(settings: Settings) -> Retention:
    """How many snapshots may stay."""
    return Retention(
        settings.keep_baked, settings.template_age, settings.baked_size, ("keep_baked", "baked_size")
    )


def plan(
    snapshots: Iterable[Snapshot], allowed: Retention, now: float, keep: str = ""
) -> list[Leftover[Snapshot]]:
    """Decide which go. Touches nothing.

    Args:
        now: seconds since 1970.
        keep: a key that stays in any case.
    """
    return allowed.beyond(
        snapshots,
        now,
        used=lambda snapshot: snapshot.used,
        size=lambda snapshot: snapshot.size,
        stays=lambda snapshot: snapshot.key == keep,
    )


def evict(
    store: SnapshotStore, allowed: Retention, *, keep: str = "", dry_run: bool = False
) -> list[Leftover[Snapshot]]:
    """Remove what is beyond that; return what went (or would go)."""
    left = plan(store.list(), allowed, time.time(), keep)
    return left if dry_run else [old for old in left if store.remove(old.item)]


def baked_base(project: Project, backend: Backend, *, ended: bool = False) -> str | None:
    """What a new server can start from, migrated already; a hint only: without it, it is migrated.

    Args:
        ended: it may be what an earlier server of the checkout's test runs has left.
    """
    try:
        baker = Baker(project, backend)
        found = baker.look() or (baker.look_ended() if ended else None)
    except HarnessError:
        # Whatever is wrong is said where it matters: at the start, or by the migrations.
        return None
    if found is not None:
        logger.info("starting from a baked server (%s)", found.facts.get("databases", found.key[:8]))
    return found.ref if found is not None else None
