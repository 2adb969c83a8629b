"""The log's files, where they lie on this machine and may be read: ten times quicker than through a socket."""

from __future__ import annotations

import os

PATIENCE = 3
"""How often in a row the files may not be what was expected before they are left alone."""


class LogFiles:
    """The folder ``pg_wal`` of a server that is perhaps on this machine.

    A path proves nothing: another server may have a folder of that name here. So each reading has to end with
    the words that the server has just written into its log.
    """

    def __init__(self, data_directory: str, timeline: str, segment: int) -> None:
        """
        Args:
            data_directory: as the server says; empty where it does not.
            timeline: eight hex digits.
            segment: size of a file, in bytes.
        """
        self._folder = os.path.join(data_directory, "pg_wal", "") if data_directory else None
        self._timeline = timeline
        self._segment = segment
        self._failures = 0

    @property
    def usable(self) -> bool:
        """Whether a reading is worth a try."""
        return self._folder is not None

    def read(self, first: int, stop: int, last_words: bytes) -> bytes | None:
        """The bytes between two positions; None where they cannot be had here, or do not end with those words."""
        try:
            data = b"".join(self._parts(first, stop))
        except OSError:
            data = b""
        # A message that lies on two pages has a page header in it, and is not found: that is no failure to keep.
        if len(data) == stop - first and data.find(last_words, max(0, len(data) - 256)) >= 0:
            self._failures = 0
            return data
        self._failures += 1
        if self._failures >= PATIENCE:
            self._folder = None
        return None

    def _parts(self, first: int, stop: int) -> list[bytes]:
        parts = []
        while first < stop:
            size = min(stop - first, self._segment - first % self._segment)
            name = f"{self._timeline}{first >> 32:08X}{(first & 0xFFFFFFFF) // self._segment:08X}"
            assert self._folder is not None
            descriptor = os.open(self._folder + name, os.O_RDONLY)
            try:
                parts.append(os.pread(descriptor, size, first % self._segment))
            finally:
                os.close(descriptor)
            first += size
        return parts
