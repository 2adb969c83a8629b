"""Building one template: create, migrate, freeze, and label last. What a failed migration leaves is kept for a look."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from harness.databases import background, role, sweep
from harness.databases.applied import Applied
from harness.databases.spec import Owner, TemplateSpec
from harness.errors import HarnessError, MigrationError, ServerLost, ServerRefused, TemplateBusy
from harness.migrations.port import MigrationContext, Progress
from harness.postgres import autovacuum, databases, incarnation, known_extensions, names, namespaces, roles
from harness.postgres.databases import read_attributes, settle_sequences
from harness.postgres.label import Label
from harness.postgres.session import Session, ident

logger = logging.getLogger("pg_harness.databases")

FAILED = "failed"
"""The worker whose role half-migrated databases belong to, where workers have roles of their own."""

Act = tuple[str, Callable[[MigrationContext], None]]
"""What is applied, for people; and what applies it."""

LINGER = 5.0
"""Seconds that a migration tool's last session may take to end after the tool has ended."""


@dataclass(frozen=True)
class Build:
    """One template that is to be built, under the server's build lock.

    Attributes:
        session: the admin's, on the maintenance database.
        project: ten hex digits of the checkout.
        fingerprint: 64 hex digits of the spec on this server.
        probe_strategy: measure which way of cloning is faster (servers that we did not start).
    """

    session: Session
    project: str
    fingerprint: str
    spec: TemplateSpec
    owner: Owner
    probe_strategy: bool
    progress: Progress

    def run(self) -> Label:
        """Build it; return its label.

        Raises:
            MigrationError: a source failed. What it left is kept, and named in the error.
            TemplateBusy: a source left a session open.
        """
        if self.owner.managed:
            # Under the lock: on a server of somebody else's, another checkout may log in as the same role.
            role.make(self.session, replace(self.owner, each=False))
        before = roles.all_roles(self.session)
        try:
            return self._attempt(before)
        except MigrationError as error:
            sweep.drop_new_roles(self.session, before)
            # A role of an older template makes CREATE ROLE fail: roles belong to the whole server. Where nobody
            # uses those templates, they make room; the second failure is the user's own.
            evicted = sweep.make_room(self.session, self.project, before)
            if not evicted:
                if said := sweep.hint(self.session, self.project, before, error):
                    error.add_note(said)
                raise
            logger.info(
                "roles %s of an older template were dropped with it; migrating again", ", ".join(evicted)
            )
            before = roles.all_roles(self.session)
            try:
                return self._attempt(before)
            except MigrationError:
                sweep.drop_new_roles(self.session, before)
                raise

    def _attempt(self, roles_before: set[str]) -> Label:
        session, project = self.session, self.project
        name = self._name()
        locale = databases.deterministic_locale(session)
        databases.create_empty(session, name, owner=self.owner.name, locale=locale)
        began = time.monotonic()
        try:
            self._create_extensions(name, self.spec.extensions)
            self._apply(name, [(source.text, source.apply) for source in self.spec.sources])
            self._wait_for_empty(name)
        except MigrationError as error:
            if not self.spec.keep_failed:
                databases.drop(session, name, project)
            # A full disk ended the server: the first error says more than ours about the lost database.
            elif answers(session):
                keep_failed(session, project, name, self.owner, error)
            raise
        except BaseException:
            # Ctrl-C too: nothing half-built stays behind. A server that died has taken it along.
            if answers(session):
                databases.drop(session, name, project)
            raise
        created = sorted(roles.all_roles(session) - roles_before)
        return self._freeze(name, created, time.monotonic() - began)

    def _name(self) -> str:
        """What it is called until it is finished: pg_cron can be created in the one database that the server was started for."""
        fixed = background.scheduler_database(self.session)
        parsed = names.parse(fixed)
        if parsed is None or parsed.kind is not names.Kind.BUILDING:
            return names.building(self.project, self.fingerprint)
        # Under the build lock nobody else has it: it was left by somebody who was killed.
        databases.drop(self.session, fixed, self.project)
        return fixed

    def upgrade(self, name: str, acts: Sequence[Act], extensions: Sequence[str]) -> None:
        """Bring a database that was built from older migrations up to date. Nobody else is in it.

        Args:
            acts: what is applied, in order.
            extensions: what is created before, as a superuser.

        Raises:
            MigrationError: one of them failed; the database is half-migrated. TemplateBusy: it left a session open.
        """
        if self.owner.managed:
            role.make(self.session, replace(self.owner, each=False))
        self._create_extensions(name, extensions)
        self._apply(name, acts)
        self._wait_for_empty(name, "the database that they ran on")

    def _create_extensions(self, name: str, extensions: Sequence[str]) -> None:
        if not extensions:
            return
        with Session.connect(self.session.dsn.with_database(name)) as inside:
            for extension in extensions:
                try:
                    inside.execute(f"create extension if not exists {ident(extension)} cascade")
                except ServerRefused as error:
                    available = inside.rows("select name from pg_available_extensions order by 1")
                    lines = [
                        f"extension {extension!r} (setting extensions) cannot be created: {error.message}",
                        f"This server has: {', '.join(row[0] for row in available)}",
                    ]
                    if said := background.another_database(error.message):
                        lines[1:] = [said]
                    elif reason := known_extensions.advice(inside, extension, [row[0] for row in available]):
                        lines.append(reason)
                    raise MigrationError("\n".join(lines), source="extensions", step=extension) from error

    def _apply(self, name: str, acts: Sequence[Act]) -> None:
        spec = self.spec
        admin = self.session.dsn.with_database(name)
        as_admin = spec.migrate_as == "admin"
        dsn = admin if as_admin else admin.with_user(self.owner.name, self.owner.password)
        deadline = time.monotonic() + spec.timeout
        for text, apply in acts:
            logger.info("migrating %s: %s", spec.database, text)
            context = MigrationContext(
                dsn=dsn,
                admin_dsn=admin,
                environment=spec.environment(dsn),
                timeout=max(1.0, deadline - time.monotonic()),
                progress=self.progress,
                binaries=spec.binaries,
                alias=spec.database,
            )
            apply(context)

    def _wait_for_empty(self, name: str, what: str = "the new template") -> None:
        """A session on the template stalls every clone for seconds: wait for it, then say whose it is."""
        deadline = time.monotonic() + LINGER
        while sessions := databases.sessions_of(self.session, name):
            if time.monotonic() > deadline:
                texts = ", ".join(source.text for source in self.spec.sources)
                raise TemplateBusy(
                    f"after the migrations ({texts}) somebody is still connected to {what}. "
                    f"Close the connection at the end of the migration, or find the program below and end it.",
                    sessions=sessions,
                )
            self.session.execute("select pg_sleep(0.02)")

    def _freeze(self, name: str, created_roles: list[str], seconds: float) -> Label:
        session = self.session
        with Session.connect(session.dsn.with_database(name)) as inside:
            if background.scheduler_database(session) == name:
                # A job that ran from here on would move a sequence that is settled, and what it wrote would be in every clone.
                background.shut(session, name, but=[inside.pid])
            settled = settle_sequences(inside)
            if not self.probe_strategy:
                namespaces.make_temporary(inside)
                autovacuum.spare_shared_catalogs(inside)
            # Frozen rows need no freezing, no hint bits and no pruning later: nothing that a reset would have to explain.
            _vacuum(inside)
            # ANALYZE wrote to these after the VACUUM of them: whoever plans a query in a clone would prune their pages.
            inside.execute("vacuum (freeze) pg_catalog.pg_statistic, pg_catalog.pg_class")
            unlogged = incarnation.label(inside)
            size = int(inside.value("select pg_database_size(current_database())"))
            own_schema = _own_schema(inside, self.owner.name)
        self._wait_for_empty(name)
        if self.owner.confined:
            _let_in(session, name, self.owner, created_roles)
        attributes = read_attributes(session, name)
        final = names.template(self.project, self.fingerprint)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        label = Label(
            kind="template",
            fingerprint=self.fingerprint,
            database=self.spec.database,
            sources=tuple(source.text for source in self.spec.sources),
            applied=Applied.of(self.spec).written(),
            created=now,
            used=now,
            seconds=round(seconds, 3),
            size=size,
            settled=settled,
            unlogged=unlogged,
            roles=tuple(created_roles),
            attributes=(*attributes.statements, *own_schema),
            user_comment=attributes.comment,
            strategy=self._fastest(name),
        )
        # CREATE DATABASE wants a checkpointed source; the flags and the label come last and together. From here on it is
        # the admin's: its owner could let himself in, and the next run would start from what he wrote.
        background.end(session, name)
        databases.seal(
            session,
            final,
            label,
            attributes.comment,
            [
                f"alter database {ident(name)} rename to {ident(final)}",
                f"alter database {ident(final)} owner to current_user",
                f"alter database {ident(final)} with is_template true",
            ],
        )
        return label

    def _fastest(self, name: str) -> str:
        """How this server clones fastest: measured where it is not ours, once each way."""
        if not self.probe_strategy or self.session.server_version < 150000:
            return "file_copy"
        took: dict[str, float] = {}
        for strategy in ("wal_log", "file_copy"):
            # Under a name that nobody claims: whoever is cut off here leaves a half-built database, no spare.
            probe = names.building(self.project, self.fingerprint)
            began = time.monotonic()
            databases.clone(
                self.session, probe, template=name, owner=self.session.dsn.user, strategy=strategy
            )
            took[strategy] = time.monotonic() - began
            databases.drop(self.session, probe, self.project)
        best = min(took, key=lambda s: took[s])
        times = ", ".join(f"a clone by {s} takes {1000 * t:.0f} ms" for s, t in took.items())
        logger.info("%s: %s it is", times, best)
        return best


