"""What a look at the write-ahead log answers, whichever way it was read, and how that way is chosen.

Ways, the best first: the bytes of the log's files (:mod:`harness.reset.wal.bytes`), ``pg_walinspect``
(:mod:`harness.reset.wal.inspect`). Both look from a session in the maintenance database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import NamedTuple, Protocol

from harness.errors import ServerRefused
from harness.postgres import sqlstate
from harness.postgres.session import Session

WATCHER = "pg-harness watcher"
"""``application_name`` of a server's watcher (servers/scripts/watch.sh)."""

FIRST_SUPPORTED = 150000
"""``server_version_num`` of the first version whose log is read. Older ones are not tested."""

NOISE = frozenset(
    {
        # Row locks and on-access housekeeping: the table's contents are the same afterwards.
        "Heap/LOCK", "Heap/INPLACE", "Heap2/LOCK_UPDATED", "Heap2/PRUNE", "Heap2/VACUUM", "Heap2/VISIBLE",
        "Heap2/FREEZE_PAGE", "Heap2/PRUNE_ON_ACCESS", "Heap2/PRUNE_VACUUM_SCAN", "Heap2/PRUNE_VACUUM_CLEANUP",
        "Heap2/NEW_CID", "XLOG/FPI_FOR_HINT",
    }
)  # fmt: skip
"""Records that change no row that anybody can see. Whatever is not listed counts as a change."""

NEW_ROWS = frozenset({"Heap/INSERT", "Heap2/MULTI_INSERT", "Heap/UPDATE", "Heap/HOT_UPDATE"})
"""Records that bring new rows, or new versions of rows."""

INDEX_MANAGERS = ("Btree", "Hash", "Gin", "Gist", "SPGist", "BRIN")
"""Resource managers whose records change no row of a table."""


class RelationRecords(NamedTuple):
    """What the WAL says about one relation file.

    Attributes:
        filenode: the file's number (not the OID).
        shared: whether it belongs to the whole server (database 0).
        own: whether the records are of our own transactions.
        records: ``"Heap/INSERT"`` and so on → how many.
        blocks: which blocks of the main fork the records other than noise name.
        aborted: whether they are of transactions that were rolled back, as far as the window tells.
        size: bytes of the records that bring new rows, where it is known.
        unfinished: whether they are of transactions that had not ended, as far as is known.
    """

    filenode: int
    shared: bool
    own: bool
    records: dict[str, int]
    blocks: frozenset[int]
    aborted: bool = False
    size: int = 0
    unfinished: bool = False


class WalWindow(NamedTuple):
    """One look at the log.

    Attributes:
        moved: False where nothing was written on the whole server; then nothing was read.
        stop: position up to which was read, exactly the end of a record; the next window begins there.
        seen: what the insert position is for as long as nobody writes anything more.
        bytes: length of the window.
        too_much: the window was longer than the limits; nothing is known of it.
        relations: what was found, of this database and of the shared catalogs.
        unfinished: ids of transactions, other than ours, that wrote to this database and had not ended when it was read.
        unsettled: the same of transactions that wrote to the catalogs of the whole server.
        advisory: advisory locks that sessions of the application hold: pid, and which lock as text.
        busy: statements of the application that were running: pid, and when each began.
        quiet: nobody but us was in a transaction on the whole server.
        next_id: the id that the next transaction would have got, where none was open on the whole server; else 0.
    """

    moved: bool
    stop: str = ""
    seen: str = ""
    bytes: int = 0
    too_much: bool = False
    relations: tuple[RelationRecords, ...] = ()
    unfinished: tuple[int, ...] = ()
    unsettled: tuple[int, ...] = ()
    advisory: tuple[tuple[int, str], ...] = ()
    busy: tuple[tuple[int, str], ...] = ()
    quiet: bool = False
    next_id: int = 0


