"""Where the databases of a run's workers are: the interface, and the one server that all of them share.

The other one is :mod:`harness.runs.per_worker`, apart because a worker that joins a shared server imports nothing
of starting and baking servers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, Self, TypedDict, Unpack

from harness.config.project import Project
from harness.databases.template import Template
from harness.errors import HarnessError
from harness.migrations.port import Progress, unseen
from harness.postgres import names
from harness.runs.session import ServerSession

if TYPE_CHECKING:
    from harness.databases.spec import Owner
    from harness.databases.sweep import Doomed
    from harness.servers.port import Backend, ServerInfo


class How(TypedDict, total=False):
    """How a run is opened; every key may be left out.

    Attributes:
        purpose: ``"run"`` for tests (the default), ``"up"`` for a person's databases, which share one server.
        run: what names this run, for instance xdist's ``testrun_uid``; default: random.
        rebuild: migrate anew although a template, or a baked base, is there.
        workers: how many there will be, where that is known: memory for servers is reckoned for all of them.
        worker: where this process is one worker of the run: its name. All that is leased here is on that worker's
            server then.
        progress: takes (done, total, what) while migrations run.
    """

    purpose: str
    run: str | None
    rebuild: bool
    workers: int
    worker: str
    progress: Progress


class Placement(Protocol):
    """Which server a worker's databases are on, and what becomes of the servers."""

    @property
    def project(self) -> Project:
        """The run's, with what was found out since it was opened."""

    @property
    def shared(self) -> ServerSession | None:
        """The server that all workers share; None where each has its own."""

    @property
    def members(self) -> Mapping[str, ServerSession]:
        """Worker → the server that is its own, of those that this process has started."""

    @property
    def templates(self) -> Mapping[str, Template]:
        """Database name → template, of whichever server there is; empty before there is one."""

    @property
    def description(self) -> str:
        """Where the databases are, for people."""

    def made(self, database: str) -> str:
        """What the migrations of a database came from, and whether they had to run, for people."""

    def session(self, worker: str) -> ServerSession:
        """The worker's server: always the same, or one that is started now.

        Raises:
            ServerStartError, BackendError: it cannot be started, or memory does not suffice.
            LeaseClosed: the run was closed meanwhile.
        """

    def sessions(self, workers: Sequence[str]) -> list[ServerSession]:
        """The servers of several workers, with all that their clones are made of; all or none.

        Raises:
            As :meth:`session`.
        """

    def one(self) -> ServerSession:
        """The one server that this process works on.

        Raises:
            HarnessError: there is none, or several.
        """

    def unused(self, session: ServerSession) -> None:
        """The last lease of this process on that server has gone."""

    def give_up(self, workers: Sequence[str]) -> None:
        """End the servers that are these workers' own."""

    def check_room(self, count: int) -> None:
        """Whether memory suffices for ``count`` workers more.

        Raises:
            BackendError: it does not.
        """

    def crashed(self, workers: Sequence[str] | None) -> list[str]:
        """Remove what other processes' workers have left; return what went.

        Args:
            workers: of the run; None: all that have something on a server that is not theirs alone.
        """

    def fingerprints(self) -> dict[str, str]:
        """Database name → fingerprint of its migrations as they are now. Builds and changes nothing."""

    def sweep(self, *, dry_run: bool) -> list[Doomed]:
        """Remove what dead runs of this checkout have left."""

    def close(self) -> None:
        """Let go of all servers, or end them. Called once."""

    def abandon(self) -> None:
        """Let go of servers that are about to be ended. Called once."""


