"""What this machine knows of a service and the manager does not tell: its password, its certificate, whose each task is.

A Swarm gives its secrets to tasks alone. So who has made a service notes them, for this user alone, beside the hints.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.config import processes
from harness.config.state_file import StateFile, Unreadable, replace_file

_FORMAT = 1


@dataclass(frozen=True)
class Note:
    """Of one service.

    Attributes:
        root: the checkout's path: the note is forgotten where that is gone.
        password: of the superuser, the same on all its servers.
        certificate: of its servers, PEM; empty where they have none.
        swarm: the Swarm's own id: another one does not know the service, and what is noted of it stays.
        names: what that certificate is for: the addresses of the nodes that there were.
        claims: task → purpose of the worker that has it; empty: nobody has it any more, and it does not end.
        waiting: purpose of a worker that waits for a server → the number of its process.
    """

    root: str
    password: str = field(repr=False)
    certificate: str = ""
    names: tuple[str, ...] = ()
    claims: Mapping[str, str] = field(default_factory=dict)
    waiting: Mapping[str, int] = field(default_factory=dict)
    swarm: str = ""

    def waits(self, purpose: str) -> Note:
        """With one worker more that waits: this process's."""
        return replace(self, waiting={**self.waiting, purpose: os.getpid()})

    def waits_no_more(self, purpose: str) -> Note:
        """Without it."""
        return replace(self, waiting={who: pid for who, pid in self.waiting.items() if who != purpose})

    def claimed(self, task: str, purpose: str) -> Note:
        """With a server that a worker has."""
        return replace(self.waits_no_more(purpose), claims={**self.claims, task: purpose})

    def left(self, task: str) -> Note:
        """With a server that nobody has any more, although it counts as one that runs: nobody else may take it."""
        return replace(self, claims={**self.claims, task: ""})

    def released(self, task: str) -> Note:
        """Without it."""
        return replace(self, claims={its: who for its, who in self.claims.items() if its != task})

    @property
    def waiters(self) -> int:
        """How many wait, of processes that are alive."""
        return sum(processes.alive(pid) for pid in self.waiting.values())


@dataclass(frozen=True)
class Notes:
    """Those of one checkout.

    Attributes:
        folder: where they lie.
    """

    folder: Path

    def read(self, mark: str) -> Note | None:
        """The note of a service; None where there is none that can be used.

        Args:
            mark: the service's label.
        """
        try:
            return self._file(mark).read_as(Note) if mark.isalnum() else None
        except (FileNotFoundError, Unreadable):
            return None

    def write(self, mark: str, note: Note) -> None:
        """Replace the note, and the certificate beside it.

        Raises:
            OSError: it cannot be written.
        """
        self._file(mark).write(note)
        if note.certificate and not self.certificate(mark).exists():
            replace_file(self.certificate(mark), note.certificate)

    def certificate(self, mark: str) -> Path:
        """The file that clients trust."""
        return self.folder / f"{mark}.crt"

    def forget(self, mark: str) -> None:
        """Remove both, if they are there."""
        self._file(mark).forget()
        self.certificate(mark).unlink(missing_ok=True)

    def marks(self) -> list[str]:
        """Of all services that are noted."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def _file(self, mark: str) -> StateFile:
        return StateFile(self.folder / f"{mark}.json", _FORMAT)
