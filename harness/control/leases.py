"""Who holds which lease of a run: by its number, or handed out; one lock for each, so that leases go on side by side."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from harness.config.processes import Process, alive
from harness.config.run_variables import LEASE
from harness.databases import freshness
from harness.databases.lease import TEMPLATE, UnknownMark
from harness.errors import LeaseClosed, LeaseError, PoolTimeout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.databases.changed import LeaseChanges
    from harness.databases.lease import Lease, LeaseMark
    from harness.reset.report import ResetReport
    from harness.runs.run import Run

logger = logging.getLogger("pg_harness.control")

LOOK = 0.2
"""Seconds between two looks for processes that have gone, and for a client that no longer waits."""

State = Literal["free", "numbered", "leased"]


class UnknownLease(LeaseError):
    """There is no lease of that number: never another one in its stead."""


class AllLeased(PoolTimeout):
    """Every lease is held, and none came back in time.

    Attributes:
        holders: for each lease: ``id``, ``worker``, ``pid`` and for how many ``seconds`` it has been held.
    """

    def __init__(self, message: str, *, holders: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.holders = tuple(holders)


class Holder:
    """A process that holds a lease, and whether it has gone.

    Raises:
        LeaseError: no process has that number here.
    """

    def __init__(self, pid: int) -> None:
        if not alive(pid):
            raise LeaseError(
                f"there is no process {pid} here: pid is the client's own number, as this machine counts; "
                "from inside a container leave it out"
            )
        self.pid = pid
        self._watching = ExitStack()
        self._process = self._watching.enter_context(Process.of(pid, lambda: True))

    @property
    def gone(self) -> bool:
        """Whether it has ended; its number may be another's by then."""
        return self._process.ended(0)

    def close(self) -> None:
        """Watch it no longer. Twice is once."""
        self._watching.close()


@dataclass
class Entry:
    """One lease and its holder.

    Attributes:
        id: the number of its ``DATABASE_URL_n``.
        state: ``"numbered"``: somebody uses it by its number, so it is not handed out.
        worker: what its holder calls itself; empty where it said nothing.
        since: when it was taken, by the monotonic clock.
        resets: strategy → how many.
        lock: held while something is done in its databases.
    """

    id: int
    lease: Lease
    state: State = "free"
    worker: str = ""
    process: Holder | None = None
    since: float = 0.0
    resets: Counter[str] = field(default_factory=Counter)
    marks: dict[str, LeaseMark] = field(default_factory=dict)
    """Those that were set here: in a test of pytest, those of wider fixtures lie below them, and are none of a client's."""
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    last: tuple[str, int | None] | None = None
    """Who had it before, as (worker, pid); None: nobody."""

    def belonged_to(self, worker: str, process: Holder | None) -> bool:
        """Whether its last holder was the same worker, or the same process."""
        if self.last is None:
            return False
        return bool(worker and self.last[0] == worker) or bool(process and self.last[1] == process.pid)

    @property
    def holder(self) -> dict[str, Any]:
        """Who holds it, for messages and programs."""
        return {
            "id": self.id,
            "worker": self.worker,
            "pid": self.process.pid if self.process else None,
            "seconds": round(time.monotonic() - self.since, 1) if self.state != "free" else 0.0,
        }