def _let_in(session: Session, name: str, owner: Owner, created: list[str]) -> None:
    """Let the other roles that log in to it do so in clones too, which take from everybody the right to enter."""
    found = session.column(
        "select rolname from pg_roles r where rolcanlogin and not rolsuper and rolname not in (%s, current_user) "
        "and (rolname = any(%s) or exists (select from pg_shdepend s join pg_database d on d.oid = s.dbid "
        "where d.datname = %s and s.refclassid = 'pg_authid'::regclass and s.refobjid = r.oid))",
        (owner.name, created, name),
    )
    if found:
        session.execute(f"grant connect on database {ident(name)} to {', '.join(map(ident, found))}")


def _own_schema(inside: Session, role: str) -> list[str]:
    """A search path for workers' roles, where the database has a schema of the role's name: ``"$user"`` is another to them."""
    path = inside.value(
        "select coalesce((select substr(s.setting, 13) from pg_db_role_setting r, unnest(r.setconfig) s(setting) "
        "where r.setdatabase = d.oid and r.setrole = to_regrole(%s) and s.setting like 'search\\_path=%%'), "
        "(select reset_val from pg_settings where name = 'search_path')) from pg_database d "
        "where d.datname = current_database() and to_regnamespace(%s) is not null",
        (ident(role), ident(role)),
    )
    own = ident(role)
    if not path or '"$user"' not in path:
        return []
    path = path.replace('"$user"', own).replace("{", "{{").replace("}", "}}")
    return [f"{databases.FOR_EACH}alter role {{owner}} in database {{db}} set search_path to {path}"]


