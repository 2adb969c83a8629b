"""The port that every backend fills."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.dsn import Dsn
from harness.telling import Story


@dataclass(frozen=True)
class ServerRequest:
    """What server is wanted.

    Attributes:
        project: ten hex digits of the checkout, see :func:`harness.postgres.names.project_id`.
        purpose: ``"up"`` (a person's: on disk, survives a reboot and ``docker stop``) or ``"run"``
            (a test run's: auto-removed, kept warm for ``ttl``); with ``isolation = "server"`` also
            ``"run-<n>"``. At most one server per (project, purpose).
        server_id: a fresh UUID; the server is started with ``-c harness.server_id=<it>``.
        root: real path of the checkout, for labels and people.
        password: of the superuser ``postgres``, generated; reaches the server through a file that only it
            can read, never through a command line, a label or a log.
        settings: server settings, name → value, already complete (throwaway data, connections, user's).
        storage: ``"memory"`` or ``"disk"``, already decided or ``"auto"`` for the backend to decide.
        ttl: seconds after which the server ends itself once nobody has held its sign of life; None: never.
        base: what to start from instead of an empty cluster: a baked directory (process) or image (docker),
            see :mod:`harness.backends.bases`.
        memory: bytes that data in memory may take; None: the backend's own share of what is free.
        made_with: the settings that decided this start, see :mod:`harness.made_with`; noted with the server.
    """

    project: str
    purpose: str
    server_id: str
    root: Path
    password: str = field(repr=False)
    settings: Mapping[str, str] = field(default_factory=dict)
    storage: str = "auto"
    ttl: float | None = None
    start_timeout: float = 60
    base: str | None = None
    memory: int | None = None
    made_with: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerInfo:
    """A server that runs (or ran), as its backend knows it.

    Attributes:
        dsn: the superuser's address of the maintenance database ``postgres``.
        server_id: what ``current_setting('harness.server_id')`` must answer; empty for external servers.
        backend: ``"docker"``, ``"process"`` or ``"external"``.
        storage: ``"memory"``, ``"disk"``, or ``"unknown"`` for external servers.
        handle: what the backend finds it by again: container id, data directory, or the masked URL.
        binaries: local folder with ``psql`` and the rest, where there is one.
        description: for people, for instance ``"postgres:17 in container 3f9a1c02be"``.
        project: the checkout that it belongs to; empty where it is unknown.
        root: that checkout's path, for people; empty where it is unknown.
        made_with: the settings that decided its start; empty where they are unknown.
    """

    dsn: Dsn
    server_id: str
    backend: str
    purpose: str
    storage: str
    handle: str
    binaries: str | None = None
    ttl: float | None = None
    description: str = ""
    project: str = ""
    root: str = ""
    made_with: Mapping[str, str] = field(default_factory=dict, hash=False)


class Backend(Protocol):
    """What can find, start and stop servers of one kind."""

    name: str

    def find(self, project: str, purpose: str) -> ServerInfo | None:
        """The running server of that identity, from the vendor's own records (labels, pid files); None if none runs."""
        ...

    def start(self, request: ServerRequest, story: Story) -> ServerInfo:
        """Start a server (or start a stopped one of the same identity again, for ``up``) and wait until it answers.

        Raises:
            BackendUnavailable: nothing here can start it. ServerStartError: it did not become ready.
        """
        ...

    def stop(self, info: ServerInfo) -> None:
        """End the server and remove its data. That it is already gone is success."""
        ...

    def list(self, project: str | None) -> list[ServerInfo]:
        """All servers of the checkout, running or stopped; of all checkouts with None."""
        ...

    def logs(self, info: ServerInfo, follow: bool) -> Iterator[str]:
        """Lines of the server's log, without line ends."""
        ...
