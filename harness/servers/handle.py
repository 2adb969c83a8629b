"""A server that answered, and the way into one that another process of the same run has found.

Apart from :mod:`harness.servers.acquire`, which looks for one and starts it: a worker that joins imports nothing of that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from harness.config.project import Project
from harness.dsn import Dsn
from harness.errors import HarnessError, ServerLost
from harness.postgres.session import WAYS, Session
from harness.servers.handshake import attach, watched
from harness.servers.port import Backend, ServerInfo

logger = logging.getLogger("pg_harness.servers")


@dataclass
class Server:
    """A server that answered, and a session on its maintenance database.

    Attributes:
        info: what its backend knows.
        session: the admin session that verified it. It holds the sign of life (a shared advisory lock)
            until :meth:`close`, so the server does not end itself meanwhile.
        started: whether this call started it; False where it was found.
        seconds: how long finding or starting took.
    """

    info: ServerInfo
    session: Session
    started: bool
    seconds: float
    _project: Project = field(repr=False)
    _forget: Callable[[], object] = field(repr=False)
    """Removes what is noted of it."""

    def __post_init__(self) -> None:
        if _may_be_behind_ssh(self._project, self.info):
            WAYS[self.info.server_id] = partial(_tunnel_lost, self._project, self.info)

    @property
    def admin_dsn(self) -> Dsn:
        """The superuser's address of the maintenance database."""
        return self.info.dsn

    @property
    def backend(self) -> Backend:
        """What started it, for :meth:`stop` and :meth:`logs`; made when it is asked for."""
        # Here: who only uses a server needs nothing of what could start one.
        from harness.servers import registry

        return registry.named(self.info.backend, self._project)

    @property
    def guarded(self) -> bool:
        """Whether it will end itself, if it is to do so at all.

        Raises:
            BackendError: whoever knows does not tell.
        """
        return self.info.ttl is None or watched(self.session) or self.backend.watched(self.info)

    def guard(self) -> None:
        """Start the dead-man's switch again where it has died with its psql: the server would outlive its TTL."""
        try:
            if self.guarded:
                return
            self.backend.watch(self.info)
        except HarnessError as error:
            # Whoever asked has a server that works: that it will not end by itself is no reason to stop.
            logger.warning(
                "%s does not end by itself, its switch is dead: %s", self.info.description, error.message
            )
        else:
            logger.info(
                "server: its switch was dead, and is started again: it ends itself when nobody uses it"
            )

    @property
    def fate(self) -> str:
        """What has become of it where it does not answer any more, for people; empty where its backend does not know."""
        try:
            return self.backend.fate(self.info)
        except HarnessError:
            return ""

    def logs(self, follow: bool = False) -> Iterator[str]:
        """Lines of the server's log."""
        return self.backend.logs(self.info, follow)

    def stop(self) -> None:
        """End the server and remove its data. A server that someone else runs is left alone."""
        self.close()
        self._forget()
        self.backend.stop(self.info)

    def close(self) -> None:
        """Let go of it: log out. The server goes on, until its TTL has passed."""
        self.session.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def join(project: Project, info: ServerInfo) -> Server:
    """Log in and compare the server's id; look for nothing.

    Raises:
        ServerLost: it is gone, or another one answers at its address.
    """

    def forget() -> None:
        # Here: a worker that joins ends no server, as a rule.
        from harness.servers.records import Hint

        Hint.of(project, info.purpose).forget()

    began = time.monotonic()
    session, why = attach(info)
    if session is None:
        lost = _tunnel_lost(project, info)
        raise ServerLost(
            f"the server of this run ({info.description}) is gone: {why}" + (f". {lost}" if lost else "")
        )
    return Server(info, session, False, time.monotonic() - began, project, forget)


def _may_be_behind_ssh(project: Project, info: ServerInfo) -> bool:
    return info.backend == "docker" and (project.state / "remote").is_dir()


def _tunnel_lost(project: Project, info: ServerInfo) -> str:
    if not _may_be_behind_ssh(project, info):
        return ""
    # Here: who has no server behind ssh imports nothing of it.
    from harness.servers.docker import tunnel

    return tunnel.lost(project.state / "remote", info)
