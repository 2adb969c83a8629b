"""The reset engine of one leased database: look, decide, lock, put back, look again, commit.

How a reset stays true (docs/reset.md tells it at length):

1. The reader flushes a message of ours into the log and reads everything from the last pristine position
   to it. Every transaction id found there must have ended, else it is waited for.
2. The restorer locks all dirty tables against writers and asks for the insert position. Where it moved,
   the log is read up to there: anything of this database that is not ours means: begin again.
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

from harness.catalog import restore_batch, restore_catalogs, restore_facts
from harness.catalog.restore_facts import SequenceState
from harness.catalog.session import Session, ident
from harness.catalog.wal import NOISE, WalReader, Window
from harness.errors import HarnessError, LeaseError, ServerLost, ServerRefused
from harness.reset import detect
from harness.reset.baseline import BaselineStore, TableBase
from harness.reset.marks import Mark, Marks
from harness.reset.model import (
    Baseline,
    Changes,
    Nothing,
    Reclone,
    RecloneNeeded,
    Restore,
    TableChange,
)
from harness.reset.plan import plan
from harness.reset.report import ResetReport
from harness.reset.restore import Attempt, Outcome
from harness.reset.vacuum import Vacuum
from harness.reset.waiting import Waiting

MOST_BYTES = 12 * 1024**2
"""Bytes of log that are decoded for one reset; a clone is cheaper than more. A neighbour that copies a database by
WAL_LOG writes 8 MB in few records, quickly read: that must not cost everybody a clone."""


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
        stage: called with the name of each stage; for tests.
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
        stage: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.limits = Limits(reset_timeout, most_bytes)
        self._open_reader, self._open_restorer, self._open_baseline = reader, restorer, baseline
        self._role = role
        self._stage = stage
        self._reader: WalReader | None = None
        self._restorer: Session | None = None
        self._store: BaselineStore | None = None
        self._bases: dict[int, TableBase] = {}
        self._marks = Marks()
        self._files: dict[int, int] = {}
        self._by_file: dict[int, int] = {}
        self._touched: dict[str, set[int]] = {}
        self._own: list[int] = []
        self._pending = Changes()
        self._start = self._seen = ""
        self._database = self._role_oid = 0
        self._shared: restore_catalogs.Shared = ()
        self._vacuum = Vacuum()
        self._based = False
        self._one_at_a_time = threading.RLock()

    # -- the pristine state -------------------------------------------------------------------------

    def rebase(self) -> None:
        """Call it when the database is pristine: just claimed, or just cloned again.

        Marks that are set are made true again: their rows are put into the new clone.

        Raises:
            RecloneNeeded: this server cannot be read (``lasting``), or the clone is not like the baseline.
        """
        self._based = False
        try:
            try:
                self._rebase()
            except ServerLost as error:
                # A session may have died unnoticed since the last reset: once more, with new ones.
                self._lost(error)
                self._rebase()
            self._based = True
            if self._marks:
                self._pending = self._marks.everything()
                self._reset_loop(_Run(self))
        except ServerRefused as error:
            raise _unreadable(error) from error
        except ServerLost as error:
            raise self._lost(error) from error

    def _rebase(self) -> None:
        if self._restorer is not None:
            self._restorer.close()
        self._restorer = self._open_restorer(restore_batch.RESTORER_SETTINGS)
        reader, store = self._wal, self.store
        self._database = int(
            self._restorer.value("select oid::int8 from pg_database where datname = current_database()")
        )
        self._role_oid = int(
            self._restorer.value("select coalesce(to_regrole(%s), 0)::oid::int8", (_quoted(self._role),))
        )
        self._files.clear()
        self._remember_files(restore_facts.files(self._restorer))
        if {oid for oid in self._files if oid >= restore_facts.FIRST_USER_OID} != {
            oid for oid in store.relations if oid >= restore_facts.FIRST_USER_OID
        }:
            raise RecloneNeeded("the database is no copy of its baseline: other relations are in it")
        # A sequence that was logged ahead moves without a word in the log: setval ends that.
        ahead = [oid for oid, state in store.sequences.items() if state.logged_ahead]
        if ahead:
            restore_batch.run(self._restorer, [
                f"select setval('{oid}'::regclass, {store.sequences[oid].last_value}, "
                f"{str(store.sequences[oid].is_called).lower()})" for oid in ahead
            ])  # fmt: skip
        self._shared = restore_catalogs.shared(reader.session, self._database, self._role_oid)
        self._touched.clear()
        self._own.clear()
        self._pending = Changes()
        for base in self._bases.values():
            base.rebase()
        self._vacuum = Vacuum()
        self._start, self._seen = reader.position(), ""

    def _remember_files(self, files: Mapping[int, int]) -> None:
        if not files:
            return
        self._files.update(files)
        self._by_file = {node: oid for oid, node in self._files.items()}

    @property
    def marked(self) -> bool:
        """Whether any mark is set."""
        return bool(self._marks)

    @property
    def store(self) -> BaselineStore:
        """Facts of the baseline; read when first wanted."""
        if self._store is None:
            self._store = BaselineStore(lambda: self._open_baseline(restore_batch.RESTORER_SETTINGS))
        return self._store

    @property
    def _wal(self) -> WalReader:
        if self._reader is None or self._reader.session.closed:
            self._reader = WalReader(self._open_reader())
        return self._reader

    @property
    def _lease(self) -> Session:
        if self._restorer is None or self._restorer.closed:
            raise ServerLost("the reset's session in the database was lost")
        return self._restorer

    @property
    def ours(self) -> tuple[int, ...]:
        """Pids of the engine's own sessions."""
        sessions = (self._reader.session if self._reader else None, self._restorer)
        return tuple(session.pid for session in sessions if session is not None and not session.closed)

    # -- what users call ----------------------------------------------------------------------------

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
        return replace(report, milliseconds=1000 * (time.monotonic() - began), ended=tuple(run.waiting.ended))

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
        try:
            window = self._look(force=True)
            found = self._resolve(window)
            differences = self._compare(found.catalogs) if not window.unfinished else ()
        except ServerLost as error:
            raise self._lost(error) from error
        except ServerRefused as error:
            raise RecloneNeeded(f"the changes cannot be read: {error}") from error
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
        try:
            return set_mark(self)
        except ServerLost as error:
            raise self._lost(error) from error
        except ServerRefused as error:
            raise RecloneNeeded(f"the mark cannot be set: {error}") from error

    def _pop(self) -> None:
        """Release the top mark: what it holds is a change against the state below."""
        layer = self._marks.pop()
        self._pending = _united(self._pending, layer.changes)

    def close(self) -> None:
        """Log out everywhere; never raises for sessions that are gone."""
        for session in (self._reader.session if self._reader else None, self._restorer):
            if session is not None:
                session.close()
        if self._store is not None:
            self._store.close()
        self._based = False

    # -- the loop -----------------------------------------------------------------------------------

    def _check_based(self) -> None:
        if not self._based:
            raise RecloneNeeded("the state of the database is not known (an earlier reset failed)")

    def _reset_loop(self, run: _Run) -> ResetReport:
        rows, tables = 0, set[str]()
        while True:
            force = bool(self._pending or self.store.unlogged_tables or self.store.unlogged_sequences)
            if run.crowded and not self._lock_first(run):
                continue
            window = self._look(force=force or bool(run.crowded))
            if window.advisory or window.prepared or window.unfinished:
                run.unlock()
                run.waiting.hindered(window)
                continue
            if not window.moved:
                return ResetReport("restore" if tables else "nothing", tuple(sorted(tables)), rows)
            if window.too_much:
                raise RecloneNeeded(
                    f"{window.bytes / 1e6:.0f} MB of log were written since the last reset: reading them costs more than a clone"
                )
            found = self._resolve(window)
            todo = plan(found, self._baseline(found))
            if isinstance(todo, Reclone):
                raise RecloneNeeded(todo.reason)
            if found.shared:
                self._put_back_shared()
            if isinstance(todo, Nothing):
                run.unlock()
                if run.waiting.writers(window):
                    continue
                self._advance(window)
                self._pending = Changes()
                return ResetReport("restore" if tables else "nothing", tuple(sorted(tables)), rows)
            if run.crowded and not set(todo.tables) <= run.crowded:
                run.unlock()
                run.crowded |= set(todo.tables)
                continue
            outcome = self._restore(todo, found, window, run)
            if outcome is None:
                run.crowded |= set(todo.tables)
                run.waiting.crowd()
                continue
            rows += outcome.rows
            tables.update(found.names.get(oid, str(oid)) for oid in todo.tables)
            tables.update(found.names.get(oid, str(oid)) for oid in todo.sequences)
            if outcome.hindered and run.waiting.old_snapshots(outcome.xid):
                continue  # whoever had to be waited for may have written in the meantime
            self._vacuum.after(self._lease, outcome.dead, self._bases, self._touched)
            return ResetReport("restore", tuple(sorted(tables)), rows)

    def _lock_first(self, run: _Run) -> bool:
        """Somebody wrote between the look and the locks: this time the locks come first, and then the look."""
        run.unlock()
        tables = ", ".join("only " + self.store.relations[oid].sql for oid in sorted(run.crowded))
        try:
            restore_batch.run(self._lease, ["begin", f"lock table {tables} in share row exclusive mode"])
        except ServerRefused as error:
            restore_batch.rollback(self._lease)
            if error.sqlstate not in (restore_batch.LOCK_NOT_AVAILABLE, restore_batch.DEADLOCK):
                raise RecloneNeeded(f"the tables cannot be locked: {error}") from error
            run.waiting.lock_holders(sorted(run.crowded))
            return False
        run.locked = True
        return True

    def _look(self, *, force: bool) -> Window:
        self._stage("before-look")
        try:
            window = self._wal.look(
                self._start,
                seen=None if force else (self._seen or None),
                database=self._database,
                own=self._own,
                ours=self.ours,
                most=self.limits.most_bytes,
            )
        except ServerRefused as error:
            if error.sqlstate == restore_batch.RECYCLED or "WAL" in error.message:
                raise RecloneNeeded(
                    f"the log since the last reset was recycled or cannot be read ({error})",
                    remedy="a larger wal_keep_size keeps more of it",
                ) from error
            raise
        self._stage("looked")
        return window

    def _resolve(self, window: Window) -> Changes:
        """Relations of the window's records, with what is pending or always dirty."""
        relations = self.store.relations
        found = detect.changes(window.relations, by_file=self._by_file, relations=relations)
        if "pg_class" in found.catalogs or found.unknown:
            blocks = found.catalogs.get("pg_class")
            now = restore_facts.files(self._lease, blocks)
            rewritten = [oid for oid, node in now.items() if oid in self._files and self._files[oid] != node]
            by_file = {**self._by_file, **{node: oid for oid, node in now.items()}}
            found = detect.changes(
                window.relations, by_file=by_file, relations=relations, rewritten=rewritten
            )
        return _united(self._pending, self._with_unlogged(found))

    def _with_unlogged(self, found: Changes) -> Changes:
        store = self.store
        if not (store.unlogged_tables or store.unlogged_sequences):
            return found
        tables = dict(found.tables)
        for oid in store.unlogged_tables:
            tables[oid] = detect.merge(tables.get(oid, TableChange()), TableChange(unlogged=True))
        always = [*store.unlogged_tables, *store.unlogged_sequences]
        names = {**found.names, **{oid: str(store.relations[oid]) for oid in always}}
        return replace(
            found, tables=tables, sequences=found.sequences | set(store.unlogged_sequences), names=names
        )

    def _base(self, oid: int) -> TableBase:
        if (marked := self._marks.table(oid)) is not None:
            return marked
        if oid not in self._bases:
            self._bases[oid] = self.store.table(oid)
        return self._bases[oid]

    def _sequence(self, oid: int) -> SequenceState:
        return self._marks.sequence(oid) or self.store.sequences[oid]

    def _baseline(self, found: Changes) -> Baseline:
        known = self.store.relations
        states = {
            oid: self._base(oid).state for oid in found.tables if oid in known and known[oid].kind == "r"
        }
        return Baseline(known, states, self.store.sequences)

    # -- putting back -------------------------------------------------------------------------------

    def _restore(self, todo: Restore, found: Changes, window: Window, run: _Run) -> Outcome | None:
        """One attempt; None where it has to begin again."""
        if differences := self._compare(todo.catalogs):
            raise RecloneNeeded(f"the schema differs from the template's ({'; '.join(differences)})")
        files = (
            restore_facts.files(self._lease, todo.catalogs["pg_class"]) if "pg_class" in todo.catalogs else {}
        )
        bases = {oid: self._base(oid) for oid in todo.tables}
        sequences = {oid: self._sequence(oid) for oid in todo.sequences}
        attempt = Attempt(self._lease, self.store, todo, found.tables, bases, sequences, self._stage)
        try:
            outcome = attempt.run(locked=run.locked)
        except ServerRefused as error:
            restore_batch.rollback(self._lease)
            run.locked = False
            if error.sqlstate not in (restore_batch.LOCK_NOT_AVAILABLE, restore_batch.DEADLOCK):
                raise RecloneNeeded(f"the rows cannot be put back: {error}") from error
            run.waiting.lock_holders(sorted(todo.tables))
            return None
        except RecloneNeeded:
            restore_batch.rollback(self._lease)
            raise
        self._own.append(outcome.xid)
        if outcome.position != window.seen:
            later = self._unchanged_since(window)
            if later is None:
                restore_batch.rollback(self._lease)
                run.locked = False
                return None
            window = later
        self._stage("before-commit")
        outcome.hindered = attempt.commit(self._database, self.ours)
        run.locked = False
        self._stage("committed")
        self._own = [outcome.xid]
        self._advance(window)
        self._seen = ""
        self._pending = Changes()
        # Only now: an attempt that begins again must find the table rewritten once more.
        self._remember_files({**files, **outcome.files})
        self._adopt(outcome)
        return outcome

    def _unchanged_since(self, window: Window) -> Window | None:
        """The window up to now, where nobody but us wrote to this database after the last one; else None."""
        later = self._wal.look(
            window.stop,
            seen=None,
            database=self._database,
            own=self._own,
            ours=self.ours,
            most=self.limits.most_bytes,
        )
        if later.too_much or later.unfinished:
            mine = {self._own[-1]}
            if later.too_much or set(later.unfinished) - mine:
                return None
        found = detect.changes(later.relations, by_file=self._by_file, relations=self.store.relations)
        # Our own writes to catalogs are read here and never again: the next comparison has to know their blocks.
        for name, blocks in found.catalogs.items():
            self._touched.setdefault(name, set()).update(blocks)
        if found.shared:
            self._put_back_shared()
        foreign = any(
            not records.own and not records.shared and set(records.records) - NOISE
            for records in later.relations
        )
        return (
            None if foreign or found.tables or found.sequences or found.unknown else replace(later, seen="")
        )

    def _adopt(self, outcome: Outcome) -> None:
        """The attempt was committed: remember where the rows lie now."""
        for oid, places in outcome.places.items():
            self._base(oid).lie(places)
        for oid, replaced in outcome.replaced.items():
            self._base(oid).move(replaced)
        for oid, moved in outcome.moved.items():
            self._base(oid).moved.update(moved)
        self._marks.wrote(outcome.written)

    def _compare(self, catalogs: Mapping[str, frozenset[int]]) -> tuple[str, ...]:
        """What differs in the touched catalogs from the baseline; they need no second look before the next touch."""
        asked = [n for n in catalogs if n not in restore_catalogs.STATISTICS | restore_catalogs.LARGE_OBJECTS]
        for name in asked:
            self._touched.setdefault(name, set()).update(catalogs[name])
        differences = restore_catalogs.compare(
            self._lease,
            self.store.session,
            {name: self._touched[name] for name in asked},
            self.store.places,
        )
        if "pg_index" in catalogs and restore_catalogs.indexed(self._lease) != self.store.indexed:
            differences.append("pg_class: an index was created and rolled back")
        return tuple(differences)

    def _put_back_shared(self) -> None:
        """Settings of this database and of the role; other differences are for a clone."""
        session = self._wal.session
        now = restore_catalogs.shared(session, self._database, self._role_oid)
        if now == self._shared:
            return
        changed = set(now) ^ set(self._shared)
        if kinds := {what for what, _, _ in changed if what != "setting"}:
            raise RecloneNeeded(f"the {' and the '.join(sorted(kinds))} of this database changed")
        statements = restore_catalogs.put_back_settings(self._database, self._role_oid, self._shared)
        restore_batch.run(session, ["begin", *statements, "commit"])

    def _advance(self, window: Window) -> None:
        """Where the next window begins: exactly where the reading of this one ended."""
        self._start, self._seen = window.stop, window.seen

    def _lost(self, error: HarnessError) -> RecloneNeeded:
        self._based = False
        for session in (self._reader.session if self._reader else None, self._restorer):
            if session is not None:
                session.close()
        if self._store is not None:
            self._store.close()
        return RecloneNeeded(f"a session of the reset was lost, the server may have restarted ({error})")

    def __repr__(self) -> str:
        state = f"pristine at {self._start}" if self._based else "state unknown"
        return f"<ResetEngine database {self._database}: {state}, {len(self._marks)} marks>"


