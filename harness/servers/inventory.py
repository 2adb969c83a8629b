"""The servers that there are: looked for, listed, ended; those of deleted checkouts too. Nothing here starts one."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from harness.config.project import Project, project_id
from harness.errors import BackendError, ServerRefused
from harness.servers import registry
from harness.servers.acquire import external, locked
from harness.servers.handle import Server
from harness.servers.handshake import attach, claim_alone
from harness.servers.port import Backend, ServerInfo
from harness.servers.records import Hint, root_of

logger = logging.getLogger("pg_harness.servers")

_MOUNTS = ("/mnt", "/media", "/run/media", "/Volumes", "/net")
"""Below these a missing folder may be a disk that is not plugged in."""


def find(project: Project, *, purpose: str = "run") -> Server | None:
    """The server that runs for this checkout and purpose; never starts one.

    Raises:
        BackendUnavailable: an external server that is named does not answer.
    """
    if not registry.starts(project.settings):
        return external(project, purpose=purpose)
    began = time.monotonic()
    hint = Hint.of(project, purpose)
    noted, _ = hint.read()
    running = (backend.find(project.id, purpose) for backend in working_backends(project))
    for info in chain((noted,), running):
        session = attach(info)[0] if info is not None else None
        if info is None or session is None:
            continue
        if info is not noted:
            hint.write(info)
        return Server(info, session, False, time.monotonic() - began, project, hint.forget)
    return None


def stop(project: Project, *, purpose: str = "run") -> bool:
    """End the server of this checkout and purpose and remove its data, whether it answers or not.

    Returns:
        Whether there was one. A server that someone else runs is never touched.
    """
    hint = Hint.of(project, purpose)
    with locked(hint, project.settings):
        found = {
            info.handle: (backend, info)
            for backend in working_backends(project)
            for info in backend.list(project.id)
            if info.purpose == purpose
        }
        for backend, info in found.values():
            backend.stop(info)
            logger.info("%s: ended %s", info.backend, info.description)
        hint.forget()
    return bool(found)


def servers(project: Project, *, everywhere: bool = False) -> list[ServerInfo]:
    """All servers of this checkout, running or stopped, of all backends that work here."""
    mine = None if everywhere else project.id
    return [info for backend in working_backends(project) for info in backend.list(mine)]


def working_backends(project: Project) -> Iterator[Backend]:
    """Those that may hold a server of ours; a daemon that does not answer holds none that could be ended."""
    # The first choice of `auto` last: a daemon takes longer to answer than a look into our own folders.
    for word in reversed(registry.starting()):
        backend = registry.named(
            word,
            project,
            timeout=registry.AUTO_TIMEOUT if project.settings.backend == registry.AUTO else 10,
        )
        try:
            backend.list("0000000000")
        except BackendError:
            continue
        yield backend


def forget_gone(project: Project) -> list[str]:
    """Remove the hints of workers' servers that do not answer any more; return their purposes."""
    gone = []
    for path in sorted(project.folder.glob("run-*.json")):
        hint = Hint.of(project, path.stem)
        info, _ = hint.read()
        session = attach(info)[0] if info is not None else None
        if session is None:
            hint.forget()
            gone.append(path.stem)
        else:
            session.close()
    return gone


# --- servers of deleted checkouts: nobody will ever call `down` there --------------------------------------


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


def orphans(project: Project) -> list[Orphan]:
    """Servers of checkouts of this machine that are gone, of all backends that work here."""
    return [
        Orphan(info, backend)
        for backend in working_backends(project)
        for info in backend.list(None)
        if info.project != project.id and deleted(info.root, info.project)
    ]


def deleted(root: str, owner: str) -> bool:
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


def forget_deleted(project: Project) -> list[str]:
    """Remove the hints and lock files of checkouts that are gone; return their paths."""
    kept = {project.id, *(info.project for info in servers(project, everywhere=True))}
    forgotten = []
    for folder in sorted(project.state.glob("[0-9a-f]" * 10)):
        roots = {root_of(path) for path in folder.glob("*.json")}
        if folder.name not in kept and roots and all(deleted(root, folder.name) for root in roots):
            shutil.rmtree(folder, ignore_errors=True)
            forgotten.append(str(folder))
    return forgotten
