"""Baked bases: a migrated cluster that servers are started from, as each backend keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.backends.base import Backend, ServerInfo
from harness.errors import BackendUnavailable
from harness.telling import Story


@dataclass(frozen=True)
class Base:
    """One baked base.

    Attributes:
        ref: what :attr:`harness.backends.base.ServerRequest.base` takes: a directory, or an image's id.
        key: 24 hex digits of all that decides what it holds.
        backend: ``"process"`` or ``"docker"``.
        size: bytes that it takes beyond what is there anyway.
        created, used: seconds since 1970.
        facts: what was baked, for people: project, databases, server version.
    """

    ref: str
    key: str
    backend: str
    size: int
    created: float
    used: float
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """What a base is baked on.

    Attributes:
        major: the server's major version, known before any server runs.
        text: all else that makes a data directory fit: build, platform, C library, initdb's options.
    """

    major: int
    text: str


class Bakery(Protocol):
    """Where one backend keeps its bases."""

    def origin(self, story: Story) -> Origin:
        """What a server of this backend would be started from now.

        Raises:
            BackendUnavailable: nothing could be started.
        """
        ...

    def find(self, key: str) -> Base | None:
        """The finished base of that key."""
        ...

    def keep(self, info: ServerInfo, key: str, facts: Mapping[str, str]) -> Base:
        """Stop a server cleanly and keep its data as a base; the server is gone afterwards.

        Raises:
            ServerStartError: it did not stop cleanly. BackendError: the disk is full, the daemon refused.
        """
        ...

    def touch(self, base: Base) -> None:
        """Note that it was used now; eviction goes by that."""
        ...

    def list(self) -> Sequence[Base]:
        """All finished bases of this user."""
        ...

    def remove(self, base: Base) -> bool:
        """Remove it; False where it is in use. Servers that were started from it go on."""
        ...

    def leftovers(self) -> Sequence[str]:
        """Remove what bakes and starts that were cut off have left; return it, for people."""
        ...


def bakery_of(backend: Backend, cache: Path) -> Bakery:
    """Where a backend keeps its bases.

    Raises:
        BackendUnavailable: it cannot keep any (a server that someone else runs).
    """
    from harness.backends.docker import DockerBackend
    from harness.backends.process import ProcessBackend

    if isinstance(backend, ProcessBackend):
        from harness.backends.process_bake import ProcessBakery

        return ProcessBakery(backend)
    if isinstance(backend, DockerBackend):
        from harness.backends.docker_bake import DockerBakery

        return DockerBakery(backend, cache)
    raise BackendUnavailable(
        f"the {backend.name} backend cannot start servers of our own, one for each worker",
        remedies=[
            'isolation = "database": a database for each worker, in the server that is there',
            'or backend = "docker" or "process", without server_url',
        ],
    )
