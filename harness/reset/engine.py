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

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from harness.errors import LeaseError, ServerLost, ServerRefused
from harness.postgres import sqlstate
from harness.reset import detect
from harness.reset.changes import (
    UNCHANGED,
    Changes,
    How,
    Nothing,
    Reclone,
    RecloneNeeded,
    Restore,
    TableChange,
)
from harness.reset.marks import Mark
from harness.reset.outcome import Outcome, Terms
from harness.reset.plan import plan
from harness.reset.report import ResetReport
from harness.reset.restore import Attempt
from harness.reset.sessions import Waiting
from harness.reset.sql import batch
from harness.reset.sql.shared import Note
from harness.reset.tracker import EngineState, Limits
from harness.reset.vacuum import RECORD, Litter
from harness.reset.wal.reader import Window

PATIENCE_MS = 1000.0
"""Milliseconds that any attempt may take: a busy machine is no reason for a clone."""

MOST_VIOLATIONS = 3
"""How often a reset begins again over a constraint that is violated, before it is taken for the baseline's own."""

CHANGES_PATIENCE = 2000.0
"""Milliseconds that a person waits for what changed."""


class ResetEngine(EngineState):
    """Brings one leased database back. Not safe for use by several threads.

    Args:
        reader: opens a session in the maintenance database (a superuser, or a member of
            ``pg_read_server_files`` with the right to execute the functions of pg_walinspect).
        restorer: opens a session in the leased database; it is given the settings to log in with.
        baseline: opens a session in the baseline clone of the same template.
        role: the application's role, whose settings are put back too.
        reset_timeout: seconds, see :class:`Limits`.
        stage: called with the name of each stage; for tests.
    """

    def rebase(self, noted: Note | None = None) -> None:
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
                self._rebase(noted)
            except ServerLost as error:
                # A session may have died unnoticed since the last reset: once more, with new ones.
                self._lost(error)
                self._rebase(noted)
            if self._marks:
                self._pending = self._marks.everything()
                self._refilling = True
                self._reset_loop(_Run(self))
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
            run = _Run(self)
            report = self._reset(run, to, sessions)
        return replace(
            report,
            milliseconds=1000 * (time.monotonic() - began),
            ended=tuple(run.waiting.ended),
            idle=run.waiting.idle,
        )

    def _reset(self, run: _Run, to: Mark | None, sessions: Literal["keep", "end"]) -> ResetReport:
        try:
            self._check_based()
            if to is not None:
                self._marks.check(to)
                while self._marks.top is not to:
                    self._pop()
            if sessions == "end":
                run.waiting.end_all()
            return self._reset_loop(run)
        except BaseException as error:
            # Whatever it was (Ctrl-C too): what is half done must never pass for pristine.
            if not isinstance(error, LeaseError) or isinstance(error, RecloneNeeded):
                self._based = False
            if isinstance(error, ServerLost):
                raise self._lost(error) from error
            if isinstance(error, ServerRefused):
                raise RecloneNeeded(f"the reset failed: {error}") from error
            raise

    def changes(self) -> Changes:
        """What changed since the database was pristine. Nothing is reset; open transactions are included.

        Raises:
            RecloneNeeded: it cannot be told.
        """
        self._check_based()
        unsettled = self._unsettled
        try:
            window = self._look(force=True, patience=CHANGES_PATIENCE)
            if window.too_much:
                raise RecloneNeeded(f"{window.bytes / 1e6:.0f} MB of log are too much to be read")
            # Of a wider fixture's job queue, for instance: what is there before the next test may stay.
            self._locks = frozenset(window.advisory)
            found, _ = self._resolve(window)
            differences = self._compare(found.catalogs) if not window.unfinished else ()
        except ServerLost as error:
            raise self._lost(error) from error
        except ServerRefused as error:
            raise RecloneNeeded(f"the changes cannot be read: {error}") from error
        finally:
            # What was seen of the server's catalogs is for the next reset to compare.
            self._unsettled = tuple({*unsettled, *self._unsettled})
        known = {**found.names}
        return replace(found, ddl=differences, catalogs={}, unknown=frozenset(), names=known)

    def mark(self) -> Mark:
        """Make the present state the one to come back to.

        Raises:
            LeaseError: the schema was changed since the template (put that into a migration).
            RecloneNeeded: it cannot be told what changed.
        """
        from harness.reset.marks import set_mark

        self._check_based()
        unsettled = self._unsettled
        try:
            return set_mark(self)
        except LeaseError:
            self._unsettled = tuple({*unsettled, *self._unsettled})
            raise
        except ServerLost as error:
            raise self._lost(error) from error
        except ServerRefused as error:
            raise RecloneNeeded(f"the mark cannot be set: {error}") from error

    def _pop(self) -> None:
        """Release the top mark: what it holds is a change against the state below."""
        layer = self._marks.pop()
        self._pending = detect.united(self._pending, layer.changes)

    def close(self) -> None:
        """Log out everywhere; never raises for sessions that are gone."""
        for session in (self._reader.session if self._reader else None, self._restorer):
            if session is not None:
                session.close()
        if self._store is not None:
            self._store.close()
        self._based = False

    def _reset_loop(self, run: _Run) -> ResetReport:
        rows, tables = 0, set[str]()
        while True:
            store = self.store
            force = bool(
                self._pending or self._unsettled or store.unlogged_tables or store.unlogged_sequences
            )
            if run.crowded and not self._lock_first(run):
                continue
            window = self._look(force=force or bool(run.crowded))
            if run.waiting.hindered(window, before=run.unlock):
                continue
            self._locks &= set(window.advisory)
            if not window.moved:
                return ResetReport("restore" if tables else "nothing", tuple(sorted(tables)), rows)
            if window.too_much:
                raise RecloneNeeded(
                    f"{window.bytes / 1e6:.1f} MB of log were written since the last reset: "
                    "reading them would cost more than a clone"
                )
            found, files = self._resolve(window)
            todo = plan(found, self._baseline(found, may_truncate=run.may_truncate))
            if isinstance(todo, Reclone):
                raise RecloneNeeded(todo.reason)
            if found.shared:
                self._put_back_shared()
            if isinstance(todo, Nothing):
                run.unlock()
                if not window.quiet and run.waiting.writers():
                    continue
                self._advance(window)
                self._pending = Changes()
                self._clean_up(found, Outcome(), truncate=window.quiet)
                return ResetReport("restore" if tables else "nothing", tuple(sorted(tables)), rows)
            if run.crowded and not set(todo.tables) <= run.crowded:
                run.unlock()
                run.crowded |= set(todo.tables)
                continue
            could_truncate = run.may_truncate
            outcome = self._restore(todo, found, files, window, run)
            if outcome is None and run.may_truncate != could_truncate:
                continue
            if outcome is None:
                run.crowded |= set(todo.tables)
                run.waiting.crowd()
                continue
            rows += outcome.rows
            tables.update(found.names.get(oid, str(oid)) for oid in todo.tables)
            tables.update(found.names.get(oid, str(oid)) for oid in todo.sequences)
            there = outcome.present
            run.waiting.idle = there.idle or run.waiting.idle
            hindered = there.writers or there.readers or there.prepared
            waited = bool(hindered) and run.waiting.old_snapshots(outcome.xids[-1])
            if outcome.disturbed:
                run.crowded |= set(todo.tables)
                run.waiting.crowd()
            if outcome.disturbed or waited:
                continue  # whoever wrote between look and locks, or had to be waited for, may have written elsewhere too
            self._clean_up(found, outcome, todo, truncate=not (there.idle or there.readers))
            return ResetReport("restore", tuple(sorted(tables)), rows)

    def _lock_first(self, run: _Run) -> bool:
        """Somebody wrote between the look and the locks: this time the locks come first, and then the look."""
        run.unlock()
        if run.lockless:
            return True
        tables = ", ".join("only " + self.store.relations[oid].sql for oid in sorted(run.crowded))
        try:
            batch.run(self._lease, ["begin", f"lock table {tables} in share row exclusive mode"])
        except ServerRefused as error:
            batch.rollback(self._lease)
            if error.sqlstate not in (sqlstate.LOCK_NOT_AVAILABLE, sqlstate.DEADLOCK_DETECTED):
                raise RecloneNeeded(f"the tables cannot be locked: {error}") from error
            run.lockless = run.waiting.lock_holders(sorted(run.crowded), lockless=False)
            return False
        run.locked = True
        return True

    def _restore(
        self, todo: Restore, found: Changes, files: Mapping[int, int], window: Window, run: _Run
    ) -> Outcome | None:
        """One attempt; None where it has to begin again.

        Args:
            files: what :meth:`_resolve` has read. They are not read again: a TRUNCATE that commits in between
                would be remembered as pristine.
        """
        if differences := self._compare(todo.catalogs):
            raise RecloneNeeded(f"the schema differs from the template's ({'; '.join(differences)})")
        bases = {oid: self._base(oid) for oid in todo.tables}
        sequences = {oid: self._sequence(oid) for oid in todo.sequences}
        terms = Terms(
            locked=run.locked,
            lockless=run.lockless,
            database=self._database,
            ours=self.ours,
            clear=run.waiting.old_snapshots,
            deadline=time.monotonic() + self._allowed(todo.estimate) / 1000,
            next_id=window.next_id,
            quiet=window.quiet,
        )
        attempt = Attempt(self._lease, self.store, todo, found.tables, bases, sequences, self._stage, terms)
        try:
            outcome = attempt.run()
        except (ServerRefused, RecloneNeeded) as error:
            batch.rollback(self._lease)
            run.locked = False
            # Of its first transaction, where the second failed.
            self._adopt(attempt.done)
            # No record of the application names all the blocks that we have written.
            anew = {oid: TableChange(rewritten=True) for oid in attempt.done.anew}
            self._pending = detect.united(self._pending, Changes(tables=anew))
            # Beside the old numbers, which the window still names.
            self._files.update(attempt.done.files)
            self._by_file.update({node: oid for oid, node in attempt.done.files.items()})
            if isinstance(error, RecloneNeeded):
                raise
            if error.sqlstate not in (sqlstate.LOCK_NOT_AVAILABLE, sqlstate.DEADLOCK_DETECTED):
                if run.came_between(error, attempt.done):
                    return None
                raise RecloneNeeded(f"the rows cannot be put back: {error}") from error
            if How.TRUNCATE in todo.tables.values():
                run.may_truncate = False
            else:
                wanted = sorted([*todo.tables, *todo.sequences])
                run.lockless = run.waiting.lock_holders(wanted, lockless=run.lockless) or run.lockless
            return None
        run.locked = False
        self._stage("committed")
        self._adopt(outcome)
        # Only now: an attempt that begins again must find the table rewritten once more.
        self._remember_files({**files, **outcome.files})
        self._pending = Changes()
        later: Window | None = window
        at_once = len(outcome.xids) == 1 and not terms.lockless
        seen = outcome.position == window.seen and (at_once or outcome.alone)
        if not seen or self.store.watchful:
            wrote = {*todo.tables, *todo.along, *todo.sequences}
            later = self._unchanged_since(window, outcome.until, wrote, outcome.inserted)
        outcome.disturbed = later is None
        self._advance(later or window)
        self._own, self._seen = [*outcome.xids], ""
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
        relations = self.store.relations
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
            base = self._base(oid)
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
        if left or self._touched:
            self._vacuum.after(self._lease, left, relations, self._touched, truncate=truncate)

    def __repr__(self) -> str:
        state = f"pristine at {self._start}" if self._based else "state unknown"
        return f"<ResetEngine database {self._database}: {state}, {len(self._marks)} marks>"


