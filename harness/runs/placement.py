"""Where the databases of a run's workers are: the interface, and the one server that all of them share.

The other one is :mod:`harness.runs.per_worker`, and what opens a run is :mod:`harness.runs.opening`: apart because a
worker that joins a shared server imports nothing of starting and baking servers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from harness.config.project import Project
from harness.databases.sweep import Leftover
from harness.postgres import names
from harness.postgres.databases import Database
from harness.runs import rewinding
from harness.runs.session import ServerSession

if TYPE_CHECKING:
    from harness.runs.runfile import Joined


class Placement(Protocol):
    """Which server a worker's databases are on, and what becomes of the servers.

    Attributes:
        together: whether workers share a server.
    """

    together: bool

    @property
    def project(self) -> Project:
        """The run's, with what was found out since it was opened."""

    @property
    def shared(self) -> ServerSession | None:
        """The server that all workers share; None where each has its own."""

    @property
    def members(self) -> Mapping[str, ServerSession]:
        """Worker → its server, of those that this process has; the one that all share stands under ``""``."""

    @property
    def description(self) -> str:
        """Where the databases are, for people."""

    @property
    def unmade(self) -> str:
        """What the migrations come from as long as there is no server, for people."""

    @property
    def reset(self) -> str:
        """How databases are reset there, for people: ``"rewind"``, ``"rows (why)"``; empty where it is not known yet.

        Raises:
            BackendUnavailable: the settings ask for a way that cannot be had. ServerLost: the server is gone.
        """

    def session(self, worker: str) -> ServerSession:
        """The worker's server: always the same, or one that is started now.

        Raises:
            ServerStartError, BackendError: it cannot be started, or memory does not suffice.
            LeaseClosed: the run was closed meanwhile.
        """

    def place(self, workers: Sequence[str]) -> Mapping[str, str]:
        """Worker → word of the Docker host that its server is on, or is to be on; empty where there are no hosts.

        Decided in the process that knows all workers, and handed to theirs: else each would see the same room for itself.

        Raises:
            BackendError: there is no room for them. BackendUnavailable: no host can be used.
        """

    def joined(self) -> Mapping[str, Joined]:
        """Word → the server there, where workers share one on each of several hosts; else empty."""

    def sessions(self, workers: Sequence[str]) -> list[ServerSession]:
        """The servers of several workers, with all that their clones are made of; all or none.

        Raises:
            As :meth:`session`.
        """

    def give_up(self, workers: Sequence[str]) -> None:
        """End the servers that are these workers' own."""

    def check_room(self, count: int) -> None:
        """Whether memory suffices for ``count`` workers more.

        Raises:
            BackendError: it does not.
        """

    def crashed(self, workers: Sequence[str] | None) -> list[str]:
        """Remove what other processes' workers have left; return what went.

        Args:
            workers: of the run; None: all that have something on a server that is not theirs alone.
        """

    def sweep(self, *, dry_run: bool) -> list[Leftover[Database]]:
        """Remove what dead runs of this checkout have left."""

    def close(self) -> None:
        """Let go of all servers, or end them. Called once."""


class SharedServer:
    """One server, in which every worker has databases; it is kept warm for the next run.

    Args:
        session: of this run on it.
        guest: whether another process has opened the run: what is leased is released by that one.
    """

    unmade = ""
    together = True

    def __init__(self, session: ServerSession, *, guest: bool = False) -> None:
        self.shared = session
        self.members = {"": session}
        self._releases = session.run != names.SANDBOX and not guest

    @property
    def project(self) -> Project:
        """As the server's session has it."""
        return self.shared.project

    @property
    def description(self) -> str:
        """The backend's words for the server."""
        return self.shared.server.info.description

    @property
    def reset(self) -> str:
        """As was found out on that server."""
        return rewinding.told(self.shared.rewinding)

    def session(self, worker: str) -> ServerSession:
        """The same for every worker."""
        return self.shared

    def place(self, workers: Sequence[str]) -> Mapping[str, str]:
        """There is nothing to choose from."""
        return {}

    def joined(self) -> Mapping[str, Joined]:
        """It is the only one."""
        return {}

    def sessions(self, workers: Sequence[str]) -> list[ServerSession]:
        """The same for every worker, with a spare for each, made side by side."""
        self.shared.fill(len(workers))
        return [self.shared] * len(workers)

    def give_up(self, workers: Sequence[str]) -> None:
        """None is a worker's own."""

    def check_room(self, count: int) -> None:
        """Databases take no memory that has to be reckoned beforehand."""

    def crashed(self, workers: Sequence[str] | None) -> list[str]:
        """Drop the databases of these workers, or of the whole run; return their names."""
        return self.shared.drop_leases(workers)

    def sweep(self, *, dry_run: bool) -> list[Leftover[Database]]:
        """Drop what dead runs of this checkout left on this server."""
        return self.shared.sweep(dry_run=dry_run)

    def close(self) -> None:
        """Release what this process has leased, unless it stays or is another process's; log out."""
        self.shared.close(release=self._releases)

    def __repr__(self) -> str:
        return self.description


def had(what: str, built: bool, seconds: float) -> str:
    """How it was had, for people: ``"template built in 1.2 s"``, ``"base found"``."""
    return f"{what} built in {seconds:.1f} s" if built else f"{what} found"
