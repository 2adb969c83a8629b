"""Which backend: the user's choice, or the first that works."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from harness.config import project
from harness.config.settings import Settings
from harness.errors import BackendUnavailable, ConfigError
from harness.servers.port import Backend, Bakery

logger = logging.getLogger("pg_harness.servers")

AUTO_TIMEOUT = 1.0
"""Seconds that a Docker daemon may take to answer before ``auto`` goes on to local binaries."""

NAMES = ("auto", "docker", "process", "external")


def choose(settings: Settings, environ: Mapping[str, str]) -> Backend:
    """The backend to start servers with; what ``auto`` comes to is told in one line.

    Raises:
        BackendUnavailable, ConfigError: as :func:`chosen`.
    """
    backend, why = chosen(settings, environ)
    if why:
        logger.info("backend: %s, %s", backend.name, why)
    return backend


def chosen(settings: Settings, environ: Mapping[str, str]) -> tuple[Backend, str]:
    """The backend to start servers with, and what decided for it where the setting is ``auto`` ("": it is named).

    Raises:
        BackendUnavailable: ``auto`` found neither a daemon nor binaries; it lists what was tried.
        ConfigError: the setting names no backend, or ``external`` without a URL.
    """
    if settings.server_url is not None or settings.backend != "auto":
        return named(_explicit(settings), settings, environ), ""
    tried: list[str] = []
    remedies: dict[str, None] = {}
    for name in ("docker", "process"):
        backend = named(name, settings, environ, timeout=AUTO_TIMEOUT)
        try:
            reason = usable(backend)
        except BackendUnavailable as error:
            tried += [
                f"{name}: {error.message.splitlines()[0]}",
                *(f"{name}: {line}" for line in error.checked),
            ]
            remedies |= dict.fromkeys(error.remedies)
            continue
        because = f" ({tried[0]})" if tried else ""
        return backend, f"{reason}{because}"
    raise BackendUnavailable(
        "no PostgreSQL server can be started here: no Docker daemon answers and no local binaries were found",
        checked=tried,
        remedies=list(remedies),
    )


def named(name: str, settings: Settings, environ: Mapping[str, str], *, timeout: float = 10) -> Backend:
    """The backend of that name, not yet asked for anything; used for hints of servers that run.

    Raises:
        ConfigError: there is no such backend.
    """
    if name == "docker":
        from harness.servers.docker.backend import DockerBackend

        return DockerBackend(
            environ,
            image=settings.image,
            memory_limit=settings.memory_limit,
            shm_size=settings.shm_size,
            timeout=timeout,
        )
    if name == "process":
        from harness.servers.process.backend import ProcessBackend

        return ProcessBackend(
            environ,
            state=project.state_dir(environ),
            cache=project.cache_dir(environ),
            binaries=settings.binaries,
            version=settings.version,
            memory_limit=settings.memory_limit,
        )
    if name == "external":
        from harness.servers.external import ExternalBackend

        if settings.server_url is None:
            raise ConfigError(
                'backend = "external" needs the server\'s address: PGHARNESS_SERVER_URL or --server-url. '
                "An inherited DATABASE_URL is never used: it may be production.",
                key="server_url",
                origin=settings.origin("backend"),
            )
        return ExternalBackend(settings.server_url, origin=settings.origin("server_url"))
    raise ConfigError(
        f"there is no backend {name!r}; there are {', '.join(NAMES)}",
        key="backend",
        origin=settings.origin("backend"),
        value=name,
    )


def _explicit(settings: Settings) -> str:
    return "external" if settings.server_url is not None else settings.backend


def usable(backend: Backend) -> str:
    """What it would start servers with, for people.

    Raises:
        BackendUnavailable: no daemon answers, or there are no binaries.
    """
    from harness.servers.docker.backend import DockerBackend
    from harness.servers.process.backend import ProcessBackend

    if isinstance(backend, DockerBackend):
        return f"a daemon answers at {backend.daemon.where}"
    assert isinstance(backend, ProcessBackend)
    found = backend.binaries()
    return f"PostgreSQL {found.version} in {found.folder}"


def bakery_of(backend: Backend, cache: Path) -> Bakery:
    """Where a backend keeps its bases.

    Raises:
        BackendUnavailable: it cannot keep any (a server that someone else runs).
    """
    from harness.servers.docker.backend import DockerBackend
    from harness.servers.process.backend import ProcessBackend

    if isinstance(backend, ProcessBackend):
        from harness.servers.process.snapshots import ProcessBakery

        return ProcessBakery(backend)
    if isinstance(backend, DockerBackend):
        from harness.servers.docker.snapshots import DockerBakery

        return DockerBakery(backend, cache)
    raise BackendUnavailable(
        f"the {backend.name} backend cannot start servers of our own, one for each worker",
        remedies=[
            'isolation = "database": a database for each worker, in the server that is there',
            'or backend = "docker" or "process", without server_url',
        ],
    )
