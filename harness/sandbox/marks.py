"""Saved marks (``pg-harness mark``): copies of a worker's databases that outlive the process that made them.

A mark of :mod:`harness.reset.marks` lives in the memory of its process. The command line ends between two
commands, so its marks are databases of ours: clones of the marked state that nobody may enter. They are a
stack, like the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from harness.databases.clones import RESERVED_CONNECTIONS, BeforeRename, Clones
from harness.databases.resetting import watermark_of
from harness.errors import LeaseError, LeaseLost, ServerRefused
from harness.postgres import databases, ending, incarnation, names, sqlstate
from harness.postgres.databases import Database, apply_statements, read_attributes, settle_sequences
from harness.postgres.label import Label
from harness.postgres.session import CATALOG_ONLY, Session, ident
from harness.reset.watermark import Watermark
from harness.sandbox import closing

TEMPLATE = "template"
"""What ``reset --to`` calls the migrations' state: no mark has this name."""


@dataclass(frozen=True)
class SavedMark:
    """One mark of one worker.

    Attributes:
        number: place in the stack, from 1; numbers of released marks come back.
        name: as the person called it; the number, where they did not.
        created: when, as ISO 8601.
        databases: name in the settings → the copy.
    """

    number: int
    name: str
    created: str
    databases: Mapping[str, Database]


def stack(session: Session, project: str, leased: Mapping[str, Database]) -> list[SavedMark]:
    """The marks of a worker's databases, the lowest first. One that is not complete is none.

    Args:
        leased: name in the settings → the worker's database.
    """
    wanted = {database.name: name for name, database in leased.items()}
    layers: dict[int, dict[str, Database]] = {}
    for found in databases.list_ours(session, project):
        name, number = wanted.get(found.marked_lease), found.label.number
        if name is not None and found.label.kind == "mark" and number is not None:
            layers.setdefault(number, {})[name] = found
    result = []
    for number, members in sorted(layers.items()):
        if members.keys() == leased.keys():
            label = next(iter(members.values())).label
            name = label.name if label.name is not None else str(number)
            result.append(SavedMark(number, name, label.created or "", members))
    return result


def choose(marks: Sequence[SavedMark], name: str) -> SavedMark:
    """The mark of that name.

    Raises:
        LeaseError: there is none; the text lists those that there are.
    """
    for saved in reversed(marks):
        if saved.name == name:
            return saved
    known = ", ".join(repr(saved.name) for saved in marks) or "none: `pg-harness mark` sets one"
    raise LeaseError(f"there is no mark {name!r}; there are {known}")


def target(marks: Sequence[SavedMark], to: str | None) -> SavedMark | None:
    """The mark that a reset goes to; None is the template.

    Args:
        marks: all of them, the lowest first.
        to: a mark's name, or :data:`TEMPLATE`; None: the top mark, else the template.

    Raises:
        LeaseError: there is none of that name.
    """
    if to is None:
        return marks[-1] if marks else None
    return None if to == TEMPLATE else choose(marks, to)


