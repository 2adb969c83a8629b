"""A lease: the right to use one clone of each database, for one worker of one run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from harness.config.settings import DEFAULT_DATABASE
from harness.databases.address import Address, Addressed
from harness.databases.changed import LeaseChanges, by_names
from harness.databases.clones import Claim, Clones
from harness.databases.replicas import NoReplica, Replica, replicas, words
from harness.databases.resetting import DatabaseReset
from harness.databases.template import Template
from harness.dsn import Dsn
from harness.errors import ConfigError, HarnessError, LeaseClosed, LeaseError, LeaseLost
from harness.postgres import databases
from harness.reset.report import STRATEGIES, ResetReport

if TYPE_CHECKING:
    from harness.databases.pool import Filler
    from harness.reset.marks import Mark
    from harness.reset.rewind.answer import Answer
    from harness.servers.replica.following import Following

logger = logging.getLogger("pg_harness.databases")

TEMPLATE = "template"
"""The state that the migrations left, where a mark can be named."""

_Method = TypeVar("_Method", bound=Callable[..., Any])


class LeasedDatabase(Addressed):
    """One database of a lease.

    Attributes:
        name: as in the settings; ``"default"`` for the top level.
        template: what it is a clone of.
    """

    def __init__(
        self,
        name: str,
        dsn: Dsn,
        template: Template,
        claim: Claim,
        direct: Dsn | None = None,
        on_replicas: Sequence[Dsn] = (),
    ) -> None:
        super().__init__(name, dsn, pooled=direct is not None and direct != dsn)
        self._direct = dsn if direct is None else direct
        self.template = template
        self.claim = claim
        self.replicas: tuple[Replica, ...] = replicas(name, on_replicas)
        """It on each of the server's standbys; empty without the setting ``replicas``."""

    @property
    def replica(self) -> Replica | None:
        """It on the first of them; None: there is none."""
        return next(iter(self.replicas), None)

    @property
    def direct(self) -> Addressed:
        """Its address at the server itself, for what needs a session of its own; the same where no pooler is in front."""
        return Addressed(self.name, self._direct)


class UnknownMark(ConfigError):
    """The lease has no mark of that name."""


class LeaseMark:
    """A state of all databases of a lease to come back to. Made by :meth:`Lease.mark`.

    Attributes:
        name: as it was given; else a number that no mark of the lease had before.
    """

    def __init__(self, name: str, marks: Mapping[str, Mark]) -> None:
        self.name = name
        self._marks = dict(marks)

    @property
    def released(self) -> bool:
        """Whether it cannot be gone back to any more."""
        return all(mark.released for mark in self._marks.values())

    def release(self) -> None:
        """Forget this mark and those above it; the databases stay as they are until the next reset. Twice is once."""
        for mark in self._marks.values():
            mark.release()

    def __repr__(self) -> str:
        return f"<LeaseMark {self.name}{' released' if self.released else ''}>"


def with_direct(dsns: Mapping[str, Dsn], direct: Mapping[str, Dsn]) -> dict[str, Dsn]:
    """Addresses by the words that variables' templates name them with."""
    own = {
        "direct" if name == DEFAULT_DATABASE else f"{name}.direct": dsn
        for name, dsn in direct.items()
        if dsn != dsns[name]
    }
    return {**dsns, **own}


def _together(reports: list[ResetReport], milliseconds: float) -> ResetReport:
    """One report of several databases': the strongest strategy that was needed."""
    if len(reports) == 1:
        return reports[0]
    strategy = max((r.strategy for r in reports), key=STRATEGIES.index)
    return ResetReport(
        strategy=strategy,
        tables=tuple(table for r in reports for table in r.tables),
        rows=sum(r.rows for r in reports),
        milliseconds=milliseconds,
        reason="; ".join(dict.fromkeys(r.reason for r in reports if r.reason)),
        ended=tuple(session for r in reports for session in r.ended),
        idle=tuple(pid for r in reports for pid in r.idle),
    )


