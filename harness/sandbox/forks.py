"""Forks: copies of a person's databases beside them, under a name (``pg-harness fork``).

A fork is a worker of ``up`` whose word is no number: what names a worker's databases names a fork's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness.databases.clones import RESERVED_CONNECTIONS, Claim
from harness.errors import ConfigError, LeaseLost
from harness.postgres import databases, names
from harness.postgres.databases import Database, apply_statements, read_attributes
from harness.postgres.session import ident
from harness.runs.session import ServerSession
from harness.sandbox import closing, marks
from harness.sandbox.marks import SavedMark
from harness.sandbox.reset import strategy_of

if TYPE_CHECKING:
    from harness.runs.places import Place

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._/-]{0,62}")

_OTHERS = re.compile(r"template|default|main|gw\d+|pgh_.*|[0-9a-f]{8}", re.IGNORECASE)
"""Words that name something else: workers of test runs, the template, databases by their names, kept ones by their digits."""


def check(name: str, there: Iterable[Place]) -> None:
    """Whether a fork may have this name.

    Raises:
        ConfigError: it cannot be a name, or names something else.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a fork's name: a letter, then letters, digits and . _ - / (63 at most). "
            "Numbers are your workers",
            key="name",
            value=name,
        )
    if _OTHERS.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a fork's name: the word is kept for the template, test runs' workers and databases that "
            "failed tests left",
            key="name",
            value=name,
        )
    for place in there:
        if name in place.words:
            remedy = f"; `pg-harness fork --drop {name}` drops it" if place.fork else ""
            raise ConfigError(f"{name!r} is taken: {place.what}{remedy}", key="name", value=name)


def make(session: ServerSession, place: Place, name: str, saved: SavedMark | None) -> list[str]:
    """Copy all of a worker's databases, at one moment.

    Args:
        saved: copy what this mark holds.

    Returns:
        The sessions that were ended, one line each.
    """
    admin, project = session.link.session, session.project.id
    ended: list[str] = []
    copies: dict[str, str] = {}
    try:
        with ExitStack() as stack:
            if saved is None:
                for database in place.databases.values():
                    timeout = session.settings.reset_timeout
                    ended += stack.enter_context(closing.closed(admin, database.name, timeout))
            for key, database in place.databases.items():
                claim = _claim(session, database, name)
                final = claim.name(project)
                if databases.find(admin, final) is not None:
                    raise ConfigError(
                        f"{name!r} is taken: there is a database {final}", key="name", value=name
                    )
                copies[final] = names.claiming(final)
                source = database
                if saved is not None:
                    source = saved.databases[key]
                    marks.check(admin, saved.name, source)
                _copy(session, place, database, source, claim, copies[final])
        for final, copy in list(copies.items()):
            if not databases.rename(admin, copy, final):
                raise LeaseLost(f"the fork {name!r} was dropped by somebody else while it was made")
            # From here on it is what is dropped where a further one fails.
            copies[final] = final
    except BaseException:
        if not admin.closed:
            for copy in copies.values():
                databases.drop(admin, copy, project)
        raise
    return ended


def _copy(
    session: ServerSession, place: Place, database: Database, source: Database, claim: Claim, copy: str
) -> None:
    """Make one, complete but for its name.

    Args:
        database: the worker's.
        source: that one, or what a mark holds of it.
    """
    admin = session.link.session
    # Of a command that was killed.
    databases.drop(admin, copy, session.project.id)
    # A reset to its migrations makes it this one's: until then whoever owns what is in it can use it.
    session.clones.make_login(claim)
    attributes = read_attributes(admin, source.name)
    databases.clone(admin, copy, template=source.name, owner=database.role, strategy=strategy_of(place))
    label = replace(
        marks.as_of(source, database.label) if source is not database else database.label,
        worker=claim.worker,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    admin.script(";\n".join([
        *apply_statements(copy, attributes, database.role),
        f"alter database {ident(copy)} with connection limit {session.clones.connections + RESERVED_CONNECTIONS}",
        databases.label_statement(copy, label, attributes.comment),
    ]))  # fmt: skip


def _claim(session: ServerSession, database: Database, name: str) -> Claim:
    index = parsed.index if (parsed := database.parsed) else 0
    return Claim(names.SANDBOX, name, index, str(session.settings.root))