def save(
    session: Session,
    project: str,
    leased: Mapping[str, Database],
    name: str | None,
    *,
    strategy: str | None,
    reset_timeout: float,
) -> tuple[SavedMark, list[str], dict[str, Watermark]]:
    """Make the present state the top mark.

    PostgreSQL copies no database that has sessions: transactions are waited for, then all sessions end.

    Args:
        name: what to call it; None for its number.
        strategy: how to clone, see :func:`harness.postgres.databases.clone`.
        reset_timeout: seconds to wait for open transactions.

    Returns:
        The mark; the sessions that were ended, one line each; name of a copy → what was true of its database when
        it was made, for a reset to go on from.

    Raises:
        LeaseError: a mark of that name is set. LeaseInUse: a session cannot be ended.
    """
    marks = stack(session, project, leased)
    number = marks[-1].number + 1 if marks else 1
    name = name or str(number)
    if not name.isprintable():
        raise LeaseError(f"{name!r} cannot be a mark's name: it holds what cannot be printed")
    if any(saved.name == name for saved in marks):
        raise LeaseError(f"there is a mark {name!r} already: release it first, or take another name")
    created = datetime.now(UTC).isoformat(timespec="milliseconds")
    made: dict[str, str] = {}
    ended: list[str] = []
    notes: dict[str, Watermark] = {}
    try:
        for key, database in leased.items():
            parsed = database.parsed
            if parsed is None:
                raise LeaseError(f"{database.name} is no database of ours")
            copy = names.mark(project, parsed.owner, parsed.tail, number)
            # Of one that was interrupted: it is no mark, but it is in the way.
            drop_of(session, project, database.name, but=marks)
            made[key] = copy
            noted, gone, unlogged = _copy(
                session, database.name, copy, database.role, strategy, reset_timeout
            )
            ended += gone
            if noted is not None:
                notes[copy] = noted
            # The label comes last: a copy without it is none.
            label = Label(
                kind="mark",
                number=number,
                name=name,
                created=created,
                unlogged=unlogged,
                fingerprint=database.label.fingerprint,
                applied=database.label.applied,
            )
            session.script(databases.label_statement(copy, label, database.comment))
    except BaseException:
        if not session.closed:
            for copy in made.values():
                databases.drop(session, copy, project)
        raise
    return choose(stack(session, project, leased), name), ended, notes


def _copy(
    session: Session, source: str, copy: str, role: str, strategy: str | None, patience: float
) -> tuple[Watermark | None, list[str], str]:
    """Clone a database that people are in.

    Returns:
        What is true of both; the sessions that had to end; the copy's label of :mod:`harness.postgres.incarnation`.
    """
    closing.wait(session, source, patience)
    ended = databases.sessions_of(session, source)
    attributes = read_attributes(session, source)
    owner = session.value("select pg_get_userbyid(datdba) from pg_database where datname = %s", (source,))
    if owner is None:
        raise LeaseLost(f"database {source} is gone")
    ended += _roll_back_prepared(session, source)
    # As the attributes: while connections are allowed. A clone by file_copy begins with a checkpoint, and after that
    # every sequence writes to the log when it moves; after one by wal_log it may move without a word.
    noted = watermark_of(session, source, role)[0] if strategy == "file_copy" else None
    with closing.shut(session, source):
        databases.clone(session, copy, template=source, owner=owner, strategy=strategy)
        with Session.connect(session.dsn.with_database(copy), settings=CATALOG_ONLY) as inside:
            settle_sequences(inside)
            unlogged = incarnation.label(inside)
        if noted is not None:
            # Nobody is in it, and the copy is finished: this is the position at which both are the same, and from which
            # nobody writes to the copy.
            here = str(session.value("select pg_current_wal_insert_lsn()::text"))
            noted = replace(noted, position=here, clean=here)
    session.script(
        ";\n".join(
            [
                *apply_statements(copy, attributes, owner),
                f"alter database {ident(copy)} with allow_connections false",
            ]
        )
    )
    return noted, ended, unlogged


def _roll_back_prepared(session: Session, database: str) -> list[str]:
    found = ending.prepared_by_name(session, database)
    if not found:
        return []
    with Session.connect(session.dsn.with_database(database), settings=CATALOG_ONLY) as inside:
        for gid in found:
            ending.roll_back(inside, gid)
    return [f"prepared transaction {gid}" for gid in found]


