"""Guests: agents, whose SQL may have changed the schema of databases that we reset as a superuser.

Putting rows back runs functions: of CHECK constraints, domains, generated columns, indexes. Those of an agent's would run with our
rights, ``COPY … TO PROGRAM`` among them, and so would one that replaces a function of the migrations' between the look at the
catalogs and the INSERT. Pages and clones run none. A database's label says nothing here: its owner may write it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from harness.config.project import Project
from harness.config.state_file import StateFile
from harness.errors import LeaseError
from harness.runs.places import AGENT
from harness.servers.port import of_agents

if TYPE_CHECKING:
    from harness.runs.places import Place

FOLDER = "guests"
_FORMAT = 1

ROWLESS = (
    "an agent may have changed the schema, and rows are not put back there: its functions would run with a superuser's rights. "
    "A reset is by pages, else a fresh copy"
)


def note(project: Project, server_id: str) -> None:
    """An agent may change a person's databases on that server from now on. It holds as long as the server is there.

    Args:
        server_id: empty for one that we did not start.

    Raises:
        LeaseError: it cannot be noted.
    """
    file = _file(project, server_id)
    if file.path.exists():
        return
    try:
        file.write({})
    except OSError as error:
        raise LeaseError(
            f"{file.path} cannot be written ({error}), and later resets would not know that an agent was here"
        ) from error


def forget(project: Project, server_ids: Iterable[str]) -> None:
    """Remove the notes of servers that were ended."""
    for server_id in filter(None, server_ids):
        # One that stays names a server that is gone.
        with suppress(OSError):
            _file(project, server_id).forget()


def were_here(place: Place) -> bool:
    """Whether an agent may have changed the schema of a worker's databases."""
    session = place.session
    if of_agents(session.server.info.purpose) or place.worker.startswith(AGENT):
        return True
    return _file(session.project, session.link.server_id).path.exists()


def _file(project: Project, server_id: str) -> StateFile:
    return StateFile(project.folder / FOLDER / f"{server_id or 'external'}.json", _FORMAT)
