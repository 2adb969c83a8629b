"""The rewinder: has the server's module put the pages of a leased database back, and says when it cannot be so.

A rewind reads the log from ``Tracker.clean``, the position at which the pages of the lease last equalled the baseline's, byte by
byte. That is where the clone was made, or where the last rewind ended, and nothing else: rows that were put back by rows lie
elsewhere than in the baseline, so what a reset by rows wrote is as dirty as what a test wrote.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from harness.errors import HarnessError, ServerRefused
from harness.postgres import activity, sqlstate
from harness.postgres.session import Session, translated
from harness.reset.baseline import BaselineStore
from harness.reset.changes import RecloneNeeded
from harness.reset.connections import Connections
from harness.reset.rewind import facts, leftovers, page_marks
from harness.reset.rewind.answer import COLUMNS, Answer, parse
from harness.reset.sessions import Sessions
from harness.reset.sql import batch, owners, shared
from harness.reset.sql import relations as relations_sql
from harness.reset.sql.owners import Owned
from harness.reset.sql.sequences import sequence_statements
from harness.reset.tracker import Tracker

_ASKED = "$1::oid, $2::oid, $3::pg_lsn, $4::oid[], $5::int[], $6::oid[], $7::int8, $8::int8"
_CALL = "from {schema}.pgh_rewind({asked})"
_CALL_TO = "from {schema}.pgh_rewind_to({asked}, $9::text[], $10::text[])"
_CALL_MARK = (
    "from {schema}.pgh_mark({asked}, $9::text[], $10::text[], $11::text, "
    "$12::oid[], $13::oid[], $14::oid[], $15::text, $16::oid[])"
)
# With the sign of life, without which another version of the harness would drop the schema. Not waited for: who keeps it from us
# drops the schema just now, and the next call says that it is gone; or he has no business with it.
_KNOW = (
    "select {schema}.pgh_know($1::oid, $2::oid[], $3::oid[], $4::oid[], $5::text, $6::oid[]), "
    "pg_try_advisory_lock_shared({life})"
)
_REWIND, _REWIND_TO, _MARK = b"pgh_rewind", b"pgh_rewind_to", b"pgh_mark"

PATIENCE = 0.2
"""Seconds to wait for whoever is in the way, before he is ended in place of all."""

_MOST_PAGES = b"100000"
"""Pages that are compared for one rewind: 0.8 GB, beyond which a clone may take less."""

_MOST_MARKED = b"65536"
"""Pages that are compared for one mark: it may hold 512 MB."""

_NO_RELATIONS = (b"{}", b"{}", b"{}", b"", b"{}")

_GONE = frozenset(
    {sqlstate.UNDEFINED_FUNCTION, sqlstate.INVALID_SCHEMA_NAME, sqlstate.INSUFFICIENT_PRIVILEGE}
)
"""What a server says of functions that somebody dropped or took away, before any of their code runs."""


class Rewound(NamedTuple):
    """What one call has brought about: the pages of the lease equal the baseline's.

    Attributes:
        wrote: whether anything was put back.
        tables: names of the tables and sequences that were.
        done: whether the reset is; else something is left that the way by rows has to see to.
    """

    wrote: bool
    tables: frozenset[str]
    done: bool


class Rewinder:
    """Puts the pages of one leased database back. Not safe for use by several threads.

    Args:
        schema: of the module's functions, in the maintenance database: a plain name, which needs no quotes.
        most_bytes: of log that one call may read.

    Attributes:
        off: why it is not tried any more, for this clone or at all; empty while it is.
        lasting: whether ``off`` is for good.
        left: why the last try was left to the rows; empty where it was not.
        last: what the last call answered; None before the first.
        above: files of marks of pages that the lease may have pages of, though the log does not say so any more: of those that were
            released since the last rewind, and in a fresh clone of all.
    """

    def __init__(self, schema: str, *, most_bytes: int) -> None:
        self.off = self.left = ""
        self.last: Answer | None = None
        self.lasting = False
        self.above: tuple[str, ...] = ()
        self._owned: dict[str, Owned] = {}
        # Ids of the transactions that have written rows of who owns what for us, in this clone.
        self._wrote_owners: set[int] = set()
        self._schema = schema
        self._calls = {
            name: f"select {COLUMNS} {call.format(schema=schema, asked=_ASKED)}".encode()
            for name, call in ((_REWIND, _CALL), (_REWIND_TO, _CALL_TO), (_MARK, _CALL_MARK))
        }
        self._know = _KNOW.format(schema=schema, life=leftovers.sign_of_life(schema)).encode()
        self._most = str(most_bytes).encode()
        self._baseline: Session | None = None
        self._facts = facts.NOTHING
        # Namespaces for temporary tables that were empty in the baseline, and in which nothing has to be kept.
        self._unused = frozenset[int]()
        self._knows: Session | None = None
        self._prepared: Session | None = None

    def rebase(self, connections: Connections, tracker: Tracker, marks: tuple[str, ...] = ()) -> None:
        """The lease is another clone, or one that another process has reset: read and tell what has to be known.

        Args:
            marks: files of the marks of pages that are set, the lowest first.

        Raises:
            ServerLost: a session of ours is gone.
        """
        if self.lasting:
            return
        self.off = self.left = ""
        # The clone has no page of them; what was released is of the clone that is gone.
        page_marks.forget(connections.wal.session, self._schema, set(self.above) - set(marks))
        self.above = marks
        self._wrote_owners = owners.written(connections.wal.session, tracker.database) if marks else set()
        if not tracker.clean:
            self._stop("it is not known when its pages last equalled the baseline's")
            return
        try:
            self._learn(connections.store)
            self._tell(connections.wal.session)
        except ServerRefused as error:
            self._refused(error)
            return
        mine = self._facts.files
        if tracker.noted and not self._same_build(connections, tracker):
            # Else pages of one build would be put into another's, where each number means something else.
            raise RecloneNeeded("the schema differs from the template's, which was built again since")
        if any(tracker.first_files.get(oid) != node for oid, node in mine.items()):
            self._stop("its files have other numbers than the baseline's")

    def turn(self, connections: Connections, tracker: Tracker, marks: tuple[str, ...] = ()) -> Rewound | None:
        """Put all pages back in one round trip; None where nothing was changed, and rows have to be looked at.

        Args:
            marks: files of the marks of pages that are set, the lowest first.

        Raises:
            RecloneNeeded: it failed half-way, or something of the server's own catalogs cannot be put back.
            ServerLost: a session of ours is gone.
        """
        if self.off:
            return None
        name, more = _REWIND, tuple[bytes, ...]()
        if marks or self.above:
            name, more = _REWIND_TO, (page_marks.array(marks), page_marks.array(self.above))
        answer = self._ask(connections, tracker, name, more)
        if answer is None:
            return None
        if answer.status not in ("nothing", "rewound"):
            self.left = answer.why or answer.status
            return None
        self.left = ""
        tracker.rewound(answer.upto, answer.xid)
        if answer.shared or tracker.unsettled or self.above:
            self._settle_shared(connections.wal.session, tracker, answer.shared, marks)
        if self.above:
            page_marks.forget(connections.wal.session, self._schema, set(self.above) - set(marks))
            self.above = ()
        done = True
        if answer.advisory or tracker.advisory:
            held = set(answer.advisory)
            # Theirs is the way by rows: a wait, and the end of whoever holds on.
            done = held <= tracker.advisory
            tracker.advisory &= held
        if not answer.wrote:
            return Rewound(False, frozenset(), done)
        store = connections.store
        if fetched := _fetched(answer.touched, store):
            # Sessions keep values of these, and only a new file makes them forget. It is no file of the baseline's: the
            # next rewind takes it away again, and comes here again.
            self._forget_fetched(connections, tracker, fetched)
        return Rewound(True, _names(answer.touched, store), done)

    def insist(
        self, connections: Connections, tracker: Tracker, sessions: Sessions, marks: tuple[str, ...] = ()
    ) -> Rewound | None:
        """The same where all that is left is a clone, which would end every session: whoever is in the way of the pages is
        waited for a moment, and then ended, alone. None where nobody is.

        Raises:
            RecloneNeeded, ServerLost: as :meth:`turn`.
        """
        patience, ended = time.monotonic() + PATIENCE, False
        while not self.off and self.last is not None and self.last.status in ("busy", "locked"):
            if time.monotonic() > patience:
                pids = self.last.busy or sessions.holders(self.last.touched)
                if ended or not pids:
                    return None
                sessions.end(pids)
                patience, ended = time.monotonic() + PATIENCE, True
            time.sleep(0.002)
            if (rewound := self.turn(connections, tracker, marks)) is not None:
                return rewound
        return None

    def _forget_fetched(self, connections: Connections, tracker: Tracker, sequences: Collection[int]) -> None:
        """Give these sequences another file, so that sessions forget which values they have fetched.

        Raises:
            RecloneNeeded: it cannot be done.
        """
        store, lease = connections.store, connections.lease
        relations = [store.relations[oid] for oid in sorted(sequences)]
        caches = {oid: store.sequences[oid].cache for oid in sequences}
        try:
            now = relations_sql.sequences(lease, relations, caches=caches)
            again = [line for each in relations for line in sequence_statements(each, now[each.oid])]
            results = batch.run(lease, ["begin", *again, "select pg_current_xact_id()", "commit"])
        except ServerRefused as error:
            batch.rollback(lease)
            raise RecloneNeeded(
                f"a sequence whose values sessions keep cannot be put back: {error}"
            ) from error
        tracker.own.append(int(results[-2].rows[0][0] or 0))
        nodes = [found.rows[0] for found in results[3:-2:3]]
        tracker.remember_files({int(oid or 0): int(node or 0) for oid, node in nodes})

    # --- marks -------------------------------------------------------------------------------------

    def mark(
        self, connections: Connections, tracker: Tracker, marks: tuple[str, ...], name: str
    ) -> Answer | None:
        """Set a mark of pages above these; its status is ``marked``, or says who or what is in the way. None: see ``off``.

        Args:
            name: of its file.
        """
        if self.off:
            return None
        below = (page_marks.array(marks), page_marks.array(self.above), name.encode())
        answer = self._ask(connections, tracker, _MARK, (*below, *_NO_RELATIONS), most=_MOST_MARKED)
        if answer is not None and answer.status == "relations":
            relations = facts.relations(connections.lease)
            answer = self._ask(connections, tracker, _MARK, (*below, *relations), most=_MOST_MARKED)
            if (
                answer is not None
                and answer.status == "marked"
                and facts.relations(connections.lease) != relations
            ):
                # Somebody has changed them between the question and the mark, which then holds what is in no catalog.
                page_marks.forget(connections.wal.session, self._schema, [name])
                answer = self.last = replace(answer, status="busy")
        if answer is not None and answer.status == "marked":
            tracker.rewound(answer.upto, answer.xid)
            tracker.advisory = frozenset(answer.advisory)
            self._owned[name] = self._owned_now(connections.wal.session, tracker, answer, marks)
            page_marks.forget(connections.wal.session, self._schema, self.above)
            self.above = ()
        self.left = "" if answer is None or answer.status == "marked" else answer.why or answer.status
        return answer

    def _owned_now(self, session: Session, tracker: Tracker, answer: Answer, marks: tuple[str, ...]) -> Owned:
        """Who owns what in the state that was marked just now."""
        below = self._owned[marks[-1]] if marks else self._facts.owned
        if not (answer.shared or tracker.unsettled or self.above):
            return below._replace(written=frozenset())
        written = frozenset([xid for xid in answer.shared if xid]).union(
            *(self._owned[file].written for file in self.above)
        )
        digest, _ = self._look_at_shared(session, tracker, written)
        if digest == below.digest:
            return Owned(digest, below.rows, written)
        (rows,) = batch.run(session, [owners.copied(tracker.database)])
        return Owned(digest, (rows.rows[0][0] or b"").decode(), written)

    def release(self, file: str) -> None:
        """A mark of pages is released: the next rewind puts back what it held, and removes its file."""
        self.above += (file,)

    def close(self, connections: Connections, marks: tuple[str, ...]) -> None:
        """Remove the files of all marks, where the server can still be asked to."""
        files, self.above = {*marks, *self.above}, ()
        if not files:
            return
        with suppress(HarnessError):
            page_marks.forget(connections.wal.session, self._schema, files)

    def _settle_shared(
        self, session: Session, tracker: Tracker, written: Collection[int], marks: tuple[str, ...]
    ) -> None:
        """What the server's own catalogs say is put back, as far as it can be; what may still change is for the next reset.

        Args:
            written: ids (32 bits) of transactions that wrote to them, of whatever database.
            marks: files of the marks of pages that are set.

        Raises:
            RecloneNeeded: something else of this database changed.
        """
        ids = {xid for xid in written if xid}.union(*(self._owned[file].written for file in self.above))
        ids = ids | self._wrote_owners if ids or self.above else ids
        wanted = self._owned[marks[-1]] if marks else self._facts.owned
        owned, now = self._look_at_shared(session, tracker, ids)
        if (ids or self.above) and owned != wanted.digest:
            statements = owners.put_back(tracker.database, wanted.rows, ids)
            *_, ours, _ = batch.run(session, ["begin", *statements, f"select {owners.CURRENT_ID}", "commit"])
            self._wrote_owners.add(int(ours.rows[0][0] or b"0"))
        tracker.put_back_shared(now)

    def _look_at_shared(
        self, session: Session, tracker: Tracker, ids: Collection[int]
    ) -> tuple[bytes, shared.Shared]:
        """The digest of who owns what, and what else is said of the database; what may still change is remembered."""
        # In this order: what ends in between is compared once more.
        unended, owned, now = batch.run(
            session,
            [
                activity.in_progress_statement(tracker.unsettled, ids),
                owners.digest(tracker.database),
                tracker.shared_statement(),
            ],
        )
        text = unended.rows[0][0]
        tracker.unsettled = tuple(int(xid) for xid in text.split(b",")) if text else ()
        return owned.rows[0][0] or b"", shared.parse(now.rows[0][0] or b"[]")

    # --- asking ------------------------------------------------------------------------------------

    def _ask(
        self,
        connections: Connections,
        tracker: Tracker,
        name: bytes,
        more: tuple[bytes, ...],
        *,
        most: bytes = _MOST_PAGES,
    ) -> Answer | None:
        """Call a prepared statement; None where it is ``off`` now."""
        # Of an earlier call: where this one fails half-way, nobody is to go by it.
        self.last = None
        again = False
        while True:
            session = connections.wal.session
            try:
                if session is not self._knows:
                    # Another session: the one that was told is gone.
                    self._tell(session)
                values = (
                    str(tracker.database).encode(),
                    self._facts.database,
                    tracker.clean.encode(),
                    facts.array(tracker.rewinds),
                    facts.array(connections.ours),
                    facts.array(self._unused),
                    self._most,
                    most,
                    *more,
                )
                with translated("rewind"):
                    result = session.connection.ask_prepared(name, values)
                answer = parse([result.get_value(0, column) for column in range(result.nfields)])
                if not self._unused.issuperset(answer.temporary) and self._learn_unused(answer):
                    continue
                self.last = answer
                return answer
            except ServerRefused as error:
                if error.sqlstate == sqlstate.OBJECT_NOT_IN_PREREQUISITE_STATE and not again:
                    self._knows, again = None, True
                    continue
                self._refused(error)
                return None

    def _learn_unused(self, answer: Answer) -> bool:
        """Which namespaces sessions have made their own, of the hundreds that the baseline has; whether that may change the answer."""
        known = self._facts.namespaces.intersection(answer.temporary) - self._unused
        self._unused |= known
        return bool(known) and answer.status == "temporary"

    def _same_build(self, connections: Connections, tracker: Tracker) -> bool:
        """Whether the lease is a copy of the same build of the template as the baseline: its namespaces for temporary tables have the
        numbers that no other build has."""
        namespaces = facts.temporary(connections.lease)
        return namespaces == self._facts.temporary and not (tracker.strange and namespaces == b"{}")

    def _learn(self, store: BaselineStore) -> None:
        """Read the facts of the baseline: once, as long as it is the same session that reads them."""
        if store.session is not self._baseline:
            self._facts, self._baseline = facts.read(store.session), store.session
            self._unused = frozenset()
            self._knows = None

    def _tell(self, session: Session) -> None:
        if session is self._knows:
            return
        with translated("prepare to rewind"):
            connection = session.connection
            connection.prepare(b"", self._know)
            connection.ask_prepared(b"", self._facts.values)
            # A session may be told again: of another baseline, or after it has forgotten.
            for name, call in self._calls.items() if session is not self._prepared else ():
                connection.prepare(name, call)
        self._knows = self._prepared = session

    def _refused(self, error: ServerRefused) -> None:
        """What the server said no to.

        Raises:
            RecloneNeeded: pages may have been written before.
        """
        if error.sqlstate in _GONE:
            self.lasting = True
            self._stop(f"the module's functions are gone: {error.message}")
            if error.sqlstate == sqlstate.INSUFFICIENT_PRIVILEGE:
                # A file that may not be opened is said so too, and that may be half-way.
                raise RecloneNeeded(f"the pages cannot be put back: {error}") from error
        elif error.sqlstate == sqlstate.UNDEFINED_FILE and "WAL" in error.message:
            self._stop("the log since its pages last equalled the baseline's was recycled")
        elif error.sqlstate == sqlstate.OBJECT_NOT_IN_PREREQUISITE_STATE:
            self._stop(error.message)
        else:
            # The baseline may be gone, or another one: it is read again, and told, before the next clone is rewound.
            self._baseline = None
            raise RecloneNeeded(f"the pages cannot be put back: {error}") from error

    def _stop(self, why: str) -> None:
        self.off = self.left = why

    def __repr__(self) -> str:
        state = f"off: {self.off}" if self.off else "on"
        return f"<Rewinder {state}{f', the last was left to rows: {self.left}' if self.left else ''}>"


def _fetched(touched: Collection[int], store: BaselineStore) -> frozenset[int]:
    """Sequences of which open sessions may have fetched values."""
    states = store.sequences
    return frozenset([oid for oid in touched if oid in states and states[oid].cache > 1])


def _names(touched: Collection[int], store: BaselineStore) -> frozenset[str]:
    known = store.relations
    found = (known.get(oid) for oid in touched)
    return frozenset(
        [str(each) for each in found if each is not None and each.kind in "rmS" and not each.catalog]
    )
