"""What the plugin knows during one pytest session, and how it lets go of it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from harness.config import decisions, environment
from harness.config.project import Project
from harness.config.settings import Settings
from harness.control.serving import Serving
from harness.databases import freshness
from harness.dsn import Dsn
from harness.errors import HarnessError
from harness.pytest_plugin.summary import Summary

if TYPE_CHECKING:
    from harness.databases.lease import Lease
    from harness.pytest_plugin.versions import Several
    from harness.runs.run import Run


class Role(Enum):
    """What this process is in the run."""

    HOST = "host"
    """Runs the tests itself, or is xdist's controller (which is known only later)."""
    WORKER = "worker"
    """An xdist worker: a guest of its controller's run."""
    IDLE = "idle"
    """Collects or shows something: nothing was started."""


@dataclass(frozen=True)
class Place:
    """Databases that this process has leased, and what leads there.

    Attributes:
        serving: what programs of the tests ask.
        variables: what is exported while the tests work there.
    """

    project: Project
    harness: Run
    lease: Lease
    serving: Serving
    variables: Mapping[str, str]

    @classmethod
    def leased(cls, project: Project, harness: Run, worker: str, *, tests: bool = True) -> Self:
        """Lease there; see :meth:`State.leased`."""
        if tests and (spares := freshness.of(project.settings).spares):
            # Each test gets a new clone: the next one is made, and the last one dropped, while a test runs.
            harness.keep_spares(spares)
        lease = harness.lease(worker, watch=None if tests else False)
        # A program that a test starts may ask for a reset: of this worker's databases, and no one else's.
        serving = Serving(harness, [lease], each=True)
        return cls(project, harness, lease, serving, {**harness.variables(lease), **serving.variables(1)})


