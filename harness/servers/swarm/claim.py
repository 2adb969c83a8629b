"""A server of a service belongs to the worker that has claimed it, inside it: one atomic act, which one session alone can win."""

from __future__ import annotations

from contextlib import suppress

from harness.errors import HarnessError, ServerRefused
from harness.postgres import sqlstate
from harness.postgres.session import Session, ident, literal

FREE, CLAIMED = "pgh_free", "pgh_claimed"
"""Schemas of the maintenance database: what is renamed."""

_GONE = (sqlstate.INVALID_SCHEMA_NAME, sqlstate.DUPLICATE_SCHEMA, sqlstate.UNDEFINED_OBJECT)
"""No such schema; it is there already; no such object: another one was quicker."""


def claim(session: Session, purpose: str) -> bool:
    """Take the server for one worker; False where another has it.

    Args:
        session: the admin's, in the maintenance database.
        purpose: of the worker, which others read there.
    """
    # Whoever comes first makes it; all rename it, and one wins: nobody else can have that name any more.
    with suppress(ServerRefused):
        if session.value("select to_regnamespace(%s) is not null", (CLAIMED,)):
            return False
        session.script(f"create schema {ident(FREE)}")
    try:
        session.script(
            f"alter schema {ident(FREE)} rename to {ident(CLAIMED)}; "
            f"comment on schema {ident(CLAIMED)} is {literal(purpose)}"
        )
    except ServerRefused as error:
        if error.sqlstate in _GONE:
            return False
        raise
    return True


def holder(session: Session) -> str:
    """The purpose of the worker that has claimed the server; "somebody" where that is not told."""
    told = session.value("select obj_description(to_regnamespace(%s), 'pg_namespace')", (CLAIMED,))
    return str(told or "somebody")


def shut_down(session: Session) -> None:
    """Have the server end itself, cleanly: its task is complete then, and the Swarm starts no other for it."""
    # The answer may not come any more.
    with suppress(HarnessError):
        session.execute("copy (select 1) to program 'read -r pid < postmaster.pid; kill -INT \"$pid\"'")
