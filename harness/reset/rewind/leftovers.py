"""What modules of earlier versions, and processes that were killed, have left on a server; dropped where no process uses it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from harness.postgres.session import Session, ident, lock_key
from harness.reset.rewind import fit, page_marks

_THERE = """
select nspname, exists (select from pg_ls_dir('pgh_marks', true, false)) from pg_namespace where nspname like 'pgharness\\_%'
"""
_SCHEMA = re.compile(r"pgharness_([0-9a-f]{12})")


def sign_of_life(schema: str) -> int:
    """The key of the advisory lock that each session holds, shared, which has a module's functions called."""
    return lock_key("module", schema)


def sweep(session: Session, keep: Collection[str], remove: Callable[[str], None]) -> list[str]:
    """Drop schemas of modules that nobody uses, with their files, and files of marks whose database is gone. One round trip, where
    there is nothing.

    Args:
        session: the admin's, in the maintenance database of a server of ours.
        keep: schemas of the modules that this version of the harness would use.
        remove: removes a file of that name from the server's shelf, if it is there.

    Returns:
        The schemas that were dropped.
    """
    there = session.rows(_THERE)
    found = [name for name, _ in there if _SCHEMA.fullmatch(name)]
    if found and there[0][1]:
        page_marks.sweep(session, min(found, key=lambda name: name not in keep))
    gone = []
    for schema in found:
        if schema not in keep and _drop(session, schema):
            remove(fit.file_of(schema))
            gone.append(schema)
    return gone


def _drop(session: Session, schema: str) -> bool:
    """Whether nobody uses it, and it is gone. Whoever wants it meanwhile waits, and then finds that it is not there."""
    key = sign_of_life(schema)
    if not session.value("select pg_try_advisory_lock(%s)", (key,)):
        return False
    try:
        session.execute(f"drop schema if exists {ident(schema)} cascade")
    finally:
        if not session.closed:
            session.execute("select pg_advisory_unlock(%s)", (key,))
    return True
