"""Templates: migrated once per fingerprint, frozen, marked last.

What is unmarked is half-built: it is dropped and built again. That is crash recovery without
recovery code.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from harness import eviction, names
from harness.catalog import databases, locks, roles
from harness.catalog.databases import Attributes, Database
from harness.catalog.session import Session, ident
from harness.dsn import Dsn
from harness.errors import HarnessError, MigrationError, ServerLost, ServerRefused, TemplateBusy
from harness.migrations.base import MigrationContext, MigrationSource

FORMAT = 1
"""Part of every fingerprint: raised when this module builds templates differently."""

LINGER = 5.0
"""Seconds that a migration tool's last session may take to end after the tool has ended."""

Story = Callable[[str], None]
Progress = Callable[[int, int | None, str], None]


@dataclass(frozen=True)
class Owner:
    """The application's role, and how to log in as it.

    Attributes:
        name: role name.
        password: in clear text; never in ``repr``.
        attributes, superuser: what it was made with.
        managed: whether it is ours to put right; False where the application uses the admin's own role.
    """

    name: str
    password: str = field(repr=False)
    attributes: tuple[str, ...] = ()
    superuser: bool = False
    managed: bool = False


@dataclass(frozen=True)
class Recipe:
    """All that decides what a template holds, and how to make it.

    Attributes:
        database: which of the worker's databases this is for, ``"default"`` first of all.
        sources: in the order in which they are applied.
        extensions: created by the admin before the sources run.
        migrate_as: ``"role"`` or ``"admin"``.
        decisive: further text that decides the outcome (settings of the server, attributes of the role).
        environment: makes the environment of child processes from the address to migrate.
        binaries: folder of ``psql``, where there is one.
        timeout: seconds for all sources together.
        keep_failed: whether a half-migrated database stays for people to look at.
    """

    database: str
    sources: Sequence[MigrationSource]
    extensions: Sequence[str] = ()
    migrate_as: str = "role"
    decisive: str = ""
    environment: Callable[[Dsn], Mapping[str, str]] = lambda dsn: {}
    binaries: Path | None = None
    timeout: float = 300
    keep_failed: bool = True


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
        built: whether this process built it just now.
        seconds: what finding or building it took.
    """

    name: str
    fingerprint: str
    database: str
    attributes: Attributes = field(default_factory=Attributes, repr=False)
    strategy: str | None = "file_copy"
    size: int = 0
    built: bool = False
    seconds: float = 0.0


def fingerprint(session: Session, recipe: Recipe) -> str:
    """64 hex digits over all that decides the outcome of the recipe on this server.

    Raises:
        MigrationError: a source cannot be read.
    """
    return fingerprint_on(session.server_version // 10000, recipe)


def fingerprint_on(major: int, recipe: Recipe) -> str:
    """:func:`fingerprint` on a server of a major version (17), which need not run yet."""
    parts = [
        f"format {FORMAT}",
        f"server {major}",
        f"database {recipe.database}",
        f"extensions {list(recipe.extensions)}",
        f"migrate_as {recipe.migrate_as}",
        f"decisive {recipe.decisive}",
        *(f"source {source.text} {source.fingerprint()}" for source in recipe.sources),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def ensure(
    session: Session,
    project: str,
    recipe: Recipe,
    owner: Owner,
    *,
    rebuild: bool = False,
    probe_strategy: bool = False,
    story: Story = lambda line: None,
    progress: Progress = lambda done, total, what: None,
) -> Template:
    """Find the template of the recipe's fingerprint, or build it, once however many ask at the same time.

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
    wanted = fingerprint(session, recipe)
    if not rebuild and (found := look(session, project, wanted, recipe.database)):
        return replace(found, seconds=time.monotonic() - began)
    # One lock for the whole server: roles that a migration creates are seen by comparing before and after.
    with locks.exclusive(
        session, "build", "", timeout=recipe.timeout + 60, waiting_for="building a template"
    ):
        if not rebuild and (found := look(session, project, wanted, recipe.database)):
            return replace(found, seconds=time.monotonic() - began)
        _drop_leftovers(session, project, wanted, rebuild)
        built = _build_with_roles(session, project, wanted, recipe, owner, probe_strategy, story, progress)
    return replace(built, built=True, seconds=time.monotonic() - began)


def look(session: Session, project: str, wanted: str, database: str = "default") -> Template | None:
    """The finished template of a fingerprint; None where there is none. One round trip."""
    found = databases.find(session, names.template(project, wanted))
    if found is None and _adopt(session, project, wanted):
        found = databases.find(session, names.template(project, wanted))
    if found is None or not _finished(found, wanted):
        return None
    return _from_mark(found, database)


def _adopt(session: Session, project: str, wanted: str) -> bool:
    """Whether the server was started from a baked base: its template belongs to nobody yet, and becomes ours."""
    baked = names.template(names.BAKED, wanted)
    # Looked for first: a rename that fails would stand as an error in everybody's server log.
    if databases.find(session, baked) is None:
        return False
    return databases.rename(session, baked, names.template(project, wanted))


