"""The module on one server: found, brought there, its functions made, tried once; or why not, in one sentence."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.dsn import Dsn
from harness.errors import HarnessError, PoolTimeout, ServerLost, ServerRefused
from harness.postgres import locks, names
from harness.postgres.admin import GRACE, PAUSE, RECOVERY
from harness.postgres.incarnation import Incarnation
from harness.postgres.session import Session
from harness.reset.rewind import fit, functions, selftest
from harness.reset.rewind.fit import Module

logger = logging.getLogger("pg_harness.reset")


class Shelf(Protocol):
    """Where a server's process reads files that we put there: :class:`harness.servers.port.Shelf`."""

    @property
    def folder(self) -> str:
        """As that process resolves it."""
        ...

    def put(self, name: str, content: bytes, /) -> None:
        """Put a file there.

        Raises:
            HarnessError: it cannot be put there; the text says why.
        """
        ...


PATIENCE = 30.0
"""Seconds to wait for another process that brings the module to the same server."""

FINE = "ok"
"""What the schema's comment says where the trial went well."""

TRYING = "trying "
"""What it begins with while a trial is under way; its number and the server's last crash follow."""

MOST_CRASHES = 2


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


def files(places: Sequence[Path]) -> dict[str, dict[str, bytes]]:
    """Machine → name beside a server → bytes, of all modules that there are: what a server may want to read.

    Args:
        places: as :func:`folders` gives them.
    """
    found: dict[str, dict[str, bytes]] = {}
    for module in fit.everything(places):
        found.setdefault(module.machine, {})[module.file] = module.content
    return found


def found(places: Sequence[Path]) -> list[str]:
    """For people, what the modules that there are were compiled for: ``"15 x86_64"``.

    Args:
        places: as :func:`folders` gives them.
    """
    modules = fit.everything(places)
    return [f"{each.major} {each.machine}" for each in sorted(modules, key=lambda m: (m.major, m.machine))]


def mark(places: Sequence[Path], major: int) -> str:
    """The modules of one major version of PostgreSQL, by their contents; empty where there are none.

    Args:
        places: as :func:`folders` gives them.
    """
    return " ".join(sorted(module.digest for module in fit.everything(places) if module.major == major))


def known(session: Session, *, places: Sequence[Path] = (fit.PACKAGED,)) -> Prepared | str | None:
    """What was found out about the module on a server; None where nobody has tried it. One round trip, changes nothing.

    Args:
        session: the admin's, in the maintenance database of a server of ours.
        places: where modules are looked for, in order.
    """
    build, there = functions.look(session, _schemas(session, places))
    module = fit.find(build, places)
    return module if isinstance(module, str) else _known(module, there)


def prepare(
    session: Session, shelf: Shelf, *, project: str, places: Sequence[Path] = (fit.PACKAGED,)
) -> Prepared | str:
    """Have the module ready on a server: one round trip where somebody has done it already.

    Args:
        session: the admin's, in the maintenance database of a server of ours.
        shelf: where the file is put where it is not there yet.
        project: ten hex digits of the checkout, to whose sweep a trial that was cut off is left.
        places: where modules are looked for, in order.

    Returns:
        What to call; or why there is nothing, as a sentence without a full stop.

    Raises:
        ServerLost: the server was gone before anything was tried.
    """
    try:
        build, there = functions.look(session, _schemas(session, places))
        module = fit.find(build, places)
        if isinstance(module, str):
            return module
        answer = _known(module, there)
        return answer if answer is not None else _brought(session, module, shelf, project)
    except PoolTimeout as error:
        return error.message
    except HarnessError as error:
        if session.closed:
            raise
        # What was asked, in full, is of no use to who reads it.
        return f"the module cannot be used here: {' '.join(error.message.partition(' (while: ')[0].split())}"


def _schemas(session: Session, places: Sequence[Path]) -> list[str]:
    major = session.server_version // 10000
    return [module.schema for module in fit.everything(places) if module.major == major]


def _known(module: Module, there: Mapping[str, functions.Found]) -> Prepared | str | None:
    found = there.get(module.schema)
    if found is None or not found.said or found.said.startswith(TRYING):
        return None
    if found.said != FINE:
        return found.said
    # A server that was started from another one's data has the functions, and perhaps not the file.
    return Prepared(module.schema, module.digest) if found.digest == module.digest else None


def _brought(session: Session, module: Module, shelf: Shelf, project: str) -> Prepared | str:
    with locks.exclusive(
        session, "rewind", module.schema, timeout=PATIENCE, waiting_for="the module for resets"
    ):
        _, there = functions.look(session, [module.schema])
        answer = _known(module, there)
        if answer is not None:
            return answer
        path = f"{shelf.folder}/{module.file}"
        if not functions.intact(session, path, module.digest):
            shelf.put(module.file, module.content)
            if not functions.intact(session, path, module.digest):
                return f"the server reads something else in {path} than was put there"
        functions.create(session, module.schema, path)
        found = there.get(module.schema, functions.Found())
        return _tried(session, module, found.said, project)


def _crashes(said: str, life: Incarnation) -> int:
    """How many trials have crashed the server: one that was cut off without a crash (Ctrl-C) does not count."""
    number, _, crashed = said.removeprefix(TRYING).partition(" ")
    if not said.startswith(TRYING) or not number.isdigit():
        return 0
    return int(number) - (crashed == life.crashed)


def _tried(session: Session, module: Module, said: str, project: str) -> Prepared | str:
    ready = Prepared(module.schema, module.digest)
    if said == FINE:
        return ready
    life = Incarnation.of(session)
    crashes = _crashes(said, life)
    if crashes >= MOST_CRASHES:
        return f"its trial crashed this server {crashes} times: the server's log may say why"
    # First: what crashes the server is not tried for ever by one run after another.
    functions.say(session, module.schema, f"{TRYING}{crashes + 1} {life.crashed}")
    began = time.monotonic()
    try:
        outcome = selftest.run(session, module.schema, names.retired(project))
        # What passes is tried again by whoever comes next.
        functions.say(session, module.schema, (outcome.why or FINE) if outcome.lasting else "")
    except ServerLost:
        # Of a PANIC the server tells first, and ends then.
        _wait_for_recovery(session.dsn, life)
        return "the server crashed when the module was tried: its log may say why"
    taken = 1000 * (time.monotonic() - began)
    logger.debug("rewind: the module was tried in %.0f ms: %s", taken, outcome.why or FINE)
    return outcome.why or ready


def _wait_for_recovery(dsn: Dsn, before: Incarnation) -> None:
    """Return once the server has recovered from a crash: until then it ends whoever comes. One that is gone is not waited for."""
    began = time.monotonic()
    while time.monotonic() - began < RECOVERY:
        try:
            with Session.connect(dsn) as session:
                if Incarnation.of(session).crashed != before.crashed:
                    return
        except ServerRefused:
            pass
        except ServerLost:
            if time.monotonic() - began > GRACE:
                return
        time.sleep(PAUSE)
