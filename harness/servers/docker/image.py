"""Having an image: looking for it, pulling it, and saying clearly why not."""

from __future__ import annotations

import logging
import time
from typing import Any

from harness.errors import BackendError, BackendUnavailable, ServerStartError
from harness.servers.docker.daemon import Daemon, gone, text_of, translated

logger = logging.getLogger("pg_harness.servers.docker")


def ensure(daemon: Daemon, name: str) -> Any:
    """The image, pulled where the daemon does not have it.

    Returns:
        ``docker.models.images.Image``.

    Raises:
        BackendUnavailable: there is no such image, or it cannot be pulled.
    """
    full = daemon.prefix + name
    if (found := find(daemon, full)) is not None:
        return found
    if (refused := daemon.refused.get(full)) is not None:
        raise refused
    logger.info("docker: pulling %s", full)
    try:
        with translated(f"pull {full}"):
            _pull(daemon, full)
            return daemon.client.images.get(full)
    except BackendError as error:
        reason = text_of(error.__cause__ or error)
    daemon.refused[full] = refused = BackendUnavailable(
        f"the image {full} is not on this Docker daemon and cannot be pulled: {reason}",
        checked=[f"images of {daemon.where}", f"the registry of {full}"],
        remedies=[
            'check the spelling: image = "postgres:17", PGHARNESS_IMAGE or --image',
            f"for a private registry: docker login, then docker pull {full}",
            'without a network: `docker load` it, build one with images/build-offline, or use backend = "process"',
        ],
    )
    raise refused


def baked(daemon: Daemon, reference: str) -> Any:
    """An image of :mod:`harness.servers.docker.snapshots`.

    Raises:
        ServerStartError: it was removed meanwhile.
    """
    found = find(daemon, reference)
    if found is None:
        raise ServerStartError(
            f"the baked image {reference[:19]} was removed: run again, and it is baked anew"
        )
    return found


def find(daemon: Daemon, reference: str) -> Any | None:
    """The image of that name or id, where the daemon has it.

    Raises:
        BackendError: the daemon refused. ServerLost: it does not answer.
    """
    with translated(f"look for the image {reference}"):
        try:
            return daemon.client.images.get(reference)
        except Exception as error:
            if gone(error):
                return None
            raise


def printable(text: str) -> str:
    """Somebody else's text without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _pull(daemon: Daemon, full: str) -> None:
    repository, tag = _split(full)
    done: dict[str, tuple[int, int]] = {}
    told = time.monotonic()
    for event in daemon.client.api.pull(repository, tag=tag, stream=True, decode=True):
        if "error" in event:
            raise BackendError(str(event["error"]))
        detail = event.get("progressDetail") or {}
        if event.get("status") in ("Downloading", "Extracting") and detail.get("total"):
            done[f"{event.get('id')}"] = (int(detail.get("current", 0)), int(detail["total"]))
        if done and time.monotonic() - told > 2:
            told = time.monotonic()
            current, total = (sum(pair[i] for pair in done.values()) / 1e6 for i in (0, 1))
            logger.info("docker: pulling %s: %.0f of %.0f MB", full, current, total)


def _split(full: str) -> tuple[str, str | None]:
    if "@" in full:
        return full, None
    head, colon, tag = full.rpartition(":")
    # The colon of a registry's port is no tag.
    return (head, tag) if colon and "/" not in tag else (full, "latest")