class _Run:
    """One reset: how long it has waited, whom it ended.

    Attributes:
        crowded: tables that were written while a reset looked: they are locked before the next look.
        locked: whether they are locked now, in an open transaction of the restorer.
        lockless: no lock is to be had, and nobody who holds one has written anything: it goes without.
        may_truncate: nobody was found in the way of a TRUNCATE so far.
    """

    def __init__(self, engine: ResetEngine) -> None:
        self.crowded: set[int] = set()
        self.locked = False
        self.lockless = False
        self.may_truncate = True
        self._violations = 0
        self._engine = engine
        self.waiting = Waiting(
            reader=lambda: engine._wal.session,
            lease=lambda: engine._lease,
            database=lambda: engine._database,
            ours=lambda: engine.ours,
            known=lambda: engine._locks,
            timeout=engine.limits.reset_timeout,
        )

    def came_between(self, error: ServerRefused, done: Outcome) -> bool:
        """Whether a row that violates a constraint may be somebody's who wrote where nothing was locked: begin again."""
        unlocked = self.lockless or bool(done.xids)
        self._violations += 1
        self.lockless = False
        return (
            unlocked
            and error.sqlstate.startswith(sqlstate.INTEGRITY_CONSTRAINT_VIOLATION)
            and self._violations < MOST_VIOLATIONS
        )

    def unlock(self) -> None:
        """Let the tables go, where they are locked."""
        if self.locked:
            self.locked = False
            batch.rollback(self._engine._lease)


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
    return RecloneNeeded(f"the server's log cannot be read: {error}", remedy=remedy, lasting=bool(remedy))


__all__ = ["Limits", "ResetEngine"]