@dataclass(frozen=True)
class WalQuery:
    """What a look at the log asks.

    Attributes:
        start: where the last window stopped.
        seen: the insert position at which nothing has moved; None to read in any case.
        database: OID of the database that is asked about.
        own: our transaction ids since ``start``.
        ours: pids of our own sessions, never named as the application's.
        most: bytes beyond which nothing is decoded; below 0 only the present end of the log is wanted.
        patience: milliseconds beyond which it is not worth the while: what another way would cost.
        brief: only what was written and by whom is wanted, as in a second look: who holds advisory locks or runs a
            statement may be left out (the list of all locks is half of what a look costs).
        until: a position that was the end of the log a while ago, to leave out what came after it; a way of
            reading that cannot may tell all up to now. Empty: now.
    """

    start: str
    seen: str | None = None
    database: int = 0
    own: Sequence[int] = ()
    ours: Sequence[int] = ()
    most: int = -1
    patience: float = inf
    brief: bool = False
    until: str = ""


# A transaction holds the lock of its own number: without one nobody runs a statement, and the list of sessions, which
# costs as much as that of locks, need not be made. A server's watcher runs one all its life, and is not counted; a prepared
# transaction has no session, but the lock of its id. A lock is named as in pg_locks, to be known again. Of sessions of the
# replication protocol a stream is always active; one that runs statements has a snapshot.
PRESENCE = """
    select array_agg(distinct pid || ' ' || concat_ws(',', classid, objid, objsubid, mode))
             filter (where locktype = 'advisory' and database = db),
           bool_or(pid is null or locktype = 'virtualxid' and pid <> all(watchers))
      into advisory, someone
      from pg_lock_status()
     where granted and (locktype in ('advisory', 'virtualxid') and pid <> all(ours)
                        or locktype = 'transactionid' and pid is null);
    if someone then
        select array_agg(pid || ' ' || query_start) into busy from pg_stat_get_activity(null)
         where datid = db and state = 'active' and pid <> all(ours) and (backend_type = 'client backend'
              or backend_type = 'walsender' and (backend_xid is not null or backend_xmin is not null));
    end if;
"""
"""PL/pgSQL: who holds advisory locks in ``db``, and which statements run there; into ``advisory``, ``busy``."""


class Watchers:
    """Pids of the sessions that watch over this server, in whose end it ends: never busy with anything else."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._asked = -inf
        self.pids: list[int] = []

    def ask(self, seconds: float = 0.0) -> None:
        """Ask who they are, where that was not done in the last ``seconds``: one that ended has a successor."""
        if monotonic() - self._asked >= seconds:
            self._asked = monotonic()
            rows = self._session.rows(
                "select pid from pg_stat_activity where datname = current_database() and application_name = %s",
                (WATCHER,),
            )
            self.pids = [pid for (pid,) in rows]

    def __str__(self) -> str:
        return "{" + ",".join(map(str, self.pids)) + "}"


def presence(texts: Sequence[str]) -> tuple[tuple[int, str], ...]:
    """From what :data:`PRESENCE` gives: pid and the rest."""
    return tuple((int(pid), rest) for pid, _, rest in (text.partition(" ") for text in texts))


THE_END = WalQuery("0/0")
"""Asks for nothing but the present end of the log."""


class WalReader(Protocol):
    """Looks at the log from one session. Not safe for use by several threads."""

    session: Session

    def position(self) -> str:
        """The present end of the log; every later record comes after it."""

    def read(self, asked: WalQuery) -> WalWindow:
        """Read from ``asked.start`` to now.

        Raises:
            ServerRefused: for instance ``58P01``, the log from ``asked.start`` on was recycled.
            ServerLost: the server is gone.
        """


def check(session: Session) -> None:
    """Raise ServerRefused for a server that is too old (``0A000``), or a role that may not see who is busy (``42501``)."""
    if session.server_version < FIRST_SUPPORTED:
        raise ServerRefused(
            f"PostgreSQL {session.server_version // 10000} cannot be reset by its log (15 and later can)",
            sqlstate=sqlstate.FEATURE_NOT_SUPPORTED,
        )
    # Without it other roles' sessions have no type, and one that is in the middle of a write looks like none.
    if not session.value("select pg_has_role(current_user, 'pg_read_all_stats', 'usage')"):
        raise ServerRefused(
            f"role {session.dsn.user} may not see other roles' sessions: grant pg_read_all_stats to it",
            sqlstate=sqlstate.INSUFFICIENT_PRIVILEGE,
        )
