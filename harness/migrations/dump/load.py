"""Load a dump: as SQL, statement by statement and row by row, past what only its old server knew."""

from __future__ import annotations

import contextlib
import gzip
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from harness.errors import ServerRefused
from harness.migrations.dump.reader import DumpError, Rows, Sql, read
from harness.migrations.hashing import files
from harness.migrations.port import MigrationContext
from harness.migrations.sql.explain import explain
from harness.postgres import sqlstate
from harness.postgres.roles import give_to
from harness.postgres.script import ScriptRunner, StatementFailed, StatementTimeout, open_script
from harness.postgres.session import Session

if TYPE_CHECKING:
    from harness.migrations.dump.source import DumpSource

_ENDS = 30.0
"""Seconds that pg_restore may take to end once it has written everything, or was killed."""

_OWNER = re.compile(r"ALTER\s.*\sOWNER\s+TO\s+\S+\Z", re.IGNORECASE | re.DOTALL)
_RIGHTS = re.compile(r"(?:GRANT|REVOKE|ALTER\s+DEFAULT\s+PRIVILEGES)\s", re.IGNORECASE)
_SETTING = re.compile(r"SET\s+\w+\s*=", re.IGNORECASE)
_PUBLIC = re.compile(r"CREATE\s+SCHEMA\s+public\Z", re.IGNORECASE)


def load(dump: DumpSource, context: MigrationContext) -> None:
    """Load it as the admin, and give what it made to the role that migrates.

    Raises:
        MigrationError: it cannot be read or loaded, or changed meanwhile.
    """
    shown = dump.shown
    # The format first: it says properly that there is no such file.
    _, before = dump.format, files.state(dump.path)
    with (
        _open_sql(dump, context) as stream,
        open_script(context.admin_dsn, timeout=context.timeout) as runner,
    ):
        try:
            for number, piece in enumerate(read(stream)):
                if number % 50 == 0:
                    context.progress(number, None, shown)
                _load(dump, runner, piece)
            if runner.end_transaction():
                raise dump.failure(f"{shown} ends inside a transaction; it is not complete", shown)
        except DumpError as error:
            raise dump.failure(f"{shown}, line {error.line}: {error.reason}", shown) from None
        except (EOFError, gzip.BadGzipFile) as error:
            raise dump.failure(f"{shown} is not complete: {error}", shown) from error
    if files.state(dump.path) != before:
        raise dump.failure(f"{shown} changed while it was loaded; run again", shown)
    if context.dsn.user != context.admin_dsn.user:
        context.progress(0, None, f"{shown}: owners")
        try:
            with Session.connect(context.admin_dsn) as session:
                give_to(session, context.dsn.user)
        except ServerRefused as error:
            raise dump.failure(
                f"what {shown} made cannot be handed to the role {context.dsn.user}: {error.message}", shown
            ) from error


def _load(dump: DumpSource, runner: ScriptRunner, piece: Sql) -> None:
    text = piece.statement.text
    if _OWNER.match(text):
        return
    try:
        if isinstance(piece, Rows):
            runner.copy_in(text.encode("latin-1"), piece.blocks())
        else:
            runner.run(text.encode("latin-1"))
    except (StatementFailed, StatementTimeout) as error:
        if isinstance(error, StatementFailed) and _harmless(text, error):
            return
        newer = getattr(error, "sqlstate", "") == sqlstate.FEATURE_NOT_SUPPORTED
        advice = "The dump may come from a newer PostgreSQL than this server." if newer else ""
        told = explain(
            dump.shown, piece.text, piece.statement, error, advice=advice, first_line=piece.first_line
        )
        raise dump.failure(told, dump.shown) from error


@contextmanager
def _open_sql(dump: DumpSource, context: MigrationContext) -> Iterator[IO[bytes]]:
    if dump.format in ("plain", "gzip"):
        with dump.open() as stream:
            yield stream
        return
    program = _find(context)
    if program is None:
        raise dump.failure(
            f"{dump.shown} is in pg_dump's {dump.format} format, which needs pg_restore; there is none "
            f"beside the server's binaries or on PATH. Install the PostgreSQL client programs, or make a "
            f"plain dump: pg_dump --format=plain -f schema.sql",
            dump.shown,
        )
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [program, "--no-owner", "--file=-", str(dump.path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env={**context.environment, "LC_ALL": "C"},
        )
        assert process.stdout is not None
        try:
            with process.stdout as stream:
                yield stream
            # It has closed its output: it ends.
            code = process.wait(_ENDS)
        except subprocess.TimeoutExpired as error:
            raise dump.failure(
                f"{program} wrote all of {dump.shown} and did not end within {_ENDS:.0f} s", dump.shown
            ) from error
        finally:
            with contextlib.suppress(OSError):
                process.kill()
            process.wait(_ENDS)
        if code != 0:
            complaints.seek(0)
            said = complaints.read().decode("utf-8", "replace").strip()[-1500:]
            raise dump.failure(f"{program} cannot read {dump.shown}:\n  {said}", dump.shown)


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
