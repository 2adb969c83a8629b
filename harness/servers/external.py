"""A server that someone else runs, named explicitly. It is used, and never started or stopped."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

from harness.config.project import Project
from harness.dsn import Dsn
from harness.errors import BackendError, BackendUnavailable, ServerLost, ServerRefused
from harness.postgres.session import Session
from harness.servers import foreign
from harness.servers.port import Backend, Finding, ServerInfo, ServerRequest, Shelf

logger = logging.getLogger("pg_harness.servers")

OLDEST = 14
"""The oldest major version that is looked after; resets by the WAL need 15."""


@dataclass(frozen=True)
class Capabilities:
    """What a server allows us.

    Attributes:
        version: as ``server_version_num``: 150018 is 15.18.
        user: whom we log in as.
        recovery: it is a standby.
        read_only: new transactions may not write.
        max_connections: in all, for everybody.
        pooler: something between us and the server keeps no session for us (pgbouncer).
        foreign: names of the databases there that are not ours, see :mod:`harness.servers.foreign`.
    """

    version: int
    user: str
    superuser: bool
    createdb: bool
    createrole: bool
    recovery: bool
    read_only: bool
    max_connections: int
    pooler: bool
    foreign: tuple[str, ...] = ()

    @property
    def major(self) -> int:
        """The major version: 15 for 150018."""
        return self.version // 10000

    @property
    def reads_wal(self) -> bool:
        """Whether the server's log can be read, for resets."""
        return self.superuser and self.major >= 15

    def __str__(self) -> str:
        return f"PostgreSQL {self.major}.{self.version % 10000}"

    def forbids(self) -> list[str]:
        """Why this server cannot be used at all, one line each; empty where it can."""
        reasons = []
        if self.major < OLDEST:
            reasons.append(f"it is PostgreSQL {self.major}; {OLDEST} is the oldest that works")
        if self.recovery:
            reasons.append("it is a standby (in recovery), which cannot create databases: name its primary")
        elif self.read_only:
            reasons.append(
                f"its transactions are read-only (default_transaction_read_only): "
                f"ALTER ROLE {self.user} SET default_transaction_read_only = off"
            )
        if not self.superuser and not self.createdb:
            reasons.append(f"the role {self.user} may not create databases: ALTER ROLE {self.user} CREATEDB")
        if self.pooler:
            reasons.append(
                "a pooler (pgbouncer) is in front of it, which loses advisory locks: name the server's own port"
            )
        return reasons

    def warnings(self) -> list[str]:
        """What will not work or be slower, one line each."""
        lines = []
        if not self.superuser and not self.createrole:
            lines.append(
                f"the role {self.user} has no CREATEROLE: the application logs in as {self.user} itself, "
                f"and migrations that create roles fail"
            )
        if self.major < 15:
            lines.append("before PostgreSQL 15 there is no pg_walinspect: each reset is a new clone")
        elif not self.reads_wal:
            lines.append("the server's log cannot be read (a superuser is needed): each reset is a new clone")
        if not self.superuser:
            lines.append("without a superuser, extensions that are not trusted must be there already")
        return lines