def put_back(
    clones: Clones,
    saved: str,
    copy: Database,
    database: Database,
    *,
    strategy: str | None,
    before: BeforeRename | None = None,
) -> str:
    """Replace one of a worker's databases by a copy of a mark, under the same name. Sessions in it end.

    Args:
        saved: what the mark is called.
        copy: the mark's copy of the database.

    Returns:
        What the old one is called now, for :func:`harness.postgres.databases.drop_retired`; empty where it was gone.

    Raises:
        LeaseLost: the mark is gone. LeaseError: a crash of the server has emptied it.
    """
    check(clones.link.session, saved, copy)
    session, fresh = clones.link.session, names.claiming(database.name)
    databases.drop(session, fresh, clones.project)
    attributes = read_attributes(session, copy.name)
    shut(session, copy.name)
    try:
        databases.clone(session, fresh, template=copy.name, owner=database.role, strategy=strategy)
    except ServerRefused as error:
        if error.sqlstate == sqlstate.INVALID_CATALOG_NAME:
            raise LeaseLost(f"the mark {saved!r} was released by somebody else") from error
        raise
    limit = clones.connections + RESERVED_CONNECTIONS
    session.script(";\n".join([
        *apply_statements(fresh, attributes, database.role),
        f"alter database {ident(fresh)} with connection limit {limit}",
        databases.label_statement(fresh, as_of(copy, database.label), attributes.comment),
    ]))  # fmt: skip
    away = names.retired(clones.project)
    if before is not None:
        before(fresh)
    # In one act: without a database of that name, its marks would be left over.
    if databases.retire(session, database.name, away, successor=fresh):
        return away
    if not databases.rename(session, fresh, database.name):
        raise LeaseLost(f"the copy of the mark {saved!r} was dropped by somebody else")
    return ""


def as_of(copy: Database, label: Label) -> Label:
    """The label of a database that becomes what a mark holds: it may have been migrated further since."""
    if copy.label.fingerprint is None:
        return label  # of an earlier version, which migrated nothing further
    return replace(label, fingerprint=copy.label.fingerprint, applied=copy.label.applied)


def check(session: Session, saved: str, copy: Database) -> None:
    """Raise LeaseError where a mark's unlogged tables were emptied by a crash of the server.

    Args:
        saved: what the mark is called.
    """
    labelled = copy.label.unlogged
    if labelled is None:
        # Of an earlier version: in which life it was made, nobody knows.
        open_up(session, copy.name)
        with Session.connect(session.dsn.with_database(copy.name), settings=CATALOG_ONLY) as inside:
            labelled = incarnation.label(inside) and incarnation.UNKNOWN
        shut(session, copy.name)
    if incarnation.emptied(session, labelled):
        raise LeaseError(
            f"the mark {saved!r} is lost: the server crashed since it was set, which emptied its unlogged tables. "
            f"`pg-harness mark --release {saved}` forgets it"
        )


def open_up(session: Session, copy: str) -> None:
    """Let the admin read a mark's copy, and nobody else; :func:`shut` ends that."""
    session.execute(f"alter database {ident(copy)} with allow_connections true connection limit 0")


def shut(session: Session, copy: str) -> None:
    """Nobody is in a mark's copy any more, and nobody can come: a session there would stall clones of it."""
    try:
        session.execute(f"alter database {ident(copy)} with allow_connections false")
    except ServerRefused as error:
        if error.sqlstate != sqlstate.INVALID_CATALOG_NAME:
            raise
    else:
        databases.terminate(session, copy)


def release(
    session: Session, project: str, marks: Sequence[SavedMark], lowest: SavedMark | None
) -> list[SavedMark]:
    """Drop a mark and those above it; the databases stay as they are.

    Args:
        lowest: None for all.

    Returns:
        What was released, the top first.
    """
    gone = [saved for saved in reversed(marks) if lowest is None or saved.number >= lowest.number]
    for saved in gone:
        for database in saved.databases.values():
            databases.drop(session, database.name, project)
    return gone


def drop_of(session: Session, project: str, name: str, *, but: Sequence[SavedMark] = ()) -> None:
    """Drop every mark of one database, complete or not: the database itself is about to go.

    Args:
        but: marks that stay.
    """
    stay = {database.name for saved in but for database in saved.databases.values()}
    for found in databases.list_ours(session, project):
        if found.marked_lease == name and found.name not in stay:
            databases.drop(session, found.name, project)
