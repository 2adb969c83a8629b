"""What a person's databases were when they were pristine, kept in files: the command line ends between two resets.

A test run holds its notes in memory (:class:`harness.lease_reset.DatabaseReset`). Here one file for each database
holds it, readable by its owner only. A file is a hint: it is believed only where the server has not been restarted
and has not crashed since, and where the database and its template are the very same ones. Else the reset is a clone.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness import project
from harness.catalog import databases
from harness.catalog.restore_shared import Note
from harness.catalog.session import Session
from harness.clones import Claim, Clones
from harness.dsn import Dsn
from harness.errors import LeaseLost
from harness.lease_reset import DatabaseReset, take_note
from harness.reset.model import Changes
from harness.reset.report import ResetReport
from harness.settings import Settings
from harness.telling import Story, silent
from harness.template import Template

FOLDER = "pristine"
_FORMAT = 1


@dataclass(frozen=True)
class Life:
    """Which server, and which life of it: what is in the log counts within one life only.

    A crash takes the last commits with it (``synchronous_commit = off``), and the log that was written after it may
    have the positions of what was lost.

    Attributes:
        server: its id; empty for servers that we did not start.
        started: of the postmaster, seconds since 1970 as text.
        revived: of the checkpointer, which a crash of any backend ends and the postmaster starts again.
        template: OID of the template, 0 where it is gone.
    """

    server: str
    started: str
    revived: str
    template: int

    @classmethod
    def of(cls, session: Session, server: str, template: str) -> Life:
        """Ask."""
        row = session.row(
            "select extract(epoch from pg_postmaster_start_time())::text, "
            "(select extract(epoch from backend_start)::text from pg_stat_activity where backend_type = 'checkpointer'), "
            "(select oid::int8 from pg_database where datname = %s)",
            (template,),
        )
        started, revived, oid = row or ("", "", 0)
        return cls(server, started or "", revived or "", oid or 0)

    def other(self, now: Life) -> str:
        """Why what was noted in this life does not hold now; empty where it does."""
        if not now.revived:
            return "this role may not see whether the server crashed: grant pg_read_all_stats to it"
        # A server that is started again with its data has another id.
        if (self.server, self.started) != (now.server, now.started):
            return "the server was restarted since the pristine state was noted"
        if self.revived != now.revived:
            return "the server crashed since the pristine state was noted"
        if self.template != now.template:
            return "the template was built again since the database was made"
        return ""


class Notes:
    """The files of one checkout. One that cannot be written costs a clone, not the command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, settings: Settings, environ: Mapping[str, str]) -> Notes:
        """Beside the hints of this checkout's servers."""
        return cls(project.state_dir(environ) / project.project_id(settings.root) / FOLDER)

    def read(self, name: str, oid: int, now: Life) -> tuple[Note | None, str]:
        """What was noted of a database, or None and why.

        Args:
            name, oid: of the database.
        """
        try:
            content = json.loads(self._path(name).read_text("utf-8"))
            if content.pop("format") != _FORMAT:
                raise ValueError("format")
            life, note = Life(**content["life"]), _decoded(content)
        except FileNotFoundError:
            return None, "its pristine state was not noted"
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None, "the note of its pristine state cannot be read"
        why = life.other(now)
        if not why and note.database != oid:
            why = "it was made again since its pristine state was noted"
        return (None, why) if why else (note, "")

    def write(self, name: str, life: Life, note: Note) -> None:
        """Replace the file in one act."""
        content: dict[str, Any] = {"format": _FORMAT, "life": asdict(life), "note": _encoded(note)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # mkstemp makes it readable by its owner only.
            descriptor, aside = tempfile.mkstemp(prefix=f".{name}.", dir=self.folder)
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    json.dump(content, file, separators=(",", ":"))
                os.replace(aside, self._path(name))
            except BaseException:
                Path(aside).unlink(missing_ok=True)
                raise
        except OSError:
            return

    def forget(self, name: str) -> None:
        """Remove a database's file, if it is there."""
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError:
            return

    def forget_all(self) -> None:
        """Remove them all: the server of these databases was ended."""
        for path in [*self.folder.glob("*.json"), *self.folder.glob(".*.json.*")]:
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def _encoded(note: Note) -> dict[str, Any]:
    from harness.reset.carried import Carried

    carried = note.as_json() if isinstance(note, Carried) else None
    return {
        "position": note.position,
        "database": note.database,
        "role": note.role,
        "shared": note.shared,
        "carried": carried,
    }


def _decoded(content: Mapping[str, Any]) -> Note:
    from harness.reset.carried import Carried

    found = content["note"]
    # It becomes a part of statements.
    if not re.fullmatch(r"[0-9A-F]{1,8}/[0-9A-F]{1,8}", found["position"]):
        raise ValueError("position")
    shared = tuple((str(what), str(who), detail) for what, who, detail in found["shared"])
    note = Note(str(found["position"]), int(found["database"]), int(found["role"]), shared)
    return note if found["carried"] is None else Carried.from_json(note, found["carried"])


class PersonsReset:
    """Brings one of a person's databases back to its template: what an earlier process noted tells from where.

    A context manager: the engine logs out at its end.
    """

    def __init__(
        self,
        clones: Clones,
        notes: Notes,
        template: Template,
        claim: Claim,
        database: str,
        *,
        reset_timeout: float,
        story: Story = silent,
    ) -> None:
        """
        Args:
            database: its name. Nobody else may replace it meanwhile.
            reset_timeout: seconds to wait for sessions that are in the way.

        Raises:
            LeaseLost: the database is gone.
        """
        self._timeout, self._story = reset_timeout, story
        self._clones, self._notes, self._template = clones, notes, template
        self._database = database
        dsn: Dsn = clones.link.dsn.with_database(database)
        self._reset = DatabaseReset(clones, dsn, template, claim, reset_timeout=reset_timeout)
        self._life = life_of(clones, template)
        found = databases.find(clones.link.session, database)
        if found is None:
            raise LeaseLost(f"database {database} is gone")
        self._reset.resume(*notes.read(database, found.oid, self._life))

    def reset(self) -> ResetReport:
        """Put back what changed, with the application's sessions kept; else a fresh clone.

        Returns:
            With the sessions that were ended, those that a clone ends included.

        Raises:
            LeaseLost: the template is gone.
        """
        there = databases.sessions_of(self._clones.link.session, self._database)
        if busy := [line for line in there if " in transaction" in line]:
            self._story(f"waiting for open transactions, up to {self._timeout:g} s: {'; '.join(busy)}")
        report = self._reset.reset()
        if report.strategy == "clone":
            report = replace(report, ended=tuple(there))
        noted = self._reset.noted
        if noted is None and self._reset.problem:
            # Not that nothing was noted, but why nothing ever will be.
            report = replace(report, reason=self._reset.problem)
        # Asked again: a crash in between may have undone what was put back.
        if noted is not None and life_of(self._clones, self._template) == self._life:
            self._notes.write(self._database, self._life, noted)
        else:
            self._notes.forget(self._database)
        return report

    def changes(self) -> Changes:
        """What changed since it was pristine. Resets nothing.

        Raises:
            LeaseError: it cannot be told; a reset would be a clone.
        """
        return self._reset.changes()

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
    life = life_of(clones, template)
    noted = take_note(clones, template, present)
    if noted is not None:
        notes.write(name, life, noted)
    else:
        notes.forget(name)


def life_of(clones: Clones, template: Template) -> Life:
    """The present life of the server that the clones are on."""
    return Life.of(clones.link.session, clones.link.server_id, template.name)
