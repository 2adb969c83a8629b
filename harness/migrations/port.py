"""The port that every migration source fills: two methods, because two are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from harness.config.settings import SourceSpec
from harness.dsn import Dsn
from harness.errors import MigrationError

Progress = Callable[[int, int | None, str], None]
"""Takes how many steps are done, of how many (None: nobody knows), and what was done last."""


def unseen(done: int, total: int | None, what: str) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True)
class MigrationContext:
    """What a source is given to work with.

    Attributes:
        dsn: the database to migrate, as the role that migrates (``migrate_as``).
        admin_dsn: the same database as the admin, for dumps that set owners.
        environment: the full environment for child processes: ``DATABASE_URL``, ``PG*`` and the user's
            own templates already point to ``dsn``.
        timeout: seconds that all of this source may take.
        progress: called with (done, total or None, what) as steps finish.
        alias: which database of the worker this is, as in ``[tool.pg-harness.databases.NAME]``; Django
            migrates its alias of that name.
        binaries: folder of ``psql`` and ``pg_restore``; None where PATH has to do.
    """

    dsn: Dsn
    admin_dsn: Dsn
    environment: Mapping[str, str]
    timeout: float
    progress: Progress = unseen
    binaries: Path | None = None
    alias: str = "default"


class MigrationSource(Protocol):
    """A schema's origin."""

    @property
    def text(self) -> str:
        """As written in the settings, for messages, for instance ``"sql:db/migrations"``."""
        ...

    def fingerprint(self) -> str:
        """Hex digest of all that decides the outcome of :meth:`apply`, apart from the server.

        Raises:
            MigrationError: the source cannot be read (a missing folder, two heads, a ``\\`` command).
        """
        ...

    def apply(self, context: MigrationContext) -> None:
        """Bring an empty (or partly migrated, by the sources before) database to its final state.

        Leaves no session open. Raises MigrationError with ``source`` and ``step`` filled.
        """
        ...


def short(digest: str) -> str:
    """As much of a hash as is noted of each step: a label is one comment, whatever the number of files."""
    return digest[:16]


@runtime_checkable
class Stepwise(Protocol):
    """A source whose steps no tool counts in the database: what was applied is noted in the database's label.

    Any other source is applied again to a database of older migrations, as ``alembic upgrade head`` is.
    """

    def steps(self) -> Mapping[str, str]:
        """Name of each step, in the order of running → :func:`short` hash of what it does."""
        ...

    def pending(self, applied: Mapping[str, str], *, out_of_order: bool = False) -> Sequence[str]:
        """Names of the steps that a database lacks.

        Args:
            applied: as :meth:`steps` was when the database was made, those of other sources too.
            out_of_order: steps may be pending that come before one that was applied.

        Raises:
            MigrationError: what was applied is not what it is now, so that nothing brings the database there.
        """
        ...

    def upgrade(self, context: MigrationContext, steps: Sequence[str]) -> None:
        """Apply these steps only; raises as :meth:`MigrationSource.apply` does."""
        ...


class Configured:
    """What every source begins with: its entry in the settings, and the root that its paths start at.

    Args:
        spec: the entry.
        root: the project's root; relative paths start here.
        cache: a folder for what a source learns of a project; None: it learns it each time.
        environment: for child processes that only look.
    """

    def __init__(
        self,
        spec: SourceSpec,
        root: Path,
        *,
        cache: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._spec = spec
        self._root = root
        self._cache = cache
        self._environment: Mapping[str, str] = environment or {}

    @property
    def text(self) -> str:
        """As written in the settings."""
        return self._spec.text

    def further(self) -> list[str]:
        """Names of databases that the project has beside the default one, which the same entry migrates. For ``init``.

        Raises:
            MigrationError: the project cannot be asked.
        """
        return []

    def lacking(self) -> str:
        """What this machine lacks to apply it, and what to do; empty where nothing is known to be missing. For ``doctor``."""
        return ""

    def failure(self, message: str, step: str = "") -> MigrationError:
        """What to raise, with the source named.

        Args:
            step: the file, revision or command; empty where the source as a whole is meant.
        """
        return MigrationError(f"{self.text}: {message}", source=self.text, step=step)
