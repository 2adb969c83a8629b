"""The tracker: what is known of one database since it was pristine.

Where the next window of the log begins, which of its records are the reset's own, where rows lie that were put elsewhere, which
files and catalogs differ from the baseline's, what is pending for the next reset. It reads and compares, and decides nothing:
what is done about a change, and in which order, is the engine's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from harness.postgres import activity
from harness.postgres.incarnation import Incarnation
from harness.reset import detect, watermark
from harness.reset.baseline import TableBase
from harness.reset.changes import UNCHANGED, Baseline, Changes, RecloneNeeded, TableChange
from harness.reset.connections import Connections
from harness.reset.marks import Marks
from harness.reset.outcome import Outcome
from harness.reset.sql import batch, shared
from harness.reset.sql import catalogs as catalogs_sql
from harness.reset.sql import relations as relations_sql
from harness.reset.sql.relations import SequenceState
from harness.reset.sql.sequences import setval
from harness.reset.wal.reader import NOISE, WalQuery, WalWindow
from harness.reset.watermark import Places, Watermark

SHARED_KINDS = {
    "database": "rights, owner or limits of the database",
    "comment": "the comment of the database",
    "role": "attributes of the application's role",
    "membership": "memberships of the application's role",
    "subscription": "subscriptions of the database",
}
"""What the server's own catalogs hold of a database and a role, for people."""


class Allowance(NamedTuple):
    """How much log may be read.

    Attributes:
        most_bytes: of log.
        patience: milliseconds.
    """

    most_bytes: int
    patience: float


