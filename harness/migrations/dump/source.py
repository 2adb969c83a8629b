"""``dump:FILE``: what pg_dump wrote, plain (also gzipped), custom, tar or directory format."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO

from harness.migrations.hashing import files, watched
from harness.migrations.port import Configured, MigrationContext, short

ADAPTER = "dump 1"
# Lines that differ between two dumps of one database: the token against injected \\ commands, the clock.
_VARYING = re.compile(rb"\\(?:un)?restrict |-- (?:Started|Completed) on ")


class DumpSource(Configured):
    """A dump, loaded by the admin and then handed to the application's role.

    The archive formats are turned into SQL by ``pg_restore`` and read like a plain one; psql is not needed.
    Owners that the dump names play no part: everything becomes the application role's.
    """

    @cached_property
    def path(self) -> Path:
        """The file or folder."""
        return self._root / self._spec.argument

    @property
    def shown(self) -> str:
        """The file for messages."""
        return files.relative(self.path, self._root)

    @cached_property
    def format(self) -> str:
        """``plain``, ``gzip``, ``custom``, ``tar`` or ``directory``.

        Raises:
            MigrationError: there is no such file, or pg_dump did not write it.
        """
        if self.path.is_dir():
            if (self.path / "toc.dat").is_file():
                return "directory"
            raise self.failure(
                f"{self.shown} is a folder without toc.dat, so pg_dump -Fd did not write it; "
                f'for a folder of SQL files use "sql:{self._spec.argument}"'
            )
        if not self.path.is_file():
            raise files.missing(self.path, self._root, source=self.text, what="the dump")
        try:
            with self.path.open("rb") as stream:
                head = stream.read(512)
        except OSError as error:
            raise self.failure(f"{self.shown} cannot be read: {error.strerror}", self.shown) from error
        if head.startswith(b"PGDMP"):
            return "custom"
        if head.startswith(b"\x1f\x8b"):
            return "gzip"
        if head[257:262] == b"ustar":
            return "tar"
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            # PowerShell's > does that.
            raise self.failure(
                f"{self.shown} is encoded in UTF-16; write it with pg_dump -f FILE", self.shown
            )
        if not head.strip():
            raise self.failure(f"{self.shown} is empty", self.shown)
        return "plain"

    def fingerprint(self) -> str:
        if self.format == "directory":
            content = watched.hash_files(sorted(self.path.iterdir()), self.path, source=self.text)
            return files.digest([ADAPTER, self.format, *content])
        total = hashlib.sha256()
        before = files.state(self.path)
        try:
            with self.open() as stream:
                if self.format in ("plain", "gzip"):
                    for line in stream:
                        if not _VARYING.match(line):
                            total.update(line)
                else:
                    while block := stream.read(1 << 20):
                        total.update(block)
        except (OSError, EOFError) as error:
            raise self.failure(f"{self.shown} cannot be read: {error}", self.shown) from error
        if files.state(self.path) != before:
            raise self.failure(
                f"{self.shown} changed while it was read; run again once it is complete", self.shown
            )
        return files.digest([ADAPTER, "plain" if self.format == "gzip" else self.format, total.digest()])

    def steps(self) -> dict[str, str]:
        """The dump, and what it holds."""
        return {self.shown: short(self.fingerprint())}

    def pending(self, applied: Mapping[str, str], *, out_of_order: bool = False) -> list[str]:
        """None: what a dump holds is a database, not a step to the next one."""
        if applied.get(self.shown) != short(self.fingerprint()):
            raise self.failure(
                f"{self.shown} is another dump than the one that the database was made from, and a dump is not loaded into "
                "what is there. `pg-harness up --fresh` makes new databases from it, without the data",
                self.shown,
            )
        return []

    def upgrade(self, context: MigrationContext, steps: Sequence[str]) -> None:
        """Nothing is ever pending of a dump."""

    def apply(self, context: MigrationContext) -> None:
        # Lazy: what cuts SQL and runs it costs 18 ms to import, and a warm start only hashes.
        from harness.migrations.dump.load import load

        load(self, context)

    def open(self) -> IO[bytes]:
        """The file's bytes, unpacked where it is gzipped."""
        if self.format == "gzip":
            return gzip.open(self.path, "rb")  # type: ignore[return-value]  # GzipFile reads like IO[bytes]
        return self.path.open("rb")
