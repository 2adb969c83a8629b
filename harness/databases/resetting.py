"""How one leased database is brought back: by the reset engine where that is certain, else by a fresh clone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from harness.databases import background, freshness
from harness.databases.clones import BeforeRename, Claim, Clones
from harness.databases.template import Template
from harness.dsn import Dsn
from harness.errors import HarnessError, LeaseError, ServerRefused
from harness.postgres import databases, locks, names
from harness.postgres.admin import connect_verified
from harness.postgres.incarnation import Incarnation
from harness.postgres.label import Label
from harness.postgres.session import Session, ident
from harness.reset import watermark
from harness.reset.report import RecloneNeeded, ResetReport
from harness.reset.sql import shared
from harness.reset.wal.reader import FIRST_SUPPORTED
from harness.reset.watermark import Watermark

if TYPE_CHECKING:
    from harness.databases.pool import Filler
    from harness.reset.changes import Changes
    from harness.reset.engine import ResetEngine
    from harness.reset.marks import Mark
    from harness.reset.rewind.answer import Answer


logger = logging.getLogger("pg_harness.databases")

BYTES_MS = 1 << 20
"""Bytes that a clone copies in a millisecond."""

SANDBOX_PATIENCE = 2000.0
"""Milliseconds that reading the log may take for a person: a clone would end the sessions of a running application."""


class DatabaseReset:
    """Brings one database of a lease back to its template, or to a mark.

    :meth:`prepare` takes note of the pristine state; the engine is opened when it is first needed. Without the
    note every reset is a clone.
    """

    def __init__(
        self,
        clones: Clones,
        database: Dsn,
        template: Template,
        claim: Claim,
        *,
        reset_timeout: float,
        filler: Callable[[], Filler] | None = None,
        rowless: str = "",
    ) -> None:
        """
        Args:
            rowless: see :class:`harness.reset.engine.ResetEngine`.
        """
        self._rowless = rowless
        self._problem = self._missing = ""
        self._noted: Watermark | None = None
        self._watched = self._resumed = False
        self._opening = threading.RLock()
        self._clones = clones
        self._database = database.database
        self._template = template
        self._claim = claim
        self._role = clones.login(claim).name
        self._timeout = reset_timeout
        self._filler = filler
        self._engine: ResetEngine | None = None
        self._life = Incarnation()

    def prepare(self) -> None:
        """Watch from now on. The database must be pristine: claimed just now, or just cloned again."""
        self._watched = True
        if self._problem or self._noted is not None or self._engine is not None:
            return
        self._noted, _ = self._take_watermark(self._database)
        if self._noted is None:
            # What is missing is said by the engine.
            self._open_engine()

    def _take_watermark(self, name: str) -> tuple[Watermark | None, str]:
        noted, why = take_watermark(self._clones, self._template, name, self._role)
        self._life = noted.life if noted is not None else Incarnation()
        return noted, why

    def _replace(self, before: BeforeRename | None) -> str:
        return self._clones.replace(self._template, self._claim, before=before)

    def resume(self, noted: Watermark | None, missing: str) -> None:
        """Go on from what another process has :attr:`watermark`; connections are worth more than a fast clone there.

        Args:
            missing: where nothing was noted, why: the next reset is a clone, and says so.
        """
        self._watched, self._noted, self._missing, self._resumed = True, noted, missing, True
        self._life = noted.life if noted is not None else Incarnation()

    @property
    def watermark(self) -> Watermark | None:
        """What another process needs to go on from the state that the last reset has made; None: nothing is known."""
        return self._noted if self._engine is None or self._noted is not None else self._engine.watermark

    @property
    def missing(self) -> str:
        """Why nothing is noted that another process could go on from, where it can be told."""
        return self._problem or self._missing

    @property
    def untouched(self) -> bool:
        """Whether nobody has logged in since the database was pristine: there is nothing to look for."""
        return self._clones.link.surely(self._untouched)

    def _untouched(self) -> bool:
        noted, session = self._noted, self._clones.link.session
        # Sessions are counted from when the clone was made: after a reset that says nothing.
        if noted is None or self._resumed:
            return False
        return not watermark.entered(session, self._database, noted)

    def _unchanged(self) -> bool:
        """The same, and what the server says about it and its role is as it was: another worker's test shares the role."""
        noted, session = self._noted, self._clones.link.session
        return (
            noted is not None
            and self._untouched()
            and shared.shared(session, noted.database, noted.role) == noted.shared
        )

    @property
    def notices_crashes(self) -> bool:
        """Whether a reset tells a crash of the server from sessions of ours that were ended."""
        return bool(self._life.started)

    def _other_life(self) -> str:
        """Why nothing holds that was known of the database; empty where the server is the one that it was."""
        return self._life.other(Incarnation.of(self._clones.link.session))

    @property
    def problem(self) -> str:
        """Why this server can only clone, with the remedy; empty where it can reset."""
        try:
            self._opened()
        except HarnessError:
            # This time only: the next reset is a clone, and says why.
            return ""
        return self._problem

    @property
    def doubt(self) -> str:
        """Why the log is read with pg_walinspect, which takes longer, and not its bytes; empty where it is not.

        The first reset finds it out; before that it is empty.
        """
        return self._engine.doubt if self._engine is not None else ""

    @property
    def rewound(self) -> Answer | None:
        """What the server's module answered last; None where it was not asked."""
        return self._engine.rewound if self._engine is not None else None

    def _opened(self) -> ResetEngine | None:
        """The engine, opened where it was not needed before; None where every reset is a clone.

        Raises:
            RecloneNeeded: it needs a fresh clone to begin with.
        """
        with self._opening:
            if self._noted is not None:
                if self._engine is None:
                    self._open_engine(self._noted)
                else:
                    self._engine.rebase(self._noted)
                self._noted = None
        return self._engine

    def _open_engine(self, noted: Watermark | None = None) -> None:
        # It takes a while to import, and many a run has no need of it.
        from harness.reset.engine import MOST_BYTES, ResetEngine
        from harness.reset.rewind.rewinder import Rewinder

        schema = self._clones.rewinds()
        engine = ResetEngine(
            reader=self._open_reader,
            restorer=lambda settings: self._open(self._database, settings),
            baseline=self._open_baseline,
            role=self._role,
            reset_timeout=self._timeout,
            rewinder=Rewinder(schema, most_bytes=MOST_BYTES) if schema else None,
            rowless=self._rowless,
        )
        # Until one was measured: a large database takes longer.
        engine.clone_ms = (
            SANDBOX_PATIENCE if self._resumed else engine.clone_ms + self._template.size / BYTES_MS
        )
        try:
            engine.rebase(noted)
        except HarnessError as error:
            this_time = isinstance(error, RecloneNeeded) and not error.lasting
            if noted is not None and this_time:
                # It goes on from the clone that is made now: to open another for each clone takes longer than a clone.
                self._engine = engine
                raise
            engine.close()
            if noted is not None and not isinstance(error, RecloneNeeded):
                raise
            self._problem = str(error)
        else:
            self._engine = engine

    def reset(self, *, to: Mark | None = None, sessions: Literal["keep", "end"] = "keep") -> ResetReport:
        """Put back what changed; where that is not certain, a fresh clone under the same name.

        Raises:
            LeaseLost: the template is gone as well.
        """
        began = time.monotonic()
        link = self._clones.link
        if link.surely(self._unchanged):
            return ResetReport(strategy="nothing", milliseconds=1000 * (time.monotonic() - began))
        # Before: what closes now does so as a client's own session would.
        self._clones.front.settle(self._database)
        if self._clones.workers:
            self._end_jobs()
        try:
            if (engine := self._opened()) is not None:
                report = engine.reset(to=to, sessions=sessions)
                if self._clones.workers:
                    self._tell_scheduler()
                return report
            reason = self._problem or self._missing or "nothing was watched since the database was pristine"
        except LeaseError as error:
            if not isinstance(error, RecloneNeeded):
                raise
            # With what would avoid it the next time.
            reason = str(error)
        reason = link.surely(self._other_life) or reason
        report = link.surely(lambda: self.renew(reason=reason))
        return replace(report, milliseconds=1000 * (time.monotonic() - began))

    def _end_jobs(self) -> None:
        link = self._clones.link
        if ended := link.surely(lambda: background.end_jobs(link.session, self._database)):
            logger.debug("%s: ended jobs of background workers: %s", self._database, ended)

    def _tell_scheduler(self) -> None:
        session = self._clones.link.session
        if background.scheduler_database(session) == self._database:
            background.tell_scheduler(session, self._database)

    def renew(self, *, reason: str) -> ResetReport:
        """A fresh clone under the same name. Sessions of the application are ended; marks come back."""
        # Else what opens the engine behind our back would find the new database, and take the old one's note for its own.
        with self._opening:
            return self._renew(reason)

    def _renew(self, reason: str) -> ResetReport:
        began = time.monotonic()
        self._check_template()
        # A test may have changed its password: roles are the server's, and no clone brings them back.
        self._clones.restore_role(self._role)
        self._noted = noted = None

        def before(name: str) -> None:
            # Not later: a pool that comes back at once writes before anything could be noted.
            nonlocal noted
            noted, self._missing = self._take_watermark(name)

        watched = self._watched or self._engine is not None
        if self._resumed:
            # Of no more use: nothing but the note outlives this command.
            self.close()
        if self._engine is not None:
            self._engine.replaced()
        retired = self._replace(before if watched else None)
        if self._filler is not None:
            self._filler().replaced(retired, self._template, self._go_on)
        elif retired:
            databases.drop_retired(self._clones.link.session, retired)
        if self._engine is not None and (noted is None or self._engine.marked):
            try:
                self._engine.rebase(noted)
            except RecloneNeeded as error:
                # Else the rows of a mark would be missing, and the database pass for the marked state.
                self._give_up(error)
        elif watched:
            self._noted = noted
            if self._engine is None and not self._resumed:
                self.prepare()
        if self._engine is not None:
            self._engine.cloned_in(1000 * (time.monotonic() - began))
        return ResetReport(strategy="clone", milliseconds=1000 * (time.monotonic() - began), reason=reason)

    def _go_on(self) -> None:
        """Log in to a new clone before a reset asks for it. What fails here is told by that reset."""
        with self._opening:
            # Its baseline is opened through the run's own session, which this thread must not use.
            if self._engine is not None and self._engine.has_baseline:
                self._opened()

    def _give_up(self, error: RecloneNeeded) -> None:
        engine, self._engine = self._engine, None
        self._problem = error.reason
        if engine is not None:
            marked = engine.marked
            engine.close()
            if marked:
                raise LeaseError(
                    f"the marked state of {self._database} could not be made again in a fresh clone: {error}"
                ) from error

    def _check_template(self) -> None:
        """One that a crash emptied is made again: its relations are others, and nothing that is known of them holds."""
        whole = self._clones.whole(self._template)
        if whole is self._template:
            return
        self._template = whole
        engine, self._engine, self._noted = self._engine, None, None
        if engine is None:
            return
        marked = engine.marked
        engine.close()
        if marked:
            raise LeaseError(
                f"the marked state of {self._database} is lost: the server crashed, which emptied its template's "
                "unlogged tables, and the template was made again"
            )

    def changes(self) -> Changes:
        """What changed since the database was pristine.

        Raises:
            LeaseError: it cannot be told.
        """
        return self._ready().changes()

    def mark(self) -> Mark:
        """Make the present state the one to come back to.

        Raises:
            LeaseError: it cannot be held, or this server can only clone.
        """
        return self._ready().mark()

    def _ready(self) -> ResetEngine:
        engine = self._opened()
        if engine is None:
            raise LeaseError(
                self._problem
                or self._missing
                or f"nothing was watched since {self._database} was pristine: set {freshness.watching()}, "
                f"or call lease.watch() before the first change"
            )
        return engine

    def close(self) -> None:
        """Log out; the database is about to be retired."""
        with self._opening:
            self._noted = None
            if self._engine is not None:
                self._engine.close()
                self._engine = None

    # --- sessions ----------------------------------------------------------------------------------

    def _open(self, database: str, settings: Mapping[str, str]) -> Session:
        return Session.connect(self._clones.link.dsn.with_database(database), settings=settings)

    def _open_reader(self) -> Session:
        link = self._clones.link
        return connect_verified(link.dsn, link.server_id)

    def _open_baseline(self, settings: Mapping[str, str]) -> Session:
        return open_baseline(self._clones, self._template, settings)