class _Run:
    """One reset: how long it has waited, whom it ended.

    Attributes:
        crowded: tables that were written while a reset looked: they are locked before the next look.
        locked: whether they are locked now, in an open transaction of the restorer.
    """

    def __init__(self, engine: ResetEngine) -> None:
        self.crowded: set[int] = set()
        self.locked = False
        self._engine = engine
        self.waiting = Waiting(
            reader=lambda: engine._wal.session,
            lease=lambda: engine._lease,
            database=lambda: engine._database,
            ours=lambda: engine.ours,
            timeout=engine.limits.reset_timeout,
        )

    def unlock(self) -> None:
        """Let the tables go, where they are locked."""
        if self.locked:
            self.locked = False
            restore_batch.rollback(self._engine._lease)


def _united(one: Changes, two: Changes) -> Changes:
    if not one:
        return two
    tables = dict(one.tables)
    for oid, change in two.tables.items():
        tables[oid] = detect.merge(tables[oid], change) if oid in tables else change
    catalogs = {name: one.catalogs.get(name, frozenset()) | two.catalogs.get(name, frozenset())
                for name in {*one.catalogs, *two.catalogs}}  # fmt: skip
    return Changes(
        tables=tables,
        sequences=one.sequences | two.sequences,
        catalogs=catalogs,
        shared=one.shared or two.shared,
        unknown=one.unknown | two.unknown,
        ddl=(*one.ddl, *two.ddl),
        names={**one.names, **two.names},
    )


def _quoted(role: str) -> str:
    return ident(role)


def _unreadable(error: ServerRefused) -> RecloneNeeded:
    remedies = {
        "42501": "grant the admin the rights of docs/reset.md: pg_read_server_files, session_replication_role",
        "0A000": "use PostgreSQL 15 or later",
        "58P01": "install the contrib modules of the server (postgresql-contrib)",
    }
    remedy = remedies.get(error.sqlstate, "")
    return RecloneNeeded(f"the server's log cannot be read: {error}", remedy=remedy, lasting=bool(remedy))


__all__ = ["Limits", "ResetEngine"]