def _vacuum(inside: Session) -> None:
    """Freeze and analyze everything but the passwords: ANALYZE copies values of ``pg_authid`` too, and a baked image would
    keep the verifiers of all roles in ``pg_statistic``."""
    if not inside.superuser:
        # Who is none is not shown them.
        inside.execute("vacuum (freeze, analyze)")
        return
    everything = inside.value(
        """
        select string_agg(format('%I.%I', nspname, relname), ', ' order by c.oid)
          from pg_class c join pg_namespace n on n.oid = relnamespace
         where relkind in ('r', 'm', 'p') and not relispartition and relpersistence <> 't'
           and c.oid <> 'pg_catalog.pg_authid'::regclass
        """
    )
    inside.execute(f"vacuum (freeze, analyze) {everything}")
    inside.execute("vacuum (freeze) pg_catalog.pg_authid")


def keep_failed(session: Session, project: str, name: str, owner: Owner, error: MigrationError) -> None:
    """Keep the half-migrated database under another name, and complete the error with where and why."""
    error.database = _rename(session, project, name, owner, error)
    # A migration may create extensions by itself, as rights allow.
    for extension in re.findall(r'extension "([\w-]+)" is not available', error.message):
        if reason := known_extensions.advice(session, extension):
            error.add_note(reason)
    if said := background.another_database(error.message):
        error.add_note(said)
    if error.database:
        login = owner.of(project, names.SANDBOX, FAILED)
        url = session.dsn.with_database(error.database).with_user(login.name, "").masked
        error.add_note(
            f"The half-migrated database is kept: {url} "
            f"(look at it with: pg-harness psql {names.short(error.database)})"
        )


def answers(session: Session) -> bool:
    """Whether the server is still there: a full disk, or a crash, ends it in the middle of a migration."""
    try:
        session.value("select 1")
    except ServerLost:
        return False
    return True


def _rename(session: Session, project: str, name: str, owner: Owner, error: MigrationError) -> str:
    kept = names.kept(project, names.SANDBOX)
    label = Label(
        kind="kept",
        why=f"failed migration: {error.source} {error.step}".strip(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    try:
        databases.terminate(session, name)
        # Only the newest half-migrated database is worth a look: a loop of failing runs must not fill the disk.
        for old in databases.list_ours(session, project):
            if old.kind is names.Kind.KEPT and old.sandbox:
                databases.drop(session, old.name, project)
        session.execute(databases.label_statement(name, label))
        if (login := owner.of(project, names.SANDBOX, FAILED)).group:
            # Every worker's role has the rights of the one that migrates: tests would enter it.
            role.make(session, login)
            session.script(
                f"alter database {ident(name)} owner to {ident(login.name)};"
                f"revoke connect on database {ident(name)} from public"
            )
        databases.rename(session, name, kept)
    except HarnessError as problem:
        error.add_note(f"the half-migrated database could not be kept: {problem}")
        return ""
    return kept
