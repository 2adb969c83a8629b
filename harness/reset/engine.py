"""The reset engine of one leased database: look, decide, lock, put back, commit, and look whether somebody was quicker.

How a reset stays true (docs/reset.md tells it at length):

1. The reader flushes a message of ours into the log and reads everything from the last pristine position
   to it. Every transaction id found there must have ended, else it is waited for.
2. The restorer locks all dirty tables against writers, asks for the insert position, puts back and commits.
   Where the position had moved, the log is read on from where the look stopped: anything of this database that
   is not ours means: begin again, with what was put back as it is.
3. After the COMMIT no session may still see, or write into, the state before it: such sessions are waited
   for, then named and ended.

The next window begins where this one's reading ended; the records of our own transaction are known by its id.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from harness.errors import HarnessError, LeaseError, ServerLost, ServerRefused
from harness.postgres import sqlstate
from harness.postgres.session import Session
from harness.reset import detect, marking
from harness.reset.baseline import BaselineStore
from harness.reset.changes import (
    UNCHANGED,
    Changes,
    How,
    Nothing,
    Reclone,
    RecloneNeeded,
    Restore,
)
from harness.reset.connections import Connections
from harness.reset.contention import Contention
from harness.reset.marks import Layer, Mark, Marks
from harness.reset.outcome import Outcome, Terms
from harness.reset.plan import ROW_MS, plan
from harness.reset.report import ResetReport
from harness.reset.restore import Attempt
from harness.reset.rewind.answer import Answer
from harness.reset.rewind.pages import Pages
from harness.reset.rewind.rewinder import Rewinder, Rewound
from harness.reset.sessions import Sessions
from harness.reset.sql import batch
from harness.reset.sql.objects import sentence
from harness.reset.sql.sequences import setval
from harness.reset.tracker import Allowance, Tracker
from harness.reset.vacuum import RECORD, Litter, Vacuum
from harness.reset.wal.reader import WalWindow
from harness.reset.watermark import Watermark

PATIENCE_MS = 1000.0
"""Milliseconds that any attempt may take: a busy machine is no reason for a clone."""

CHANGES_PATIENCE = 2000.0
"""Milliseconds that a person waits for what changed."""

MARK_PATIENCE = 5000.0
"""Milliseconds that reading the log may take for a mark: no other way leads to one."""

MOST_BYTES = 64 * 1024**2
"""Bytes of log that are read for one reset, whatever a clone costs: they lie in memory at once."""

CLONE_MS = 100.0
"""What a fresh clone is taken to cost until one was measured: milliseconds, with what it costs the application to log
in again."""

REFILL_MS = 60_000.0
"""The same while the rows of marks are put into a fresh clone: where that is given up, the marks are lost."""

WORTH = 1.5
"""How many times as long as a fresh clone a restore may take, for the sessions that it keeps."""


@dataclass(frozen=True)
class Limits:
    """What the engine may spend.

    Attributes:
        reset_timeout: seconds to wait for sessions of the application before they are ended.
        most_bytes: of log to decode for one reset.
    """

    reset_timeout: float = 5.0
    most_bytes: int = MOST_BYTES


class ResetEngine:
    """Brings one leased database back. Not safe for use by several threads.

    Args:
        reader: opens a session in the maintenance database (a superuser, or a member of
            ``pg_read_server_files`` with the right to execute the functions of pg_walinspect).
        restorer: opens a session in the leased database; it is given the settings to log in with.
        baseline: opens a session in the baseline clone of the same template.
        role: the application's role, whose settings are put back too.
        reset_timeout: seconds, see :class:`Limits`.
        rewinder: puts back pages, where the server has its module; None: rows only.
        rowless: why no rows may be put back, where that is so: what pages do not bring back is for a clone.
        stage: called with the name of each stage; for tests.

    Attributes:
        limits: what it may spend.
        clone_ms: milliseconds that a fresh clone of this database costs.
    """

    def __init__(
        self,
        *,
        reader: Callable[[], Session],
        restorer: Callable[[Mapping[str, str]], Session],
        baseline: Callable[[Mapping[str, str]], Session],
        role: str,
        reset_timeout: float = 5.0,
        most_bytes: int = MOST_BYTES,
        rewinder: Rewinder | None = None,
        rowless: str = "",
        stage: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.limits = Limits(reset_timeout, most_bytes)
        self.clone_ms = CLONE_MS
        self._connections = Connections(reader, restorer, baseline)
        self._marks = Marks()
        self._tracker = Tracker(self._connections, self._marks, role)
        self._vacuum = Vacuum()
        self._pages = Pages(
            rewinder, self._connections, self._tracker, self._marks, lambda: self._look(force=True)
        )
        self._rowless = rowless
        self._stage = stage
        self._based = False
        self._refilling = False
        self._one_at_a_time = threading.RLock()

    # --- what it is, and what may be asked of it ---------------------------------------------------

    @property
    def store(self) -> BaselineStore:
        """Facts of the baseline; read when first wanted."""
        return self._connections.store

    @property
    def has_baseline(self) -> bool:
        """Whether the session in the baseline is open."""
        return self._connections.has_baseline

    @property
    def doubt(self) -> str:
        """See :class:`harness.reset.wal.choose.ChosenReader`; empty before the first look."""
        return self._connections.doubt

    @property
    def ours(self) -> tuple[int, ...]:
        """Pids of the engine's own sessions."""
        return self._connections.ours

    @property
    def rewound(self) -> Answer | None:
        """What the server's module answered last; None where it was not asked."""
        rewinder = self._pages.rewinder
        return None if rewinder is None else rewinder.last

    @property
    def watermark(self) -> Watermark | None:
        """What another process needs to go on from here (:meth:`rebase`); None where the state is not known."""
        return self._tracker.watermark() if self._based and not self._marks and not self._pages.only else None

    def cloned_in(self, milliseconds: float) -> None:
        """A fresh clone was made in this time: reading the log may cost as much, and no more."""
        self.clone_ms += (milliseconds - self.clone_ms) / 2

    # --- a pristine database -----------------------------------------------------------------------

    def rebase(self, noted: Watermark | None = None) -> None:
        """Call it when the database is pristine: just claimed, or just cloned again.

        Marks that are set are made true again: their rows are put into the new clone.

        Args:
            noted: where the database was pristine earlier, and may be changed by now: what was true then.

        Raises:
            RecloneNeeded: this server cannot be read (``lasting``), or the clone is not like the baseline.
        """
        self._based = False
        try:
            try:
                self._tracker.rebase(noted, by_pages=self._pages.on)
            except ServerLost as error:
                # A session may have died unnoticed since the last reset: once more, with new ones.
                self._lost(error)
                self._tracker.rebase(noted, by_pages=self._pages.on)
            self._vacuum = Vacuum()
            self._pages.rebase()
            if self._marks.pages:
                self._reset_loop(self._contention())
            elif self._marks:
                self._tracker.pending = self._marks.everything()
                self._refilling = True
                self._reset_loop(self._contention())
            # Last of all: Ctrl-C in between must not leave half a mark that passes for pristine.
            self._based = True
        except ServerRefused as error:
            raise _unreadable(error) from error
        except ServerLost as error:
            raise self._lost(error) from error
        finally:
            self._refilling = False

    def replaced(self) -> None:
        """Call it before the database is replaced by another one: until :meth:`rebase` nothing is known."""
        self._based = False

    @property
    def marked(self) -> bool:
        """Whether any mark is set."""
        return bool(self._marks)

    # --- reset -------------------------------------------------------------------------------------

    def reset(self, *, to: Mark | None = None, sessions: Literal["keep", "end"] = "keep") -> ResetReport:
        """Bring the database back to the top mark, to ``to``, or to the template.

        Args:
            to: a mark that is set; marks above it are released.
            sessions: ``"end"`` ends all sessions of the application first.

        Raises:
            RecloneNeeded: take a fresh clone, then call :meth:`rebase`. The database is not pristine.
            LeaseError: ``to`` is not set any more.
        """
        began = time.monotonic()
        # A second thread's reset waits, and then finds nothing to do.
        with self._one_at_a_time:
            met = self._contention()
            report = self._reset(met, to, sessions)
        return replace(
            report,
            milliseconds=1000 * (time.monotonic() - began),
            ended=tuple(met.sessions.ended),
            idle=met.sessions.idle,
        )

    def _reset(self, met: Contention, to: Mark | None, sessions: Literal["keep", "end"]) -> ResetReport:
        try:
            self._check_based()
            if to is not None:
                self._marks.check(to)
                while self._marks.top is not to:
                    self._pages.release_top()
            if sessions == "end":
                met.sessions.end_all()
            try:
                return self._reset_loop(met)
            except RecloneNeeded:
                if (rewound := self._pages.insist(met)) is None:
                    raise
                if not rewound.done:
                    return self._reset_loop(met)
                return ResetReport("rewind", tuple(sorted(rewound.tables)))
        except BaseException as error:
            # Whatever it was (Ctrl-C too): what is half done must never pass for pristine.
            if not isinstance(error, LeaseError) or isinstance(error, RecloneNeeded):
                self._based = False
            if isinstance(error, ServerLost):
                raise self._lost(error) from error
            if isinstance(error, ServerRefused):
                raise RecloneNeeded(f"the reset failed: {error}") from error
            raise

    def _reset_loop(self, met: Contention) -> ResetReport:
        tracker = self._tracker
        rows, tables, how = 0, set[str](), "nothing"
        while True:
            if (rewound := self._rewind(met)) is not None:
                how = "rewind" if rewound.wrote else how
                tables |= rewound.tables
                if rewound.done:
                    return ResetReport(how, tuple(sorted(tables)), rows)
            if self._pages.only:
                self._pages.make_way(met, rewound)
                continue
            force = tracker.must_read
            if met.contended and not met.lock(self._connections.store.relations):
                continue
            window = self._look(force=force or bool(met.contended))
            if met.sessions.hindered(window, before=met.unlock):
                continue
            tracker.advisory &= set(window.advisory)
            if not window.moved:
                return ResetReport(how, tuple(sorted(tables)), rows)
            if window.too_much:
                raise RecloneNeeded(
                    f"{window.bytes / 1e6:.1f} MB of log were written since the last reset: "
                    "reading them would cost more than a clone"
                )
            found, files = tracker.resolve(window)
            # Before rows are read: a cast of an owner's is run by that.
            if self._rowless and found.tables:
                raise RecloneNeeded(self._rowless)
            baseline = tracker.baseline(found, may_truncate=met.may_truncate, worth=self._worth)
            todo = plan(found, baseline)
            if isinstance(todo, Reclone):
                raise RecloneNeeded(todo.reason)
            if found.shared:
                tracker.put_back_shared()
            if isinstance(todo, Nothing):
                met.unlock()
                if not window.quiet and met.sessions.writers():
                    continue
                tracker.advance(window)
                tracker.pending = Changes()
                self._clean_up(found, Outcome(), truncate=window.quiet)
                return ResetReport(how, tuple(sorted(tables)), rows)
            if met.contended and not set(todo.tables) <= met.contended:
                met.unlock()
                met.contended |= set(todo.tables)
                continue
            outcome = self._restore(todo, found, files, window, met)
            if outcome is None:
                continue
            rows += outcome.rows
            how = "rewind" if how == "rewind" else "restore"
            tables.update(found.names.get(oid, str(oid)) for oid in todo.tables)
            tables.update(found.names.get(oid, str(oid)) for oid in todo.sequences)
            there = outcome.present
            met.sessions.idle = there.idle or met.sessions.idle
            hindered = there.writers or there.readers or there.prepared
            waited = bool(hindered) and met.sessions.old_snapshots(outcome.xids[-1])
            if outcome.disturbed:
                met.contended |= set(todo.tables)
                met.sessions.disturbed()
            if outcome.disturbed or waited:
                continue  # whoever wrote between look and locks, or had to be waited for, may have written elsewhere too
            self._clean_up(found, outcome, todo, truncate=not (there.idle or there.readers))
            return ResetReport(how, tuple(sorted(tables)), rows)

    def _rewind(self, met: Contention) -> Rewound | None:
        """Put back pages, where that is not out of the question; None: rows have to be looked at.

        Tried anew in each turn: what was in its way may be gone by now.
        """
        if not self._pages.may(met):
            return None
        self._stage("before-rewind")
        rewound = self._pages.turn()
        if rewound is not None and (answer := self.rewound) is not None:
            met.sessions.idle = answer.busy or met.sessions.idle
        if rewound is not None and rewound.wrote:
            self._stage("rewound")
            self._vacuum = Vacuum()
        return rewound

    def _restore(
        self, todo: Restore, found: Changes, files: Mapping[int, int], window: WalWindow, met: Contention
    ) -> Outcome | None:
        """One attempt; None where it has to begin again.

        Args:
            files: what :meth:`Tracker.resolve` has read. They are not read again: a TRUNCATE that commits in between
                would be remembered as pristine.
        """
        tracker, connections = self._tracker, self._connections
        if differences := tracker.compare(todo.catalogs):
            raise RecloneNeeded(sentence(differences))
        bases = {oid: tracker.base(oid) for oid in todo.tables}
        sequences = {oid: tracker.sequence(oid) for oid in todo.sequences}
        terms = Terms(
            locked=met.locked,
            lockless=met.lockless,
            database=tracker.database,
            ours=connections.ours,
            clear=met.sessions.old_snapshots,
            deadline=time.monotonic() + self._allowed(todo.estimate) / 1000,
            next_id=window.next_id,
            quiet=window.quiet,
        )
        attempt = Attempt(
            connections.lease, connections.store, todo, found.tables, bases, sequences, self._stage, terms
        )
        try:
            outcome = attempt.run()
        except (ServerRefused, RecloneNeeded) as error:
            batch.rollback(connections.lease)
            met.locked = False
            tracker.adopt_refused(attempt.done)
            if isinstance(error, RecloneNeeded):
                raise
            if error.sqlstate not in (sqlstate.LOCK_NOT_AVAILABLE, sqlstate.DEADLOCK_DETECTED):
                if met.came_between(error, attempt.done):
                    met.contended |= set(todo.tables)
                    met.sessions.disturbed()
                    return None
                raise RecloneNeeded(f"the rows cannot be put back: {error}") from error
            # Whoever holds a lock has not written for that: the locks need not come first, which costs large tables
            # the order of their rows.
            if How.TRUNCATE in todo.tables.values():
                met.may_truncate = False
            else:
                wanted = sorted([*todo.tables, *todo.sequences])
                met.lockless = met.sessions.lock_holders(wanted, lockless=met.lockless) or met.lockless
            return None
        met.locked = False
        self._stage("committed")
        tracker.adopt(outcome)
        # Only now: an attempt that begins again must find the table rewritten once more.
        tracker.remember_files({**files, **outcome.files})
        tracker.pending = Changes()
        later: WalWindow | None = window
        at_once = len(outcome.xids) == 1 and not terms.lockless
        seen = outcome.position == window.seen and (at_once or outcome.alone)
        if not seen or connections.store.watchful:
            wrote = {*todo.tables, *todo.along, *todo.sequences}
            later = tracker.unchanged_since(window, outcome.until, self._allowance(), wrote, outcome.inserted)
        outcome.disturbed = later is None
        tracker.advance(later or window, own=outcome.xids)
        return outcome

    def _allowed(self, estimate: float) -> float:
        """Milliseconds after which an attempt is given up: what it was reckoned to take was wrong, and a clone is certain."""
        return max(PATIENCE_MS, 2 * self._worth, 2 * estimate)

    def _clean_up(
        self, found: Changes, outcome: Outcome, todo: Restore | None = None, *, truncate: bool
    ) -> None:
        """Have dead rows removed where they would be noticed.

        Args:
            truncate: nobody is in a transaction: see :meth:`Vacuum.after`.
        """
        tracker, relations = self._tracker, self._connections.store.relations
        self._vacuum.cleaned(outcome.vacuumed)
        left: dict[int, Litter] = {}
        for oid in {*found.aborted, *(todo.tables if todo is not None else ())}:
            relation = relations.get(oid)
            if relation is None or relation.kind != "r" or oid in outcome.vacuumed:
                continue
            if todo is not None and todo.tables.get(oid) is How.TRUNCATE:
                continue
            undone = found.aborted.get(oid, UNCHANGED)
            change = detect.merge(found.tables.get(oid, UNCHANGED), undone)
            base = tracker.base(oid)
            left[oid] = Litter(
                outcome.dead.get(oid, 0) + change.gone + undone.inserts,
                max(0, change.size - RECORD * (change.inserts + change.updates)),
                base.room,
                min(change.blocks, default=base.last_block),
                max(change.blocks, default=0),
                base.last_block,
                # Of one that is not tidy, a VACUUM would free the room before its rows.
                base.in_place and base.tidy,
            )
        if left or tracker.touched:
            self._vacuum.after(self._connections.lease, left, relations, tracker.touched, truncate=truncate)

    # --- what changed, and marks -------------------------------------------------------------------

    def changes(self) -> Changes:
        """What changed since the database was pristine. Nothing is reset; open transactions are included.

        Raises:
            RecloneNeeded: it cannot be told.
        """
        self._check_based()
        tracker = self._tracker
        unsettled = tracker.unsettled
        try:
            window = self._look(force=True, patience=CHANGES_PATIENCE)
            if window.too_much:
                raise RecloneNeeded(f"{window.bytes / 1e6:.0f} MB of log are too much to be read")
            # Of a wider fixture's job queue, for instance: what is there before the next test may stay.
            tracker.advisory = frozenset(window.advisory)
            found, _ = tracker.resolve(window)
            differences = tracker.compare(found.catalogs) if not window.unfinished else ()
        except ServerLost as error:
            raise self._lost(error) from error
        except ServerRefused as error:
            raise RecloneNeeded(f"the changes cannot be read: {error}") from error
        finally:
            # What was seen of the server's catalogs is for the next reset to compare.
            tracker.unsettle(unsettled)
        known = {**found.names}
        return replace(found, ddl=differences, catalogs={}, unknown=frozenset(), names=known)

    def mark(self) -> Mark:
        """Make the present state the one to come back to.

        Raises:
            LeaseError: the schema was changed since the template (put that into a migration).
            RecloneNeeded: it cannot be told what changed.
        """
        self._check_based()
        unsettled = self._tracker.unsettled
        try:
            return self._set_mark()
        except LeaseError:
            self._tracker.unsettle(unsettled)
            raise
        except ServerLost as error:
            raise self._lost(error) from error
        except ServerRefused as error:
            raise RecloneNeeded(f"the mark cannot be set: {error}") from error

    def _set_mark(self) -> Mark:
        """Read what changed since the state below, while nobody may write to it, and push it.

        Raises:
            LeaseError: what changed cannot be held by a mark.
        """
        tracker = self._tracker
        met = self._contention()
        if (marked := self._pages.mark(met)) is not None:
            return marked
        while True:
            window = self._look(force=True, patience=MARK_PATIENCE)
            tracker.advisory = frozenset(window.advisory)
            if met.sessions.hindered(window):
                continue
            if window.too_much:
                raise LeaseError(
                    f"{window.bytes / 1e6:.0f} MB of log were written since the last reset: too much for a mark. "
                    "Load such data in a migration or a seed."
                )
            found, files = tracker.resolve(window)
            copied = marking.copy(self._connections, tracker, found)
            position, allowance = copied.position, self._allowance()
            if position == window.seen or tracker.unchanged_since(window, position, allowance) is not None:
                # So that every later nextval is in the log (see SequenceState.logged_ahead). Not before: it is not
                # rolled back with an attempt, and somebody who goes on meanwhile would be given keys that exist.
                setvals = [f"select {setval(oid, state)}" for oid, state in copied.sequences.items()]
                batch.run(self._connections.lease, [*setvals, "commit"])
                break
            batch.rollback(self._connections.lease)
            # Past the deadline, whoever goes on writing is ended.
            met.sessions.disturbed()
        tracker.remember_files(files)
        tracker.advance(window, own=[copied.xid])
        tracker.pending = Changes()
        mark = Mark(self._marks.next_number(), self._marks, self._pages.release_top)
        return self._marks.push(
            Layer(mark, copied.tables, copied.sequences, replace(found, catalogs={}, unknown=frozenset()))
        )

    # --- common to all -----------------------------------------------------------------------------

    def _check_based(self) -> None:
        if not self._based:
            raise RecloneNeeded("the state of the database is not known (an earlier reset failed)")

    def _contention(self) -> Contention:
        timeout = self.limits.reset_timeout
        return Contention(Sessions(self._connections, self._tracker, timeout), self._connections)

    def _look(self, *, force: bool, patience: float | None = None) -> WalWindow:
        self._stage("before-look")
        try:
            window = self._tracker.read(self._allowance(patience), force=force)
        except ServerRefused as error:
            if error.sqlstate == sqlstate.UNDEFINED_FILE or "WAL" in error.message:
                raise RecloneNeeded(
                    f"the log since the last reset was recycled or cannot be read ({error})",
                    remedy="a larger wal_keep_size keeps more of it",
                ) from error
            raise
        self._stage("looked")
        return window

    def _allowance(self, patience: float | None = None) -> Allowance:
        """How much log may be read: in the time of a clone, where nothing else is said."""
        return Allowance(self.limits.most_bytes, self._price if patience is None else patience)

    @property
    def _price(self) -> float:
        """Milliseconds that a fresh clone costs: into it all rows of the marks have to be put."""
        return REFILL_MS if self._refilling else self.clone_ms + ROW_MS * self._marks.rows

    @property
    def _worth(self) -> float:
        """Milliseconds that putting rows back may take: it keeps the sessions, which a clone ends."""
        return WORTH * self._price

    def _lost(self, error: HarnessError) -> RecloneNeeded:
        # Files of marks stay: a clone becomes the marked state by them.
        self._based = False
        self._connections.close()
        return RecloneNeeded(f"a session of the reset was lost, the server may have restarted ({error})")

    def close(self) -> None:
        """Log out everywhere; never raises for sessions that are gone."""
        self._based = False
        self._pages.close()
        self._connections.close()

    def __repr__(self) -> str:
        state = f"pristine at {self._tracker.start}" if self._based else "state unknown"
        return f"<ResetEngine database {self._tracker.database}: {state}, {len(self._marks)} marks>"


def _unreadable(error: ServerRefused) -> RecloneNeeded:
    remedies = {
        sqlstate.INSUFFICIENT_PRIVILEGE: "grant the admin the rights of docs/reset.md: pg_read_server_files, session_replication_role",
        sqlstate.FEATURE_NOT_SUPPORTED: "use PostgreSQL 15 or later",
        sqlstate.UNDEFINED_FILE: "install the contrib modules of the server (postgresql-contrib)",
    }
    if "session_replication_role" in error.message:
        # A setting that a login may not have comes without a code of its own.
        return RecloneNeeded(
            f"triggers cannot be kept silent: {error}",
            remedy=remedies[sqlstate.INSUFFICIENT_PRIVILEGE],
            lasting=True,
        )
    remedy = remedies.get(error.sqlstate, "")
    if "could not load library" in error.message:
        remedy = "if PostgreSQL was upgraded under the server, it has to be started again: `pg-harness doctor` tells"
    return RecloneNeeded(f"the server's log cannot be read: {error}", remedy=remedy, lasting=bool(remedy))


__all__ = ["Limits", "ResetEngine"]
