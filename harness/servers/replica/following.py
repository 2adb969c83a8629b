"""What one lease does with the standbys: waits for them, and sees to it that nobody there still sees what was before a reset."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from harness.errors import ReplicaBehind, ServerLost, ServerRefused
from harness.listing import together
from harness.postgres import ending
from harness.postgres.admin import Link
from harness.postgres.session import Session
from harness.servers.replica.standbys import DELAY, FLUSH, Standbys, bytes_behind

logger = logging.getLogger("pg_harness.servers.replica")

PATIENCE = 30.0
"""Seconds that a reset waits until a standby has replayed it; longer where the log itself may wait longer, for other workers' readers."""

MARGIN = 5.0
"""Seconds in which it is replayed once the log waits for nobody any more."""

AT_ONCE = 0.05
"""Seconds after which whoever is in the log's way there is looked for."""

_Answer = TypeVar("_Answer")

# Whoever has a snapshot still sees what was before; whoever is in a transaction may hold locks that the log waits for.
_IN_TRANSACTIONS = """
select pid, backend_xmin is not null, format('pid %%s (%%s, %%s) on the standby, %%s for %%s s: %%s', pid, usename,
       nullif(application_name, ''), state, round(extract(epoch from clock_timestamp() - xact_start)), left(query, 100))
  from pg_stat_activity
 where datname = any(%s) and backend_type = 'client backend' and pid <> pg_backend_pid() and xact_start is not null"""


@dataclass
class _Standby:
    """One standby, as one lease sees it.

    Attributes:
        oids: name → number of each database of the lease, when it was last looked at.
    """

    number: int
    session: Session
    oids: dict[str, int] = field(default_factory=dict)


