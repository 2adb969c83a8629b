"""Migrations that a person's databases lack, applied to what is in them (``pg-harness migrate``).

They run on a copy, that takes the database's place once all of them worked; nobody can enter the database meanwhile, so that
nothing that is written gets lost. The database itself is the mark that a failure goes back to: nothing has to be put back, also
after a kill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from harness.databases.applied import Applied
from harness.databases.builder import Act, Build
from harness.databases.clones import RESERVED_CONNECTIONS
from harness.databases.spec import TemplateSpec
from harness.databases.template import Template
from harness.errors import LeaseError, MigrationError
from harness.migrations.port import Stepwise, short, unseen
from harness.postgres import databases, names
from harness.postgres.databases import Database, apply_statements, read_attributes
from harness.postgres.label import Label
from harness.postgres.session import CATALOG_ONLY, Session, ident, literal
from harness.runs.session import ServerSession
from harness.sandbox import closing, guests
from harness.sandbox.reset import strategy_of

if TYPE_CHECKING:
    from harness.runs.places import Place


@dataclass(frozen=True)
class Pending:
    """What one database lacks of today's migrations.

    Attributes:
        steps: extensions, files by their names, and the sources whose own tool knows, in the order of running. None at all: nothing
            is run, and it counts as made from today's migrations from then on.
        seeds: whether there are seeds. They are not applied again: the data is a person's.
        acts: the migrations of them, to be run.
        spec: how a new one is made.
        extensions: those of them that a superuser creates.
    """

    steps: tuple[str, ...]
    seeds: bool
    acts: Sequence[Act] = field(repr=False)
    spec: TemplateSpec = field(repr=False)
    extensions: tuple[str, ...] = field(default=(), repr=False)

    @property
    def as_superuser(self) -> str:
        """What of it a superuser runs, for a sentence; empty where nothing is."""
        if self.extensions:
            return f"creates {', '.join(self.extensions)}"
        return "runs the migrations (migrate_as)" if self.acts and self.spec.migrate_as == "admin" else ""


def pending(session: ServerSession, place: Place, *, out_of_order: bool) -> dict[str, Pending]:
    """See :meth:`harness.sandbox.sandbox.Sandbox.pending`."""
    found = {}
    for settings in session.settings.databases:
        database = place.databases.get(settings.name)
        if database is None:
            continue  # `up` makes what is missing
        spec = session.spec(settings)
        if database.label.fingerprint != spec.fingerprint(session.link.session):
            found[settings.name] = _pending(
                spec, database, _lacking(session, database, spec.extensions), out_of_order
            )
    return found


def _lacking(session: ServerSession, database: Database, wanted: Sequence[str]) -> tuple[str, ...]:
    if not wanted:
        return ()
    dsn = session.link.dsn.with_database(database.name)
    with Session.connect(dsn, settings=CATALOG_ONLY) as inside:
        there = inside.column("select extname from pg_catalog.pg_extension")
    return tuple(extension for extension in wanted if extension not in there)


def _pending(
    spec: TemplateSpec, database: Database, extensions: tuple[str, ...], out_of_order: bool
) -> Pending:
    applied = Applied.read(database.label.applied)
    steps = [f"extension {extension}" for extension in extensions]
    acts: list[Act] = []
    here: set[str] = set()
    for source in spec.schema:
        if not isinstance(source, Stepwise):
            if applied is None or applied.sources.get(source.text) != short(source.fingerprint()):
                steps.append(source.text)
                acts.append((source.text, source.apply))
            continue
        if applied is None:
            raise MigrationError(
                f"{source.text}: which files {database.name} has is not known, an earlier version made it and noted "
                "nothing. `pg-harness up --fresh` makes new databases, without the data",
                source=source.text,
            )
        here |= source.steps().keys()
        if lacking := source.pending(applied.steps, out_of_order=out_of_order):
            steps += lacking
            acts.append((f"{source.text} ({', '.join(lacking)})", partial(source.upgrade, steps=lacking)))
    if applied is not None and (gone := sorted(applied.steps.keys() - here)):
        raise MigrationError(
            f"{', '.join(gone)}: the database has {'it' if len(gone) == 1 else 'them'}, and today's migrations do not any more. "
            "What was applied is not taken back: put it back; or `pg-harness up --fresh` makes new databases, without the data",
            step=gone[0],
        )
    return Pending(tuple(steps), bool(spec.seeds), acts, spec, extensions)


def apply(session: ServerSession, place: Place, plan: Mapping[str, Pending]) -> list[str]:
    """Run it, for all of a worker's databases or for none; the templates of today's migrations are there.

    Returns:
        The sessions that were ended, one line each.

    Raises:
        MigrationError, TemplateBusy, LeaseError: nothing was changed.
    """
    admin, project = session.link.session, session.project.id
    made = {name: _made(session, name, what) for name, what in plan.items()}
    run = {name: what for name, what in plan.items() if what.steps}
    for name, what in run.items():
        if what.as_superuser and guests.were_here(place):
            raise LeaseError(
                f"{place.what}: an agent may have changed the schema of {place.databases[name].name}, and what is pending is a "
                f"superuser's, who {what.as_superuser}: the agent's functions could run with those rights. "
                "`pg-harness up --fresh` makes new databases, without the data"
            )
        _refuse_what_no_copy_takes(admin, place.databases[name].name)
    ended: list[str] = []
    copies: dict[str, str] = {}
    try:
        with ExitStack() as stack:
            for name in run:
                source = place.databases[name].name
                ended += stack.enter_context(closing.closed(admin, source, session.settings.reset_timeout))
            for name, what in run.items():
                copies[name] = names.claiming(place.databases[name].name)
                _upgrade(session, place, name, what, copies[name], made[name])
            for name, copy in copies.items():
                away = names.retired(project)
                # In one act: without a database of that name, its marks would be left over.
                if databases.retire(admin, place.databases[name].name, away, successor=copy):
                    databases.drop_retired(admin, away)
    except BaseException as error:
        if not admin.closed:
            for copy in copies.values():
                databases.drop(admin, copy, project)
        if isinstance(error, MigrationError):
            error.add_note(
                f"{place.what} is as it was: the migrations ran on a copy, which is dropped. "
                "Mend them, and call `pg-harness migrate` again"
            )
        raise
    for name in plan.keys() - run.keys():
        database = place.databases[name]
        admin.execute(
            databases.label_statement(database.name, _as_made(database, made[name]), database.comment)
        )
    return ended


def _made(session: ServerSession, name: str, what: Pending) -> Template:
    """The template of a database's migrations, which holds what the database will hold."""
    made = session.templates[name]
    if made.fingerprint != what.spec.fingerprint(session.link.session):
        raise MigrationError("the migrations were changed just now: call `pg-harness migrate` again")
    return made