class LeaseTable:
    """The leases of one run, by number.

    Args:
        harness: the run, for what a lease's environment is.
        leases: all of them, in the order of their numbers.
    """

    def __init__(self, harness: Run, leases: Sequence[Lease]) -> None:
        self._harness = harness
        self._entries = {number: Entry(number, lease) for number, lease in enumerate(leases, 1)}
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        self._closed = False

    @property
    def run(self) -> str:
        """Sixteen hex digits that name the run."""
        return self._harness.run

    def __len__(self) -> int:
        return len(self._entries)

    def variables(self, number: int) -> dict[str, str]:
        """The environment of one lease: addresses, the user's own variables, its number.

        Raises:
            UnknownLease.
        """
        return self._variables(self._entry(number))

    def _variables(self, entry: Entry) -> dict[str, str]:
        return {**self._harness.variables(entry.lease), LEASE: str(entry.id)}

    def urls(self, number: int) -> dict[str, str]:
        """Database name → URL of one lease."""
        return {name: dsn.url for name, dsn in self._entry(number).lease.dsns.items()}

    def replicas(self, number: int) -> dict[str, list[str]]:
        """Database name → URL of one lease on each standby of its server."""
        found = self._entry(number).lease.databases
        return {name: [replica.url for replica in database.replicas] for name, database in found.items()}

    # --- taking and giving back --------------------------------------------------------------------

    def take(
        self,
        *,
        worker: str = "",
        pid: int | None = None,
        wait: float = 60.0,
        still: Callable[[], bool] = lambda: True,
    ) -> tuple[int, dict[str, str]]:
        """Hand out a lease, pristine; first come, first served.

        Args:
            worker: who asks; the same once more gets the same lease. Empty: somebody new each time.
            pid: the process that holds it: when that has gone, the lease is free.
            wait: seconds to wait for one.
            still: whether whoever asked is still there.

        Returns:
            The number and its environment.

        Raises:
            AllLeased: none came back in time; names the holders. LeaseError: no process has that number.
            LeaseClosed: the run has ended, or whoever asked has gone. HarnessError: it cannot be made pristine.
        """
        process = Holder(pid) if pid is not None else None
        try:
            entry, same = self._wait_for(worker, process, wait, still)
        except BaseException:
            if process is not None:
                process.close()
            raise
        try:
            with entry.lock:
                # What another holder has left open could write into this one's test.
                self._reset(entry, TEMPLATE, sessions="keep" if same else "end")
            if not still():
                raise LeaseClosed("whoever asked for it has gone")
        except BaseException:
            self._give_back(entry)
            raise
        return entry.id, self._variables(entry)

    def _wait_for(
        self, worker: str, process: Holder | None, wait: float, still: Callable[[], bool]
    ) -> tuple[Entry, bool]:
        """The lease that is theirs now, and whether its sessions are."""
        deadline, ticket = time.monotonic() + wait, object()
        with self._changed:
            self._queue.append(ticket)
            try:
                while True:
                    if self._closed:
                        raise LeaseClosed("the run is over: its databases are gone")
                    self._take_back_gone()
                    if (mine := self._of_worker(worker)) is not None:
                        self._hold(mine, "leased", worker, process)
                        return mine, True
                    if self._queue[0] is ticket and (free := self._free_one(worker, process)) is not None:
                        self._hold(free, "leased", worker, process)
                        return free, free.last is None or free.belonged_to(worker, process)
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise self._all_leased(wait)
                    if not still():
                        raise LeaseClosed("whoever asked for a lease has gone")
                    self._changed.wait(min(left, LOOK))
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()

    def _of_worker(self, worker: str) -> Entry | None:
        if not worker:
            return None
        return next((e for e in self._entries.values() if e.state == "leased" and e.worker == worker), None)

    def _free_one(self, worker: str, process: Holder | None) -> Entry | None:
        """One that is free: rather the one that they had, whose connections they may still have open."""
        free = [entry for entry in self._entries.values() if entry.state == "free"]
        return next((e for e in free if e.belonged_to(worker, process)), next(iter(free), None))

    def _hold(self, entry: Entry, state: State, worker: str, process: Holder | None) -> None:
        if entry.process is not None:
            entry.process.close()
        entry.state, entry.worker, entry.process, entry.since = state, worker, process, time.monotonic()

    def _take_back_gone(self) -> None:
        for entry in self._entries.values():
            if entry.state == "leased" and entry.process is not None and entry.process.gone:
                logger.debug("lease %s: its process %s has gone", entry.id, entry.process.pid)
                self._free(entry)

    def _free(self, entry: Entry) -> None:
        entry.last = (entry.worker, entry.process.pid if entry.process else None)
        self._hold(entry, "free", "", None)

    def _give_back(self, entry: Entry) -> None:
        with self._changed:
            self._free(entry)
            self._changed.notify_all()

    def _all_leased(self, wait: float) -> AllLeased:
        holders = [entry.holder for entry in self._entries.values()]
        lines = "".join(
            f"\n  {h['id']}: {h['worker'] or 'somebody'}"
            f"{' (process {})'.format(h['pid']) if h['pid'] else ''}, for {h['seconds']:g} s"
            for h in holders
        )
        held = "the one database" if len(self) == 1 else f"all {len(self)} databases"
        return AllLeased(
            f"{held} of this run {'is' if len(self) == 1 else 'are'} held, and none was given back within {wait:g} s:{lines}\n"
            "Give them back (POST /v1/release/ID), run fewer tests at a time, or have more: `pg-harness run -n N`",
            holders=holders,
        )

    def release(self, number: int) -> None:
        """Give one back; whoever waits gets it, pristine. One that is free stays so.

        Raises:
            UnknownLease.
        """
        self._give_back(self._entry(number))

    # --- what is done in one -----------------------------------------------------------------------

    def reset(self, number: int, to: str | None = None) -> ResetReport:
        """Bring its databases back to the top mark, to one of them, or (``"template"``) to what the migrations left.

        Raises:
            UnknownLease, UnknownMark. HarnessError: as :meth:`harness.databases.lease.Lease.reset`.
        """
        with self._used(number) as entry:
            return self._reset(entry, to)

    def wait_for_replica(self, number: int, timeout: float) -> None:
        """Wait until each standby shows what was committed by now.

        Raises:
            UnknownLease. ReplicaBehind: it takes longer. ConfigError: there is no standby.
        """
        with self._used(number) as entry:
            entry.lease.wait_for_replica(timeout)

    def mark(self, number: int, name: str = "") -> str:
        """Make the present state the one that :meth:`reset` comes back to; return its name. Marks stack.

        Args:
            name: empty: a number that no mark of this lease ever had.

        Raises:
            UnknownLease. LeaseError: it cannot be held: the schema was changed, this server can only clone, or there
            is a mark of that name.
        """
        with self._used(number) as entry:
            mark = entry.lease.mark(name)
            entry.marks[mark.name] = mark
            return mark.name

    def unmark(self, number: int, name: str) -> None:
        """Forget a mark, and those above it; the databases stay as they are.

        Raises:
            UnknownLease, UnknownMark.
        """
        with self._used(number) as entry:
            self._mark(entry, name).release()
            self._forget_released(entry)

    def changes(self, number: int) -> LeaseChanges:
        """What changed since the state that :meth:`reset` would come back to.

        Raises:
            UnknownLease. LeaseError: it cannot be told.
        """
        with self._used(number) as entry:
            return entry.lease.changes()

    def _reset(
        self, entry: Entry, to: str | None, *, sessions: Literal["keep", "end"] = "keep"
    ) -> ResetReport:
        target = None
        if to == TEMPLATE:
            for mark in entry.marks.values():
                mark.release()
        elif to is not None:
            target = self._mark(entry, to)
        strategy = freshness.of(self._harness.settings)
        report = None
        if target is None and sessions == "keep" and strategy.refreshes:
            report = strategy.refresh(entry.lease)
        if report is None:
            report = entry.lease.reset(to=target, sessions=sessions)
        self._forget_released(entry)
        entry.resets[report.strategy] += 1
        return report

    @staticmethod
    def _mark(entry: Entry, name: str) -> LeaseMark:
        if name in entry.marks:
            return entry.marks[name]
        there = ", ".join(entry.marks) or "none"
        raise UnknownMark(f"the lease has no mark {name!r}; it has {there}", value=name)

    @staticmethod
    def _forget_released(entry: Entry) -> None:
        entry.marks = {name: mark for name, mark in entry.marks.items() if not mark.released}

    @contextmanager
    def _used(self, number: int) -> Iterator[Entry]:
        """The lease, alone: whoever else wants it waits. One that is free is held by its number from now on."""
        entry = self._entry(number)
        with self._changed:
            if self._closed:
                raise LeaseClosed("the run is over: its databases are gone")
            if entry.state == "free":
                self._hold(entry, "numbered", "", None)
        with entry.lock:
            yield entry

    def _entry(self, number: int) -> Entry:
        if number in self._entries:
            return self._entries[number]
        many = f"{len(self)} databases, 1 to {len(self)}" if len(self) > 1 else "one database, 1"
        raise UnknownLease(
            f"there is no database {number}: this run has {many}. As many as there are workers: `pg-harness run -n N`"
        )

    # --- looking -----------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Run and leases, for programs; no password is in it."""
        with self._changed:
            self._take_back_gone()
            leases = [
                {
                    **entry.holder,
                    "state": entry.state,
                    "databases": {name: dsn.database for name, dsn in entry.lease.dsns.items()},
                    "resets": dict(entry.resets),
                    "marks": list(entry.marks),
                }
                for entry in self._entries.values()
            ]
            waiting = len(self._queue)
        return {
            "run": self.run,
            "workers": len(self),
            "server": self._harness.description,
            "waiting": waiting,
            "leases": leases,
        }

    def close(self) -> None:
        """Whoever waits, or asks from now on, is told that the run is over. Twice is once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for entry in self._entries.values():
                self._hold(entry, "free", "", None)

    def __repr__(self) -> str:
        states = Counter(entry.state for entry in self._entries.values())
        told = ", ".join(f"{number} {state}" for state, number in states.items())
        return f"<LeaseTable {len(self)} leases: {told}; {len(self._queue)} wait>"
