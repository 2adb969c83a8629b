"""What the reset engine of one database knows: its sessions, the pristine position, where the rows lie."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from harness.errors import HarnessError, ServerLost, ServerRefused
from harness.postgres import activity, sqlstate
from harness.postgres.incarnation import Incarnation
from harness.postgres.session import Session
from harness.reset import detect
from harness.reset.baseline import BaselineStore, TableBase
from harness.reset.changes import UNCHANGED, Baseline, Changes, RecloneNeeded, TableChange
from harness.reset.marks import Marks
from harness.reset.outcome import Outcome
from harness.reset.plan import ROW_MS
from harness.reset.sql import batch, shared
from harness.reset.sql import catalogs as catalogs_sql
from harness.reset.sql import relations as relations_sql
from harness.reset.sql.relations import SequenceState
from harness.reset.sql.sequences import setval
from harness.reset.sql.shared import Note
from harness.reset.vacuum import Vacuum
from harness.reset.wal.choose import ChosenReader
from harness.reset.wal.reader import NOISE, Question, WalReader, Window
from harness.reset.watermark import Carried

MOST_BYTES = 64 * 1024**2
"""Bytes of log that are read for one reset, whatever a clone costs: they lie in memory at once."""

CLONE_MS = 100.0
"""What a fresh clone is taken to cost until one was measured: milliseconds, with what it costs the application to log
in again."""

REFILL_MS = 60_000.0
"""The same while the rows of marks are put into a fresh clone: where that is given up, the marks are lost."""

WORTH = 1.5
"""How many times as long as a fresh clone a restore may take, for the sessions that it keeps."""

SHARED_KINDS = {
    "database": "rights, owner or limits of the database",
    "comment": "the comment of the database",
    "role": "attributes of the application's role",
    "membership": "memberships of the application's role",
    "subscription": "subscriptions of the database",
}
"""What the server's own catalogs hold of a database and a role, for people."""


@dataclass(frozen=True)
class Limits:
    """What the engine may spend.

    Attributes:
        reset_timeout: seconds to wait for sessions of the application before they are ended.
        most_bytes: of log to decode for one reset.
    """

    reset_timeout: float = 5.0
    most_bytes: int = MOST_BYTES


