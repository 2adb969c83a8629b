"""``dump:FILE``: what pg_dump wrote, plain (also gzipped), custom, tar or directory format."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING

from harness.errors import MigrationError, ServerRefused
from harness.migrations.dump.reader import DumpError, Rows, Sql, read
from harness.migrations.hashing import files, watched
from harness.migrations.port import Configured, MigrationContext
from harness.migrations.sql.explain import explain
from harness.postgres import sqlstate

if TYPE_CHECKING:
    from harness.postgres.script import ScriptRunner, StatementFailed

ADAPTER = "dump 1"
# Lines that differ between two dumps of one database: the token against injected \ commands, the clock.
_VARYING = re.compile(rb"\\(?:un)?restrict |-- (?:Started|Completed) on ")
_OWNER = re.compile(r"ALTER\s.*\sOWNER\s+TO\s+\S+\Z", re.IGNORECASE | re.DOTALL)
_RIGHTS = re.compile(r"(?:GRANT|REVOKE|ALTER\s+DEFAULT\s+PRIVILEGES)\s", re.IGNORECASE)
_SETTING = re.compile(r"SET\s+\w+\s*=", re.IGNORECASE)
_PUBLIC = re.compile(r"CREATE\s+SCHEMA\s+public\Z", re.IGNORECASE)


class DumpSource(Configured):
    """A dump, loaded by the admin and then handed to the application's role.

    The archive formats are turned into SQL by ``pg_restore`` and read like a plain one; psql is not needed.
    Owners that the dump names play no part: everything becomes the application role's.
    """

    @cached_property
    def _path(self) -> Path:
        return self._root / self._spec.argument

    @cached_property
    def format(self) -> str:
        """``plain``, ``gzip``, ``custom``, ``tar`` or ``directory``."""
        if self._path.is_dir():
            if (self._path / "toc.dat").is_file():
                return "directory"
            raise MigrationError(
                f"{self.text}: {self._shown} is a folder without toc.dat, so pg_dump -Fd did not write it; "
                f'for a folder of SQL files use "sql:{self._spec.argument}"',
                source=self.text,
            )
        if not self._path.is_file():
            raise files.missing(self._path, self._root, source=self.text, what="the dump")
        try:
            with self._path.open("rb") as stream:
                head = stream.read(512)
            if head.startswith(b"PGDMP"):
                return "custom"
            if head.startswith(b"\x1f\x8b"):
                return "gzip"
            if head[257:262] == b"ustar" and tarfile.is_tarfile(self._path):
                return "tar"
        except OSError as error:
            raise self._error(f"{self._shown} cannot be read: {error.strerror}") from error
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            # PowerShell's > does that.
            raise self._error(f"{self._shown} is encoded in UTF-16; write it with pg_dump -f FILE")
        if not head.strip():
            raise self._error(f"{self._shown} is empty")
        return "plain"

    @property
    def _shown(self) -> str:
        return files.relative(self._path, self._root)

    def fingerprint(self) -> str:
        if self.format == "directory":
            content = watched.hash_files(sorted(self._path.iterdir()), self._path, source=self.text)
            return files.digest([ADAPTER, self.format, *content])
        total = hashlib.sha256()
        before = _state(self._path)
        try:
            with self._open_raw() as stream:
                if self.format in ("plain", "gzip"):
                    for line in stream:
                        if not _VARYING.match(line):
                            total.update(line)
                else:
                    while block := stream.read(1 << 20):
                        total.update(block)
        except (OSError, EOFError) as error:
            raise self._error(f"{self._shown} cannot be read: {error}") from error
        if _state(self._path) != before:
            raise self._error(f"{self._shown} changed while it was read; run again once it is complete")
        return files.digest([ADAPTER, "plain" if self.format == "gzip" else self.format, total.digest()])

    def apply(self, context: MigrationContext) -> None:
        from harness.postgres.roles import give_to
        from harness.postgres.script import open_script
        from harness.postgres.session import Session

        # The format first: it says properly that there is no such file.
        _, before = self.format, _state(self._path)
        with (
            self._open_sql(context) as stream,
            open_script(context.admin_dsn, timeout=context.timeout) as runner,
        ):
            try:
                for number, piece in enumerate(read(stream)):
                    if number % 50 == 0:
                        context.progress(number, None, self._shown)
                    self._load(runner, piece)
                if runner.end_transaction():
                    raise self._error(f"{self._shown} ends inside a transaction; it is not complete")
            except DumpError as error:
                raise self._error(f"{self._shown}, line {error.line}: {error.reason}") from None
            except (EOFError, gzip.BadGzipFile) as error:
                raise self._error(f"{self._shown} is not complete: {error}") from error
        if _state(self._path) != before:
            raise self._error(f"{self._shown} changed while it was loaded; run again")
        if context.dsn.user != context.admin_dsn.user:
            context.progress(0, None, f"{self._shown}: owners")
            try:
                with Session.connect(context.admin_dsn) as session:
                    give_to(session, context.dsn.user)
            except ServerRefused as error:
                raise self._error(
                    f"what {self._shown} made cannot be handed to the role {context.dsn.user}: {error.message}"
                ) from error

    def _load(self, runner: ScriptRunner, piece: Sql | Rows) -> None:
        from harness.postgres.script import StatementFailed, StatementTimeout

        text = piece.statement.text
        if isinstance(piece, Sql) and _OWNER.match(text):
            return
        try:
            if isinstance(piece, Rows):
                runner.copy_in(text.encode("latin-1"), piece.blocks())
            else:
                runner.run(text.encode("latin-1"))
        except (StatementFailed, StatementTimeout) as error:
            if isinstance(error, StatementFailed) and _harmless(text, error):
                return
            advice = ""
            if (
                "\\restrict" not in error.message
                and getattr(error, "sqlstate", "") == sqlstate.FEATURE_NOT_SUPPORTED
            ):
                advice = "The dump may come from a newer PostgreSQL than this server."
            raise self._error(
                explain(
                    self._shown,
                    piece.text,
                    piece.statement,
                    error,
                    advice=advice,
                    first_line=piece.first_line,
                )
            ) from error

    @contextmanager
    def _open_raw(self) -> Iterator[IO[bytes]]:
        if self.format == "gzip":
            with gzip.open(self._path, "rb") as unpacked:
                yield unpacked  # type: ignore[misc]  # GzipFile reads like IO[bytes]
        else:
            with self._path.open("rb") as stream:
                yield stream

    @contextmanager
    def _open_sql(self, context: MigrationContext) -> Iterator[IO[bytes]]:
        if self.format in ("plain", "gzip"):
            with self._open_raw() as stream:
                yield stream
            return
        program = _find(context)
        if program is None:
            raise self._error(
                f"{self._shown} is in pg_dump's {self.format} format, which needs pg_restore; there is none "
                f"beside the server's binaries or on PATH. Install the PostgreSQL client programs, or make a "
                f"plain dump: pg_dump --format=plain -f schema.sql"
            )
        with tempfile.TemporaryFile() as complaints:
            process = subprocess.Popen(
                [program, "--no-owner", "--file=-", str(self._path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env={**context.environment, "LC_ALL": "C"},
            )
            assert process.stdout is not None
            try:
                with process.stdout as stream:
                    yield stream
                code = process.wait()
            finally:
                with contextlib.suppress(OSError):
                    process.kill()
                process.wait()
            if code != 0:
                complaints.seek(0)
                said = complaints.read().decode("utf-8", "replace").strip()[-1500:]
                raise self._error(f"{program} cannot read {self._shown}:\n  {said}")

    def _error(self, message: str) -> MigrationError:
        return MigrationError(f"{self.text}: {message}", source=self.text, step=self._shown)


def _harmless(text: str, error: StatementFailed) -> bool:
    """Whether a dump may go on after this: roles, settings or schemas that belong to its old server."""
    if error.sqlstate == sqlstate.UNDEFINED_OBJECT:
        missing_role = _RIGHTS.match(text) and "role" in error.primary
        newer_setting = _SETTING.match(text)  # for instance transaction_timeout, of PostgreSQL 17
        return bool(missing_role or newer_setting)
    return error.sqlstate == sqlstate.DUPLICATE_SCHEMA and _PUBLIC.match(text) is not None


def _find(context: MigrationContext) -> str | None:
    if context.binaries is not None:
        for name in ("pg_restore", "pg_restore.exe"):
            if (beside := context.binaries / name).is_file():
                return str(beside)
    return shutil.which("pg_restore", path=context.environment.get("PATH"))


def _state(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
