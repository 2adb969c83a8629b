"""A database's address in every form that a client takes, and connections to it: of a lease, and of the lease of this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

    from harness.dsn import Dsn


class Address(ABC):
    """What a lease, each of its databases, and the lease of this process have in common: an address in every form, and connections."""

    @property
    def pooled(self) -> bool:
        """Whether a pooler is in front: then no client may rely on a session of its own."""
        return False

    @property
    @abstractmethod
    def dsn(self) -> Dsn:
        """Its parts: ``host``, ``port``, ``user``, ``password``, ``database``."""

    @property
    def url(self) -> str:
        """``postgresql://…``, for libpq, psycopg, and ``asyncpg.connect()``."""
        return self.dsn.url

    @property
    def sqlalchemy_url(self) -> str:
        """``postgresql+psycopg://…``, for SQLAlchemy's ``create_engine()`` with psycopg 3."""
        return self.dsn.sqlalchemy

    @property
    def asyncpg_url(self) -> str:
        """``postgresql+asyncpg://…``, for SQLAlchemy's ``create_async_engine()``."""
        return self.dsn.asyncpg

    @property
    def jdbc_url(self) -> str:
        """``jdbc:postgresql://…``, for pgJDBC, with role and password as parameters."""
        return self.dsn.jdbc

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """A psycopg connection as the application's role. As a context manager it commits at the block's end, rolls back
        where the block raises, and closes.

        Args:
            options: further arguments of :func:`psycopg.connect`, for instance ``autocommit=True``.

        Raises:
            ServerLost: nobody answers. ServerRefused: the server says no.
        """
        # Here: a process of a run that only asks for resets needs no psycopg.
        from harness.postgres.session import open_application

        return open_application(self.dsn, self._unprepared(options))

    async def aconnect(self, **options: Any) -> psycopg.AsyncConnection[Any]:
        """As :meth:`connect`, for asyncio: ``async with await lease.aconnect() as connection``."""
        from harness.postgres.session import open_application_async  # as in `connect`

        return await open_application_async(self.dsn, self._unprepared(options))

    def _unprepared(self, options: dict[str, Any]) -> dict[str, Any]:
        # psycopg prepares what is executed often, in a session that the next transaction may not have.
        return {"prepare_threshold": None, **options} if self.pooled else options


class Addressed(Address):
    """One database by its name.

    Attributes:
        name: as in the settings; ``"default"`` for the top level.
    """

    def __init__(self, name: str, dsn: Dsn, *, pooled: bool = False) -> None:
        self.name = name
        self._dsn = dsn
        self._pooled = pooled

    @property
    def pooled(self) -> bool:
        """Whether a pooler is in front (setting ``pooler``)."""
        return self._pooled

    @property
    def dsn(self) -> Dsn:
        """Its address, as the application's role. It stays the same through resets."""
        return self._dsn

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.dsn.masked}>"
