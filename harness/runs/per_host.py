"""A shared server on each of several Docker hosts, its workers beside it (``isolation = "database"`` with ``hosts``).

The servers start from one baked image, which is built once and taken by each host; they stay warm for the next run, as the one
server does where there are no hosts. A host that cannot start one is left out, and its workers go to the others.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from harness.config.project import Project
from harness.databases.clones import run_all
from harness.databases.sweep import Leftover
from harness.errors import BackendError, ServerLost
from harness.migrations.port import Progress, unseen
from harness.postgres import databases, names
from harness.postgres.databases import Database
from harness.postgres.names import Kind
from harness.runs import budget, opening, rewinding
from harness.runs.bake import Baker
from harness.runs.placement import SharedServer, had
from harness.runs.runfile import Joined
from harness.runs.session import ServerSession
from harness.servers import inventory, memory, registry
from harness.servers.handshake import claim_alone
from harness.servers.port import Backend
from harness.servers.records import Hint
from harness.servers.version import is_another

logger = logging.getLogger("pg_harness.runs")


def backend_of_several(project: Project, workers: int) -> Backend | None:
    """The backend whose hosts share the workers; None where one server is enough, or all that there is.

    Raises:
        BackendUnavailable: no host can be used. ConfigError: a word of the setting is wrong.
    """
    if workers < 2 or len(project.settings.hosts) < 2 or registry.wanted(project.settings) != "docker":
        return None
    backend = registry.choose(project)
    return backend if sum(host.ok for host in backend.hosts()) > 1 else None


class ServerPerHost:
    """The shared servers of one run.

    Attributes:
        project: what the run was opened with, with the hosts that can be used.
        members: host → the run's session on its server, of those that this process has opened.
        together: see :class:`harness.runs.placement.Placement`.

    Args:
        backend: that starts them.
        run: sixteen hex digits.
        rebuild: bake anew.
        workers: how many there will be.

    Raises:
        ConfigError, BackendUnavailable, ServerStartError, MigrationError, PoolTimeout.
    """

    shared = None
    together = True

    def __init__(
        self,
        project: Project,
        backend: Backend,
        *,
        run: str,
        rebuild: bool = False,
        workers: int = 1,
        progress: Progress = unseen,
    ) -> None:
        self.project = project.having(backend=backend.name)
        self.members: dict[str, ServerSession] = {}
        self._backend = backend
        self._baked = Baker(self.project, backend).ensure(rebuild=rebuild, progress=progress)
        self._run = run
        self._rebuild = rebuild
        self._workers = workers
        self._progress = progress
        self._servers: dict[str, SharedServer] = {}
        self._places: dict[str, str] = {}
        self._lock = threading.RLock()

    @property
    def description(self) -> str:
        """For people."""
        return f"{self._backend.name}, a server on each host"

    @property
    def unmade(self) -> str:
        """What they all start from."""
        return had("base", self._baked.built, self._baked.seconds)

    @property
    def reset(self) -> str:
        """As was found out on the first server, or when what they start from was baked."""
        for session in self.members.values():
            return rewinding.told(session.rewinding)
        return self._baked.snapshot.facts.get("reset", "")

    # --- places ------------------------------------------------------------------------------------

    def place(self, workers: Sequence[str]) -> Mapping[str, str]:
        """Worker → host; the servers of these hosts run from here on, and the workers' connections are booked there.

        Raises:
            BackendError: there is no room for them, or no host starts a server.
            ConfigError, PoolTimeout: too few connections, see :mod:`harness.runs.budget`.
        """
        with self._lock:
            new = [worker for worker in workers if worker not in self._places]
            if not new:
                return dict(self._places)
            self._places = dict(self._placed(new))
            while failed := self._open_all():
                places = {worker: word for worker, word in self._places.items() if word not in failed}
                moved = [worker for worker in self._places if worker not in places]
                self._places = places
                # Only hosts that can be used are asked: those that have failed are left out by now.
                hosts = tuple(
                    host.word for host in self._backend.hosts() if host.ok and host.word not in failed
                )
                if not hosts:
                    raise next(iter(failed.values()))
                self.project = self.project.having(hosts=hosts)
                self._backend = registry.named(self._backend.name, self.project)
                self._places = dict(self._placed(moved))
            self._book()
            return dict(self._places)

    def _placed(self, workers: Sequence[str]) -> Mapping[str, str]:
        # A worker more on a host is a database more: what a server takes is reckoned once, by its share.
        room = memory.Room.of(self.project.settings, self._backend, self._baked.snapshot.size)
        return self._backend.places(workers, need=max(1, room.data), placed=self._places)

    def _open_all(self) -> dict[str, BackendError]:
        """Have a server on each host that has workers; host → why not."""
        wanted = [word for word in dict.fromkeys(self._places.values()) if word not in self._servers]
        self._backend.spread(self._baked.snapshot, wanted)
        failed: dict[str, BackendError] = {}

        def open_one(word: str) -> None:
            try:
                server = self._open(word)
            except BackendError as error:
                logger.warning("docker: the host %s is left out: %s", word, error.message.splitlines()[0])
                failed[word] = error
                return
            self._servers[word] = server
            self.members[word] = server.shared

        run_all([partial(open_one, word) for word in wanted])
        return failed

    def _open(self, word: str) -> SharedServer:
        project = self.project.having(hosts=(word,))
        purpose = purpose_on(word)
        stays = _outdated(project, purpose, rebuild=self._rebuild)
        return opening.shared(
            project,
            self._run,
            {
                "rebuild": self._rebuild and stays,
                "workers": max(1, Counter(self._places.values())[word]),
                "progress": self._progress,
            },
            server=purpose,
        )

    def _book(self) -> None:
        each = []
        for word, count in Counter(self._places.values()).items():
            session = self.members[word]
            budget.check(session, count, controller=False)
            each.append(session.settings.connections_per_worker)
        if each and min(each) != self.project.settings.connections_per_worker:
            self.project = self.project.having(connections_per_worker=min(each))

    def joined(self) -> Mapping[str, Joined]:
        """What a worker of another process needs to know of each server."""
        return {
            word: Joined(session.server.info, session.owner, session.templates)
            for word, session in self.members.items()
        }

    # --- a placement's own -------------------------------------------------------------------------

    def session(self, worker: str) -> ServerSession:
        """The server of the worker's host."""
        return self.members[self.place([worker])[worker]]

    def sessions(self, workers: Sequence[str]) -> list[ServerSession]:
        """The servers of several workers, with a spare for each, made side by side."""
        places = self.place(workers)
        run_all(
            [
                partial(self.members[word].fill, count)
                for word, count in Counter(places[worker] for worker in workers).items()
            ]
        )
        return [self.members[places[worker]] for worker in workers]

    def give_up(self, workers: Sequence[str]) -> None:
        """None is a worker's own."""

    def check_room(self, count: int) -> None:
        """Databases take no memory that has to be reckoned beforehand; where they go, :meth:`place` decides."""

    def crashed(self, workers: Sequence[str] | None) -> list[str]:
        """Drop the databases of these workers, or of the whole run; return their names."""
        gone: list[str] = []
        for word, session in self.members.items():
            with _alive(word):
                gone += session.drop_leases(workers)
        return gone

    def sweep(self, *, dry_run: bool) -> list[Leftover[Database]]:
        """Drop what dead runs of this checkout left on these servers."""
        left: list[Leftover[Database]] = []
        for word, session in self.members.items():
            with _alive(word):
                left += session.sweep(dry_run=dry_run)
        return left

    def close(self) -> None:
        """Release what this process has leased; log out."""
        for word, server in self._servers.items():
            with _alive(word):
                server.close()

    def __repr__(self) -> str:
        return (
            f"servers on {', '.join(self.members) or 'no host yet'} from base {self._baked.snapshot.key[:8]}"
        )


