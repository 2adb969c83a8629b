"""What a failed migration leaves: kept for a look, and said how to get there."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from harness.errors import HarnessError, MigrationError, ServerLost
from harness.postgres import databases, names
from harness.postgres.session import Session
from harness.recipe import Owner


def keep(session: Session, project: str, name: str, owner: Owner, error: MigrationError) -> None:
    """Keep the half-migrated database under another name, and complete the error with where and why."""
    error.database = _rename(session, project, name, error)
    # A migration may create extensions by itself, as rights allow.
    for extension in re.findall(r'extension "([\w-]+)" is not available', error.message):
        error.message += why_missing(session, extension)
    if error.database:
        url = session.dsn.with_database(error.database).with_user(owner.name, "").masked
        error.message += (
            f"\nThe half-migrated database is kept: {url} "
            f"(look at it with: python -m harness psql {error.database})"
        )


def answers(session: Session) -> bool:
    """Whether the server is still there: a full disk, or a crash, ends it in the middle of a migration."""
    try:
        session.value("select 1")
    except ServerLost:
        return False
    return True


def why_missing(session: Session, extension: str) -> str:
    """The known reason for an extension that is not there; empty where it is not known."""
    if extension not in ("pgcrypto", "sslinfo"):
        return ""
    if session.value("select current_setting('ssl_library', true)"):
        return ""
    return (
        f"\n{extension} needs OpenSSL, and this PostgreSQL was built without it (as the bundled binaries of "
        f'pg-harness[embedded] are): use backend = "docker", or the distribution\'s PostgreSQL by `binaries`. '
        f"gen_random_uuid() needs no extension since version 13."
    )


def _rename(session: Session, project: str, name: str, error: MigrationError) -> str:
    kept = names.kept(project, names.PERSON)
    mark = {
        "kind": "kept",
        "why": f"failed migration: {error.source} {error.step}".strip(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        databases.terminate(session, name)
        # Only the newest half-migrated database is worth a look: a loop of failing runs must not fill the disk.
        for old in databases.list_ours(session, project):
            parsed = old.parsed
            if parsed and parsed.kind is names.Kind.KEPT and parsed.owner == names.PERSON:
                databases.drop(session, old.name, project)
        session.execute(databases.comment_statement(name, mark))
        databases.rename(session, name, kept)
    except HarnessError as problem:
        error.add_note(f"the half-migrated database could not be kept: {problem}")
        return ""
    return kept
