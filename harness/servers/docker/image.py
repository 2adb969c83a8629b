"""Having an image: looking for it, pulling it, and saying clearly why not."""

from __future__ import annotations

import logging
import time
from typing import Any

from harness.errors import BackendUnavailable, ServerStartError
from harness.servers.docker.daemon import Daemon, translated

logger = logging.getLogger("pg_harness.servers.docker")


def ensure(daemon: Daemon, name: str) -> Any:
    """The image, pulled where the daemon does not have it.

    Returns:
        ``docker.models.images.Image``.

    Raises:
        BackendUnavailable: there is no such image, or it cannot be pulled.
    """
    import docker.errors
    import requests.exceptions
    import urllib3.exceptions

    full = daemon.prefix + name
    with translated(f"look for the image {full}"):
        try:
            return daemon.client.images.get(full)
        except docker.errors.ImageNotFound:
            pass
    logger.info("docker: pulling %s", full)
    try:
        _pull(daemon, full)
        return daemon.client.images.get(full)
    except (
        docker.errors.DockerException,
        # While a pull is read, the client lets these through as they are.
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
    ) as error:
        reason = " ".join(str(getattr(error, "explanation", None) or error).split())[:300]
    except _PullFailed as error:
        reason = str(error)
    raise BackendUnavailable(
        f"the image {full} is not on this Docker daemon and cannot be pulled: {reason}",
        checked=[f"images of {daemon.where}", f"the registry of {full}"],
        remedies=[
            'check the spelling: image = "postgres:17", PGHARNESS_IMAGE or --image',
            f"for a private registry: docker login, then docker pull {full}",
            'without a network: `docker load` it, build one with images/build-offline, or use backend = "process"',
        ],
    )


def baked(daemon: Daemon, reference: str) -> Any:
    """An image of :mod:`harness.servers.docker.snapshots`.

    Raises:
        ServerStartError: it was removed meanwhile.
    """
    import docker.errors

    with translated(f"look for the baked image {reference}"):
        try:
            return daemon.client.images.get(reference)
        except docker.errors.ImageNotFound:
            raise ServerStartError(
                f"the baked image {reference[:19]} was removed: run again, and it is baked anew"
            ) from None


class _PullFailed(Exception):
    pass


def _pull(daemon: Daemon, full: str) -> None:
    repository, tag = _split(full)
    done: dict[str, tuple[int, int]] = {}
    told = time.monotonic()
    for event in daemon.client.api.pull(repository, tag=tag, stream=True, decode=True):
        if "error" in event:
            raise _PullFailed(" ".join(str(event["error"]).split())[:300])
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
