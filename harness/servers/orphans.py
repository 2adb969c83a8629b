"""Servers whose checkout is gone: nobody will ever call ``down`` there."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from harness.config.project import Project, project_id
from harness.errors import ServerRefused
from harness.servers.handshake import attach, claim_alone
from harness.servers.inventory import working_backends
from harness.servers.port import Backend, ServerInfo
from harness.servers.records import root_of

_MOUNTS = ("/mnt", "/media", "/run/media", "/Volumes", "/net")
"""Below these a missing folder may be a disk that is not plugged in."""


@dataclass(frozen=True)
class Orphan:
    """A server of ours, running or stopped, whose checkout was removed.

    Attributes:
        backend: what started it, and can end it.
    """

    info: ServerInfo
    backend: Backend

    def end(self) -> str:
        """End it and remove its data; return why not, where somebody uses it."""
        try:
            session, _ = attach(self.info)
        except ServerRefused as error:
            return f"it has no connection left to ask: {error.message}"
        if session is None:
            # Stopped, or it answers to nobody: there is nobody to ask.
            self.backend.stop(self.info)
            return ""
        with session:
            if not claim_alone(self.info, session):
                return "somebody uses it"
            self.backend.stop(self.info)
        return ""


def find(project: Project) -> list[Orphan]:
    """Servers of checkouts of this machine that are gone, of all backends that work here."""
    return [
        Orphan(info, backend)
        for backend in working_backends(project)
        for info in backend.list(None)
        if info.project != project.id and gone(info.root, info.project)
    ]


def gone(root: str, owner: str) -> bool:
    """Whether a checkout was on this machine, and is not there any more.

    Args:
        root: its path; empty where it is unknown.
        owner: its ten hex digits. Another machine's, on a Docker daemon that both use, has others for the path.
    """
    if not root or project_id(Path(root)) != owner:
        return False
    try:
        Path(root).stat()
    except (FileNotFoundError, NotADirectoryError):
        return Path(root).parent.exists() or not root.startswith(tuple(f"{mount}/" for mount in _MOUNTS))
    except OSError:
        # Not to be seen by us, which is not the same as gone.
        return False
    return False


def forget(project: Project) -> list[str]:
    """Remove the hints and lock files of checkouts that are gone; return their paths."""
    servers = {info.project for backend in working_backends(project) for info in backend.list(None)}
    forgotten = []
    for folder in sorted(project.state.glob("[0-9a-f]" * 10)):
        roots = {root_of(path) for path in folder.glob("*.json")}
        if folder.name == project.id or folder.name in servers:
            continue
        if roots and all(gone(root, folder.name) for root in roots):
            shutil.rmtree(folder, ignore_errors=True)
            forgotten.append(str(folder))
    return forgotten