def take_watermark(clones: Clones, template: Template, name: str, role: str) -> tuple[Watermark | None, str]:
    """What is true of a clone that is pristine now; or None, and why a reset cannot go on from there.

    Args:
        name: what the clone is called at present.
        role: whom the application enters it as.
    """
    if not template.settled:
        return (
            None,
            "its template has sequences that are logged ahead: `pg-harness up --rebuild` makes it again",
        )
    return watermark_of(clones.link.session, name, role)


def watermark_of(session: Session, name: str, role: str) -> tuple[Watermark | None, str]:
    """The same of any database in which every move of a sequence is seen in the log."""
    # Before 15, who has logged in is known late; and there is no engine to be opened later.
    if session.server_version < FIRST_SUPPORTED:
        return (
            None,
            f"PostgreSQL {session.server_version // 10000} cannot be reset by its log (15 and later can)",
        )
    try:
        return watermark.take(session, name, role), ""
    except ServerRefused:
        return None, "this role may not read what a reset has to know: see docs/reset.md, Rights"


def ensure_baseline(clones: Clones, template: Template) -> str:
    """The one clone of a template that only the admin enters; made where it is missing, once.

    Baseline rows can be read neither in the lease (a trace) nor in the template (a session there stalls clones).
    """
    template = clones.whole(template)
    name = names.baseline(clones.project, template.fingerprint)
    if not _serves(databases.find(clones.link.session, name), template):
        with _baseline_alone(clones, name):
            _make_baseline(clones, template, name)
    return name


