"""The servers that there are: looked for, listed, ended; those of deleted checkouts too. Nothing here starts one."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Self

from harness.config import state_file
from harness.config.project import Project, project_id
from harness.errors import BackendError, BackendUnavailable, PoolTimeout, ServerRefused
from harness.servers import registry
from harness.servers.acquire import external, locked
from harness.servers.handle import Server
from harness.servers.handshake import attach, claim_alone
from harness.servers.port import Backend, ServerInfo
from harness.servers.records import Hint, is_over, root_of

logger = logging.getLogger("pg_harness.servers")

_MOUNTS = ("/mnt", "/media", "/run/media", "/Volumes", "/net")
"""Below these a missing folder may be a disk that is not plugged in."""


def find(
    project: Project,
    *,
    purpose: str = "run",
    guard: bool = True,
    asked: Callable[[], Asked] | None = None,
) -> Server | None:
    """The server that runs for this checkout and purpose; never starts one.

    Args:
        guard: whether its dead-man's switch is started again where that has died.
        asked: gives the backends, where the command asks for more than this server.

    Raises:
        BackendUnavailable: an external server that is named does not answer.
    """
    if not registry.starts(project.settings):
        return external(project, purpose=purpose)
    began = time.monotonic()
    hint = Hint.of(project, purpose)
    noted, _ = hint.read()
    for info in chain((noted,), _running(project, purpose, asked or (lambda: Asked.of(project)))):
        session = attach(info)[0] if info is not None else None
        if info is None or session is None:
            continue
        if info is not noted:
            hint.write(info)
        found = Server(info, session, False, time.monotonic() - began, project, hint.forget)
        if guard:
            found.guard()
        return found
    return None


def _running(project: Project, purpose: str, asked: Callable[[], Asked]) -> Iterator[ServerInfo | None]:
    # Lazily: as a rule the noted one answers, and no backend is asked.
    yield from (backend.find(project.id, purpose) for backend in asked().working)


@dataclass(frozen=True)
class Asked:
    """The backends that may hold a server of ours: asked once for a command, because one that is silent costs its time-out.

    Attributes:
        working: those that answer.
        refused: word → why not, of those that may hold one all the same.
        unseen: servers that run, and that their backend does not see (data in memory, and no ``/dev/shm`` where we are);
            filled by :func:`stop`.
        ended: handles of what was ended by this command; one server may serve two purposes.
    """

    working: Sequence[Backend]
    refused: Mapping[str, str]
    unseen: list[ServerInfo] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, project: Project) -> Self:
        """Ask all of them."""
        wanted = registry.wanted(project.settings)
        working: list[Backend] = []
        silent: dict[str, str] = {}
        # The first choice of `auto` last: a daemon takes longer to answer than a look into our own folders.
        hinted = _hinted(project)
        for word in reversed(registry.starting()):
            kind = registry.find_kind(word)
            if kind is not None and kind.elsewhere and word != wanted and word not in hinted:
                continue
            timeout = registry.AUTO_TIMEOUT if wanted == registry.AUTO else 10
            backend = registry.named(word, project, timeout=timeout)
            try:
                backend.list("0000000000")
            except BackendError as error:
                absent = isinstance(error, BackendUnavailable) and error.absent
                if (wanted in (word, registry.AUTO) and not absent) or word in hinted:
                    silent[word] = error.message.splitlines()[0]
                    silent |= backend.silent()
            else:
                working.append(backend)
        return cls(working, silent)

    @property
    def silent(self) -> Mapping[str, str]:
        """Word → why, of backends and of hosts that could not be asked so far: a host may fail in the middle of a command."""
        found = dict(self.refused)
        for backend in self.working:
            found |= backend.silent()
        return found

    def check(self, told: str = "and what runs there was not ended") -> None:
        """What a command says at its end that ends things, or has found nothing.

        Args:
            told: what it means, for people.

        Raises:
            BackendUnavailable: some could not be asked: what they hold is still there.
        """
        if self.silent:
            raise BackendUnavailable(
                f"not everything could be asked, {told}: {', '.join(self.silent)}",
                checked=[f"{word}: {why}" for word, why in self.silent.items()],
                remedies=["call it again once that answers"],
            )
        if self.unseen:
            raise BackendUnavailable(
                "not everything was ended: servers run whose data cannot be seen from here",
                checked=[
                    f"{info.description} answers, and {info.handle} is not there" for info in self.unseen
                ],
                remedies=["call it again where that can be seen (outside of a container or sandbox)"],
            )


def _hinted(project: Project) -> set[str]:
    """The backends of the servers that were noted for this checkout."""
    hints = ((hint, hint.read()[0]) for hint in map(Hint, project.folder.glob("*.json")))
    return {info.backend for hint, info in hints if info is not None and not is_over(hint, info)}


def halt(project: Project, *, asked: Asked) -> list[ServerInfo]:
    """End the person's server of this checkout and keep its data; return what ran. One that is stopped stays so.

    Raises:
        BackendError: its data would be gone with it.
    """
    halted = []
    with locked(Hint.of(project, "up"), project.settings):
        for backend in asked.working:
            if (info := backend.find(project.id, "up")) is not None:
                backend.halt(info)
                logger.info(
                    "%s: stopped %s, with its data: `pg-harness up` starts it again",
                    info.backend,
                    info.description,
                )
                halted.append(info)
    return halted


def stop(project: Project, *, purpose: str = "run", asked: Asked | None = None) -> bool:
    """End the server of this checkout and purpose and remove its data, whether it answers or not.

    Args:
        asked: the backends, where that is known.

    Returns:
        Whether there was one. A server that someone else runs is never touched.
    """
    hint = Hint.of(project, purpose)
    with locked(hint, project.settings):
        asked = asked or Asked.of(project)
        found = {
            info.handle: (backend, info)
            for backend in asked.working
            for info in backend.list(project.id)
            if info.purpose == purpose
        }
        for backend, info in found.values():
            backend.stop(info)
            asked.ended.add(info.handle)
            logger.info("%s: ended %s", info.backend, info.description)
        noted, _ = hint.read()
        # The word of a server that may still run, and that nobody could ask, is kept: the next `down` needs it.
        missed = noted is not None and not {noted.backend, noted.host}.isdisjoint(asked.silent)
        if noted is None or (not missed and not _runs_unseen(noted, asked)):
            hint.forget()
    return bool(found)


def _runs_unseen(noted: ServerInfo, asked: Asked) -> bool:
    # Data on disk, and a daemon's, is seen from everywhere on this machine.
    if noted.storage != "memory" or noted.handle in asked.ended:
        return False
    session, _ = attach(noted)
    if session is None:
        return False
    session.close()
    asked.unseen.append(noted)
    return True


def noted_purposes(project: Project) -> list[str]:
    """Of the servers that were noted for this checkout; they may be gone."""
    return sorted(path.stem for path in project.folder.glob("*.json") if Hint(path).read()[0] is not None)


def servers(project: Project, *, everywhere: bool = False, asked: Asked | None = None) -> list[ServerInfo]:
    """All servers of this checkout, running or stopped, of all backends that work here."""
    mine = None if everywhere else project.id
    return [info for backend in (asked or Asked.of(project)).working for info in backend.list(mine)]


def forget_cut_off(project: Project) -> list[str]:
    """Remove notes of this checkout, and of the cache, that a killed process did not finish, and of servers of other machines
    that have ended; return their paths."""
    remote = project.state / "remote"
    folders = [
        project.cache,
        project.folder,
        *(path for path in project.folder.glob("*") if path.is_dir()),
        remote,
    ]
    gone = [path for folder in folders for path in state_file.sweep(folder)]
    if remote.is_dir():
        # Here: it is there only where servers of other machines were used.
        from harness.servers.docker import tunnel

        gone += tunnel.sweep(project.state)
    return gone


def forget_gone(project: Project, silent: Container[str] | None = None) -> list[str]:
    """Remove the hints of workers' servers that do not answer any more, and of those that each Docker host had; return their purposes.

    Args:
        silent: the hosts that could not be asked; None: it is not known which. Of a shared server there, the hint stays until the
            server has ended by itself: by it the next command knows what to ask.
    """
    gone = []
    for path in sorted(project.folder.glob("run[-.]*.json")):
        hint = Hint.of(project, path.stem)
        info, _ = hint.read()
        if path.stem.startswith("run.") and info is not None:
            if is_over(hint, info):
                hint.forget()
                gone.append(path.stem)
                continue
            if silent is None or info.host in silent:
                continue
        try:
            session = attach(info)[0] if info is not None else None
        except PoolTimeout:
            # It is there, and somebody has been let in that should not.
            continue
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
        except PoolTimeout as error:
            return error.message
        if session is None:
            # Stopped, or it answers to nobody: there is nobody to ask.
            self.backend.stop(self.info)
            return ""
        with session:
            if not claim_alone(self.info, session):
                return "somebody uses it"
            self.backend.stop(self.info)
        return ""


def orphans(project: Project, asked: Asked | None = None) -> list[Orphan]:
    """Servers of checkouts of this machine that are gone, of all backends that work here."""
    return [
        Orphan(info, backend)
        for backend in (asked or Asked.of(project)).working
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


def forget_deleted(project: Project, asked: Asked | None = None) -> list[str]:
    """Remove the hints and lock files of checkouts that are gone; return their paths."""
    kept = {project.id, *(info.project for info in servers(project, everywhere=True, asked=asked))}
    forgotten = []
    for folder in sorted(project.state.glob("[0-9a-f]" * 10)):
        roots = {root_of(path) for path in folder.glob("*.json")}
        if folder.name not in kept and roots and all(deleted(root, folder.name) for root in roots):
            shutil.rmtree(folder, ignore_errors=True)
            forgotten.append(str(folder))
    return forgotten
