"""The reset's own sessions: where the log is read, where rows are put back, where the pristine rows are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.errors import ServerLost
from harness.postgres.session import Session
from harness.reset.baseline import BaselineStore
from harness.reset.sql import batch
from harness.reset.wal.choose import ChosenReader
from harness.reset.wal.reader import WalReader


class Connections:
    """The three sessions of one database's reset, each opened when it is first wanted.

    Args:
        reader: opens a session in the maintenance database.
        restorer: opens a session in the leased database; it is given the settings to log in with.
        baseline: opens a session in the baseline clone of the same template.
    """

    def __init__(
        self,
        reader: Callable[[], Session],
        restorer: Callable[[Mapping[str, str]], Session],
        baseline: Callable[[Mapping[str, str]], Session],
    ) -> None:
        self._open_reader, self._open_restorer, self._open_baseline = reader, restorer, baseline
        self._reader: WalReader | None = None
        self._restorer: Session | None = None
        self._store: BaselineStore | None = None

    @property
    def wal(self) -> WalReader:
        """The reader of the log; opened again where its session was lost."""
        if self._reader is None or self._reader.session.closed:
            session = self._open_reader()
            try:
                self._reader = ChosenReader(session)
            except BaseException:
                session.close()
                raise
        return self._reader

    @property
    def lease(self) -> Session:
        """The session in the leased database.

        Raises:
            ServerLost: it is gone. Another one would not know what this one had locked.
        """
        if self._restorer is None or self._restorer.closed:
            raise ServerLost("the reset's session in the database was lost")
        return self._restorer

    @property
    def store(self) -> BaselineStore:
        """Facts of the baseline; read when first wanted."""
        if self._store is None:
            settings = batch.settings(self.wal.session.server_version)
            self._store = BaselineStore(lambda: self._open_baseline(settings))
        return self._store

    @property
    def has_baseline(self) -> bool:
        """Whether the session in the baseline is open."""
        return self._store is not None and self._store.opened

    @property
    def doubt(self) -> str:
        """See :class:`ChosenReader`; empty before the first look."""
        return self._reader.doubt if isinstance(self._reader, ChosenReader) else ""

    @property
    def ours(self) -> tuple[int, ...]:
        """Pids of the sessions in the maintenance database and in the lease."""
        sessions = (self._reader.session if self._reader else None, self._restorer)
        return tuple(session.pid for session in sessions if session is not None and not session.closed)

    def enter(self) -> Session:
        """Log in to the leased database."""
        self._restorer = self._open_restorer(batch.settings(self.wal.session.server_version))
        return self._restorer

    def leave(self) -> None:
        """Log out of the leased database: another one has its name now, or will have."""
        if self._restorer is not None:
            self._restorer.close()

    def close(self) -> None:
        """Log out everywhere; never raises for sessions that are gone."""
        for session in (self._reader.session if self._reader else None, self._restorer):
            if session is not None:
                session.close()
        if self._store is not None:
            self._store.close()