class ExternalBackend(Backend):
    """The server behind one URL.

    Args:
        url: ``postgresql://user:password@host:port/database``; the database is the maintenance database.
        origin: where the URL came from, for messages.
        allow_foreign: use it although it holds others' databases, or looks like production.
    """

    name = "external"

    def __init__(self, url: str, *, origin: str = "the server URL", allow_foreign: bool = False) -> None:
        self._allow_foreign = allow_foreign
        self.dsn = Dsn.parse(url, origin=origin)
        self.origin = origin

    @classmethod
    def of(cls, project: Project, *, timeout: float) -> Backend:
        """The server that the settings name; that they name one was checked by :mod:`harness.servers.registry`."""
        settings = project.settings
        return cls(
            settings.server_url or "",
            origin=settings.origin("server_url"),
            allow_foreign=settings.allow_foreign,
        )

    def available(self) -> str:
        """Where the server answers, and its version.

        Raises:
            BackendUnavailable: as :meth:`find`.
        """
        return self._answers(self.capabilities())

    def examine(self) -> Iterator[Finding]:
        """The server, and what we may do on it."""
        found = self.capabilities()
        yield Finding("ok", self._answers(found))
        if not self._allow_foreign:
            foreign.refuse_production(self.dsn, self.origin)
            foreign.refuse(found.foreign, self.dsn, self.origin)
        rights = (
            ("superuser", found.superuser, "extensions that are not trusted must be there already"),
            ("CREATEDB", found.superuser or found.createdb, "needed for every clone"),
            (
                "CREATEROLE",
                found.superuser or found.createrole,
                f"the application logs in as {found.user} itself",
            ),
            ("right to read the log", found.reads_wal, "each reset is a new clone"),
        )
        for right, there, without in rights:
            if there:
                yield Finding("ok", f"{found.user}: {right}")
            else:
                yield Finding("note", f"{found.user}: no {right}: {without}")
        few = found.max_connections < 100
        yield Finding("note" if few else "ok", f"max_connections = {found.max_connections}")

    def _answers(self, found: Capabilities) -> str:
        return f"{self.dsn.masked} answers: {found}"

    def find(self, project: str, purpose: str) -> ServerInfo | None:
        """The server, after it was asked what it allows.

        Raises:
            BackendUnavailable: it does not answer, refuses us, or cannot be used.
        """
        return self._info(purpose, self._meant())

    def start(self, request: ServerRequest) -> ServerInfo:
        """As :meth:`find`, telling what will not work.

        Raises:
            BackendUnavailable: as :meth:`find`.
        """
        found = self._meant()
        for line in found.warnings():
            logger.info("external: %s", line)
        return self._info(request.purpose, found)

    def _meant(self) -> Capabilities:
        """What the server allows, unless it seems to be another one than the user means.

        Raises:
            BackendUnavailable: it does, or as :meth:`capabilities`.
        """
        if self._allow_foreign:
            return self.capabilities()
        foreign.refuse_production(self.dsn, self.origin)
        found = self.capabilities()
        foreign.refuse(found.foreign, self.dsn, self.origin)
        return found

    def capabilities(self) -> Capabilities:
        """What the server allows.

        Raises:
            BackendUnavailable: it does not answer, refuses us, or cannot be used.
        """
        try:
            # A pooler refuses settings at log-in, and is to be named.
            with Session.connect(self.dsn, limited=False) as session:
                found = _ask(session)
        except ServerLost as error:
            raise BackendUnavailable(
                f"the server {self.dsn.masked} ({self.origin}) does not answer",
                checked=[str(error)],
                remedies=[
                    "see that it runs and that host and port are right",
                    "unset the URL to have a server started",
                ],
            ) from error
        except ServerRefused as error:
            raise BackendUnavailable(
                f"the server {self.dsn.masked} ({self.origin}) refuses us: {error}",
                remedies=[
                    "see that user, password and database in the URL are right, and pg_hba.conf lets us in"
                ],
            ) from error
        if reasons := found.forbids():
            raise BackendUnavailable(
                f"the server {self.dsn.masked} ({self.origin}) answers, but cannot be used", checked=reasons
            )
        return found

    def stop(self, info: ServerInfo) -> None:
        """Nothing: this server is not ours."""

    def list(self, project: str | None) -> list[ServerInfo]:
        """The one server, if it answers."""
        try:
            return [self._info("", self.capabilities())]
        except BackendError:
            return []

    def logs(self, info: ServerInfo, follow: bool) -> Iterator[str]:
        """One line: the log is with whoever runs the server."""
        yield f"the log of {self.dsn.masked} is with whoever runs that server"

    def shelf(self, info: ServerInfo) -> Shelf:
        """Nowhere: this server is not ours.

        Raises:
            BackendError: always.
        """
        raise BackendError("the server is somebody else's: nothing is put beside it")

    def _info(self, purpose: str, found: Capabilities) -> ServerInfo:
        return ServerInfo(
            dsn=self.dsn,
            server_id="",
            backend="external",
            purpose=purpose,
            storage="unknown",
            handle=self.dsn.masked,
            description=f"{found} at {self.dsn.host}:{self.dsn.port} ({self.origin})",
        )


def _ask(session: Session) -> Capabilities:
    # pgbouncer invents the cancel key that it sends at login: the process number in it is no backend's.
    row = session.row(
        "SELECT current_user, rolsuper, rolcreatedb, rolcreaterole, pg_is_in_recovery(),"
        " current_setting('default_transaction_read_only')::bool, current_setting('max_connections')::int,"
        " pg_backend_pid() <> %s FROM pg_roles WHERE rolname = current_user",
        (session.pid,),
    )
    if row is None:
        raise ServerRefused("the server does not show us our own role in pg_roles")
    return replace(Capabilities(session.server_version, *row), foreign=foreign.databases(session))