def _finished(found: Database, wanted: str) -> bool:
    return (
        found.mark is not None
        and found.mark.get("fingerprint") == wanted
        and found.is_template
        and not found.allows_connections
    )


def _from_mark(found: Database, database: str) -> Template:
    mark = found.mark or {}
    attributes = Attributes(tuple(mark.get("attributes", ())), mark.get("user_comment"))
    return Template(
        found.name,
        str(mark["fingerprint"]),
        database,
        attributes,
        mark.get("strategy", "file_copy"),
        int(mark.get("size", 0)),
    )


def _drop_leftovers(session: Session, project: str, wanted: str, rebuild: bool) -> None:
    """Under the build lock, everything of this fingerprint that is not finished was cut off."""
    for found in databases.list_ours(session, project):
        parsed = found.parsed
        if parsed is None or parsed.owner != wanted[:16]:
            continue
        if parsed.kind is names.Kind.BUILDING or (
            parsed.kind in (names.Kind.TEMPLATE, names.Kind.BASELINE, names.Kind.SPARE)
            and (rebuild or (parsed.kind is names.Kind.TEMPLATE and not _finished(found, wanted)))
        ):
            databases.drop(session, found.name, project)


def _build_with_roles(
    session: Session,
    project: str,
    wanted: str,
    recipe: Recipe,
    owner: Owner,
    probe_strategy: bool,
    story: Story,
    progress: Progress,
) -> Template:
    before = roles.all_roles(session)
    try:
        return _build(session, project, wanted, recipe, owner, before, probe_strategy, story, progress)
    except MigrationError as error:
        eviction.drop_new_roles(session, before)
        # A role of an older template makes CREATE ROLE fail: roles belong to the whole server. Where nobody
        # uses those templates, they make room; the second failure is the user's own.
        evicted = eviction.make_room(session, project, before)
        if not evicted:
            error.message += eviction.hint(session, project, before, error)
            raise
        story(f"roles {', '.join(evicted)} of an older template were dropped with it; migrating again")
        before = roles.all_roles(session)
        try:
            return _build(session, project, wanted, recipe, owner, before, probe_strategy, story, progress)
        except MigrationError:
            eviction.drop_new_roles(session, before)
            raise


def _build(
    session: Session,
    project: str,
    wanted: str,
    recipe: Recipe,
    owner: Owner,
    roles_before: set[str],
    probe_strategy: bool,
    story: Story,
    progress: Progress,
) -> Template:
    name = names.building(project, wanted)
    databases.create_empty(session, name, owner=owner.name, locale=databases.deterministic_locale(session))
    began = time.monotonic()
    try:
        _create_extensions(session, name, recipe)
        _apply(session, name, recipe, owner, story, progress)
        _wait_for_empty(session, name, recipe)
    except MigrationError as error:
        if not recipe.keep_failed:
            databases.drop(session, name, project)
            raise
        if not _answers(session):
            # A full disk ended the server: the first error says more than ours about the lost database.
            raise
        error.database = _keep_for_inspection(session, project, name, error)
        # A migration may create extensions by itself, as rights allow.
        for extension in re.findall(r'extension "([\w-]+)" is not available', error.message):
            error.message += _why_missing(session, extension)
        error.message += _inspection_hint(session, error.database, owner)
        raise
    except BaseException:
        # Ctrl-C too: nothing half-built stays behind. A server that died has taken it along.
        if _answers(session):
            databases.drop(session, name, project)
        raise
    created = sorted(roles.all_roles(session) - roles_before)
    return _freeze(
        session, project, name, wanted, recipe, created, time.monotonic() - began, probe_strategy, story
    )


def _answers(session: Session) -> bool:
    try:
        session.value("select 1")
    except ServerLost:
        return False
    return True


def _create_extensions(session: Session, name: str, recipe: Recipe) -> None:
    if not recipe.extensions:
        return
    with Session.connect(session.dsn.with_database(name)) as inside:
        for extension in recipe.extensions:
            try:
                inside.execute(f"create extension if not exists {ident(extension)} cascade")
            except ServerRefused as error:
                available = inside.rows("select name from pg_available_extensions order by 1")
                raise MigrationError(
                    f"extension {extension!r} (setting extensions) cannot be created: {error.message}\n"
                    f"This server has: {', '.join(row[0] for row in available)}"
                    f"{_why_missing(inside, extension)}",
                    source="extensions",
                    step=extension,
                ) from error


def _why_missing(session: Session, extension: str) -> str:
    if extension not in ("pgcrypto", "sslinfo"):
        return ""
    if session.value("select current_setting('ssl_library', true)"):
        return ""
    return (
        f"\n{extension} needs OpenSSL, and this PostgreSQL was built without it (as the bundled binaries of "
        f'pg-harness[embedded] are): use backend = "docker", or the distribution\'s PostgreSQL by `binaries`. '
        f"gen_random_uuid() needs no extension since version 13."
    )


