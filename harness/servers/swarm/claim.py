"""A server of a service belongs to the worker that has claimed it, inside it: one atomic act, which one session alone can win."""

from __future__ import annotations

from contextlib import suppress

from harness.errors import HarnessError, ServerRefused
from harness.postgres.session import Session, ident, literal

FREE, CLAIMED = "pg_harness_free", "pg_harness_claimed"
"""Schemas of the maintenance database: what is renamed."""

_GONE = ("3F000", "42P06", "42704")
"""No such schema; it is there already; no such object: another one was quicker."""


def claim(session: Session, purpose: str) -> bool:
    """Take the server for one worker; False where another has it.

    Args:
        session: the admin's, in the maintenance database.
        purpose: of the worker, which others read there.
    """
    # Whoever comes first makes it; all rename it, and one wins. Both schemas never are there at once but for that moment.
    with suppress(ServerRefused):
        session.script(
            f"do $$ begin if to_regnamespace({literal(CLAIMED)}) is null then "
            f"create schema {ident(FREE)}; end if; end $$"
        )
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


def shut_down(session: Session) -> None:
    """Have the server end itself, cleanly: its task is complete then, and the Swarm starts no other for it."""
    # The answer may not come any more.
    with suppress(HarnessError):
        session.execute("copy (select 1) to program 'read -r pid < postmaster.pid; kill -INT \"$pid\"'")