class Following:
    """The standbys of one lease's server. Used by one thread at a time.

    Args:
        link: to the primary.
        patience: seconds that a reset waits for transactions on a standby before it ends them.
    """

    def __init__(self, standbys: Standbys, link: Link, *, patience: float) -> None:
        self._standbys = standbys
        self._link = link
        self._patience = patience
        self._known: dict[int, _Standby] = {}
        self._settled = True

    def wait(self, timeout: float) -> None:
        """Until each standby has replayed what the primary has written by now.

        Raises:
            ReplicaBehind: it takes longer.
        """
        deadline = time.monotonic() + timeout
        target = self._flushed()
        for number in self._standbys.numbers:
            self._surely(number, lambda one: self._replayed(one, target, deadline, timeout))

    def settle(self, databases: Sequence[str], *, written: bool = True) -> tuple[str, ...]:
        """After a reset: each standby has replayed it, and no session there sees what was before; return whom that ended.

        Args:
            databases: the lease's, by their names.
            written: whether the reset has written anything; else the standbys need only be there: a test may have killed one.

        Raises:
            ReplicaBehind: a standby does not come to it.
        """
        ended: list[str] = []
        if not written and self._settled:
            for number in self._standbys.numbers:
                self._surely(number, lambda one: one.session.value("select 1"))
            return ()
        # Until it is so: a reset that was told to be late must not be taken for done by the next one, which has nothing to do.
        self._settled = False
        target = self._flushed()
        for number in self._standbys.numbers:
            self._surely(number, lambda one: self._settle(one, target, databases, ended))
        self._settled = True
        return tuple(ended)

    def close(self) -> None:
        """Log out."""
        for one in self._known.values():
            one.session.close()
        self._known.clear()

    # --- one standby -------------------------------------------------------------------------------

    def _flushed(self) -> str:
        return str(self._link.surely(lambda: self._link.session.value(FLUSH)))

    def _surely(self, number: int, act: Callable[[_Standby], _Answer]) -> _Answer:
        """Do it there; where it is gone, start it again, and do it once more."""
        try:
            return act(self._at(number))
        except (ServerLost, ServerRefused) as error:
            if isinstance(error, ServerRefused) and number in self._known:
                raise
            # Broken, or not there: the other ways are the primary's.
            self._forget(number)
            logger.warning(
                "standby %s is gone, and is started again: %s", number, error.message.splitlines()[0]
            )
        self._standbys.ensure(given_out=True)
        return act(self._at(number))

    def _at(self, number: int) -> _Standby:
        if number not in self._known:
            self._known[number] = _Standby(number, self._standbys.connect(number))
        return self._known[number]

    def _forget(self, number: int) -> None:
        if (one := self._known.pop(number, None)) is not None:
            one.session.close()

    def _replayed(self, one: _Standby, target: str, deadline: float, timeout: float) -> None:
        pause = 0.0005
        while behind := _behind(one.session, target):
            if time.monotonic() >= deadline:
                raise ReplicaBehind(self._why(one, behind, timeout), behind=behind)
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    def _settle(self, one: _Standby, target: str, databases: Sequence[str], ended: list[str]) -> None:
        began, pause, resumed = time.monotonic(), 0.0005, False
        limit = max(PATIENCE, self._patience + DELAY + MARGIN)
        while behind := _behind(one.session, target):
            waited = time.monotonic() - began
            if waited > limit:
                raise ReplicaBehind(self._why(one, behind, limit), behind=behind)
            if waited > AT_ONCE and not resumed and (resumed := _paused(one.session)):
                one.session.value("select pg_wal_replay_resume()")
                logger.info("standby %s: its replay was paused by a test, and goes on", one.number)
            if waited > self._patience:
                self._end(one, [pid for pid, _, _ in _transactions(one.session, databases)], databases, ended)
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
        self._end_in_old(one, databases, ended)
        # Once: what begins later sees the reset state.
        pids = {pid for pid, snapshot, _ in _transactions(one.session, databases) if snapshot}
        while pids and time.monotonic() - began < self._patience:
            time.sleep(0.005)
            pids &= {pid for pid, snapshot, _ in _transactions(one.session, databases) if snapshot}
        self._end(one, pids, databases, ended)

    def _end(
        self, one: _Standby, pids: Sequence[int] | set[int], databases: Sequence[str], ended: list[str]
    ) -> None:
        if not pids:
            return
        ended += [text for pid, _, text in _transactions(one.session, databases) if pid in pids]
        ending.end(one.session, sorted(pids))

    def _end_in_old(self, one: _Standby, databases: Sequence[str], ended: list[str]) -> None:
        """End the sessions of databases that a clone has taken the place of: they are in what was renamed away."""
        now = dict(
            one.session.rows(
                "select datname, oid::bigint from pg_database where datname = any(%s)", (list(databases),)
            )
        )
        old = [oid for name, oid in one.oids.items() if now.get(name) != oid]
        one.oids = now
        if old:
            left = one.session.rows(
                "select pid, format('pid %%s (%%s) on the standby, in the database before', pid, usename) from pg_stat_activity"
                " where datid = any(%s) and backend_type = 'client backend'",
                (old,),
            )
            ended += [text for _, text in left]
            ending.end(one.session, [pid for pid, _ in left])

    def _why(self, one: _Standby, behind: int, timeout: float) -> str:
        lines = [
            f"standby {one.number} has not replayed what its primary has written within {timeout:g} s: {behind} bytes are left"
        ]
        session = one.session
        if _paused(session):
            lines.append(
                "its replay is paused (pg_wal_replay_pause()); select pg_wal_replay_resume() lets it go on"
            )
        if (delay := session.value("show recovery_min_apply_delay")) != "0":
            lines.append(
                f"its recovery_min_apply_delay is {delay}: it replays what was committed so long ago"
            )
        if session.value("select count(*) from pg_stat_wal_receiver") == 0:
            lines.append("it is not connected to its primary")
        everybody = session.column("select datname from pg_database")
        if found := [text for _, _, text in _transactions(session, everybody)]:
            lines.append(
                "transactions there that may be in its way, for max_standby_streaming_delay at most:"
            )
            lines += [f"  {text}" for text in together(found)]
        return "\n".join(lines)


def _behind(session: Session, target: str) -> int:
    behind = bytes_behind(session, target)
    return 1 if behind is None else behind


def _paused(session: Session) -> bool:
    return bool(session.value("select pg_is_wal_replay_paused()"))


def _transactions(session: Session, databases: Sequence[str]) -> list[tuple[int, bool, str]]:
    return [
        (pid, snapshot, text) for pid, snapshot, text in session.rows(_IN_TRANSACTIONS, (list(databases),))
    ]