def _outdated(project: Project, purpose: str, *, rebuild: bool) -> bool:
    """End a warm server that has other migrations: a new one starts with today's, which this one would run once more.

    Args:
        rebuild: end it in any case.

    Returns:
        Whether it is there still, because other runs use it, or because it is of another version, beside which ours stands.
    """
    found = inventory.find(project, purpose=purpose, guard=False)
    if found is None:
        return False
    with ServerSession(project, found) as session:
        if is_another(project.settings, session.link.session):
            return True
        have = {
            database.label.fingerprint
            for database in databases.list_ours(session.link.session, project.id)
            if database.kind is Kind.TEMPLATE and database.label
        }
        if set(session.fingerprints().values()) <= have and not rebuild:
            return False
        if not claim_alone(found.info, session.link.session):
            return True
        logger.info("server: %s has other migrations: a new one takes its place", found.info.description)
        # While nobody else is let in: a run that waits for that would begin on a server that is about to be removed.
        found.backend.stop(found.info)
        Hint.of(project, purpose).forget()
        return False


@contextmanager
def _alive(word: str) -> Iterator[None]:
    """A block that concerns one host's server: that it is gone ends nothing but what was there."""
    try:
        yield
    except ServerLost as error:
        why = error.message.splitlines()[0]
        logger.info("docker: what is on %s ends by itself, it cannot be reached: %s", word, why)


def purpose_on(word: str) -> str:
    """The purpose of the shared server on one host: its name has room for plain characters only."""
    return f"run.{names.digest(word, 8)}"
