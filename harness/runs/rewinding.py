"""How databases are reset on one server: by pages (rewind) or row-wise, by the setting ``engine`` and by what can be had there."""

from __future__ import annotations

from collections.abc import Mapping

from harness.config.project import Project
from harness.config.settings import Settings
from harness.errors import BackendError, BackendUnavailable
from harness.postgres.session import Session
from harness.reset.rewind import fit, leftovers, module
from harness.reset.rewind.module import Prepared
from harness.servers.handle import Server

Rewinding = Prepared | str
"""What rewinds on a server; or why its resets are row-wise."""

_ROWS = 'engine = "auto": resets are row-wise where they cannot rewind'


def prepare(project: Project, server: Server, session: Session) -> Rewinding:
    """Have the module ready on a server, unless the settings say otherwise.

    Args:
        session: the admin's, in the maintenance database.

    Raises:
        BackendUnavailable: the settings ask for it, and it cannot be had.
        ServerLost: the server is gone.
    """
    answer = _by_settings(project, server) or _by_server(project, server, session)
    if isinstance(answer, str) and project.settings.engine == "rewind":
        raise BackendUnavailable(
            f'engine = "rewind" ({project.settings.origin("engine")}), and databases cannot be reset by pages here',
            checked=[answer],
            remedies=remedies(project.settings, server, answer),
        )
    return answer


def remedies(settings: Settings, server: Server, why: str) -> list[str]:
    """What to do where the settings ask for ``engine = "rewind"`` and it cannot be had on a server.

    Args:
        why: what was answered there.
    """
    if not server.info.ours:
        named = f" (it is set by {settings.origin('server_url')})" if settings.server_url else ""
        return [f"without server_url{named}, pg-harness starts a server of its own, which can", f"or {_ROWS}"]
    if server.info.standbys:
        return [
            f"leave `replicas` out ({settings.origin('replicas')}): a standby follows resets by rows",
            f"or {_ROWS}",
        ]
    if "module" in why:
        return [
            "pg-harness build-native compiles the module for the PostgreSQL of this machine (a C compiler and its headers)",
            f"or {_ROWS}",
        ]
    fits = "PostgreSQL 15 to 18 on Linux, fsync off, without page checksums, blocks of 8 kB"
    return [f'take a server that can: {fits} (a container is one: backend = "docker")', f"or {_ROWS}"]


def files(project: Project) -> Mapping[str, Mapping[str, bytes]]:
    """What a server that is started now may want to read: brought with its scripts, no later step is needed."""
    return {} if project.settings.engine == "rows" else module.files(module.folders(project.cache))


def mark(project: Project, major: int) -> str:
    """What tells the modules of one version from others: a server that has tried one knows nothing of another."""
    return "" if project.settings.engine == "rows" else module.mark(module.folders(project.cache), major)


def known(project: Project, server: Server, session: Session) -> Rewinding | None:
    """The same without doing anything; None where nobody has tried it there."""
    return _by_settings(project, server) or module.known(session, places=module.folders(project.cache))


def sweep(project: Project, server: Server, session: Session) -> None:
    """Drop what modules of earlier versions, and processes that were killed, have left on a server of ours.

    Raises:
        HarnessError: not all of it could be.
    """
    if not server.info.ours:
        return
    places = module.folders(project.cache)
    keep = {made.schema for made in fit.everything(places)}
    # Asked for only where something is to be removed: a container has to be looked for.
    leftovers.sweep(session, keep, lambda name: server.backend.shelf(server.info).remove(name))


def told(answer: Rewinding | None) -> str:
    """For people: how databases are reset there."""
    if isinstance(answer, Prepared):
        return "rewind"
    return "not tried yet" if answer is None else f"rows ({answer})"


def _by_settings(project: Project, server: Server) -> str:
    settings = project.settings
    if settings.engine == "rows":
        return f'engine = "rows", {settings.origin("engine")}'
    if server.info.standbys:
        # What it writes is put right by recovery, and sessions of a standby keep what they know of the pages.
        return f"replicas = {len(server.info.standbys)}"
    return "" if server.info.ours else "the server is somebody else's"


def _by_server(project: Project, server: Server, session: Session) -> Rewinding:
    try:
        shelf = server.backend.shelf(server.info)
    except BackendError as error:
        # A server in memory, and no `/dev/shm` where we are: what was brought there before is there still.
        there = module.known(session, places=module.folders(project.cache))
        return there if isinstance(there, Prepared) else error.message
    return module.prepare(session, shelf, project=project.id, places=module.folders(project.cache))
