"""Watermarks of a developer's databases, kept in files: the command line ends between two resets.

A test run holds its watermarks in memory (:class:`harness.databases.resetting.DatabaseReset`). Here one file for each database,
and one for each mark of it, holds it, readable by its owner only. A file is a hint: it is believed only where the server has not been restarted
and has not crashed since, and where the database and its template are the very same ones. Else the reset is a clone.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.config.project import Project
from harness.config.state_file import StateFile, decode
from harness.postgres.incarnation import CRASHED, STARTED, Incarnation
from harness.postgres.session import Session
from harness.reset.watermark import POSITION, Watermark, pages_position

FOLDER = "pristine"
_FORMAT = 1


@dataclass(frozen=True)
class Provenance:
    """Where a watermark holds: what is in the log counts on one server and in one :class:`Incarnation` of it only.

    Attributes:
        server: its id; empty for servers that we did not start.
        started: of the postmaster, seconds since 1970 as text.
        revived: after its last crash, likewise.
        source: OID of what the database is a copy of, a template or a mark; 0 where it is gone.
    """

    server: str
    started: str
    revived: str
    source: int

    @classmethod
    def of(cls, session: Session, server: str, source: str) -> Provenance:
        """What holds now.

        Args:
            server: its id.
            source: name of the template, or of the mark's copy.
        """
        row = session.row(
            f"select {STARTED}, {CRASHED}, (select oid::int8 from pg_database where datname = %s)",
            (source,),
        )
        started, revived, oid = row or ("", "", 0)
        return cls(server, started, revived, oid or 0)

    @property
    def incarnation(self) -> Incarnation:
        """Of the server."""
        return Incarnation(self.started, self.revived)

    def other(self, now: Provenance) -> str:
        """Why what was noted here does not hold now; empty where it does."""
        if why := self.incarnation.other(now.incarnation):
            return why
        # A server that is started again with its data has another id.
        if (self.server, self.started) != (now.server, now.started):
            return "the server was restarted since the pristine state was noted"
        if self.source != now.source:
            return "the template was built again since the pristine state was noted"
        return ""


class WatermarkStore:
    """The files of one checkout. One that cannot be written costs a clone, not the command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, project: Project) -> WatermarkStore:
        """Beside the hints of this checkout's servers."""
        return cls(project.folder / FOLDER)

    def read(self, name: str, oid: int, now: Provenance) -> tuple[Watermark | None, str]:
        """What was noted of a database, or None and why.

        Args:
            name: of the database; of a mark's copy, for what was noted when that was made.
            oid: of the database.
        """
        try:
            content = self._file(name).read()
            noted, note = decode(Provenance, content["life"]), _decoded(content)
        except FileNotFoundError:
            return None, "its pristine state was not noted"
        except (ValueError, TypeError, KeyError, AttributeError):
            return None, "the note of its pristine state cannot be read"
        why = noted.other(now)
        if not why and note.database != oid:
            why = "it was made again since its pristine state was noted"
        return (None, why) if why else (replace(note, life=now.incarnation), "")

    def write(self, name: str, provenance: Provenance, note: Watermark) -> None:
        """Replace the file."""
        self._file(name).note({"life": asdict(provenance), "note": _encoded(note)})

    def forget(self, name: str) -> None:
        """Remove a database's file, if it is there."""
        try:
            self._file(name).forget()
        except OSError:
            return

    def forget_all(self) -> None:
        """Remove them all: the server of these databases was ended."""
        for path in [*self.folder.glob("*.json"), *self.folder.glob(".*.json.*")]:
            # One that stays names a server that is gone, and is not believed.
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _file(self, name: str) -> StateFile:
        return StateFile(self.folder / f"{name}.json", _FORMAT, compact=True)


def _encoded(note: Watermark) -> dict[str, Any]:
    return {
        "position": note.position,
        "database": note.database,
        "role": note.role,
        "shared": note.shared,
        "carried": note.carried(),
        # Of an older version it is missing, and not known.
        **({"clean": note.clean} if note.clean else {}),
    }


def _decoded(content: Mapping[str, Any]) -> Watermark:
    found = content["note"]
    # It becomes a part of statements.
    if not POSITION.fullmatch(found["position"]):
        raise ValueError("position")
    shared = tuple((str(what), str(who), detail) for what, who, detail in found["shared"])
    position = str(found["position"])
    note = Watermark(
        position,
        int(found["database"]),
        int(found["role"]),
        shared,
        clean=pages_position(found.get("clean", "")),
    )
    return note if found["carried"] is None else note.carrying(found["carried"])
