"""The module on one server: found, brought there, its functions made, tried once; or why not, in one sentence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError, PoolTimeout
from harness.postgres import locks
from harness.postgres.session import Session
from harness.reset.rewind import fit, functions

logger = logging.getLogger("pg_harness.reset")

Place = Callable[[str, bytes], str]
"""Puts a file where the server's process can read it: its name and bytes, and returns the path as that process
resolves it. Raises a :class:`HarnessError` that says why it cannot."""

PATIENCE = 30.0
"""Seconds to wait for another process that brings the module to the same server."""

FINE = "ok"


@dataclass(frozen=True)
class Prepared:
    """A module whose functions can be called.

    Attributes:
        schema: where they are, in the maintenance database; a plain name that needs no quotes.
        digest: SHA-256 of the module's bytes, 64 hex digits.
    """

    schema: str
    digest: str


def prepare(session: Session, place: Place, *, folders: Sequence[Path] = (fit.PACKAGED,)) -> Prepared | str:
    """Have the module ready on a server: two round trips where somebody has done it already.

    Args:
        session: the admin's, in the maintenance database of a server of ours.
        place: brings the file there; called where it is not there yet.
        folders: where modules are looked for, in order.

    Returns:
        What to call; or why there is nothing, as a sentence without a full stop.

    Raises:
        ServerLost: the server was gone before anything was tried.
    """
    found = fit.find(_build(session), folders)
    if isinstance(found, str):
        return found
    try:
        return _prepared(session, found, place)
    except PoolTimeout as error:
        return error.message
    except HarnessError as error:
        if session.closed:
            raise
        return f"the module cannot be used here: {error.message}"


def _prepared(session: Session, module: fit.Module, place: Place) -> Prepared | str:
    ready = Prepared(module.schema, module.digest)
    there = functions.look(session, module.schema)
    if there.said == FINE and functions.intact(session, there.path, module.digest):
        return ready
    if there.said and there.said != FINE:
        return there.said
    with locks.exclusive(
        session, "rewind", module.schema, timeout=PATIENCE, waiting_for="the module for resets"
    ):
        there = functions.look(session, module.schema)
        path = place(module.file, module.content)
        if not functions.intact(session, path, module.digest):
            return f"the server reads something else in {path} than was put there"
        functions.create(session, module.schema, path)
        functions.say(session, module.schema, FINE)
    return ready


def _build(session: Session) -> fit.Build:
    names = list(fit.WANTED)
    columns = ", ".join(f"coalesce(current_setting('{name}', true), '')" for name in names)
    text, *values = session.row(f"select version(), {columns}") or ("", *("" for _ in names))
    return fit.Build(session.server_version, text, dict(zip(names, values, strict=True)))
