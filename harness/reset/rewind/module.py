"""The module on one server: found, brought there, its functions made, tried once; or why not, in one sentence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError, PoolTimeout, ServerLost
from harness.postgres import locks, names
from harness.postgres.session import Session
from harness.reset.rewind import fit, functions, selftest

logger = logging.getLogger("pg_harness.reset")

Place = Callable[[str, bytes], str]
"""Puts a file where the server's process can read it: its name and bytes, and returns the path as that process
resolves it. Raises a :class:`HarnessError` that says why it cannot."""

PATIENCE = 30.0
"""Seconds to wait for another process that brings the module to the same server."""

FINE = "ok"
"""What the schema's comment says where the trial went well."""

TRYING = "trying "
"""What it begins with while a trial is under way, before their number."""

MOST_TRIALS = 2


@dataclass(frozen=True)
class Prepared:
    """A module whose functions can be called.

    Attributes:
        schema: where they are, in the maintenance database; a plain name that needs no quotes.
        digest: SHA-256 of the module's bytes, 64 hex digits.
    """

    schema: str
    digest: str


def folders(cache: Path) -> tuple[Path, ...]:
    """Where modules are looked for: those that this user has compiled, then those that came with this package."""
    if not (cache / "native").is_dir():
        return (fit.PACKAGED,)
    # Here: next to nobody has compiled one.
    from harness.reset.rewind import build

    return (build.own(cache), fit.PACKAGED)


def prepare(
    session: Session, place: Place, *, project: str, folders: Sequence[Path] = (fit.PACKAGED,)
) -> Prepared | str:
    """Have the module ready on a server: three round trips where somebody has done it already.

    Args:
        session: the admin's, in the maintenance database of a server of ours.
        place: brings the file there; called where it is not there yet.
        project: ten hex digits of the checkout, to whose sweep a trial that was cut off is left.
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
        return _prepared(session, found, place, project)
    except PoolTimeout as error:
        return error.message
    except HarnessError as error:
        if session.closed:
            raise
        return f"the module cannot be used here: {error.message}"


def _prepared(session: Session, module: fit.Module, place: Place, project: str) -> Prepared | str:
    answer = _known(session, module)
    if answer is not None:
        return answer
    with locks.exclusive(
        session, "rewind", module.schema, timeout=PATIENCE, waiting_for="the module for resets"
    ):
        answer = _known(session, module)
        if answer is not None:
            return answer
        path = place(module.file, module.content)
        if not functions.intact(session, path, module.digest):
            return f"the server reads something else in {path} than was put there"
        functions.create(session, module.schema, path)
        said = functions.look(session, module.schema).said
        return _tried(session, module, said, project)


def _known(session: Session, module: fit.Module) -> Prepared | str | None:
    """What was found out earlier; None where everything, or the file, has to be brought first."""
    there = functions.look(session, module.schema)
    if there.said == FINE:
        # A server that was started from another one's data has the functions, and perhaps not the file.
        whole = there.path and functions.intact(session, there.path, module.digest)
        return Prepared(module.schema, module.digest) if whole else None
    return None if not there.said or _attempts(there.said) else there.said


def _attempts(said: str) -> int:
    """How often a trial was begun that nobody has seen the end of; 0 where the comment says something else."""
    number = said.removeprefix(TRYING)
    return int(number) if number != said and number.isdigit() else 0


def _tried(session: Session, module: fit.Module, said: str, project: str) -> Prepared | str:
    ready = Prepared(module.schema, module.digest)
    if said == FINE:
        return ready
    begun = _attempts(said)
    if begun >= MOST_TRIALS:
        return f"its trial on this server did not end, {begun} times: the server's log may say why"
    # First: what crashes the server is not tried for ever by one run after another.
    functions.say(session, module.schema, f"{TRYING}{begun + 1}")
    began = time.monotonic()
    try:
        outcome = selftest.run(session, module.schema, names.retired(project))
    except ServerLost:
        return "the server crashed when the module was tried: its log may say why"
    if not outcome.lasting:
        return outcome.why
    functions.say(session, module.schema, outcome.why or FINE)
    logger.debug(
        "rewind: the module was tried in %.0f ms: %s", 1000 * (time.monotonic() - began), outcome.why or FINE
    )
    return outcome.why or ready


def _build(session: Session) -> fit.Build:
    wanted = list(fit.WANTED)
    columns = ", ".join(f"coalesce(current_setting('{name}', true), '')" for name in wanted)
    text, *values = session.row(f"select version(), {columns}") or ("", *("" for _ in wanted))
    return fit.Build(session.server_version, text, dict(zip(wanted, values, strict=True)))