def _alone(method: _Method) -> _Method:
    """A method of a lease that runs in one thread at a time."""

    @wraps(method)
    def locked(self: Lease, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return method(self, *args, **kwargs)

    return cast(_Method, locked)


class Lease(Address):
    """One clone of each configured database; claimed, reset and released together.

    A context manager: leaving the block releases it. ``lease.url`` and ``lease.connect()`` are of the database ``default``,
    ``lease["analytics"].url`` of another one.

    Attributes:
        run: sixteen hex digits that name the run.
        worker: whose it is.
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
        filler: Callable[[], Filler] | None = None,
        reset_timeout: float = 5.0,
        following: Following | None = None,
    ) -> None:
        """
        Args:
            following: what waits for the server's standbys; None: it has none.
            reset_timeout: seconds that a reset waits for sessions of the application before it ends them.
            epoch: how many times the server's sessions were lost so far.
            filler: gives what works in the background; None: what is replaced is dropped at once.
        """
        self.run = run
        self.worker = worker
        self._clones = clones
        self._databases = dict(leased)
        self._epoch = epoch
        self._seen_epoch = epoch()
        self._on_release = on_release
        self._released = False
        self._marks: dict[str, LeaseMark] = {}
        self._marked = 0
        self._following = following
        # Tests in one thread, and clients of the control interface in others.
        self._lock = threading.RLock()
        self._resets = {
            name: DatabaseReset(
                clones, d.dsn, d.template, d.claim, reset_timeout=reset_timeout, filler=filler
            )
            for name, d in leased.items()
        }

    @property
    def dsn(self) -> Dsn:
        """Address of the database ``default``."""
        return self["default"].dsn

    @property
    def dsns(self) -> dict[str, Dsn]:
        """Database name → address, ``default`` first."""
        return {name: leased.dsn for name, leased in self._databases.items()}

    @property
    def direct(self) -> Addressed:
        """The database ``default`` at the server itself, for what needs a session of its own (``LISTEN``, advisory locks, migrations):
        ``lease.direct.url``, ``lease.direct.connect()``. The same address where no pooler is in front."""
        return self["default"].direct

    @property
    def pooled(self) -> bool:
        """Whether a pooler is in front (setting ``pooler``)."""
        return self["default"].pooled

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The database ``default`` on each of the server's streaming standbys, to read from; empty without the setting ``replicas``."""
        return self["default"].replicas

    @property
    def replica(self) -> Replica | None:
        """The first of :attr:`replicas`: ``lease.replica.url``, ``lease.replica.connect()``; None: there is none."""
        return self["default"].replica

    @_alone
    def wait_for_replica(self, timeout: float = 10.0) -> None:
        """Wait until each standby shows what was committed by now.

        Args:
            timeout: seconds.

        Raises:
            ReplicaBehind: it takes longer; it says how far behind it is, and what may be in the way. ConfigError: there is no standby.
        """
        self._check()
        if self._following is None:
            raise NoReplica
        self._following.wait(timeout)

    @property
    def addresses(self) -> dict[str, Dsn]:
        """:attr:`dsns`; where a pooler is in front those at the server itself: ``"direct"``, ``"analytics.direct"``; and those on
        standbys: ``"replica"``, ``"analytics.replica"``, ``"replica2"``."""
        found = with_direct(self.dsns, {name: d.direct.dsn for name, d in self._databases.items()})
        on = {name: [replica.dsn for replica in d.replicas] for name, d in self._databases.items()}
        return found | words(on)

    @property
    def databases(self) -> Mapping[str, LeasedDatabase]:
        """Database name → database, ``default`` first."""
        return dict(self._databases)

    @property
    def released(self) -> bool:
        """Whether :meth:`release` was called."""
        return self._released

    def __getitem__(self, name: str) -> LeasedDatabase:
        """One of its databases, by its name.

        Raises:
            ConfigError: the settings have no such database.
        """
        self._check()
        try:
            return self._databases[name]
        except KeyError:
            known = ", ".join(repr(n) for n in self._databases)
            raise ConfigError(
                f"this lease has no database {name!r}; it has {known} (see [tool.pg-harness.databases])",
                key=name,
            ) from None

    def watch(self) -> None:
        """Note the present, pristine state, so that :meth:`reset` can put back what changes from now on.

        Call it before anything is written. What a reset needs beyond the note is got ready by the first one. Where the server does not allow it, :attr:`reset_problem` says why,
        and every reset is a fresh clone.
        """
        self._check()
        for reset in self._resets.values():
            reset.prepare()

    @property
    def untouched(self) -> bool:
        """Whether it is watched and nobody has logged in to its databases yet. One round trip for each of them."""
        self._check()
        return all(reset.untouched for reset in self._resets.values())

    @property
    def reset_problem(self) -> str:
        """Why resets are clones on this server, with the remedy; empty where they are not."""
        return next((problem for reset in self._resets.values() if (problem := reset.problem)), "")

    @property
    def reset_doubt(self) -> str:
        """Why resets read the server's log in the slower way; empty where they do not, or none was needed yet."""
        return next((doubt for reset in self._resets.values() if (doubt := reset.doubt)), "")

    @property
    def rewound(self) -> Answer | None:
        """What the server's module answered last of the database ``default``, with the pages that it compared and wrote.

        None where it was not asked: resets are by rows, or there was none.
        """
        return self._resets["default"].rewound

    @_alone
    def reset(
        self, *, to: LeaseMark | str | None = None, sessions: Literal["keep", "end"] = "keep"
    ) -> ResetReport:
        """Bring every database of the lease back to the top mark, else to what the migrations left. The URLs stay.

        Args:
            to: a mark of this lease, or its name; marks above it are released. ``"template"``: what the migrations left,
                and all marks are released.
            sessions: ``"end"`` ends all sessions of the application first; ``"keep"`` keeps those that hold
                nothing.

        Returns:
            what was done, of all databases together.

        Raises:
            LeaseClosed: it was released. LeaseLost: the template is gone as well. ConfigError: there is no such mark.
        """
        self._check()
        mark = self._marked_as(to)
        if self._epoch() != self._seen_epoch:
            # A crash emptied unlogged tables and took the last commits with it.
            self._seen_epoch = self._epoch()
            if not all(reset.notices_crashes for reset in self._resets.values()):
                return self.renew(reason="the server's sessions were lost: it crashed or was restarted")
        began = time.monotonic()
        reports = [
            reset.reset(to=mark._marks[name] if mark is not None else None, sessions=sessions)
            for name, reset in self._resets.items()
        ]
        return self._told("reset", self._followed(reports), began)

    def _followed(self, reports: list[ResetReport]) -> list[ResetReport]:
        """The same reports, once the standbys show what they tell of: with whom that ended there."""
        if self._following is None:
            return reports
        names = [d.dsn.database for d in self._databases.values()]
        ended = self._following.settle(names, written=any(report.strategy != "nothing" for report in reports))
        return [replace(reports[0], ended=(*reports[0].ended, *ended)), *reports[1:]]

    def _marked_as(self, to: LeaseMark | str | None) -> LeaseMark | None:
        """The mark to come back to; None: the top one. For ``"template"``, all are released."""
        if to == TEMPLATE:
            for mark in self._marks.values():
                mark.release()
            return None
        if not isinstance(to, str):
            return to
        marks = self.marks
        if to not in marks:
            raise UnknownMark(f"the lease has no mark {to!r}; it has {', '.join(marks) or 'none'}", value=to)
        return marks[to]

    @_alone
    def renew(self, *, reason: str = "asked for") -> ResetReport:
        """A fresh clone of every database under the same URL. Sessions of the application are ended."""
        self._check()
        began = time.monotonic()
        surely = self._clones.link.surely
        reports = [surely(partial(reset.renew, reason=reason)) for reset in self._resets.values()]
        return self._told("renewed", self._followed(reports), began)

    def _told(self, what: str, reports: list[ResetReport], began: float) -> ResetReport:
        report = _together(reports, 1000 * (time.monotonic() - began))
        logger.debug("worker %s: %s: %s", self.worker, what, report)
        return report

    @property
    def marks(self) -> Mapping[str, LeaseMark]:
        """Name → mark, of those that can be gone back to; the lowest first."""
        self._marks = {name: mark for name, mark in self._marks.items() if not mark.released}
        return dict(self._marks)

    @_alone
    def mark(self, name: str = "") -> LeaseMark:
        """Make the present state the one that :meth:`reset` comes back to; marks stack.

        Args:
            name: for ``reset(to=name)``; empty: a number.

        Raises:
            LeaseError: it cannot be held: the schema was changed, this server can only clone, or there is a mark of that
                name.
            ConfigError: ``"template"`` is no name for a mark.
        """
        self._check()
        if name == TEMPLATE:
            raise ConfigError(
                f"{TEMPLATE!r} is the state that the migrations left: no mark is called so", value=name
            )
        if name in self.marks:
            raise LeaseError(f"there is a mark {name!r} already: release it first")
        marks: dict[str, Mark] = {}
        try:
            for database, reset in self._resets.items():
                marks[database] = reset.mark()
        except BaseException:
            LeaseMark("", marks).release()
            raise
        while not name or name in self._marks:
            self._marked += 1
            name = str(self._marked)
        self._marks[name] = LeaseMark(name, marks)
        return self._marks[name]

    @_alone
    def changes(self) -> LeaseChanges:
        """What changed since the databases were pristine, or marked. Resets nothing.

        Raises:
            LeaseError: it cannot be told.
        """
        self._check()
        return LeaseChanges({name: by_names(reset.changes()) for name, reset in self._resets.items()})

    @_alone
    def keep(self, why: str = "asked for") -> dict[str, str]:
        """Keep the databases for people to look at, under new names; the lease ends.

        Returns:
            database name → name of the kept database.
        """
        self._check()
        self.disconnect()
        self._released = True
        kept = {name: self._clones.keep(d.dsn.database, self.run, why) for name, d in self._databases.items()}
        self._on_release(self)
        return kept

    @_alone
    def release(self) -> None:
        """Give the databases back: they are dropped. Releasing twice is one release."""
        if self._released:
            return
        self.disconnect()
        self._released = True
        try:
            for leased in self._databases.values():
                self._clones.release(leased.dsn.database)
        finally:
            self._on_release(self)

    def disconnect(self) -> None:
        """Log out of the databases, which stay as they are; later resets are clones."""
        for reset in self._resets.values():
            reset.close()
        if self._following is not None:
            self._following.close()

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
