"""Resets of a developer's databases, to their template or to a saved mark.

Each command goes on from the watermarks that the last one has stored (:mod:`harness.sandbox.watermarks`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.databases import template
from harness.databases.clones import BeforeRename, Claim, Clones
from harness.databases.resetting import DatabaseReset, take_watermark, watermark_of
from harness.databases.template import Template
from harness.errors import LeaseLost
from harness.postgres import databases
from harness.postgres.databases import Database
from harness.postgres.session import Session
from harness.reset.changes import Changes
from harness.reset.report import ResetReport
from harness.reset.watermark import Watermark
from harness.sandbox import guests, marks
from harness.sandbox.marks import SavedMark
from harness.sandbox.watermarks import Provenance, WatermarkStore

if TYPE_CHECKING:
    from harness.runs.places import Place

logger = logging.getLogger("pg_harness.sandbox")


class MarkReset(DatabaseReset):
    """Back to a person's mark. The mark's copy of the database is to it what a baseline is to a template."""

    def __init__(
        self,
        clones: Clones,
        name: str,
        copy: Database,
        database: Database,
        *,
        strategy: str | None,
        reset_timeout: float,
        rowless: str,
    ) -> None:
        """
        Args:
            name: what the mark is called.
            copy: the mark's copy of ``database``.
            rowless: see :class:`harness.reset.engine.ResetEngine`.
        """
        dsn = clones.link.dsn.with_database(database.name)
        # Neither a template nor a claim of one is needed: what would use them is replaced here.
        stands_for = Template(copy.name, "", "", strategy=strategy)
        super().__init__(clones, dsn, stands_for, Claim("", ""), reset_timeout=reset_timeout, rowless=rowless)
        self._role = database.role
        self._name, self._copy, self._marked, self._strategy = name, copy, database, strategy
        self._is_open = False

    def _take_watermark(self, name: str) -> tuple[Watermark | None, str]:
        return watermark_of(self._clones.link.session, name, self._role)

    def _replace(self, before: BeforeRename | None) -> str:
        return marks.put_back(
            self._clones, self._name, self._copy, self._marked, strategy=self._strategy, before=before
        )

    def _open_baseline(self, settings: Mapping[str, str]) -> Session:
        marks.open_up(self._clones.link.session, self._copy.name)
        self._is_open = True
        return self._open(self._copy.name, settings)

    def close(self) -> None:
        """Log out; nobody can enter the mark any more."""
        super().close()
        if self._is_open:
            self._is_open = False
            marks.shut(self._clones.link.session, self._copy.name)


class SandboxReset:
    """Brings one of a developer's databases back: what an earlier process has stored tells from where.

    A context manager: it logs out at its end. Nobody else may replace the database meanwhile.

    Args:
        name: of the database, in the settings.
        mark: where to go; None is the migrations' state.

    Raises:
        LeaseLost: the database, or its template, is gone.
    """

    def __init__(self, place: Place, name: str, mark: SavedMark | None, store: WatermarkStore) -> None:
        self._clones, self._store = place.session.clones, store
        self._timeout = place.session.settings.reset_timeout
        rowless = guests.ROWLESS if guests.were_here(place) else ""
        database = place.databases[name]
        self._database = self._stored_as = database.name
        if mark is None:
            origin = template_of(place, name)
            self._source = origin.name
            dsn = self._clones.link.dsn.with_database(database.name)
            claim = claim_of(place, database)
            self._reset = DatabaseReset(
                self._clones, dsn, origin, claim, reset_timeout=self._timeout, rowless=rowless
            )
        else:
            copy = mark.databases[name]
            self._source = self._stored_as = copy.name
            self._reset = MarkReset(
                self._clones,
                mark.name,
                copy,
                database,
                strategy=strategy_of(place),
                reset_timeout=self._timeout,
                rowless=rowless,
            )
        self._provenance = self._now()
        found = databases.find(self._clones.link.session, database.name)
        if found is None:
            raise LeaseLost(f"database {database.name} is gone")
        self._reset.resume(*store.read(self._stored_as, found.oid, self._provenance))

    def reset(self) -> ResetReport:
        """Put back what changed, with the application's sessions kept; else a fresh clone.

        Returns:
            With the sessions that were ended, those that a clone ends included.

        Raises:
            LeaseLost: the template, or the mark, is gone.
        """
        there = databases.sessions_of(self._clones.link.session, self._database)
        if busy := [line for line in there if " in transaction" in line]:
            logger.info("waiting for open transactions, up to %g s: %s", self._timeout, "; ".join(busy))
        try:
            report = self._reset.reset()
        except BaseException:
            # Ctrl-C too: pages may be half back, and no note tells which.
            self._store.forget(self._stored_as)
            raise
        noted = self._reset.watermark
        if report.strategy == "clone":
            # Where nothing could be noted of the clone either, the next one will be for the same reason.
            reason = report.reason if noted is not None else self._reset.missing or report.reason
            report = replace(report, ended=tuple(there), reason=reason)
        # Asked again: a crash in between may have undone what was put back. The older note stays: it is as true as it was.
        if noted is not None and self._now() == self._provenance:
            self._store.write(self._stored_as, self._provenance, noted)
        return report

    def changes(self) -> Changes:
        """What changed since it was pristine. Resets nothing.

        Raises:
            LeaseError: it cannot be told; a reset would be a clone.
        """
        return self._reset.changes()

    def _now(self) -> Provenance:
        return Provenance.of(self._clones.link.session, self._clones.link.server_id, self._source)

    def __enter__(self) -> SandboxReset:
        return self

    def __exit__(self, *_: object) -> None:
        self._reset.close()


def store_new(clones: Clones, store: WatermarkStore, origin: Template, name: str, present: str) -> None:
    """Store the watermark of a database that was just made.

    Args:
        name: what it will be called.
        present: what it is called until then.
    """
    # First the server's life, then the note: a crash in between makes the note one of a life that is over.
    provenance = Provenance.of(clones.link.session, clones.link.server_id, origin.name)
    found = databases.find(clones.link.session, present)
    noted, _ = take_watermark(clones, origin, present, found.role if found is not None else "")
    if noted is not None:
        store.write(name, provenance, noted)


def store_marks(
    clones: Clones, store: WatermarkStore, before: Provenance, noted: Mapping[str, Watermark]
) -> None:
    """Store the watermarks of databases that were just marked.

    Args:
        before: what held before that.
        noted: name of a mark's copy → what was noted.
    """
    for copy, note in noted.items():
        provenance = Provenance.of(clones.link.session, clones.link.server_id, copy)
        if replace(provenance, source=before.source) == before:
            store.write(copy, provenance, note)


def renew(place: Place) -> dict[str, ResetReport]:
    """Replace the databases of a test run's worker by fresh clones: what it knows of them is in its own process.

    Returns:
        Name in the settings → with the sessions that were ended.

    Raises:
        LeaseLost: a template is gone.
    """
    admin = place.session.link.session
    open_ = {name: tuple(databases.sessions_of(admin, found.name)) for name, found in place.databases.items()}
    for name, database in place.databases.items():
        retired = place.session.clones.replace(template_of(place, name), claim_of(place, database))
        if retired:
            databases.drop_retired(admin, retired)
    return {name: ResetReport("clone", ended=ended) for name, ended in open_.items()}


def template_of(place: Place, name: str) -> Template:
    """The template that one of a worker's databases was made from.

    Raises:
        LeaseLost: it is gone, or a crash of the server has emptied it.
    """
    found = _template(place, name)
    if found is not None:
        return found
    fingerprint = place.databases[name].label.fingerprint or ""
    if template.lost(place.session.link.session, place.session.project.id, fingerprint):
        raise LeaseLost(
            f"the server crashed, which emptied the unlogged tables of the template that {place.what} was made from; "
            "`pg-harness up` makes it again"
        )
    raise LeaseLost(
        f"the template that {place.what} was made from is gone; `pg-harness up --fresh` makes it from today's "
        "migrations"
    )


def strategy_of(place: Place) -> str | None:
    """How a worker's template is cloned; None where it is gone: the server's own choice."""
    return next((found.strategy for name in place.databases if (found := _template(place, name))), None)


def _template(place: Place, name: str) -> Template | None:
    fingerprint = place.databases[name].label.fingerprint or ""
    return template.look(place.session.link.session, place.session.project.id, fingerprint, name)


def claim_of(place: Place, database: Database) -> Claim:
    """What one of a worker's databases was claimed with."""
    index = parsed.index if (parsed := database.parsed) else 0
    return Claim(place.run, place.worker, index, str(place.session.settings.root))