def _apply(
    session: Session, name: str, recipe: Recipe, owner: Owner, story: Story, progress: Progress
) -> None:
    admin = session.dsn.with_database(name)
    dsn = admin if recipe.migrate_as == "admin" else admin.with_user(owner.name, owner.password)
    deadline = time.monotonic() + recipe.timeout
    for source in recipe.sources:
        story(f"migrating {recipe.database}: {source.text}")
        context = MigrationContext(
            dsn=dsn,
            admin_dsn=admin,
            environment=recipe.environment(dsn),
            timeout=max(1.0, deadline - time.monotonic()),
            progress=progress,
            binaries=recipe.binaries,
            alias=recipe.database,
        )
        source.apply(context)


def _wait_for_empty(session: Session, name: str, recipe: Recipe) -> None:
    """A session on the template stalls every clone for seconds: wait for it, then say whose it is."""
    deadline = time.monotonic() + LINGER
    while sessions := databases.sessions_of(session, name):
        if time.monotonic() > deadline:
            texts = ", ".join(source.text for source in recipe.sources)
            raise TemplateBusy(
                f"after the migrations ({texts}) somebody is still connected to the new template. "
                f"Close the connection at the end of the migration, or find the program below and end it.",
                sessions=sessions,
            )
        session.execute("select pg_sleep(0.02)")


def _keep_for_inspection(session: Session, project: str, name: str, error: MigrationError) -> str:
    kept = names.kept(project, names.PERSON)
    mark = {
        "kind": "kept",
        "why": f"failed migration: {error.source} {error.step}".strip(),
        "created": _now(),
    }
    try:
        databases.terminate(session, name)
        # Only the newest half-migrated database is worth a look: a loop of failing runs must not fill the disk.
        for old in databases.list_ours(session, project):
            parsed = old.parsed
            if parsed and parsed.kind is names.Kind.KEPT and parsed.owner == names.PERSON:
                databases.drop(session, old.name, project)
        session.execute(databases.comment_statement(name, mark))
        databases.rename(session, name, kept)
    except HarnessError as problem:
        error.add_note(f"the half-migrated database could not be kept: {problem}")
        return ""
    return kept


def _inspection_hint(session: Session, kept: str, owner: Owner) -> str:
    if not kept:
        return ""
    url = session.dsn.with_database(kept).with_user(owner.name, "").masked
    return f"\nThe half-migrated database is kept: {url} (look at it with: python -m harness psql {kept})"


def _freeze(
    session: Session,
    project: str,
    name: str,
    wanted: str,
    recipe: Recipe,
    created_roles: Sequence[str],
    seconds: float,
    probe_strategy: bool,
    story: Story,
) -> Template:
    with Session.connect(session.dsn.with_database(name)) as inside:
        # Frozen rows need no freezing, no hint bits and no pruning later: nothing that a reset would have to explain.
        inside.execute("vacuum (freeze, analyze)")
        size = int(inside.value("select pg_database_size(current_database())"))
    _wait_for_empty(session, name, recipe)
    attributes = databases.read_attributes(session, name)
    final = names.template(project, wanted)
    mark = {
        "kind": "template",
        "fingerprint": wanted,
        "database": recipe.database,
        "sources": [source.text for source in recipe.sources],
        "created": _now(),
        "used": _now(),
        "seconds": round(seconds, 3),
        "size": size,
        "roles": list(created_roles),
        "attributes": list(attributes.statements),
        "user_comment": attributes.comment,
        "strategy": "file_copy",
    }
    session.execute(f"alter database {ident(name)} rename to {ident(final)}")
    # CREATE DATABASE wants a checkpointed source; the flags and the mark come last and together.
    session.script(
        f"alter database {ident(final)} with is_template true allow_connections false;"
        + databases.comment_statement(final, mark, attributes.comment)
    )
    template = Template(final, wanted, recipe.database, attributes, "file_copy", size)
    if probe_strategy and session.server_version >= 150000:
        template = _probe(session, project, template, mark, story)
    return template


def _probe(
    session: Session, project: str, template: Template, mark: dict[str, object], story: Story
) -> Template:
    """Clone once each way and remember the faster one (measured on the server at hand)."""
    took: dict[str, float] = {}
    for strategy in ("wal_log", "file_copy"):
        name = names.spare(project, template.fingerprint)
        began = time.monotonic()
        databases.clone(session, name, template=template.name, owner=session.dsn.user, strategy=strategy)
        took[strategy] = time.monotonic() - began
        databases.drop(session, name, project)
    best = min(took, key=lambda s: took[s])
    story(", ".join(f"a clone by {s} takes {1000 * t:.0f} ms" for s, t in took.items()) + f": {best} it is")
    mark["strategy"] = best
    session.execute(databases.comment_statement(template.name, mark, template.attributes.comment))
    return replace(template, strategy=best)


def touch(session: Session, template: Template) -> None:
    """Note that the template was used now; eviction goes by that."""
    found = databases.find(session, template.name)
    if found is None or found.mark is None:
        return
    try:
        session.execute(
            databases.comment_statement(found.name, {**found.mark, "used": _now()}, found.comment)
        )
    except ServerRefused:
        # "tuple concurrently updated": another run has just noted the same.
        return


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def decisive_text(parts: Mapping[str, object]) -> str:
    """Settings that decide a template's outcome, as stable text."""
    return json.dumps(parts, sort_keys=True, default=str)
