"""What a server of test runs leaves: its data, where copying that costs less than migrating once more.

Two ways: the server's switch copies it when its time is over (:func:`keep_later`), and what outgrows memory is copied
at once (:func:`copy_now`). Either is a snapshot, which the checkout's next server starts from while its migrations are the
same (:func:`harness.runs.bake.baked_base`), and which goes as all snapshots do (``keep_baked``, ``baked_size``).

Local servers alone: what a container has in memory is gone with it.
"""

from __future__ import annotations

import logging
import time

from harness.errors import HarnessError
from harness.runs import bake
from harness.runs.session import ServerSession
from harness.servers import registry
from harness.servers.handshake import claim_alone
from harness.servers.port import SnapshotStore

logger = logging.getLogger("pg_harness.runs")

START = 2.0
"""Seconds that migrations must have taken at least: below, nobody waits for them."""

RATE = 100 * 1024**2
"""Bytes a second that a copy is reckoned with, twice: to the disk, and back."""


def keep_later(session: ServerSession) -> None:
    """Ask the switch of a server on which a template was built to leave its data, where that pays; a hint only, nothing of it fails a run."""
    if not pays(session):
        return
    try:
        baker, store = _of(session)
        if store.from_disk:
            return
        key, fingerprints = baker.key()
        key = baker.ended_key(key)
        if store.keep_later(session.server.info, key, baker.facts(fingerprints, "")):
            logger.debug("server: at its end its data is kept (%s)", key[:8])
            bake.evict(store, bake.retention(session.settings), keep=key)
    except HarnessError as error:
        logger.debug("server: its data will not be kept: %s", error)


def pays(session: ServerSession) -> bool:
    """Whether the migrations took longer than two copies of what they made would."""
    templates = session.templates.values()
    took = sum(found.migrated for found in templates)
    return took > START + 2 * sum(found.size for found in templates) / RATE


def copy_now(session: ServerSession) -> None:
    """End a server whose data outgrows memory, and keep a copy, which the one on disk starts from.

    Where others use it, or it cannot be kept, the migrations run once more.
    """
    server = session.server
    if len(session.templates) < len(session.settings.databases):
        # Memory was full before the migrations came to their end: what is there is of no use.
        return
    try:
        baker, store = _of(session)
        if store.from_disk:
            raise HarnessError(f"a server of the {server.info.backend} backend loses its memory with its end")
        key, fingerprints = baker.key()
        # Our own sign of life would be somebody else's.
        session.leave_life()
        if not claim_alone(server.info, session.link.session):
            raise HarnessError("other runs use it")
        began = time.monotonic()
        store.keep(server.info, baker.ended_key(key), baker.facts(fingerprints, ""))
    except HarnessError as error:
        logger.info("migrating once more: %s", error.message)
        return
    logger.info("copied in %.1f s", time.monotonic() - began)


def _of(session: ServerSession) -> tuple[bake.Baker, SnapshotStore]:
    """Raises BackendUnavailable: its backend keeps nothing."""
    backend = registry.named(session.server.info.backend, session.project)
    baker = bake.Baker(session.project, backend)
    return baker, baker.store
