"""A lease: the right to use one clone of each database, for one worker of one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from harness.catalog import databases
from harness.catalog.application import connect_application
from harness.clones import Claim, Clones
from harness.dsn import Dsn
from harness.errors import ConfigError, HarnessError, LeaseClosed, LeaseLost
from harness.reset.report import ResetReport
from harness.template import Template

if TYPE_CHECKING:
    import psycopg


class LeasedDatabase:
    """One database of a lease.

    Attributes:
        name: as in the settings; ``"default"`` for the top level.
        dsn: its address, as the application's role. It stays the same through resets.
        template: what it is a clone of.
    """

    def __init__(self, name: str, dsn: Dsn, template: Template, claim: Claim) -> None:
        self.name = name
        self.dsn = dsn
        self.template = template
        self.claim = claim

    @property
    def url(self) -> str:
        """``postgresql://…``, as the application's role."""
        return self.dsn.url

    @contextmanager
    def connect(self, **options: Any) -> Iterator[psycopg.Connection[Any]]:
        """A psycopg connection as the application's role, committed and closed at the end of the block.

        Args:
            options: further arguments of :func:`psycopg.connect`.
        """
        with connect_application(self.dsn, options) as connection:
            yield connection

    def __repr__(self) -> str:
        return f"<LeasedDatabase {self.name} {self.dsn.masked}>"


class Lease:
    """One clone of each configured database; claimed, reset and released together.

    A context manager: leaving the block releases it. ``lease.url`` is the database ``default``;
    ``lease["analytics"].url`` another one.
    """

    def __init__(
        self,
        clones: Clones,
        leased: Mapping[str, LeasedDatabase],
        *,
        run: str,
        worker: str,
        epoch: Callable[[], int] = lambda: 0,
        on_release: Callable[[Lease], None] = lambda lease: None,
        drop_later: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            epoch: how many times the server's sessions were lost so far.
            drop_later: takes the name of a retired database; None: it is dropped at once.
        """
        self.run = run
        self.worker = worker
        self._clones = clones
        self._databases = dict(leased)
        self._epoch = epoch
        self._seen_epoch = epoch()
        self._on_release = on_release
        self._drop_later = drop_later
        self._released = False

    @property
    def dsn(self) -> Dsn:
        """Address of the database ``default``."""
        return self["default"].dsn

    @property
    def url(self) -> str:
        """URL of the database ``default``."""
        return self.dsn.url

    @property
    def dsns(self) -> dict[str, Dsn]:
        """Database name → address, ``default`` first."""
        return {name: leased.dsn for name, leased in self._databases.items()}

    @property
    def databases(self) -> Mapping[str, LeasedDatabase]:
        """Database name → database, ``default`` first."""
        return dict(self._databases)

    @property
    def released(self) -> bool:
        """Whether :meth:`release` was called."""
        return self._released

    def __getitem__(self, name: str) -> LeasedDatabase:
        self._check()
        try:
            return self._databases[name]
        except KeyError:
            known = ", ".join(repr(n) for n in self._databases)
            raise ConfigError(
                f"this lease has no database {name!r}; it has {known} (see [tool.pg-harness.databases])",
                key=name,
            ) from None

    def connect(self, **options: Any) -> Any:
        """A connection to ``default``, as a context manager; see :meth:`LeasedDatabase.connect`."""
        return self["default"].connect(**options)

    def reset(self, *, sessions: Literal["keep", "end"] = "keep") -> ResetReport:
        """Bring every database of the lease back to its template's state. The URLs stay.

        Raises:
            LeaseClosed: it was released. LeaseLost: the template is gone as well.
        """
        self._check()
        lost = self._epoch() != self._seen_epoch
        return self._renewed("the server's sessions were lost" if lost else "asked for")

    def renew(self) -> ResetReport:
        """A fresh clone of every database under the same names, whatever has changed (pytest's ``fresh = "clone"``).

        Sessions of the application are ended first: a rename waits for them.
        """
        self._check()
        return self._renewed("asked for")

    def _renewed(self, reason: str) -> ResetReport:
        began = time.monotonic()
        for leased in self._databases.values():
            self._reclone(leased)
        self._seen_epoch = self._epoch()
        return ResetReport(strategy="clone", milliseconds=1000 * (time.monotonic() - began), reason=reason)

    def _reclone(self, leased: LeasedDatabase) -> None:
        retired = self._clones.replace(leased.template, leased.claim)
        if self._drop_later is not None:
            self._drop_later(retired)
        elif retired:
            databases.drop_retired(self._clones.link.session, retired)

    def keep(self, why: str = "asked for") -> dict[str, str]:
        """Keep the databases for people to look at, under new names; the lease ends.

        Returns:
            Database name → name of the kept database.
        """
        self._check()
        self._released = True
        kept = {name: self._clones.keep(d.dsn.database, self.run, why) for name, d in self._databases.items()}
        self._on_release(self)
        return kept

    def release(self) -> None:
        """Give the databases back: they are dropped. Releasing twice is one release."""
        if self._released:
            return
        self._released = True
        try:
            for leased in self._databases.values():
                self._clones.release(leased.dsn.database)
        finally:
            self._on_release(self)

    def exists(self) -> bool:
        """Whether all its databases are there."""
        session = self._clones.link.session
        return all(databases.find(session, d.dsn.database) is not None for d in self._databases.values())

    def _check(self) -> None:
        if self._released:
            raise LeaseClosed(
                f"the lease of worker {self.worker} was released; take a new one with harness.lease()"
            )

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.release()
        except HarnessError as error:
            # The block's own error matters more than a server that went away under it.
            if _[1] is None and not isinstance(error, LeaseLost):
                raise

    def __repr__(self) -> str:
        state = " released" if self._released else ""
        return f"<Lease worker {self.worker}: {', '.join(d.dsn.masked for d in self._databases.values())}{state}>"
