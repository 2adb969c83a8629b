"""The engines of the reset, side by side: each with a run of its own on the same server and template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import BackendUnavailable, ConfigError, Lease
from harness.bench.measuring import REWIND, ROWS
from harness.bench.project import DIRTY, Application, knows_engines, open_run

if TYPE_CHECKING:
    from harness.runs.run import Run

BOTH = "both"

CHOICES = (BOTH, ROWS, REWIND)
"""Words of ``--engine``."""


@dataclass(frozen=True)
class Engine:
    """One engine that is measured.

    Attributes:
        name: ``"rows"`` or ``"rewind"``.
        harness: a run whose leases are reset by it.
    """

    name: str
    harness: Run

    def position(self) -> int:
        """Where the server's log ends, in bytes from its beginning."""
        return int(str(self.harness.link.session.value("select pg_current_wal_insert_lsn() - '0/0'")))


@dataclass
class Side:
    """One engine with a lease and an application that writes into it."""

    engine: Engine
    lease: Lease
    app: Application
    _told: object = None

    @property
    def name(self) -> str:
        """The engine's."""
        return self.engine.name

    def pages(self) -> tuple[int, int] | None:
        """How many pages the last reset compared and wrote; None by rows, or where the module was not asked since."""
        answer = self.lease.rewound if self.name == REWIND else None
        if answer is None or answer is self._told:
            return None
        self._told = answer
        return answer.work[1], answer.work[2]

    @property
    def position(self) -> Callable[[], int]:
        """Asks where the server's log ends."""
        return self.engine.position


@contextmanager
def opened(folder: Path, version: str | None, names: Sequence[str]) -> Iterator[list[Engine]]:
    """A run for each engine, all on the server of one project.

    Args:
        folder: of the project.
        version: PostgreSQL's major version; None: whatever there is.
    """
    with ExitStack() as stack:
        yield [Engine(name, stack.enter_context(open_run(folder, version, engine=name))) for name in names]


@contextmanager
def leased(engines: Sequence[Engine], worker: str) -> Iterator[list[Side]]:
    """A lease and an application for each engine."""
    with ExitStack() as stack:
        sides = []
        for engine in engines:
            lease = stack.enter_context(engine.harness.lease(worker, watch=True))
            sides.append(Side(engine, lease, stack.enter_context(Application(lease))))
        yield sides


def had(wanted: str, folder: Path, version: str | None) -> tuple[list[str], str]:
    """The engines that can be measured in a project, and why one of the wanted ones cannot.

    Args:
        wanted: a word of :data:`CHOICES`.

    Raises:
        ConfigError: nothing but rewind was asked for, and it is not to be had.
    """
    if wanted == ROWS:
        return [ROWS], ""
    why = _missing(folder, version)
    if why and wanted == REWIND:
        raise ConfigError(f"the engine rewind cannot be measured here: {why}", key="--engine")
    names = [REWIND] if wanted == REWIND else [ROWS, REWIND]
    return ([ROWS], why) if why else (names, "")


def _missing(folder: Path, version: str | None) -> str:
    """Why resets are not done by rewind in this project; empty where they are."""
    if not knows_engines():
        return "this version of pg-harness has no such engine"
    try:
        with (
            open_run(folder, version, engine=REWIND) as harness,
            harness.lease("probe", watch=True) as lease,
            Application(lease) as app,
        ):
            app.script(DIRTY)
            report = lease.reset()
    except BackendUnavailable as error:
        return "; ".join(error.checked) or error.message
    return "" if report.strategy == REWIND else f"a reset was done otherwise: {report}"
