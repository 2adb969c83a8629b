"""Templates: migrated once per fingerprint, frozen, labelled last.

What has no label is half-built: it is dropped and built again. That is crash recovery without
recovery code.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from harness.databases import sweep
from harness.databases.spec import Owner, TemplateSpec
from harness.errors import ServerRefused
from harness.migrations.port import Progress, unseen
from harness.postgres import databases, incarnation, locks, names, sqlstate
from harness.postgres.databases import Attributes, Database
from harness.postgres.label import Label
from harness.postgres.session import Session, ident

logger = logging.getLogger("pg_harness.databases")


@dataclass(frozen=True)
class Template:
    """A migrated, frozen database that can be cloned.

    Attributes:
        name: name of the database.
        fingerprint: 64 hex digits.
        database: which of the worker's databases it is for.
        attributes: what a clone loses and gets again.
        strategy: ``"file_copy"`` or ``"wal_log"``: how it is cloned fastest on this server.
        size: bytes.
        settled: whether no sequence in it is logged ahead: a reset can then be prepared when it is first needed.
        unlogged: which life of the server its unlogged tables are of, see :func:`harness.postgres.incarnation.label`.
        applied: what of the migrations is in it, as its label has it; None: an earlier version built it.
        built: whether this process built it just now.
        seconds: what finding or building it took.
        migrated: seconds that its migrations took when it was built.
    """

    name: str
    fingerprint: str
    database: str
    attributes: Attributes = field(default_factory=Attributes, repr=False)
    strategy: str | None = "file_copy"
    size: int = 0
    settled: bool = False
    unlogged: str = ""
    applied: tuple[str, ...] | None = field(default=None, repr=False)
    built: bool = False
    seconds: float = 0.0
    migrated: float = 0.0


def ensure(
    session: Session,
    project: str,
    spec: TemplateSpec,
    owner: Owner,
    *,
    rebuild: bool = False,
    probe_strategy: bool = False,
    progress: Progress = unseen,
) -> Template:
    """Find the template of the spec's fingerprint, or build it, once however many ask at the same time.

    Args:
        session: the admin's, on the maintenance database.
        project: ten hex digits of the checkout.
        rebuild: build anew although one is there (its leases stay as they are).
        probe_strategy: measure which way of cloning is faster (servers that we did not start).

    Raises:
        MigrationError: a source failed; the half-migrated database is kept, its name is in ``database``.
        TemplateBusy: a source left a session open on the database.
        PoolTimeout: another process was still building when the time was up.
    """
    began = time.monotonic()
    wanted = spec.fingerprint(session)
    if not rebuild and (found := look(session, project, wanted, spec.database)):
        logger.debug("%s: template %s is there", spec.database, found.name)
        return replace(found, seconds=time.monotonic() - began)
    logger.debug("%s: no template for fingerprint %s yet", spec.database, wanted[:16])
    # One lock for the whole server: roles that a migration creates are seen by comparing before and after.
    with locks.exclusive(session, "build", "", timeout=spec.timeout + 60, waiting_for="building a template"):
        if not rebuild and (found := look(session, project, wanted, spec.database)):
            return replace(found, seconds=time.monotonic() - began)
        if not rebuild and (doubtful := _look_into(session, project, wanted)):
            if found := look(session, project, wanted, spec.database):
                return replace(found, seconds=time.monotonic() - began)
            logger.info(
                "%s: the server crashed since the template was built, which emptied its unlogged tables: "
                "building it again",
                spec.database,
            )
            sweep.drop_template(session, project, doubtful)
        elif not rebuild:
            _drop_altered(session, project, wanted, spec.database)
        _drop_leftovers(session, project, wanted, rebuild)
        # Only where it has to be built: what runs migrations takes a while to import.
        from harness.databases.builder import Build

        label = Build(session, project, wanted, spec, owner, probe_strategy, progress).run()
    built = _from_label(names.template(project, wanted), label, spec.database)
    built = replace(built, built=True, seconds=time.monotonic() - began)
    logger.debug("%s: template %s built in %.3f s", spec.database, built.name, built.seconds)
    return built


def look(session: Session, project: str, wanted: str, database: str = "default") -> Template | None:
    """The finished template of a fingerprint; None where there is none, or a crash has emptied it.

    One round trip; two where it holds unlogged tables.
    """
    found = databases.find(session, names.template(project, wanted))
    if found is None and _adopt(session, project, wanted):
        # Its label is of the life in which it was baked, and as true: the snapshot was taken after a clean stop.
        found = databases.find(session, names.template(project, wanted))
    if found is None or not _finished(found, wanted) or incarnation.emptied(session, found.label.life):
        return None
    return _from_label(found.name, found.label, database)


def brought(session: Session, wanted: str) -> bool:
    """Whether a server that was started from a baked base has the template of a fingerprint, as it was baked."""
    found = databases.find(session, names.template(names.BAKED, wanted))
    return found is not None and _finished(found, wanted)


def adapt(session: Session, found: Template, act: Callable[[Session], object]) -> None:
    """Change what a template holds that is one server's alone, and has to say where that is."""
    there = databases.find(session, found.name)
    if there is None:
        return
    session.execute(f"alter database {ident(found.name)} with allow_connections true")
    with Session.connect(session.dsn.with_database(found.name)) as inside:
        act(inside)
    databases.terminate(session, found.name)
    databases.seal(session, found.name, there.label, there.comment, ())