class EngineState:
    """The part of :class:`harness.reset.engine.ResetEngine` that reads. Not safe for use by several threads.

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
        self._first_files: Mapping[int, int] = {}
        self._touched: dict[str, set[int]] = {}
        self._own: list[int] = []
        self._locks: frozenset[tuple[int, str]] = frozenset()
        self._pending = Changes()
        self._unsettled: tuple[int, ...] = ()
        self._start = self._seen = ""
        self._database = self._role_oid = 0
        self._shared: shared.Shared = ()
        self._vacuum = Vacuum()
        self._based = False
        self.clone_ms = CLONE_MS
        self._refilling = False
        self._one_at_a_time = threading.RLock()

    def _rebase(self, noted: Note | None = None) -> None:
        if self._restorer is not None:
            self._restorer.close()
        reader = self._wal
        # In the session that will read the log: it lives in one life of the server.
        if noted is not None and (why := noted.life.other(Incarnation.of(reader.session))):
            raise RecloneNeeded(why)
        store = self.store
        self._restorer = self._open_restorer(batch.settings(reader.session.server_version))
        files = relations_sql.files(self._restorer)
        if others := _of_users(files) ^ _of_users(store.relations):
            shown = [
                *relations_sql.labels(self._restorer, others),
                *relations_sql.labels(store.session, others),
            ]
            raise RecloneNeeded(
                f"the schema differs from the template's (relation {', '.join(dict.fromkeys(shown[:3]))})"
            )
        # A sequence that was logged ahead moves without a word in the log: setval ends that.
        ahead = [oid for oid, state in store.sequences.items() if state.logged_ahead]
        locks: list[tuple[int, str]] = []
        if noted is None:
            if ahead:
                batch.run(self._restorer, [f"select {setval(o, store.sequences[o])}" for o in ahead])
            start = shared.note(reader.session, self._restorer.dsn.database, self._role)
            start = replace(start, position=reader.position())
            locks = activity.advisory(reader.session, start.database, self.ours)
        elif ahead:
            raise RecloneNeeded("a sequence of the template is logged ahead: what moved it cannot be seen")
        else:
            # A test may have given a relation another file since: in a copy of the same template it has the first one.
            start, files = noted, relations_sql.files(store.session)
        self._database, self._role_oid, self._shared = start.database, start.role, start.shared
        self._files.clear()
        self._remember_files(files)
        self._touched.clear()
        self._own.clear()
        self._pending, self._unsettled, self._locks = Changes(), (), frozenset(locks)
        for base in self._bases.values():
            base.rebase()
        self._vacuum = Vacuum()
        self._start, self._seen = start.position, ""
        self._first_files = files
        if isinstance(noted, Carried):
            noted.hand_over(self)

    @property
    def noted(self) -> Note | None:
        """What another process needs to go on from here (:meth:`rebase`); None where the state is not known."""
        known = self._based and not (self._marks or self._pending or self._unsettled)
        return Carried.of(self, self._first_files) if known else None

    def _remember_files(self, files: Mapping[int, int]) -> None:
        if not files:
            return
        self._files.update(files)
        self._by_file = {node: oid for oid, node in self._files.items()}

    @property
    def store(self) -> BaselineStore:
        """Facts of the baseline; read when first wanted."""
        if self._store is None:
            settings = batch.settings(self._wal.session.server_version)
            self._store = BaselineStore(lambda: self._open_baseline(settings))
        return self._store

    @property
    def has_baseline(self) -> bool:
        """Whether the session in the baseline is open."""
        return self._store is not None and self._store.opened

    @property
    def _wal(self) -> WalReader:
        if self._reader is None or self._reader.session.closed:
            session = self._open_reader()
            try:
                self._reader = ChosenReader(session)
            except BaseException:
                session.close()
                raise
        return self._reader

    @property
    def doubt(self) -> str:
        """See :class:`ChosenReader`; empty before the first look."""
        return self._reader.doubt if isinstance(self._reader, ChosenReader) else ""

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

    def _check_based(self) -> None:
        if not self._based:
            raise RecloneNeeded("the state of the database is not known (an earlier reset failed)")

    def cloned_in(self, milliseconds: float) -> None:
        """A fresh clone was made in this time: reading the log may cost as much, and no more."""
        self.clone_ms += (milliseconds - self.clone_ms) / 2

    def _question(
        self, start: str, *, seen: str | None = None, patience: float | None = None, brief: bool = False
    ) -> Question:
        return Question(
            start,
            seen=seen,
            database=self._database,
            own=self._own,
            ours=self.ours,
            most=self.limits.most_bytes,
            patience=self._price if patience is None else patience,
            brief=brief,
        )

    def _look(self, *, force: bool, patience: float | None = None) -> Window:
        self._stage("before-look")
        try:
            seen = None if force else self._seen or None
            window = self._wal.look(self._question(self._start, seen=seen, patience=patience))
        except ServerRefused as error:
            if error.sqlstate == sqlstate.UNDEFINED_FILE or "WAL" in error.message:
                raise RecloneNeeded(
                    f"the log since the last reset was recycled or cannot be read ({error})",
                    remedy="a larger wal_keep_size keeps more of it",
                ) from error
            raise
        self._stage("looked")
        return window

    def _resolve(self, window: Window) -> tuple[Changes, Mapping[int, int]]:
        """Relations of the window's records, with what is pending or always dirty; and the numbers of files as they
        are now, of relations that may have another one."""
        relations = self.store.relations
        now: Mapping[int, int] = {}
        found = detect.changes(window.relations, by_file=self._by_file, relations=relations)

        def with_files() -> Changes:
            rewritten = [oid for oid, node in now.items() if oid in self._files and self._files[oid] != node]
            by_file = {**self._by_file, **{node: oid for oid, node in now.items()}}
            return detect.changes(window.relations, by_file=by_file, relations=relations, rewritten=rewritten)

        if "pg_class" in found.catalogs or found.unknown:
            blocks = found.catalogs.get("pg_class")
            now = relations_sql.files(self._lease, blocks)
            found = with_files()
            if found.unknown and blocks is not None:
                # A file that is there, and whose row in pg_class was not touched in this window, is no mistake of ours.
                now = relations_sql.files(self._lease)
                found = with_files()
        found = detect.united(self._pending, self._with_unlogged(found))
        # Ours: they need no comparison of their own, but the next one has to know their blocks.
        self._touch(detect.own_catalogs(window.relations, by_file=self._by_file, relations=relations))
        return (replace(found, shared=True) if self._unsettled_by(window) else found), now

    def _touch(self, catalogs: Mapping[str, Collection[int]]) -> None:
        """These blocks of catalogs were written since the clone was made: each later comparison has to know them."""
        for name, blocks in catalogs.items():
            self._touched.setdefault(name, set()).update(blocks)

    def _unsettled_by(self, window: Window) -> bool:
        """Whether a transaction that wrote to the server's own catalogs may have ended since, or may still do so.

        It may be of another database, open for long, and its COMMIT names no block: until it has ended, each reset
        compares. Asked before that comparison: what ends in between is compared once more.
        """
        ids = {*self._unsettled, *window.unsettled}
        self._unsettled = tuple(activity.in_progress(self._wal.session, sorted(ids))) if ids else ()
        return bool(ids)

    def _with_unlogged(self, found: Changes) -> Changes:
        store = self.store
        if not (store.unlogged_tables or store.unlogged_sequences):
            return found
        tables = dict(found.tables)
        for oid in store.unlogged_tables:
            tables[oid] = detect.merge(tables.get(oid, UNCHANGED), TableChange(unlogged=True))
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

    def _baseline(self, found: Changes, *, may_truncate: bool = True) -> Baseline:
        known = self.store.relations
        states = {
            oid: self._base(oid).state for oid in found.tables if oid in known and known[oid].kind == "r"
        }
        return Baseline(
            known,
            states,
            self.store.sequences,
            held=self._marks.held,
            may_truncate=may_truncate,
            worth=self._worth,
        )

    @property
    def _price(self) -> float:
        """Milliseconds that a fresh clone costs: into it all rows of the marks have to be put."""
        return REFILL_MS if self._refilling else self.clone_ms + ROW_MS * self._marks.rows

    @property
    def _worth(self) -> float:
        """Milliseconds that putting rows back may take: it keeps the sessions, which a clone ends."""
        return WORTH * self._price

    def _unchanged_since(
        self,
        window: Window,
        until: str,
        wrote: Collection[int] = (),
        inserted: Mapping[int, int] | None = None,
    ) -> Window | None:
        """The window from where that one stopped, where nobody but us wrote to this database before ``until``; else None.

        What was written later is for the next look; without a word of it, this one reaches up to now.

        Args:
            wrote: OIDs of the tables and sequences that we have put back.
            inserted: table OID → how many rows.

        Raises:
            RecloneNeeded: more was written in our transaction than that.
        """
        # Brief: who is busy was asked in the first look, and is asked again with the COMMIT.
        asked = self._question(window.stop, brief=True)
        later = self._wal.look(asked)
        if elsewhere := detect.written_besides(
            later.relations, wrote, inserted or {}, by_file=self._by_file, relations=self.store.relations
        ):
            raise RecloneNeeded(
                f"putting rows back changed {elsewhere} too: a function of a CHECK, an index or an event trigger does"
            )
        if not self._foreign(later):
            return later
        later = self._wal.look(replace(asked, until=until))
        return None if self._foreign(later) else later

    def _foreign(self, later: Window) -> bool:
        if later.too_much or later.unfinished:
            return True
        found = detect.changes(later.relations, by_file=self._by_file, relations=self.store.relations)
        # Writes to catalogs, ours too, are read here and never again: the next comparison has to know their blocks.
        self._touch(found.catalogs)
        self._touch(
            detect.own_catalogs(later.relations, by_file=self._by_file, relations=self.store.relations)
        )
        if found.shared:
            self._put_back_shared()
        return bool(found.tables or found.sequences or found.unknown) or any(
            not records.own and not records.shared and set(records.records) - NOISE
            for records in later.relations
        )

    def _adopt(self, outcome: Outcome) -> None:
        """What was committed of an attempt: remember whose it was, and where the rows lie now."""
        self._own = [*self._own, *outcome.xids]
        for oid, places in outcome.places.items():
            self._base(oid).lie(places)
        for oid, replaced in outcome.replaced.items():
            self._base(oid).move(replaced)
        for oid, moved in outcome.moved.items():
            self._base(oid).moved.update(moved)
        self._marks.displaced(outcome.displaced)

    def _compare(self, catalogs: Mapping[str, frozenset[int]]) -> tuple[str, ...]:
        """What differs in the touched catalogs from the baseline; they need no second look before the next touch."""
        asked = [n for n in catalogs if n not in catalogs_sql.STATISTICS | catalogs_sql.LARGE_OBJECTS]
        self._touch({name: catalogs[name] for name in asked})
        differences = catalogs_sql.compare(
            self._lease,
            self.store.session,
            {name: self._touched[name] for name in asked},
            self.store.places,
        )
        if "pg_index" in catalogs and catalogs_sql.indexed(self._lease) != self.store.indexed:
            differences.append("pg_class: an index was created and rolled back")
        return tuple(differences)

    @property
    def shared_changed(self) -> bool:
        """Whether settings, rights or attributes of this database and the role differ from the pristine ones."""
        now = shared.shared(self._wal.session, self._database, self._role_oid)
        return now != self._shared

    def _put_back_shared(self) -> None:
        """Settings of this database and of the role; other differences are for a clone."""
        session = self._wal.session
        now = shared.shared(session, self._database, self._role_oid)
        if now == self._shared:
            return
        changed = set(now) ^ set(self._shared)
        if kinds := {SHARED_KINDS[what] for what, _, _ in changed if what != "setting"}:
            raise RecloneNeeded(f"{' and '.join(sorted(kinds))} changed")
        statements = shared.put_back_settings(self._database, self._role_oid, self._shared)
        batch.run(session, ["begin", *statements, "commit"])

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


def _of_users(relations: Iterable[int]) -> set[int]:
    return {oid for oid in relations if oid >= relations_sql.FIRST_USER_OID}
