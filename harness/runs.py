"""What every run has, whether its workers share one server or have one each."""

from __future__ import annotations

import itertools
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from harness.config import environment as env
from harness.config import project
from harness.config.settings import Settings
from harness.databases.lease import Lease
from harness.errors import HarnessError
from harness.telling import Progress, Story, silent, unseen

if TYPE_CHECKING:
    from harness.databases.sweep import Doomed


def first_free(taken: Iterable[str]) -> str:
    """The lowest number that names no worker yet."""
    names = set(taken)
    return next(str(number) for number in itertools.count(1) if str(number) not in names)


class How(TypedDict, total=False):
    """How a run is opened; every key may be left out.

    Attributes:
        purpose: ``"run"`` for tests (the default), ``"up"`` for a person's databases, which share one server.
        run: what names this run, for instance xdist's ``testrun_uid``; default: random.
        rebuild: migrate anew although a template, or a baked base, is there.
        workers: how many there will be, where that is known: memory for servers is reckoned for all of them.
        story: takes a line for people about what is being done.
        progress: takes (done, total, what) while migrations run.
    """

    purpose: str
    run: str | None
    rebuild: bool
    workers: int
    story: Story
    progress: Progress


class Run(ABC):
    """One run: its settings, its name, and a lease for each of its workers.

    A context manager: what is still leased at its end is released.

    Attributes:
        settings: what it was opened with.
        run: sixteen hex digits that name it.
        project: ten hex digits of the checkout.
        workers: how many there will be, where that is known.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        *,
        run: str,
        workers: int = 1,
        story: Story = silent,
        progress: Progress = unseen,
    ) -> None:
        self.settings = settings
        self.run = run
        self.project = project.project_id(settings.root)
        self.workers = workers
        self._environ = dict(environ)
        self._story = story
        self._progress = progress
        self._lock = threading.RLock()
        self._closed = False

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment that it was opened with, for programs that are started on its behalf."""
        return self._environ

    @classmethod
    def open(
        cls,
        *,
        root: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        purpose: str = "run",
        run: str | None = None,
        rebuild: bool = False,
        workers: int = 1,
        story: Story = silent,
        progress: Progress = unseen,
        **overrides: Any,
    ) -> Self:
        """Have everything ready for leases: servers or what they start from, and migrated templates.

        Args:
            root: where to look for the project; default: the working directory.
            environ: default: ``os.environ``.
            purpose, run, rebuild, workers, story, progress: see :class:`How`.
            overrides: settings, as in the file, for instance ``migrations=["sql:db/migrations"]``.

        Raises:
            ConfigError, BackendUnavailable, ServerStartError, MigrationError, TemplateBusy, PoolTimeout.
        """
        from harness.config.load import load

        environment = os.environ if environ is None else environ
        start = Path(root) if root is not None else Path.cwd()
        settings = load(environment, start=start, overrides={**overrides, **cls._stated(purpose)})
        return cls.open_with(
            settings,
            environment,
            purpose=purpose,
            run=run,
            rebuild=rebuild,
            workers=workers,
            story=story,
            progress=progress,
        )

    @classmethod
    def _stated(cls, purpose: str) -> Mapping[str, Any]:
        """Settings that this kind of run implies."""
        return {}

    @classmethod
    @abstractmethod
    def open_with(cls, settings: Settings, environ: Mapping[str, str], **how: Unpack[How]) -> Self:
        """As :meth:`open`, with settings that were read already."""

    @abstractmethod
    def lease(self, worker: str | None = None) -> Lease:
        """Lease a fresh clone of every database for one worker."""

    @abstractmethod
    def leases(self, count: int, *, first: int = 1) -> list[Lease]:
        """Leases for workers ``first`` … ``first + count - 1``, made side by side."""

    @abstractmethod
    def fingerprints(self) -> dict[str, str]:
        """Database name → fingerprint of its migrations as they are now. Builds and changes nothing."""

    @abstractmethod
    def sweep(self, *, dry_run: bool = False) -> list[Doomed]:
        """Remove what dead runs of this checkout have left."""

    @abstractmethod
    def close(self) -> None:
        """Release what is still leased, and let go. Twice is once."""

    # --- environment -------------------------------------------------------------------------------

    def slot(self, worker: str) -> env.Slot:
        """What env templates may say of a worker."""
        return env.Slot(worker, self.workers, self.settings.connections_per_worker)

    def variables(self, lease: Lease) -> dict[str, str]:
        """``DATABASE_URL``, ``PG*`` and the user's own variables of a lease."""
        tables = {database.name: database.env for database in self.settings.databases}
        return env.variables(lease.dsns, tables, self.slot(lease.worker))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except HarnessError:
            # The block's own error matters more than a server that went away under it.
            if error is None:
                raise


def parallel() -> int:
    """How many clones are made side by side."""
    return min(4, os.cpu_count() or 1)


def run_all(acts: Sequence[Callable[[], object]]) -> None:
    """Run several acts side by side; the first error is raised after all have ended."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max(1, len(acts))) as threads:
        for future in [threads.submit(act) for act in acts]:
            future.result()
