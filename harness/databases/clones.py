"""Clones: made as spares, claimed by one atomic rename, retired by one routine."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from harness.databases import background, role
from harness.databases.front import NO_FRONT, Front
from harness.databases.spec import Owner
from harness.databases.template import Template
from harness.errors import HarnessError, LeaseLost, ServerRefused
from harness.postgres import databases, incarnation, names, roles, sqlstate
from harness.postgres.admin import Link
from harness.postgres.label import Label, split
from harness.postgres.session import Session, ident

logger = logging.getLogger("pg_harness.databases")

RESERVED_CONNECTIONS = 3
"""What a database's CONNECTION LIMIT allows beyond the worker's budget: the admin's own sessions count too,
though as a superuser's they are never refused."""


BeforeRename = Callable[[str], None]
"""Called with a clone's present name when nothing but its rename is left to do: under the final name, which its
users know, somebody may be in it, and have written, before anything could be noted."""


@dataclass(frozen=True)
class Claim:
    """Whom a clone is for.

    Attributes:
        run: sixteen hex digits.
        worker: for instance ``"gw2"``.
        index: which of the lease's databases.
        root: the checkout's path; None where it does not matter.
    """

    run: str
    worker: str
    index: int = 0
    root: str | None = None

    def name(self, project: str) -> str:
        """What the database is called."""
        return names.lease(project, self.run, self.worker, self.index)


