"""Watches who uses which database during ``run -n N``.

A parallel runner that ignores the numbered URLs must not look isolated: its processes would all share
worker 1's database. Two facts tell: which local processes hold connections to it, sampled while the command
runs, and which databases nobody ever entered, counted by the server itself (``pg_stat_database.sessions``).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from harness.dsn import Dsn
from harness.errors import HarnessError
from harness.postgres.admin import Link
from harness.postgres.session import APPLICATION_NAME

EVERY = 0.1
"""Seconds between two looks; each costs the server about a third of a millisecond."""


class Watch:
    """Looks from a thread of its own until the block ends; then :meth:`report`."""

    def __init__(self, link: Link, dsns: Sequence[Dsn], command: int) -> None:
        """
        Args:
            link: to the maintenance database, for this object alone.
            dsns: worker 1's database first.
            command: process id of the command.
        """
        self._link = link
        self._names = [dsn.database for dsn in dsns]
        self._port = dsns[0].port
        self._command = command
        self._seen: set[tuple[int, str]] = set()
        self._sharing: dict[int, str] = {}
        self._entered: set[str] = set()
        self._counted = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="pg-harness watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def report(self) -> list[str]:
        """Lines for the end of the run; empty where nothing is wrong or nothing is known."""
        lines = []
        many = len(self._names)
        if len(self._sharing) > 1:
            processes = ", ".join(f"{pid} ({name})" for pid, name in sorted(self._sharing.items())[:6])
            more = f" and {len(self._sharing) - 6} more" if len(self._sharing) > 6 else ""
            lines.append(
                f"not isolated: {len(self._sharing)} processes used worker 1's database at the same time: "
                f"{processes}{more}"
            )
        # Only worker 3's unused: the runner had less to do than workers. All of 2…N: it ignores the numbers.
        if self._names[0] in self._entered and self._entered == {self._names[0]} and (self._counted or lines):
            lines.append(f"only worker 1's database was used, of {many}: DATABASE_URL_2 … were ignored")
        if lines:
            lines.append(
                f"each worker of the runner must take its own of DATABASE_URL_1 … DATABASE_URL_{many} "
                f"(Vitest: by VITEST_POOL_ID, Jest: by JEST_WORKER_ID); or let `pg-harness run --copies {many} -- …` start it several times"
            )
        return lines

    def _look_on(self) -> None:
        try:
            while not self._stop.wait(EVERY):
                self._look()
            self._count()
        except HarnessError:
            # The server went away: the command itself will have said so.
            return
        finally:
            self._link.close()

    def _look(self) -> None:
        rows = self._link.session.rows(
            "select pid, datname, coalesce(client_port, 0), backend_start::text from pg_stat_activity"
            " where datname = any(%s) and application_name <> %s and backend_type = 'client backend'",
            (self._names, APPLICATION_NAME),
        )
        self._entered |= {name for _, name, _, _ in rows}
        mine = [row for row in rows if row[1] == self._names[0]]
        # Reading /proc costs milliseconds: only where two sessions share the database, and one of them is new.
        sessions = {(pid, began) for pid, _, _, began in mine}
        if len(sessions) < 2 or sessions <= self._seen:
            return
        self._seen |= sessions
        sharing = owners(self._port, {port for _, _, port, _ in mine}, len(rows) - len(mine), self._command)
        if len(sharing) > 1:
            self._sharing |= sharing

    def _count(self) -> None:
        session = self._link.session
        if session.server_version < 140000:
            return
        rows = session.rows(
            "select datname from pg_stat_database where datname = any(%s) and sessions > 0", (self._names,)
        )
        self._entered |= {name for (name,) in rows}
        self._counted = True


def owners(port: int, ports: set[int], others: int, command: int) -> dict[int, str]:
    """Which processes below the command hold connections to worker 1's database (Linux; else none are known).

    Args:
        port: the server's, as the command sees it.
        ports: the clients' ports of those connections, as the server sees them.
        others: how many connections there are to the other workers' databases.
        command: process id.

    Returns:
        Process id → name.
    """
    by_inode = {inode: local for local, inode in _connections(port)}
    holders: dict[int, set[int]] = {}
    for pid in _descendants(command):
        for inode in _sockets(pid):
            if inode in by_inode:
                holders.setdefault(inode, set()).add(pid)
    # A forked child holds its parent's connections too: they are the parent's.
    first = {inode: min(pids) for inode, pids in holders.items()}
    direct = {pid for inode, pid in first.items() if by_inode[inode] in ports}
    if direct:
        return {pid: _name(pid) for pid in direct}
    # Docker's proxy hides the clients' ports: of these processes, as many may be other workers' as
    # there are connections to their databases.
    pids = sorted(set(first.values()))
    sure = pids[others:] if others else pids
    return {pid: _name(pid) for pid in sure}


def _connections(port: int) -> Iterator[tuple[int, int]]:
    """(local port, inode) of the established connections to a port of this machine (proc(5), net/tcp)."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "01" and int(fields[2].rpartition(":")[2], 16) == port:
                yield int(fields[1].rpartition(":")[2], 16), int(fields[9])


def _descendants(root: int) -> set[int]:
    """The process and all below it; those whose parent has died are found by their session."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if entry.isdigit():
            try:
                text = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            # The name is in brackets and may hold anything.
            parents[int(entry)] = int(text.rpartition(")")[2].split()[1])
    found = {root}
    grown = True
    while grown:
        below = {pid for pid, parent in parents.items() if parent in found} - found
        grown = bool(below)
        found |= below
    return found


def _sockets(pid: int) -> Iterator[int]:
    folder = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(folder)
    except OSError:
        return
    for descriptor in descriptors:
        try:
            target = os.readlink(f"{folder}/{descriptor}")
        except OSError:
            continue
        if target.startswith("socket:["):
            yield int(target[8:-1])


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"
