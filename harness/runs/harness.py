"""What a program of a user's holds: pristine databases, from the settings of its project to their release."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Self

from harness.config.teller import Teller
from harness.migrations.port import unseen
from harness.runs.run import Run

if TYPE_CHECKING:
    from harness.config.settings import Settings
    from harness.databases.lease import Lease
    from harness.migrations.port import Progress


class Harness:
    """Pristine databases for the workers of one run. Made by :meth:`open`; a context manager.

    Attributes:
        run: sixteen hex digits that name the run. When this process is killed, its databases go with the next run.
    """

    def __init__(self, run: Run, *, telling: AbstractContextManager[object] | None = None) -> None:
        """Use :meth:`open`."""
        self.run = run.run
        self._run = run
        self._telling = nullcontext() if telling is None else telling

    @classmethod
    def open(
        cls,
        *,
        root: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        workers: int = 1,
        rebuild: bool = False,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Self:
        """Find or start the server, and migrate once, into a template; then leases are quick.

        What is done, and how far the migrations are, is shown on stderr where that is a terminal, unless the program has
        configured ``logging`` itself; ``PGHARNESS_LOG`` says how much.

        Args:
            root: where to look for the project; None: the working directory.
            environ: ``PGHARNESS_*`` and what programs are started with; None: ``os.environ``.
            workers: how many leases there will be, where that is known.
            rebuild: migrate anew although a template is there.
            progress: takes (done, total, what) while migrations run, in place of what is shown; total may be None.
            settings: as in the file, which they win over, for instance ``migrations=["sql:db/migrations"]``.

        Raises:
            ConfigError: a setting is not right. BackendUnavailable: nothing here can run a server. ServerStartError: it did
            not start. MigrationError: a migration failed. TemplateBusy, PoolTimeout: others take too long.
        """
        # What only the process needs that opens the run: each worker joins it.
        from harness.runs import opening

        environment = os.environ if environ is None else environ
        found = opening.settings_of(root, environment, settings)
        # A first start pulls an image, or migrates for a minute: a person who sees nothing believes that it hangs.
        teller = Teller.for_scripts(environment)
        shown = progress or (teller.progress if teller else unseen)
        with teller or nullcontext():
            run = Run.open_with(found, environment, workers=workers, rebuild=rebuild, progress=shown)
        return cls(run, telling=teller)

    @property
    def settings(self) -> Settings:
        """What it was opened with, and what was found out since."""
        return self._run.settings

    @property
    def description(self) -> str:
        """Where the databases are, for people."""
        return self._run.description

    def lease(self, worker: str | None = None, *, watch: bool | None = None) -> Lease:
        """A fresh clone of every database, for one worker; it is released at the end of its block, or by :meth:`close`.

        Args:
            worker: any text that is unique in the run, for instance ``"gw2"``; the same once more is a fresh
                clone under the same name. None: the lowest number that this object has not leased.
            watch: whether resets will be asked for; without it each is a clone. None: where the setting ``fresh`` says so.

        Raises:
            ServerStartError, BackendError: the worker's own server cannot be started, or memory does not suffice.
        """
        with self._telling:
            return self._run.lease(worker, watch=watch)

    def leases(
        self, count: int, *, first: int = 1, watch: bool | None = None, apart: bool = False
    ) -> list[Lease]:
        """Leases for workers ``first`` … ``first + count - 1``, made side by side.

        Args:
            watch: as for :meth:`lease`.
            apart: each is reset over a connection of its own, so that they can be reset side by side, in threads.
        """
        with self._telling:
            return self._run.leases(count, first=first, watch=watch, apart=apart)

    def variables(self, lease: Lease) -> dict[str, str]:
        """``DATABASE_URL``, ``PG*`` and the user's own variables of a lease, for a program that is started with them."""
        return self._run.variables(lease)

    def close(self) -> None:
        """Release what is still leased, and let go of the server. Twice is once."""
        self._run.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._run.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return repr(self._run).replace("<Run ", f"<{type(self).__name__} ", 1)
