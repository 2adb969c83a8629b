"""The rewinder: has the server's module put the pages of a leased database back, and says when it cannot be so.

A rewind reads the log from ``Tracker.clean``, the position at which the pages of the lease last equalled the baseline's, byte by
byte. That is where the clone was made, or where the last rewind ended, and nothing else: rows that were put back by rows lie
elsewhere than in the baseline, so what a reset by rows wrote is as dirty as what a test wrote.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from harness.errors import ServerRefused
from harness.postgres import activity, sqlstate
from harness.postgres.session import Session, translated
from harness.reset.baseline import BaselineStore
from harness.reset.changes import Changes, RecloneNeeded
from harness.reset.connections import Connections
from harness.reset.rewind import facts
from harness.reset.rewind.answer import COLUMNS, Answer, parse
from harness.reset.sql import batch, owners, shared
from harness.reset.tracker import Tracker

_CALL = "from {schema}.pgh_rewind($1::oid, $2::oid, $3::pg_lsn, $4::oid[], $5::int[], $6::oid[], $7::int8, $8::int8)"
_KNOW = "select {schema}.pgh_know($1::oid, $2::oid[], $3::oid[], $4::oid[], $5::text, $6::oid[])"
_REWIND, _KNOWN = b"pgh_rewind", b"pgh_know"

_MOST_PAGES = b"100000"
"""Pages that are compared for one rewind: 0.8 GB, beyond which a clone may take less."""

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
        left: why the last try was left to the rows; empty where it was not.
        last: what the last call answered; None before the first.
    """

    def __init__(self, schema: str, *, most_bytes: int) -> None:
        self.off = self.left = ""
        self.last: Answer | None = None
        self._lasting = False
        self._call = f"select {COLUMNS} {_CALL.format(schema=schema)}".encode()
        self._know = _KNOW.format(schema=schema).encode()
        self._most = str(most_bytes).encode()
        self._baseline: Session | None = None
        self._facts = facts.NOTHING
        self._knows: Session | None = None

    def rebase(self, connections: Connections, tracker: Tracker) -> None:
        """The lease is another clone, or one that another process has reset: read and tell what has to be known.

        Raises:
            ServerLost: a session of ours is gone.
        """
        if self._lasting:
            return
        self.off = self.left = ""
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
        if any(tracker.first_files.get(oid) != node for oid, node in mine.items()):
            self._stop("its files have other numbers than the baseline's")

    def turn(self, connections: Connections, tracker: Tracker) -> Rewound | None:
        """Put all pages back in one round trip; None where nothing was changed, and rows have to be looked at.

        Raises:
            RecloneNeeded: it failed half-way, or something of the server's own catalogs cannot be put back.
            ServerLost: a session of ours is gone.
        """
        if self.off:
            return None
        answer = self.last = self._ask(connections, tracker)
        if answer is not None and answer.status == "temporary" and self._unused(connections, answer):
            answer = self.last = self._ask(connections, tracker, unused=answer.temporary)
        if answer is None:
            return None
        if answer.status not in ("nothing", "rewound"):
            self.left = answer.why or answer.status
            return None
        self.left = ""
        tracker.rewound(answer.upto, answer.xid)
        if answer.shared or tracker.unsettled:
            self._settle_shared(connections.wal.session, tracker, answer.shared)
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
            tracker.pending = Changes(
                sequences=fetched, names={oid: str(store.relations[oid]) for oid in fetched}
            )
        return Rewound(True, _names(answer.touched, store), done and not fetched)

    def _settle_shared(self, session: Session, tracker: Tracker, written: Collection[int]) -> None:
        """What the server's own catalogs say is put back, as far as it can be; what may still change is for the next reset.

        Args:
            written: ids (32 bits) of transactions that wrote to them, of whatever database.

        Raises:
            RecloneNeeded: something else of this database changed.
        """
        ids = {xid for xid in written if xid}
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
        if ids and owned.rows[0][0] != self._facts.owners.encode():
            statements = owners.put_back(tracker.database, int(self._facts.database), ids)
            batch.run(session, ["begin", *statements, "commit"])
        tracker.put_back_shared(shared.parse(now.rows[0][0] or b"[]"))

    # --- asking ------------------------------------------------------------------------------------

    def _ask(
        self, connections: Connections, tracker: Tracker, *, unused: Collection[int] = ()
    ) -> Answer | None:
        for again in (False, True):
            session = connections.wal.session
            try:
                if session is not self._knows:
                    # Another session: the one that was told is gone.
                    self._tell(session)
                values = (
                    str(tracker.database).encode(),
                    self._facts.database,
                    tracker.clean.encode(),
                    _array(tracker.rewinds),
                    _array(connections.ours),
                    _array(unused),
                    self._most,
                    _MOST_PAGES,
                )
                with translated("rewind"):
                    result = session.connection.ask_prepared(_REWIND, values)
                return parse([result.get_value(0, column) for column in range(result.nfields)])
            except ServerRefused as error:
                if error.sqlstate == sqlstate.OBJECT_NOT_IN_PREREQUISITE_STATE and not again:
                    self._knows = None
                    continue
                self._refused(error)
                return None
        return None

    def _unused(self, connections: Connections, answer: Answer) -> bool:
        """Whether those who had temporary tables have none now, and will find their namespaces again."""
        return facts.unused(connections.lease, answer.temporary, self._facts.temporary)

    def _learn(self, store: BaselineStore) -> None:
        """Read the facts of the baseline: once, as long as it is the same session that reads them."""
        if store.session is not self._baseline:
            self._facts, self._baseline = facts.read(store.session), store.session
            self._knows = None

    def _tell(self, session: Session) -> None:
        if session is self._knows:
            return
        with translated("prepare to rewind"):
            connection = session.connection
            connection.prepare(b"", self._know)
            connection.ask_prepared(b"", self._facts.values)
            connection.prepare(_REWIND, self._call)
        self._knows = session

    def _refused(self, error: ServerRefused) -> None:
        """What the server said no to.

        Raises:
            RecloneNeeded: pages may have been written before.
        """
        if error.sqlstate in _GONE:
            self._lasting = True
            self._stop(f"the module's functions are gone: {error.message}")
        elif error.sqlstate == sqlstate.UNDEFINED_FILE and "WAL" in error.message:
            self._stop("the log since its pages last equalled the baseline's was recycled")
        elif error.sqlstate == sqlstate.OBJECT_NOT_IN_PREREQUISITE_STATE:
            self._stop(error.message)
        else:
            raise RecloneNeeded(f"the pages cannot be put back: {error}") from error

    def _stop(self, why: str) -> None:
        self.off = self.left = why

    def __repr__(self) -> str:
        state = f"off: {self.off}" if self.off else "on"
        return f"<Rewinder {state}{f', the last was left to rows: {self.left}' if self.left else ''}>"


def _array(numbers: Collection[int]) -> bytes:
    return f"{{{','.join(map(str, numbers))}}}".encode()


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
