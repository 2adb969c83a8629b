"""Marks of pages: what differs from the state below, in a file in the server's data directory.

A lease goes back to such a mark as it goes back to its baseline, whatever was created or dropped before or after it. The file
outlives the session that made it, so that a fresh clone becomes the marked state by the same call.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Sequence
from contextlib import suppress

from harness.errors import HarnessError
from harness.postgres.session import Session

_STALE = """
select {schema}.pgh_forget(name) from pg_ls_dir('pgh_marks', true, false) name
 where split_part(name, '_', 2) not in (select left(md5(datname), 12) from pg_database)
"""


def name_for(database: str) -> str:
    """A name that no other mark of the server has, and that says whose it is.

    Args:
        database: the lease's name, which it keeps when it is cloned again.
    """
    owner = hashlib.md5(database.encode(), usedforsecurity=False).hexdigest()[:12]
    return f"m_{owner}_{secrets.token_hex(6)}"


def sweep(session: Session, schema: str) -> None:
    """Remove files of databases that are gone: of processes that were killed."""
    session.execute(_STALE.format(schema=schema))


def forget(session: Session, schema: str, names: Collection[str]) -> None:
    """Remove these marks' files; never raises for a server that is gone, which took them with it."""
    with suppress(HarnessError):
        for name in names:
            session.execute(f"select {schema}.pgh_forget('{name}')")


def array(names: Sequence[str]) -> bytes:
    """As PostgreSQL reads it; the names need no quotes."""
    return f"{{{','.join(names)}}}".encode()


__all__ = ["array", "forget", "name_for", "sweep"]