class SharedServer:
    """One server, in which every worker has databases.

    Args:
        session: of this run on it.
        guest: whether another process has opened the run: what is leased is released by that one.
    """

    def __init__(self, session: ServerSession, *, guest: bool = False) -> None:
        self._session = session
        self._releases = session.run != names.PERSON and not guest

    @classmethod
    def open(cls, project: Project, digits: str, **how: Unpack[How]) -> Self:
        """Find or start the server, and have the templates ready there.

        Args:
            digits: sixteen hex digits that name the run, or a person's word.

        Raises:
            BackendUnavailable, ServerStartError, MigrationError, TemplateBusy, PoolTimeout.
        """
        from harness.servers import acquire, memory

        rebuild = how.get("rebuild", False)
        project = memory.with_storage(project)

        def base(backend: Backend) -> str | None:
            # Where a server must be started; what runs already needs nothing of it.
            from harness.runs.bake import baked_base

            return None if rebuild else baked_base(project, backend)

        found = acquire.ensure(project, purpose=how.get("purpose", "run"), base=base)
        session = ServerSession(
            project,
            found,
            run=digits,
            workers=how.get("workers", 1),
            progress=how.get("progress", unseen),
        )
        try:
            moving = _prepare_or_move(session, rebuild=rebuild, may_move=how.get("purpose", "run") == "run")
        except BaseException:
            session.abandon()
            raise
        if not moving:
            return cls(session)
        session.abandon()
        # The server in memory is replaced there, or left to the runs that use it: see docs/decisions/0013.
        return cls.open(project.having(storage="disk"), digits, **how)

    @classmethod
    def join(
        cls,
        project: Project,
        *,
        run: str,
        info: ServerInfo,
        owner: Owner,
        templates: Mapping[str, Template],
        workers: int = 1,
    ) -> Self:
        """The server that another process of the run has found: one log-in, nothing is looked for or computed.

        Raises:
            ServerLost: it is gone, or another one answers at its address.
        """
        from harness.servers.handle import join

        found = join(project, info)
        session = ServerSession(project, found, run=run, workers=workers, owner=owner, templates=templates)
        return cls(session, guest=True)

    @property
    def project(self) -> Project:
        """As the server's session has it."""
        return self._session.project

    @property
    def shared(self) -> ServerSession | None:
        """It."""
        return self._session

    @property
    def members(self) -> Mapping[str, ServerSession]:
        """No worker has one of its own."""
        return {}

    @property
    def templates(self) -> Mapping[str, Template]:
        """Database name → template."""
        return self._session.templates

    @property
    def description(self) -> str:
        """The backend's words for the server."""
        return self._session.server.info.description

    def made(self, database: str) -> str:
        """How its template was had."""
        return had("template", self._session.templates[database])

    def session(self, worker: str) -> ServerSession:
        """The same for every worker."""
        return self._session

    def sessions(self, workers: Sequence[str]) -> list[ServerSession]:
        """The same for every worker, with a spare for each, made side by side."""
        self._session.fill(len(workers))
        return [self._session] * len(workers)

    def one(self) -> ServerSession:
        """The server."""
        return self._session

    def unused(self, session: ServerSession) -> None:
        """It stays: other workers use it, and it is kept warm for the next run."""

    def give_up(self, workers: Sequence[str]) -> None:
        """None is a worker's own."""

    def check_room(self, count: int) -> None:
        """Databases take no memory that has to be reckoned beforehand."""

    def crashed(self, workers: Sequence[str] | None) -> list[str]:
        """Drop the databases of these workers, or of the whole run; return their names."""
        return self._session.drop_leases(workers)

    def fingerprints(self) -> dict[str, str]:
        """As they are for this server's version."""
        return self._session.fingerprints()

    def sweep(self, *, dry_run: bool) -> list[Doomed]:
        """Drop what dead runs of this checkout left on this server."""
        return self._session.sweep(dry_run=dry_run)

    def close(self) -> None:
        """Release what this process has leased, unless it belongs to a person or another process; log out."""
        self._session.close(release=self._releases)

    def abandon(self) -> None:
        """Log out."""
        self._session.abandon()

    def __repr__(self) -> str:
        return self.description


def _prepare_or_move(session: ServerSession, *, rebuild: bool, may_move: bool) -> bool:
    """Have the templates ready; True where everything has to be done again on disk."""
    from harness.servers import memory

    project, server = session.project, session.server
    try:
        session.prepare(rebuild=rebuild)
    except HarnessError as error:
        if may_move and memory.ran_out(error, project, server):
            return True
        memory.explain(error, server)
        raise
    size = sum(template.size for template in session.templates.values())
    return may_move and memory.must_move(project, server, size)


def run_all(acts: Sequence[Callable[[], object]]) -> None:
    """Run several acts side by side; the first error is raised after all have ended."""
    if len(acts) == 1:
        acts[0]()
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max(1, len(acts))) as threads:
        for future in [threads.submit(act) for act in acts]:
            future.result()


class Made(Protocol):
    """What was found, or built."""

    @property
    def built(self) -> bool:
        """Whether it was built just now."""

    @property
    def seconds(self) -> float:
        """How long that took."""


def had(what: str, made: Made) -> str:
    """How it was had, for people: ``"template built in 1.2 s"``, ``"base found"``."""
    return f"{what} {f'built in {made.seconds:.1f} s' if made.built else 'found'}"


class PlacementKind(Protocol):
    """What opens a placement."""

    def open(self, project: Project, digits: str, **how: Unpack[How]) -> Placement:
        """Have everything ready for the first worker of the run that these sixteen hex digits name."""