def open_baseline(clones: Clones, template: Template, settings: Mapping[str, str]) -> Session:
    """A session of ours in it.

    The door is open for this one log-in: a lease that is reset by pages is compared with the pages of the baseline, so nobody
    may write there, neither `vacuumdb --all` nor a person, at whatever time.
    """
    template = clones.whole(template)
    name = names.baseline(clones.project, template.fingerprint)
    session = clones.link.session
    with _baseline_alone(clones, name):
        _make_baseline(clones, template, name)
        session.execute(f"alter database {ident(name)} with allow_connections true")
        try:
            return Session.connect(clones.link.dsn.with_database(name), settings=settings)
        finally:
            session.execute(f"alter database {ident(name)} with allow_connections false")


def _baseline_alone(clones: Clones, name: str) -> AbstractContextManager[None]:
    return locks.exclusive(
        clones.link.session, "baseline", name, timeout=60, waiting_for="the baseline of a template"
    )


def _make_baseline(clones: Clones, template: Template, name: str) -> None:
    """Where it is not there, or cannot be trusted. The caller holds its lock."""
    session = clones.link.session
    found = databases.find(session, name)
    if _serves(found, template):
        return
    if found is not None:
        databases.drop(session, name, clones.project)
    databases.clone(session, name, template=template.name, owner=session.dsn.user, strategy=template.strategy)
    label = Label(kind="baseline", fingerprint=template.fingerprint, unlogged=template.unlogged)
    session.script(
        f"revoke all on database {ident(name)} from public;"
        f"alter database {ident(name)} with allow_connections false;" + databases.label_statement(name, label)
    )


def _serves(found: databases.Database | None, template: Template) -> bool:
    """Whether it is a baseline that is finished, that no crash has emptied since the template was made, and whose door is shut:
    one that stands open, since a process was killed or somebody opened it, may have been written to."""
    return (
        found is not None
        and bool(found.label)
        and not found.allows_connections
        and (found.label.unlogged or "") == template.unlogged
    )
