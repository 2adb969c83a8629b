"""The servers that there are: looked for, listed, ended. Nothing here starts one."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from harness.config.project import Project
from harness.errors import BackendError
from harness.servers import registry
from harness.servers.acquire import external, locked
from harness.servers.handle import Server
from harness.servers.handshake import attach
from harness.servers.port import Backend, ServerInfo
from harness.servers.records import Hint

logger = logging.getLogger("pg_harness.servers")


def find(project: Project, *, purpose: str = "run") -> Server | None:
    """The server that runs for this checkout and purpose; never starts one.

    Raises:
        BackendUnavailable: an external server that is named does not answer.
    """
    if not registry.starts(project.settings):
        return external(project, purpose=purpose)
    began = time.monotonic()
    hint = Hint.of(project, purpose)
    info, _ = hint.read()
    candidates = [info] if info is not None else []
    session = None
    if info is not None:
        session, _ = attach(info)
    if session is None:
        candidates = [
            found for backend in working_backends(project) if (found := backend.find(hint.project, purpose))
        ]
        for info in candidates:
            session, _ = attach(info)
            if session is not None:
                hint.write(info)
                break
    if session is None or info is None:
        return None
    return Server(info, session, False, time.monotonic() - began, project, hint.forget)


def stop(project: Project, *, purpose: str = "run") -> bool:
    """End the server of this checkout and purpose and remove its data, whether it answers or not.

    Returns:
        Whether there was one. A server that someone else runs is never touched.
    """
    hint = Hint.of(project, purpose)
    with locked(hint, project.settings, purpose):
        doomed: dict[str, tuple[Backend, ServerInfo]] = {}
        for backend in working_backends(project):
            for info in backend.list(hint.project):
                if info.purpose == purpose:
                    doomed[info.handle] = (backend, info)
        for backend, info in doomed.values():
            backend.stop(info)
            logger.info("%s: ended %s", info.backend, info.description)
        hint.forget()
    return bool(doomed)


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
