"""The best way to read a server's log that there is."""

from __future__ import annotations

from dataclasses import replace

from harness.errors import ServerRefused
from harness.postgres.session import Session
from harness.reset.wal.bytes import ByteReader
from harness.reset.wal.inspect import InspectReader
from harness.reset.wal.reader import WalQuery, WalReader, WalWindow
from harness.reset.wal.records import Unreadable


class ChosenReader:
    """Reads the bytes of the log where that is allowed and understood, else asks ``pg_walinspect``.

    Attributes:
        doubt: why the bytes are not read; empty where they are.
    """

    def __init__(self, session: Session) -> None:
        """Choose.

        Raises:
            ServerRefused: neither way is open (``42501`` rights, ``0A000`` or ``58P01`` no pg_walinspect).
        """
        self.session = session
        self.doubt = ""
        self._reader: WalReader
        try:
            self._reader = ByteReader(session)
        except (ServerRefused, Unreadable) as error:
            self.doubt = str(error)
            self._reader = InspectReader(session)

    def position(self) -> str:
        """The present end of the log; every later record comes after it."""
        return self._reader.position()

    def read(self, asked: WalQuery) -> WalWindow:
        """As :meth:`harness.reset.wal.reader.WalReader.read`."""
        try:
            return self._reader.read(asked)
        except Unreadable as error:
            # The same window again, by the server's own decoder; and from now on always.
            self.doubt = str(error)
            self._reader = InspectReader(self.session)
        return self._reader.read(replace(asked, seen=None))

    def __repr__(self) -> str:
        return f"<ChosenReader {type(self._reader).__name__}{': ' + self.doubt if self.doubt else ''}>"
