"""Resets of a person's databases: each command goes on from what the last one has noted (:mod:`harness.sandbox.watermarks`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from harness.databases.clones import BeforeRename, Claim, Clones
from harness.databases.resetting import DatabaseReset, note_of, take_note
from harness.databases.template import Template
from harness.errors import LeaseLost
from harness.postgres import databases
from harness.postgres.databases import Database
from harness.postgres.session import Session
from harness.reset.changes import Changes
from harness.reset.report import ResetReport
from harness.reset.watermark import Watermark
from harness.sandbox import marks
from harness.sandbox.watermarks import Life, Notes

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
    ) -> None:
        """
        Args:
            name: what the mark is called.
            copy: the mark's copy of ``database``.
        """
        dsn = clones.link.dsn.with_database(database.name)
        # Neither a template nor a claim of one is needed: what would use them is replaced here.
        stands_for = Template(copy.name, "", "", strategy=strategy)
        super().__init__(clones, dsn, stands_for, Claim("", ""), reset_timeout=reset_timeout)
        self._name, self._copy, self._marked, self._strategy = name, copy, database, strategy
        self._is_open = False

    def _take_note(self, name: str) -> tuple[Watermark | None, str]:
        return note_of(self._clones.link.session, name, self._clones.owner.name)

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


class PersonsReset:
    """Brings one of a person's databases back: what an earlier process has noted tells from where.

    A context manager: it logs out at its end.
    """

    def __init__(
        self,
        clones: Clones,
        notes: Notes,
        reset: DatabaseReset,
        *,
        database: str,
        source: str,
        noted_as: str,
        reset_timeout: float,
    ) -> None:
        """
        Args:
            reset: what it goes back by.
            database: its name. Nobody else may replace it meanwhile.
            source: the template that it is a copy of, or the mark's copy of it.
            noted_as: see :meth:`Notes.read`.
            reset_timeout: seconds to wait for sessions that are in the way.

        Raises:
            LeaseLost: the database is gone.
        """
        self._clones, self._notes, self._reset = clones, notes, reset
        self._database, self._source, self._noted_as = database, source, noted_as
        self._timeout = reset_timeout
        self._life = self._live()
        found = databases.find(clones.link.session, database)
        if found is None:
            raise LeaseLost(f"database {database} is gone")
        reset.resume(*notes.read(noted_as, found.oid, self._life))

    @classmethod
    def to_template(
        cls,
        clones: Clones,
        notes: Notes,
        template: Template,
        claim: Claim,
        database: Database,
        *,
        reset_timeout: float,
    ) -> PersonsReset:
        """Back to the migrations' state."""
        dsn = clones.link.dsn.with_database(database.name)
        return cls(
            clones,
            notes,
            DatabaseReset(clones, dsn, template, claim, reset_timeout=reset_timeout),
            database=database.name,
            source=template.name,
            noted_as=database.name,
            reset_timeout=reset_timeout,
        )

    @classmethod
    def to_mark(
        cls,
        clones: Clones,
        notes: Notes,
        name: str,
        copy: Database,
        database: Database,
        *,
        strategy: str | None,
        reset_timeout: float,
    ) -> PersonsReset:
        """Back to a mark; see :class:`MarkReset`."""
        return cls(
            clones,
            notes,
            MarkReset(clones, name, copy, database, strategy=strategy, reset_timeout=reset_timeout),
            database=database.name,
            source=copy.name,
            noted_as=copy.name,
            reset_timeout=reset_timeout,
        )

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
        report = self._reset.reset()
        noted = self._reset.noted
        if report.strategy == "clone":
            # Where nothing could be noted of the clone either, the next one will be for the same reason.
            reason = report.reason if noted is not None else self._reset.missing or report.reason
            report = replace(report, ended=tuple(there), reason=reason)
        # Asked again: a crash in between may have undone what was put back. The older note stays: it is as true as it was.
        if noted is not None and self._live() == self._life:
            self._notes.write(self._noted_as, self._life, noted)
        return report

    def changes(self) -> Changes:
        """What changed since it was pristine. Resets nothing.

        Raises:
            LeaseError: it cannot be told; a reset would be a clone.
        """
        return self._reset.changes()

    def _live(self) -> Life:
        return Life.of(self._clones.link.session, self._clones.link.server_id, self._source)

    def __enter__(self) -> PersonsReset:
        return self

    def __exit__(self, *_: object) -> None:
        self._reset.close()


def first_note(clones: Clones, notes: Notes, template: Template, name: str, present: str) -> None:
    """Note a database that was just made.

    Args:
        name: what it will be called.
        present: what it is called until then.
    """
    # First the server's life, then the note: a crash in between makes the note one of a life that is over.
    life = Life.of(clones.link.session, clones.link.server_id, template.name)
    noted, _ = take_note(clones, template, present)
    if noted is not None:
        notes.write(name, life, noted)


def note_marks(clones: Clones, notes: Notes, before: Life, noted: Mapping[str, Watermark]) -> None:
    """Keep what was true of databases when they were marked.

    Args:
        before: the server's life before that.
        noted: name of a mark's copy → what was noted.
    """
    for copy, note in noted.items():
        life = Life.of(clones.link.session, clones.link.server_id, copy)
        if replace(life, source=before.source) == before:
            notes.write(copy, life, note)
