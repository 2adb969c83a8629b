"""How one leased database is brought back: by the reset engine where that is certain, else by a fresh clone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from harness import names
from harness.catalog import databases, locks
from harness.catalog.link import connect_verified
from harness.catalog.session import Session, ident
from harness.clones import Claim, Clones
from harness.dsn import Dsn
from harness.errors import HarnessError, LeaseError
from harness.reset.report import ResetReport
from harness.template import Template

if TYPE_CHECKING:
    from harness.reset.engine import ResetEngine
    from harness.reset.marks import Mark
    from harness.reset.model import Changes, RecloneNeeded


class DatabaseReset:
    """Brings one database of a lease back to its template, or to a mark.

    The engine is opened by :meth:`prepare`, while the database is pristine; without it every reset is a clone.

    Attributes:
        problem: why this server can only clone, with the remedy; empty where it can reset.
    """

    def __init__(
        self,
        clones: Clones,
        database: Dsn,
        template: Template,
        claim: Claim,
        *,
        reset_timeout: float,
        drop_later: Callable[[str], None] | None = None,
    ) -> None:
        self.problem = ""
        self._clones = clones
        self._database = database.database
        self._template = template
        self._claim = claim
        self._timeout = reset_timeout
        self._drop_later = drop_later
        self._engine: ResetEngine | None = None

    def prepare(self) -> None:
        """Open the engine. The database must be pristine: claimed just now, or just cloned again."""
        if self.problem or self._engine is not None:
            return
        # Here, because whoever only clones has no need of it: it takes a while to import.
        from harness.reset.engine import ResetEngine

        engine = ResetEngine(
            reader=self._open_reader,
            restorer=lambda settings: self._open(self._database, settings),
            baseline=self._open_baseline,
            role=self._clones.owner.name,
            reset_timeout=self._timeout,
        )
        try:
            engine.rebase()
        except HarnessError as error:
            engine.close()
            self.problem = str(error)
        else:
            self._engine = engine

    def reset(self, *, to: Mark | None = None, sessions: Literal["keep", "end"] = "keep") -> ResetReport:
        """Put back what changed; where that is not certain, a fresh clone under the same name.

        Raises:
            LeaseLost: the template is gone as well.
        """
        began = time.monotonic()
        if self._engine is None:
            reason = self.problem or "nothing was watched since the database was pristine"
            report = self.renew(reason=reason)
        else:
            from harness.reset.model import RecloneNeeded

            try:
                return self._engine.reset(to=to, sessions=sessions)
            except RecloneNeeded as error:
                report = self.renew(reason=error.reason)
        return replace(report, milliseconds=1000 * (time.monotonic() - began))

    def renew(self, *, reason: str) -> ResetReport:
        """A fresh clone under the same name. Sessions of the application are ended; marks come back."""
        began = time.monotonic()
        # A test may have changed its password: roles are the server's, and no clone brings them back.
        self._clones.restore_role()
        retired = self._clones.replace(self._template, self._claim)
        if self._drop_later is not None:
            self._drop_later(retired)
        elif retired:
            databases.drop_retired(self._clones.link.session, retired)
        if self._engine is not None:
            from harness.reset.model import RecloneNeeded

            try:
                self._engine.rebase()
            except RecloneNeeded as error:
                # Else the rows of a mark would be missing, and the database pass for the marked state.
                self._give_up(error)
        return ResetReport(strategy="clone", milliseconds=1000 * (time.monotonic() - began), reason=reason)

    def _give_up(self, error: RecloneNeeded) -> None:
        engine, self._engine = self._engine, None
        self.problem = error.reason
        if engine is not None:
            marked = engine.marked
            engine.close()
            if marked:
                raise LeaseError(
                    f"the marked state of {self._database} could not be made again in a fresh clone: {error}"
                ) from error

    def changes(self) -> Changes:
        """What changed since the database was pristine.

        Raises:
            LeaseError: it cannot be told.
        """
        return self._ready().changes()

    def mark(self) -> Mark:
        """Make the present state the one to come back to.

        Raises:
            LeaseError: it cannot be held, or this server can only clone.
        """
        return self._ready().mark()

    def _ready(self) -> ResetEngine:
        if self._engine is None:
            raise LeaseError(
                self.problem
                or f'nothing was watched since {self._database} was pristine: set fresh = "reset", '
                f"or call lease.watch() before the first change"
            )
        return self._engine

    def close(self) -> None:
        """Log out; the database is about to be retired."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    # --- sessions ----------------------------------------------------------------------------------

    def _open(self, database: str, settings: Mapping[str, str]) -> Session:
        return Session.connect(self._clones.link.dsn.with_database(database), settings=settings)

    def _open_reader(self) -> Session:
        link = self._clones.link
        return connect_verified(link.dsn, link.server_id)

    def _open_baseline(self, settings: Mapping[str, str]) -> Session:
        return self._open(ensure_baseline(self._clones, self._template), settings)


def ensure_baseline(clones: Clones, template: Template) -> str:
    """The one clone of a template that only the admin enters; made where it is missing, once.

    Baseline rows can be read neither in the lease (a trace) nor in the template (a session there stalls clones).
    """
    name = names.baseline(clones.project, template.fingerprint)
    session = clones.link.session
    found = databases.find(session, name)
    if found is not None and found.mark is not None:
        return name
    with locks.exclusive(session, "baseline", name, timeout=60, waiting_for="the baseline of a template"):
        found = databases.find(session, name)
        if found is not None and found.mark is not None:
            return name
        if found is not None:
            databases.drop(session, name, clones.project)
        databases.clone(
            session, name, template=template.name, owner=session.dsn.user, strategy=template.strategy
        )
        mark = {"kind": "baseline", "fingerprint": template.fingerprint}
        session.script(
            f"revoke all on database {ident(name)} from public;" + databases.comment_statement(name, mark)
        )
    return name