class Clones:
    """Makes, claims and retires clones on one server, for one checkout."""

    def __init__(
        self,
        link: Link,
        project: str,
        owner: Owner,
        *,
        connections: int,
        remake: Callable[[Template], Template] | None = None,
        rewinds: Callable[[], str] = lambda: "",
        explain: Callable[[HarnessError], None] = lambda error: None,
        front: Front = NO_FRONT,
        workers: bool = False,
    ) -> None:
        """
        Args:
            workers: whether background workers of extensions may come into databases at any moment.
            front: what stands between the application and its databases.
            explain: adds to an error what the server's log knows of its cause.
            rewinds: the schema of what resets by pages on this server, in the maintenance database; empty: resets are by
                rows. Asked when a reset is first prepared.
            remake: makes a template again of which a crash of the server has emptied unlogged tables; None: that is
                an error.
        """
        self._remake = remake
        self._explain = explain
        self.front = front
        self.workers = workers
        self.rewinds = rewinds
        self._remade: dict[str, Template] = {}
        self.link = link
        self.project = project
        self.owner = owner
        self.connections = connections
        self._life: tuple[Session, str] | None = None

    def make_spare(self, template: Template) -> str:
        """A clone that nobody owns yet, complete: attributes, limit, label.

        Raises:
            LeaseLost: the template is gone.
        """
        return self._make_spare(self.whole(template), self.link.session)

    def whole(self, template: Template) -> Template:
        """The template, or what was made in its place: a crash of the server empties unlogged tables.

        Raises:
            LeaseLost: a crash has, and nothing can be made.
        """
        known = self._remade.get(template.fingerprint, template)
        if not incarnation.emptied(self.link.session, known.unlogged):
            return known
        if self._remake is None:
            raise LeaseLost(
                f"a crash of the server has emptied the unlogged tables of the template {known.name}: run again"
            )
        again = self._remade[known.fingerprint] = self._remake(known)
        return again

    def _make_spare(self, template: Template, admin: Session) -> str:
        for _ in range(3):
            name = names.spare(self.project, template.fingerprint)
            self._copy(admin, name, template)
            label = Label(
                kind="spare",
                fingerprint=template.fingerprint,
                created=_now(),
                unlogged=template.unlogged,
            )
            try:
                admin.script(";\n".join(self._finish(name, template, label, new=True)))
            except ServerRefused as error:
                # A sweep of another process took the clone without a label for one that was cut off.
                if error.sqlstate == sqlstate.INVALID_CATALOG_NAME:
                    continue
                raise
            return name
        raise LeaseLost(
            f"three clones of {template.name} were dropped by somebody else as soon as they were made"
        )

    def _copy(self, session: Session, name: str, template: Template) -> None:
        try:
            databases.clone(
                session, name, template=template.name, owner=self.holder, strategy=template.strategy
            )
        except HarnessError as error:
            if isinstance(error, ServerRefused) and error.sqlstate == sqlstate.INVALID_CATALOG_NAME:
                raise LeaseLost(
                    f"the template {template.name} is gone: another run or `gc` has dropped it. Run again."
                ) from error
            self._explain(error)
            raise

    @property
    def holder(self) -> str:
        """Whom a database belongs to as long as it is nobody's: who owns it may enter it, and write."""
        return self.link.dsn.user if self.owner.each else self.owner.name

    def login(self, claim: Claim) -> Owner:
        """The role that the application logs in as to what is claimed so."""
        return self.owner.of(self.project, claim.run, claim.worker)

    def make_login(self, claim: Claim) -> Owner:
        """The same, made or put right where it is the worker's own."""
        login = self.login(claim)
        if login.group:
            role.make(self.link.session, login)
        return login

    def closing(self, name: str) -> list[str]:
        """Statements that let nobody enter a database but its owner, and whom its grants name."""
        closed = self.owner.each and self.owner.confined
        return [f"revoke connect on database {ident(name)} from public"] if closed else []

    def _finish(
        self, name: str, template: Template, label: Label, *, new: bool, login: Owner | None = None
    ) -> list[str]:
        owned = login is not None and login.group
        given = databases.apply_unowned if self.owner.each else databases.apply_statements
        return [
            *(given(name, template.attributes, self.holder) if new else ()),
            *(self.closing(name) if new else ()),
            *(databases.apply_owned(name, template.attributes, login.name) if login and owned else ()),
            # A spare of an earlier run has the limit that was right for that run.
            self._limit(name),
            databases.label_statement(name, label, template.attributes.comment),
        ]

    def _limit(self, name: str) -> str:
        return f"alter database {ident(name)} with connection limit {self.connections + RESERVED_CONNECTIONS}"

    def limit(self, connections: int, leased: Sequence[str] = ()) -> None:
        """From now on a worker may open so many connections; ``leased`` are databases that it holds already."""
        self.connections = connections
        if leased:
            self.link.session.script(";\n".join(self._limit(name) for name in leased))

    def fill(self, template: Template, count: int, *, parallel: int = 2) -> None:
        """Make spares until ``count`` are there, side by side."""
        template = self.whole(template)
        missing = count - len(self.spares(template))
        if missing <= 0:
            return

        def make(session: Session, count: int) -> None:
            for _ in range(count):
                self._make_spare(template, session)

        with ExitStack() as stack:
            # A log-in takes about as long as the clone of a small template: one for each thread, and the link's own.
            sessions = [self.link.session]
            for _ in range(min(parallel, missing) - 1):
                sessions.append(stack.enter_context(Session.connect(self.link.dsn)))
            shares = [missing // len(sessions) + (n < missing % len(sessions)) for n in range(len(sessions))]
            run_all([partial(make, *work) for work in zip(sessions, shares, strict=True)])

    def spares(self, template: Template, *, also: str = "") -> list[str]:
        """Names of the finished spares of a template, none that a crash has emptied; and the database ``also``,
        finished or not, where it is there."""
        prefix = names.spare(self.project, template.fingerprint)[:-8]
        rows = self.link.session.rows(
            f"""
            select datname, shobj_description(oid, 'pg_database'), {incarnation.CRASHED} from pg_database
             where (starts_with(datname, %s) and shobj_description(oid, 'pg_database') is not null) or datname = %s
            """,
            (prefix, also),
        )
        # A spare of an earlier version says nothing of unlogged tables: it is as good as any where there are none.
        unsaid = template.unlogged and incarnation.UNKNOWN
        result = []
        for name, comment, crashed in rows:
            unlogged = split(comment)[1].unlogged
            if name == also or (unsaid if unlogged is None else unlogged) in ("", crashed):
                result.append(name)
        return result

    def claim(self, template: Template, claim: Claim, *, before: BeforeRename | None = None) -> str:
        """Take a spare by renaming it, or make one; return the database's name.

        A database of that name is somebody's lease still: it is retired first (the same worker of the same
        run claims again after a crash).
        """
        name = claim.name(self.project)
        if databases.find(self.link.session, name) is not None:
            databases.drop(self.link.session, name, self.project)
        self.make_login(claim)
        fresh = self._take(template, claim, name)
        if before is not None:
            before(fresh)
        self._hand_over(fresh, name)
        return name

    def replace(self, template: Template, claim: Claim, *, before: BeforeRename | None = None) -> str:
        """A fresh clone under the same name. Sessions of the old one are ended. Returns the retired name ("": none)."""
        name = claim.name(self.project)
        away = names.retired(self.project)
        # The new one first: while it is made, the old one still answers.
        fresh = self._take(template, claim, name)
        if before is not None:
            before(fresh)
        session = self.link.session
        if self.workers:
            background.shut(session, fresh)
            self._tell_scheduler_ends(name)
        with self.front.aside(name):
            gone = databases.retire(session, name, away, successor=fresh)
            if gone and self.workers:
                background.open_again(session, name)
        if gone:
            return away
        self._hand_over(fresh, name)
        return ""

    def _tell_scheduler_ends(self, name: str) -> None:
        session = self.link.session
        if background.scheduler_database(session) == name and background.workers(session, name):
            # It ends itself for good when it is told to leave, and in a database that it is in no other can take its place.
            logger.warning(
                "%s is replaced by a clone: pg_cron ends with it, and runs no jobs on this server any more",
                name,
            )

    def _hand_over(self, fresh: str, name: str) -> None:
        if self.workers:
            background.shut(self.link.session, fresh)
            opened = f"; alter database {ident(name)} with allow_connections true"
            self.link.session.script(f"alter database {ident(fresh)} rename to {ident(name)}{opened}")
            return
        self.link.session.execute(f"alter database {ident(fresh)} rename to {ident(name)}")

    def _take(self, template: Template, claim: Claim, name: str) -> str:
        """A spare, or a new clone, that is ours alone and complete but for its name: its name is of our run, so that
        our sign of life protects it from sweeps."""
        template = self.whole(template)
        session, mine, login = self.link.session, names.claiming(name), self.login(claim)
        label = Label(
            kind="lease",
            fingerprint=template.fingerprint,
            database=template.database,
            run=claim.run,
            worker=claim.worker,
            root=claim.root,
            created=_now(),
            claimed=self._life_of(session),
            # A test's database is never migrated further, and may be one of many.
            applied=template.applied if claim.run == names.SANDBOX else None,
        )
        candidates = self.spares(template, also=mine)
        if mine in candidates:
            # We were killed between taking it and handing it over.
            databases.drop(session, mine, self.project)
            candidates.remove(mine)
        # Everybody begins elsewhere: else N workers race for the first spare, and all but one lose each time.
        random.shuffle(candidates)
        for spare in candidates:
            rename = [f"alter database {ident(spare)} rename to {ident(mine)}"]
            if self.workers:
                background.shut(session, spare)
                rename.append(f"alter database {ident(mine)} with allow_connections true")
            if _won(session, [*rename, *self._finish(mine, template, label, new=False, login=login)]):
                logger.debug("%s: taken from spare %s", name, spare)
                return mine
        self._copy(session, mine, template)
        session.script(";\n".join(self._finish(mine, template, label, new=True, login=login)))
        logger.debug("%s: cloned from %s", name, template.name)
        return mine

    def _life_of(self, session: Session) -> str:
        # No session outlives a life of its server: asked once for each.
        if self._life is None or self._life[0] is not session:
            self._life = session, str(session.value(f"select {incarnation.LIFE}"))
        return self._life[1]

    def release(self, name: str) -> None:
        """Drop a lease's database, if it is there; its sessions are ended."""
        away = names.retired(self.project)
        with self.front.aside(name):
            gone = databases.retire(self.link.session, name, away)
        if gone:
            databases.drop_retired(self.link.session, away)

    def keep(self, name: str, run: str, why: str) -> str:
        """Rename a lease's database to one that is kept for people; its sessions are ended."""
        session = self.link.session
        found = databases.find(session, name)
        if found is None:
            raise LeaseLost(f"database {name} is gone: it cannot be kept")
        kept = names.kept(self.project, run)
        label = replace(found.label, kind="kept", why=why, created=_now())
        with self.front.aside(name):
            databases.retire(session, name, kept)
        session.script(
            databases.label_statement(kept, label, found.comment)
            + f";\nalter database {ident(kept)} with allow_connections true"
        )
        return kept

    def drop_created_by_tests(self, owners: Sequence[str] | None = None) -> list[str]:
        """Drop databases that these roles created themselves; return their names.

        Args:
            owners: None: the application's role, whom all workers log in as.
        """
        found = databases.created_by_tests(self.link.session, owners or [self.owner.name])
        for name in found:
            databases.drop(self.link.session, name, self.project)
        return found

    def drop_logins(self, run: str) -> list[str]:
        """Drop the roles of a run's workers, with the databases that they created; return the names of those.

        A role of which something is kept for people stays as long as that does.
        """
        found = [r for r in roles.of_workers(self.link.session, self.project) if names.run_of_role(r) == run]
        if not found:
            return []
        dropped = self.drop_created_by_tests(found)
        roles.drop_idle(self.link.session, found)
        return dropped

    def restore_role(self, name: str) -> None:
        """Put the role of a worker back: password, attributes, settings. A test may have changed them.

        Args:
            name: whom its databases are entered as.
        """
        login = self.owner.named(name)
        if login.managed:
            role.make(self.link.session, login)

    def __repr__(self) -> str:
        return f"<Clones of {self.project} at {self.link.dsn.masked}>"


def _won(session: Session, statements: Sequence[str]) -> bool:
    """Whether these, which begin with a rename, were ours to run: a spare that another claimant has renamed, or still
    enters, is left to it."""
    try:
        session.script(";\n".join(statements))
    except ServerRefused as error:
        if error.sqlstate in (sqlstate.INVALID_CATALOG_NAME, sqlstate.OBJECT_IN_USE, sqlstate.INTERNAL_ERROR):
            return False
        raise
    return True


def run_all(acts: Sequence[Callable[[], object]]) -> None:
    """Run several acts side by side; the first error is raised after all have ended."""
    if len(acts) <= 1:
        for act in acts:
            act()
        return
    # A worker has one act at a time, and never comes here.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(acts), thread_name_prefix="pg-harness") as threads:
        for future in [threads.submit(act) for act in acts]:
            future.result()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
