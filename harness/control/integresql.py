"""Templates that a client fills, and test databases of them: what IntegreSQL (github.com/allaboutapps/integresql, 1.1.0) offers.

A client names a template by a hash, migrates the database that it is given, and says when that is done. Between the two it is a
migration source like any other (:class:`ClientSource`): the builder locks, freezes and labels last, so a client or a server
that dies in between leaves nothing that anybody would take for a template.

Test databases are leases. One that is given back is pristine again in a reset's time. Most clients give none back: the end
of its sessions is their only sign of being done (:meth:`TestDatabase.done`).
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from harness.databases import sweep, template
from harness.databases.spec import TemplateSpec
from harness.dsn import Dsn
from harness.errors import HarnessError, LeaseError, MigrationError, PoolTimeout
from harness.postgres import databases
from harness.postgres.admin import Link

if TYPE_CHECKING:
    from harness.databases.lease import Lease
    from harness.databases.template import Template
    from harness.migrations.port import MigrationContext
    from harness.postgres.session import Session
    from harness.runs.session import ServerSession

logger = logging.getLogger("pg_harness.control")

ABANDONED = 60.0
"""Seconds without any session after which a template that is being filled counts as given up: its client has died."""

UNENTERED = 60.0
"""Seconds that a test database may stay unentered before somebody else gets it."""

WAIT = 60.0
"""Seconds that a client waits for a template that another one is filling, and then for a test database, as in IntegreSQL."""

LOOK = 0.2
"""Seconds between two looks for what is done."""


class UnknownTemplate(LeaseError):
    """No client has initialised a template of that hash."""


class TemplateGone(LeaseError):
    """The template was discarded, or its client gave up."""


class TemplateLocked(LeaseError):
    """The template is there, or is being filled by somebody else."""


class ClientSource:
    """A migration source that a client applies, over a connection of its own.

    Args:
        hash_: what the client calls its template.
        entered: whether the client is in that database.
        end: ends the sessions in the database of that name.
    """

    def __init__(self, hash_: str, entered: Callable[[Dsn], bool], end: Callable[[str], None]) -> None:
        self._hash = hash_
        self._entered = entered
        self._end = end
        self.dsn: Dsn | None = None
        self.ready = threading.Event()
        self._over = threading.Event()
        self._discarded = False

    @property
    def text(self) -> str:
        """For messages."""
        return f"a client's template {self._hash[:40]}"

    def fingerprint(self) -> str:
        """Of the hash, which the client is answerable for."""
        return hashlib.sha256(self._hash.encode("utf-8", "surrogatepass")).hexdigest()

    def finish(self, *, discard: bool = False) -> None:
        """The client says that it is done; or that nothing shall come of it."""
        self._discarded = discard
        self._over.set()

    def apply(self, context: MigrationContext) -> None:
        """Hand out the database, and wait until the client is done.

        Raises:
            MigrationError: it was discarded, or is given up.
        """
        self.dsn = context.dsn
        self.ready.set()
        began = seen = time.monotonic()
        while not self._over.wait(LOOK):
            now = time.monotonic()
            if self._entered(context.dsn):
                seen = now
            if now - seen > ABANDONED:
                raise self._failure(
                    f"nobody was connected for {ABANDONED:g} s, and nobody said that it is done"
                )
            if now - began > context.timeout:
                raise self._failure(
                    f"it was not done within {context.timeout:g} s (setting migration_timeout)"
                )
        if self._discarded:
            raise self._failure("its client discarded it")
        # It says that it is done: a pool that it has not closed would keep the template from being cloned.
        self._end(context.dsn.database)

    def _failure(self, why: str) -> MigrationError:
        return MigrationError(f"{self.text}: {why}", source=self.text)


@dataclass
class TestDatabase:
    """One test database of a template.

    Attributes:
        id: counted from 0 in each template.
        given: when it was handed out, by the monotonic clock; None: it was given back.
        sessions: how many there ever were in it when it was handed out.
    """

    __test__ = False

    id: int
    lease: Lease
    given: float | None = None
    sessions: int = 0

    def done(self, session: Session) -> bool:
        """Whether whoever had it is done with it: it was given back, or entered and left, or never entered for long."""
        if self.given is None:
            return True
        now, ever = databases.use_of(session, self.lease.dsn.database, self.lease.dsn.user)
        if now:
            return False
        return ever > self.sessions or time.monotonic() - self.given > UNENTERED


@dataclass
class ClientTemplate:
    """A template that a client fills, or has filled.

    Attributes:
        state: ``"filling"`` until its client says that it is done.
        lock: held while a test database of it is chosen.
    """

    hash: str
    source: ClientSource
    state: Literal["filling", "ready", "gone"] = "filling"
    template: Template | None = None
    error: HarnessError | None = None
    databases: list[TestDatabase] = field(default_factory=list)
    settled: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)


class ClientTemplates:
    """All templates that clients have named, and their test databases, on one server.

    Args:
        session: of the run that serves; what it leases is dropped with it, while finished templates stay for later runs.
        most: test databases of each template.
    """

    def __init__(self, session: ServerSession, *, most: int) -> None:
        self._session = session
        self._most = most
        self._templates: dict[str, ClientTemplate] = {}
        self._lock = threading.RLock()
        self._look = session.link.another()
        self._looking = threading.Lock()

    # --- templates ---------------------------------------------------------------------------------

    def initialise(self, hash_: str) -> Dsn:
        """A database for the client to migrate, as the application's role.

        Raises:
            TemplateLocked: the template is there, or another client is filling it. HarnessError: the server refuses.
        """
        with self._lock:
            found = self._templates.get(hash_)
            if found is not None and found.state != "gone":
                raise TemplateLocked(
                    f"the template {hash_[:40]} is "
                    + ("there" if found.state == "ready" else "being filled by another client")
                )
            source = ClientSource(hash_, self._entered, self._end_sessions)
            made = self._templates[hash_] = ClientTemplate(hash_, source)
            building = threading.Thread(
                target=self._build, args=(made,), name="pg-harness template", daemon=True
            )
            building.start()
        while not (source.ready.wait(LOOK) or made.settled.is_set()):
            pass
        if made.state == "ready":
            raise TemplateLocked(f"the template {hash_[:40]} is there, from an earlier run")
        if source.dsn is None or made.error is not None:
            raise made.error or TemplateGone(f"the template {hash_[:40]} was discarded")
        return source.dsn

    def _build(self, made: ClientTemplate) -> None:
        link = self._session.link.another()
        try:
            made.template = template.ensure(
                link.session,
                self._session.project.id,
                self._spec(made.source),
                self._session.owner,
                probe_strategy=not self._session.server.info.ours,
            )
            made.state = "ready"
        except HarnessError as error:
            made.error, made.state = error, "gone"
            logger.info("%s", error.message)
        finally:
            made.settled.set()
            link.close()

    def _spec(self, source: ClientSource) -> TemplateSpec:
        settings = self._session.settings
        return TemplateSpec(
            database="default",
            sources=[source],
            extensions=settings.default.extensions,
            migrate_as=settings.migrate_as,
            timeout=settings.migration_timeout,
            keep_failed=False,
        )

    def finalise(self, hash_: str) -> None:
        """The client has filled its template. Twice is once.

        Raises:
            UnknownTemplate, TemplateGone. HarnessError: it cannot be frozen.
        """
        found = self._known(hash_)
        found.source.finish()
        found.settled.wait()
        if found.error is not None:
            raise found.error

    def discard(self, hash_: str) -> None:
        """Forget a template, with its test databases.

        Raises:
            UnknownTemplate.
        """
        with self._lock:
            found = self._known(hash_)
            del self._templates[hash_]
        found.source.finish(discard=True)
        found.settled.wait()
        found.state = "gone"
        with found.lock:
            for database in found.databases:
                with suppress(HarnessError):
                    database.lease.release()
        if found.template is not None:
            with self._links() as link:
                dropped = databases.find(link.session, found.template.name)
                if dropped is not None:
                    sweep.drop_template(link.session, self._session.project.id, dropped)

    def discard_all(self) -> None:
        """Forget all of them."""
        for hash_ in list(self._templates):
            with suppress(UnknownTemplate):
                self.discard(hash_)

    def _known(self, hash_: str) -> ClientTemplate:
        found = self._templates.get(hash_)
        if found is None:
            raise UnknownTemplate(f"there is no template {hash_[:40]!r}: initialise it first")
        return found

    # --- test databases ----------------------------------------------------------------------------

    def take(self, hash_: str, *, still: Callable[[], bool] = lambda: True) -> tuple[int, Dsn]:
        """A test database, pristine, that nobody else has until it is given back, or left.

        Args:
            still: whether whoever asked is still there.

        Raises:
            UnknownTemplate, TemplateGone: it was discarded meanwhile. PoolTimeout: nothing came within :data:`WAIT` seconds.
        """
        found = self._known(hash_)
        self._until_ready(found, still)
        deadline = time.monotonic() + WAIT
        while True:
            if found.state != "ready":
                raise TemplateGone(f"the template {hash_[:40]} was discarded")
            with found.lock:
                chosen = self._choose(found)
            if chosen is not None:
                return chosen.id, self._pristine(chosen)
            if time.monotonic() > deadline or not still():
                raise PoolTimeout(
                    f"all {self._most} test databases of the template {hash_[:40]} are in use, and none was given back "
                    f"within {WAIT:g} s: more with `pg-harness serve -n N --integresql`"
                )
            time.sleep(LOOK)

    def _pristine(self, chosen: TestDatabase) -> Dsn:
        try:
            # Its sessions, if there are any left, are somebody else's.
            chosen.lease.reset(sessions="end")
            dsn = chosen.lease.dsn
            with self._links() as link:
                _, chosen.sessions = link.surely(
                    lambda: databases.use_of(link.session, dsn.database, dsn.user)
                )
        except BaseException:
            chosen.given = None
            raise
        chosen.given = time.monotonic()
        return dsn

    def _until_ready(self, found: ClientTemplate, still: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT
        while not found.settled.wait(LOOK):
            if time.monotonic() > deadline or not still():
                raise PoolTimeout(f"the template {found.hash[:40]} was not finalised within {WAIT:g} s")
        if found.error is not None:
            raise TemplateGone(str(found.error))

    def _choose(self, found: ClientTemplate) -> TestDatabase | None:
        """One that was given back, else a new one, else one that its client has left."""
        chosen = next((one for one in found.databases if one.given is None), None)
        if chosen is None and len(found.databases) < self._most and found.template is not None:
            number = len(found.databases)
            chosen = TestDatabase(number, self._session.lease_of(found.template, f"i{found.hash}-{number}"))
            found.databases.append(chosen)
        if chosen is None:
            with self._links() as link:
                chosen = next((one for one in found.databases if one.done(link.session)), None)
        if chosen is not None:
            chosen.given = time.monotonic()
        return chosen

    def give_back(self, hash_: str, number: int) -> None:
        """Whoever has it is done with it. Twice is once.

        Raises:
            UnknownTemplate. LeaseError: it has no such test database.
        """
        found = self._known(hash_)
        with found.lock:
            if not 0 <= number < len(found.databases):
                raise UnknownTemplate(
                    f"the template {hash_[:40]} has no test database {number}; it has {len(found.databases)}, from 0"
                )
            found.databases[number].given = None

    # --- looking -----------------------------------------------------------------------------------

    @contextmanager
    def _links(self) -> Iterator[Link]:
        with self._looking:
            yield self._look

    def _entered(self, dsn: Dsn) -> bool:
        with self._links() as link:
            return bool(link.surely(lambda: databases.use_of(link.session, dsn.database, dsn.user))[0])

    def _end_sessions(self, name: str) -> None:
        with self._links() as link:
            link.surely(partial(databases.terminate, link.session, name))

    def close(self) -> None:
        """Give up what is being filled; log out. Leases go with the run."""
        for found in list(self._templates.values()):
            found.source.finish(discard=True)
            found.settled.wait(10)
        self._look.close()