def _as_made(database: Database, made: Template) -> Label:
    return replace(database.label, fingerprint=made.fingerprint, applied=made.applied)


def _refuse_what_no_copy_takes(admin: Session, name: str) -> None:
    found = admin.column(
        "select format('the replication slot %%s', slot_name) from pg_replication_slots where database = %s "
        "union all select format('the subscription %%s', subname) from pg_subscription s "
        "join pg_database d on d.oid = s.subdbid where d.datname = %s",
        (name, name),
    )
    if found:
        raise LeaseError(
            f"{name} has {', '.join(found)}, which would be lost: migrations run on a copy that takes the database's place. "
            "Drop it first, or apply them by the tool itself"
        )


def _upgrade(
    session: ServerSession, place: Place, name: str, what: Pending, copy: str, made: Template
) -> None:
    """Copy a database that nobody is in, migrate the copy, and make it ready for the database's place."""
    admin, database, owner = session.link.session, place.databases[name], session.owner
    # Of a command that was killed.
    databases.drop(admin, copy, session.project.id)
    attributes = read_attributes(admin, database.name)
    # Where every worker has a role, migrations run as the one that these are members of, as in a template.
    databases.clone(admin, copy, template=database.name, owner=owner.name, strategy=strategy_of(place))
    admin.script(";\n".join([
        *apply_statements(copy, attributes, owner.name),
        f"alter database {ident(copy)} with connection limit {session.clones.connections + RESERVED_CONNECTIONS}",
        *([f"comment on database {ident(copy)} is {literal(attributes.comment)}"] if attributes.comment else []),
    ]))  # fmt: skip
    build = Build(admin, session.project.id, made.fingerprint, what.spec, owner, False, unseen)
    build.upgrade(copy, what.acts, what.extensions)
    finished = databases.find(admin, copy)
    comment = finished.comment if finished is not None else attributes.comment
    admin.script(";\n".join([
        f"alter database {ident(copy)} owner to {ident(database.role)}",
        databases.label_statement(copy, _as_made(database, made), comment),
    ]))  # fmt: skip