def lost(session: Session, project: str, wanted: str) -> bool:
    """Whether the template of a fingerprint is there, and a crash of the server has emptied its unlogged tables."""
    found = databases.find(session, names.template(project, wanted))
    return found is not None and _finished(found, wanted) and incarnation.emptied(session, found.label.life)


def _look_into(session: Session, project: str, wanted: str) -> Database | None:
    """The finished template that :func:`look` does not give; labelled anew, where an earlier version has labelled it.

    Under the build lock: whoever else finds it open takes it for half-built.
    """
    found = databases.find(session, names.template(project, wanted))
    if found is None or not _finished(found, wanted):
        return None
    if found.label.unlogged is None:
        session.execute(f"alter database {ident(found.name)} with allow_connections true")
        with Session.connect(session.dsn.with_database(found.name)) as inside:
            # In which life it was made, nobody knows.
            labelled = incarnation.label(inside) and incarnation.UNKNOWN
        databases.terminate(session, found.name)
        databases.seal(session, found.name, replace(found.label, unlogged=labelled), found.comment, ())
    return found


def _drop_altered(session: Session, project: str, wanted: str, database: str) -> None:
    """Drop the template of a fingerprint where somebody else has been at it, with all that was made of it."""
    found = databases.find(session, names.template(project, wanted))
    if found is not None and (why := _altered(found, wanted)):
        logger.warning(
            "%s: the template %s was altered since it was built (%s): building it again",
            database,
            found.name,
            why,
        )
        sweep.drop_template(session, project, found)


def _adopt(session: Session, project: str, wanted: str) -> bool:
    """Whether the server was started from a baked base: its template belongs to nobody yet, and becomes ours."""
    baked = names.template(names.BAKED, wanted)
    # Looked for first: a rename that fails would stand as an error in everybody's server log.
    found = databases.find(session, baked)
    if found is None or not _finished(found, wanted):
        return False
    name = names.template(project, wanted)
    try:
        databases.seal(
            session,
            name,
            found.label,
            found.comment,
            [f"alter database {ident(baked)} rename to {ident(name)}"],
        )
    except ServerRefused as error:
        if error.sqlstate == sqlstate.INVALID_CATALOG_NAME:
            return False
        raise
    return True


def _finished(found: Database, wanted: str) -> bool:
    return found.label.fingerprint == wanted and found.is_template and not _altered(found, wanted)


def _altered(found: Database, wanted: str) -> str:
    """What somebody else than us has done to a template, for people; empty where nothing is seen, or it is half-built."""
    if not (found.is_template or found.label):
        return ""
    if found.label.fingerprint != wanted:
        return "its comment is another one"
    if not found.is_template:
        return "it was no template any more"
    if found.allows_connections:
        return "it took connections"
    return "" if found.label.sealed == found.written else "its row in pg_database was written"


def _from_label(name: str, label: Label, database: str) -> Template:
    return Template(
        name,
        label.fingerprint or "",
        database,
        Attributes(label.attributes or (), label.user_comment),
        label.cloned_by,
        label.size or 0,
        label.settled or False,
        label.life,
        label.applied,
        migrated=label.seconds or 0.0,
    )


def _drop_leftovers(session: Session, project: str, wanted: str, rebuild: bool) -> None:
    """Under the build lock, everything of this fingerprint that is not finished was cut off."""
    for found in databases.list_ours(session, project):
        if found.owner != wanted[:16]:
            continue
        if found.kind is names.Kind.BUILDING or (
            found.kind in (names.Kind.TEMPLATE, names.Kind.BASELINE, names.Kind.SPARE)
            and (rebuild or (found.kind is names.Kind.TEMPLATE and not _finished(found, wanted)))
        ):
            databases.drop(session, found.name, project)


def touch(session: Session, template: Template) -> None:
    """Note that the template was used now; eviction goes by that."""
    found = databases.find(session, template.name)
    if found is None or not found.label:
        return
    try:
        label = replace(found.label, used=datetime.now(UTC).isoformat(timespec="seconds"))
        session.execute(databases.label_statement(found.name, label, found.comment))
    except ServerRefused:
        # "tuple concurrently updated": another run has just noted the same.
        return