@dataclass
class State:
    """One pytest session.

    Attributes:
        lease: None in an xdist controller whose workers have servers of their own: it has no database; and
            where nothing was started.
        exported: the variables that were set, as they were set.
        pid: the process that made it; a fork of it must let go of nothing.
        seconds: what it took until the variables were exported.
        summary: what is told at the end.
    """

    project: Project
    role: Role
    harness: Run | None = None
    lease: Lease | None = None
    exported: Mapping[str, str] = field(default_factory=dict)
    undo: Callable[[], None] = lambda: None
    quiet: bool = False
    seconds: float = 0.0
    run_files: list[Path] = field(default_factory=list)
    """What was written for xdist's workers."""
    several: Several | None = None
    """The versions of PostgreSQL, where each test is run on several."""
    others: dict[str, Run] = field(default_factory=dict)
    """Version → a run that this process has opened besides :attr:`harness`, where each test is run on several."""
    summary: Summary = field(default_factory=Summary)
    pid: int = field(default_factory=os.getpid)
    hold: object = None
    """Kept alive for as long as the session: the port that stays closed, where nothing was leased."""
    closed: Mapping[str, Dsn] = field(default_factory=dict)
    """Database name → the address at which nobody answers, where nothing was leased."""
    telling: AbstractContextManager[object] = field(default_factory=nullcontext)
    """A block in which the log is written to stderr; entered wherever the plugin works for itself."""
    leaves: tuple[Path, int] | None = None
    """Of a worker whose server is on one of several Docker hosts: where it notes why it leaves, and the controller's process."""
    serving: Serving | None = None
    """What programs of the tests ask; None where nothing was leased."""
    before_end: Callable[[], None] = lambda: None
    """Lets go of what the parts of the plugin have taken besides; called before the rest is let go of."""
    _ended: bool = False
    _filler: threading.Thread | None = None

    @classmethod
    def leased(cls, project: Project, role: Role, harness: Run, worker: str, *, tests: bool = True) -> Self:
        """Lease and export; the harness is closed where that fails.

        Args:
            worker: what the lease is called in the run: ``"main"``, ``"gw2"``.
            tests: whether this process will run tests, as far as is known.
        """
        try:
            place = Place.leased(project, harness, worker, tests=tests)
            state = cls(project, role)
            state.enter(place)
        except BaseException:
            harness.close()
            raise
        return state

    def enter(self, place: Place) -> None:
        """Work there from now on: what was exported before has been undone."""
        self.project, self.harness, self.lease = place.project, place.harness, place.lease
        self.serving = place.serving
        self.export(place.variables)

    @property
    def place(self) -> Place | None:
        """Where tests work just now; None where this process has no database."""
        if self.harness is None or self.lease is None or self.serving is None:
            return None
        return Place(self.project, self.harness, self.lease, self.serving, self.exported)

    def export(self, variables: Mapping[str, str]) -> None:
        """Set the variables of this process, and note how they were."""
        self.exported, self.undo = variables, environment.patch(os.environ, variables)

    def fill(self, workers: int) -> None:
        """Clone for these workers from now on, in a thread: while they import pytest, and before. Twice is once."""
        if self._filler is None and self.harness is not None and self.lease is not None:
            self._filler = threading.Thread(
                target=_fill, args=(self.harness, workers), name="pg-harness spares", daemon=True
            )
            self._filler.start()

    @property
    def settings(self) -> Settings:
        """The project's, as they were when this process began."""
        return self.project.settings

    @property
    def running(self) -> tuple[Run, Lease]:
        """The harness and this process's lease, in a run that started something."""
        if self.harness is None or self.lease is None:
            raise pytest.UsageError("pg-harness: nothing was started for this kind of run")
        return self.harness, self.lease

    @property
    def run(self) -> Run:
        """The run of a process that started something, whether or not it has a database of its own."""
        if self.harness is None:
            raise pytest.UsageError("pg-harness: nothing was started for this kind of run")
        return self.harness

    @property
    def runs(self) -> list[Run]:
        """The runs that this process has opened: one for each version that is to be had, the first one first."""
        return [self.run, *self.others.values()]

    @property
    def dsns(self) -> Mapping[str, Dsn]:
        """Database name → the address that was exported."""
        return self.closed if self.lease is None else self.lease.dsns

    @property
    def fate(self) -> str:
        """What has become of the server where it does not answer any more, as its backend knows; empty where it does not."""
        return self.harness.server.fate if self.harness is not None else ""

    @property
    def in_fork(self) -> bool:
        """Whether this is a copy of the process that a test has forked."""
        return os.getpid() != self.pid

    def end(self) -> None:
        """Undo everything: variables, leases, the run file. Twice is once; a problem becomes one line."""
        if self._ended or self.in_fork:
            return
        self._ended = True
        self.before_end()
        self.undo()
        if self.serving is not None:
            self.serving.close()
        if self._filler is not None:
            # A half-made clone would be in the way of the release.
            self._filler.join(timeout=30)
        for file in self.run_files:
            file.unlink(missing_ok=True)
        if self.harness is None:
            return
        with self.telling:
            for other in self.others.values():
                let_go(other, opened=True)
            self._let_go(self.harness)

    def _let_go(self, run: Run) -> None:
        if self.role is Role.HOST:
            self._note()
        let_go(run, opened=self.role is Role.HOST)

    def _note(self) -> None:
        """How the tests were reset, and what came up: for a bug report."""
        for told in (self.summary.resets(), *self.summary.lines()):
            if told:
                decisions.note(self.project, "tests", told)


def let_go(run: Run, *, opened: bool) -> None:
    """Release what is leased; a problem becomes one line.

    Args:
        opened: whether this process has opened the run, and not joined it.
    """
    try:
        if opened:
            run.release_run()
            run.sweep()
    except HarnessError as error:
        complain(f"letting go of the databases failed, the next run puts it right: {error.full_text}")
    finally:
        try:
            run.close()
        except HarnessError as error:
            complain(error.full_text)


def _fill(harness: Run, workers: int) -> None:
    try:
        harness.fill_aside(workers)
    except HarnessError:
        # Each worker clones for itself then, and says what is wrong.
        return


STATE = pytest.StashKey[State]()


def state_of(config: pytest.Config) -> State:
    """The state that :mod:`harness.pytest_plugin.bootstrap` has left in the config."""
    return config.stash[STATE]


def complain(text: str) -> None:
    """One line for people, past pytest's own output."""
    print(f"pg-harness: {text}", file=sys.__stderr__ or sys.stderr, flush=True)