class Tracker:
    """What is known of one database since it was pristine. Not safe for use by several threads.

    Args:
        connections: the reset's own sessions.
        marks: the stack of marks; what a mark holds goes before the baseline.
        role: the application's role, whose settings are compared too.

    Attributes:
        database, role_oid: OIDs.
        start: position at which the next window of the log begins.
        seen: the insert position at which nothing has moved since the last reading; empty to read in any case.
        own: ids of the reset's own transactions since ``start``.
        clean: position at which its pages last equalled the baseline's, byte by byte; empty where that is not known. What comes
            after it in the log names every page that differs, but for the records of ``rewinds``.
        rewinds: ids of the rewinds since ``clean``.
        files: OID → number of its file.
        advisory: advisory locks that were there while the database was pristine, and stay: pid, and which lock.
        pending: what is to be put back though no later record names it.
        unsettled: ids of transactions that wrote to the server's own catalogs, and may not have ended.
        touched: catalog → blocks of it that were written since the clone was made.
        first_files: as ``files``, when the clone was made.
        noted: whether it goes on from a note; else it began with a fresh clone.
        strange: whether the lease had other relations than the baseline then.
    """

    def __init__(self, connections: Connections, marks: Marks, role: str) -> None:
        self._connections = connections
        self._marks = marks
        self._role = role
        self.database = self.role_oid = 0
        self.start = self.seen = ""
        self.own: list[int] = []
        self.clean = ""
        self.rewinds: tuple[int, ...] = ()
        self.files: dict[int, int] = {}
        self.advisory: frozenset[tuple[int, str]] = frozenset()
        self.pending = Changes()
        self.unsettled: tuple[int, ...] = ()
        self.touched: dict[str, set[int]] = {}
        self.first_files: Mapping[int, int] = {}
        self.noted = self.strange = False
        self._renumbered = False
        self._by_file: dict[int, int] = {}
        self._bases: dict[int, TableBase] = {}
        self._shared: shared.Shared = ()

    # --- where it begins, and how another process goes on ------------------------------------------

    def rebase(self, noted: Watermark | None, *, by_pages: bool = False) -> None:
        """The database is pristine, or was when that was noted: what was known of another clone is forgotten.

        Args:
            by_pages: pages can be put back: a schema that was changed since the note is no reason for a clone.

        Raises:
            RecloneNeeded: it is not like the baseline, or what was noted does not hold any more.
        """
        connections = self._connections
        connections.leave()
        reader = connections.wal
        # In the session that will read the log: it lives in one life of the server.
        if noted is not None and (why := noted.life.other(Incarnation.of(reader.session))):
            raise RecloneNeeded(why)
        store = connections.store
        lease = connections.enter()
        files = relations_sql.files(lease)
        others = _of_users(files) ^ _of_users(store.relations)
        self.noted, self.strange = noted is not None, bool(others)
        if others and not (by_pages and noted is not None and noted.clean):
            shown = [*relations_sql.labels(lease, others), *relations_sql.labels(store.session, others)]
            raise RecloneNeeded(
                f"the schema differs from the template's (relation {', '.join(dict.fromkeys(shown[:3]))})"
            )
        # A sequence that was logged ahead moves without a word in the log: setval ends that.
        ahead = [oid for oid, state in store.sequences.items() if state.logged_ahead]
        locks: list[tuple[int, str]] = []
        if noted is None:
            if ahead:
                batch.run(lease, [f"select {setval(o, store.sequences[o])}" for o in ahead])
            start = watermark.take(reader.session, lease.dsn.database, self._role)
            here = reader.position()
            start = replace(start, position=here, clean=here)
            locks = activity.advisory(reader.session, start.database, connections.ours)
        elif ahead:
            raise RecloneNeeded("a sequence of the template is logged ahead: what moved it cannot be seen")
        else:
            # A test may have given a relation another file since: in a copy of the same template it has the first one.
            start, files = noted, relations_sql.files(store.session)
        self.database, self.role_oid, self._shared = start.database, start.role, start.shared
        self.files.clear()
        self.remember_files(files)
        self._renumbered = False
        self.touched.clear()
        self.own.clear()
        self.pending, self.unsettled, self.advisory = Changes(), (), frozenset(locks)
        for base in self._bases.values():
            base.rebase()
        self.start, self.seen = start.position, ""
        # A sequence that was put back by setval lies otherwise than in the baseline.
        self.clean, self.rewinds = ("" if ahead else start.clean), start.rewinds
        self.first_files = files
        if noted is not None:
            self.resume(noted)

    def watermark(self) -> Watermark | None:
        """What another process needs to go on from here; None where something is pending. There must be no marks."""
        if self.pending or self.unsettled:
            return None
        first = self.first_files
        return Watermark(
            self.start,
            self.database,
            self.role_oid,
            self._shared,
            tuple(self.own),
            {oid: node for oid, node in self.files.items() if first.get(oid) != node},
            {name: frozenset(blocks) for name, blocks in self.touched.items() if blocks},
            {oid: places for oid, base in self._bases.items() if (places := _moved(base))},
            clean=self.clean,
            rewinds=self.rewinds,
        )

    def resume(self, noted: Watermark) -> None:
        """Take up what resets before the watermark have left, where nothing else is known.

        Raises:
            RecloneNeeded: the baseline is another one than that of the watermark.
        """
        store = self._connections.store
        self.own.extend(noted.own)
        self.remember_files(noted.files)
        self.touched.update({name: set(blocks) for name, blocks in noted.touched.items()})
        for oid, places in noted.places.items():
            if oid not in store.relations:
                raise RecloneNeeded("the note of the last reset is of another baseline")
            base = self._bases[oid] = store.table(oid)
            if base.rows is None:
                base.moved.update(places)
                continue
            numbers = {home: number for number, (home, _) in enumerate(base.rows.places)}
            if not places.keys() <= numbers.keys():
                raise RecloneNeeded("the note of the last reset is of another baseline")
            base.move({numbers[home]: place for home, place in places.items()})

    # --- reading the log ---------------------------------------------------------------------------

    @property
    def must_read(self) -> bool:
        """Whether something has to be looked at though the log may not have moved."""
        store = self._connections.store
        return bool(self.pending or self.unsettled or store.unlogged_tables or store.unlogged_sequences)

    def read(self, allowance: Allowance, *, force: bool) -> WalWindow:
        """Read the log from where the last window ended.

        Args:
            force: read even where the insert position has not moved.
        """
        seen = None if force else self.seen or None
        return self._connections.wal.read(self._query(self.start, allowance, seen=seen))

    def _query(
        self, start: str, allowance: Allowance, *, seen: str | None = None, brief: bool = False
    ) -> WalQuery:
        return WalQuery(
            start,
            seen=seen,
            database=self.database,
            own=self.own,
            ours=self._connections.ours,
            most=allowance.most_bytes,
            patience=allowance.patience,
            brief=brief,
        )

    def resolve(self, window: WalWindow) -> tuple[Changes, Mapping[int, int]]:
        """Relations of the window's records, with what is pending or always dirty; and the numbers of files as they
        are now, of relations that may have another one."""
        relations = self._connections.store.relations
        now: Mapping[int, int] = {}
        found = detect.changes(window.relations, by_file=self._by_file, relations=relations)

        def with_files() -> Changes:
            rewritten = [oid for oid, node in now.items() if oid in self.files and self.files[oid] != node]
            by_file = {**self._by_file, **{node: oid for oid, node in now.items()}}
            return detect.changes(window.relations, by_file=by_file, relations=relations, rewritten=rewritten)

        if "pg_class" in found.catalogs or found.unknown:
            blocks = found.catalogs.get("pg_class")
            now = relations_sql.files(self._connections.lease, blocks)
            found = with_files()
            if found.unknown and blocks is not None:
                # A file that is there, and whose row in pg_class was not touched in this window, is no mistake of ours.
                now = relations_sql.files(self._connections.lease)
                found = with_files()
        found = detect.united(self.pending, self._with_unlogged(found))
        # Ours: they need no comparison of their own, but the next one has to know their blocks.
        self._touch(detect.own_catalogs(window.relations, by_file=self._by_file, relations=relations))
        return (replace(found, shared=True) if self._unsettled_by(window) else found), now

    def _touch(self, catalogs: Mapping[str, Collection[int]]) -> None:
        """These blocks of catalogs were written since the clone was made: each later comparison has to know them."""
        for name, blocks in catalogs.items():
            self.touched.setdefault(name, set()).update(blocks)

    def _unsettled_by(self, window: WalWindow) -> bool:
        """Whether a transaction that wrote to the server's own catalogs may have ended since, or may still do so.

        It may be of another database, open for long, and its COMMIT names no block: until it has ended, each reset
        compares. Asked before that comparison: what ends in between is compared once more.
        """
        ids = {*self.unsettled, *window.unsettled}
        self.unsettled = (
            tuple(activity.in_progress(self._connections.wal.session, sorted(ids))) if ids else ()
        )
        return bool(ids)

    def _with_unlogged(self, found: Changes) -> Changes:
        store = self._connections.store
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

    def unchanged_since(
        self,
        window: WalWindow,
        until: str,
        allowance: Allowance,
        wrote: Collection[int] = (),
        inserted: Mapping[int, int] | None = None,
    ) -> WalWindow | None:
        """The window from where that one stopped, where nobody but us wrote to this database before ``until``; else None.

        What was written later is for the next look; without a word of it, this one reaches up to now.

        Args:
            wrote: OIDs of the tables and sequences that we have put back.
            inserted: table OID → how many rows.

        Raises:
            RecloneNeeded: more was written in our transaction than that.
        """
        # Brief: who is busy was asked in the first look, and is asked again with the COMMIT.
        asked = self._query(window.stop, allowance, brief=True)
        later = self._connections.wal.read(asked)
        relations = self._connections.store.relations
        if elsewhere := detect.written_besides(
            later.relations, wrote, inserted or {}, by_file=self._by_file, relations=relations
        ):
            raise RecloneNeeded(
                f"putting rows back changed {elsewhere} too: a function of a CHECK, an index or an event trigger does"
            )
        if not self._foreign(later):
            return later
        later = self._connections.wal.read(replace(asked, until=until))
        return None if self._foreign(later) else later

    def _foreign(self, later: WalWindow) -> bool:
        if later.too_much or later.unfinished:
            return True
        relations = self._connections.store.relations
        found = detect.changes(later.relations, by_file=self._by_file, relations=relations)
        # Writes to catalogs, ours too, are read here and never again: the next comparison has to know their blocks.
        self._touch(found.catalogs)
        self._touch(detect.own_catalogs(later.relations, by_file=self._by_file, relations=relations))
        if found.shared:
            self.put_back_shared()
        return bool(found.tables or found.sequences or found.unknown) or any(
            not records.own and not records.shared and set(records.records) - NOISE
            for records in later.relations
        )

    # --- how tables and sequences are to be --------------------------------------------------------

    def base(self, oid: int) -> TableBase:
        """A table as the top mark wants it, else as the baseline has it; its rows are read now if they never were."""
        if (marked := self._marks.table(oid)) is not None:
            return marked
        if oid not in self._bases:
            self._bases[oid] = self._connections.store.table(oid)
        return self._bases[oid]

    def sequence(self, oid: int) -> SequenceState:
        """A sequence as the top mark wants it, else as the baseline has it."""
        return self._marks.sequence(oid) or self._connections.store.sequences[oid]

    def baseline(self, found: Changes, *, may_truncate: bool, worth: float) -> Baseline:
        """What the planner has to know of the state to come back to.

        Args:
            may_truncate: nobody was found in the way of a TRUNCATE.
            worth: milliseconds that putting rows back may take.
        """
        store = self._connections.store
        known = store.relations
        states = {
            oid: self.base(oid).state for oid in found.tables if oid in known and known[oid].kind == "r"
        }
        return Baseline(
            known,
            states,
            store.sequences,
            held=self._marks.held,
            may_truncate=may_truncate,
            worth=worth,
        )

    # --- what a reset has done ---------------------------------------------------------------------

    def advance(self, window: WalWindow, own: Sequence[int] | None = None) -> None:
        """Where the next window begins: exactly where the reading of this one ended.

        Args:
            own: ids of our transactions, where they ended after that: the log has moved by them.
        """
        self.start, self.seen = window.stop, window.seen
        if own is not None:
            self.own, self.seen = [*own], ""

    def unsettle(self, ids: Iterable[int]) -> None:
        """What is looked at and not put back is for the next reset to compare: these may still end, or have ended."""
        self.unsettled = tuple({*ids, *self.unsettled})

    def release_top(self) -> None:
        """Release the top mark: what it holds is a change against the state below."""
        layer = self._marks.pop()
        self.pending = detect.united(self.pending, layer.changes)

    def remember_files(self, files: Mapping[int, int]) -> None:
        """The numbers of files as they are now, of these relations; none where they were not asked for."""
        if not files:
            return
        self.files.update(files)
        self._by_file = {node: oid for oid, node in self.files.items()}
        self._renumbered = True

    def rewound(self, upto: str, xid: int) -> None:
        """The pages equal those of the state to go back to: it is as right after a clone. There must be no mark of rows.

        Args:
            upto: where the reading of the log ended, and the next window begins.
            xid: of the transaction that put pages back; 0 where nothing was to be put back.
        """
        self.start = self.clean = upto
        if xid:
            self.rewinds = (xid,)
        self.own, self.seen = [*self.rewinds], "" if xid else upto
        self.pending = Changes()
        self.touched.clear()
        for base in self._bases.values():
            base.rebase()
        if self._renumbered:
            self.files.clear()
            self.remember_files(self.first_files)
            self._renumbered = False

    def adopt(self, outcome: Outcome) -> None:
        """What was committed of an attempt: remember whose it was, and where the rows lie now."""
        self.own = [*self.own, *outcome.xids]
        for oid, places in outcome.places.items():
            self.base(oid).lie(places)
        for oid, replaced in outcome.replaced.items():
            self.base(oid).move(replaced)
        for oid, moved in outcome.moved.items():
            self.base(oid).moved.update(moved)
        self._marks.displaced(outcome.displaced)

    def adopt_refused(self, done: Outcome) -> None:
        """What was committed of an attempt that was given up: of its first transaction, where the second failed."""
        self.adopt(done)
        # No record of the application names all the blocks that we have written.
        anew = {oid: TableChange(rewritten=True) for oid in done.anew}
        self.pending = detect.united(self.pending, Changes(tables=anew))
        # Beside the old numbers, which the window still names.
        self.files.update(done.files)
        self._by_file.update({node: oid for oid, node in done.files.items()})
        self._renumbered = True

    # --- catalogs ----------------------------------------------------------------------------------

    def compare(self, catalogs: Mapping[str, frozenset[int]]) -> tuple[str, ...]:
        """What differs in the touched catalogs from the baseline; they need no second look before the next touch."""
        asked = [n for n in catalogs if n not in catalogs_sql.STATISTICS | catalogs_sql.LARGE_OBJECTS]
        self._touch({name: catalogs[name] for name in asked})
        lease, store = self._connections.lease, self._connections.store
        differences = catalogs_sql.compare(
            lease, store.session, {name: self.touched[name] for name in asked}, store.places
        )
        if not differences and "pg_index" in catalogs and catalogs_sql.indexed(lease) != store.indexed:
            differences.append("an index was created and rolled back")
        return tuple(differences)

    @property
    def shared_changed(self) -> bool:
        """Whether settings, rights or attributes of this database and the role differ from the pristine ones."""
        now = shared.shared(self._connections.wal.session, self.database, self.role_oid)
        return now != self._shared

    def shared_statement(self) -> str:
        """What :meth:`put_back_shared` asks, to be sent with others."""
        return shared.statement(self.database, self.role_oid)

    def put_back_shared(self, now: shared.Shared | None = None) -> None:
        """Settings of this database and of the role; other differences are for a clone.

        Args:
            now: what :meth:`shared_statement` gave, where that was asked.
        """
        session = self._connections.wal.session
        if now is None:
            now = shared.shared(session, self.database, self.role_oid)
        if now == self._shared:
            return
        changed = set(now) ^ set(self._shared)
        if kinds := {SHARED_KINDS[what] for what, _, _ in changed if what != "setting"}:
            raise RecloneNeeded(f"{' and '.join(sorted(kinds))} changed")
        statements = shared.put_back_settings(self.database, self.role_oid, self._shared)
        batch.run(session, ["begin", *statements, "commit"])


def _of_users(relations: Iterable[int]) -> set[int]:
    return {oid for oid in relations if oid >= relations_sql.FIRST_USER_OID}


def _moved(base: TableBase) -> Places:
    if base.rows is None:
        return dict(base.moved)
    homes = base.rows.places
    return {
        home: place for (home, xmin), place in zip(homes, base.places, strict=True) if place != (home, xmin)
    }
