"""The one server of a checkout and purpose: found, or started under a file lock.

The warm path reads a hint file, logs in, compares ``harness.server_id`` and takes the sign of life, in
one round trip; nothing of Docker's is imported. A hint is never believed before that comparison.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness import made_with, project
from harness.answering import attach, claim_alone, life_key
from harness.backends import defaults, select
from harness.backends.base import Backend, ServerInfo, ServerRequest
from harness.dsn import Dsn
from harness.errors import BackendError, BackendUnavailable, ServerLost
from harness.hint import Hint
from harness.lock import file_lock
from harness.settings import Settings
from harness.telling import Story, silent

if TYPE_CHECKING:
    from harness.catalog.session import Session

LOCK_EXTRA = 600.0
"""Seconds, beyond ``start_timeout``, to wait for another process that may be pulling an image."""

RESTART_PATIENCE = 5.0
"""Seconds to wait for a server whose backend says that it runs, and which does not answer."""


@dataclass
class Server:
    """A server that answered, and a session on its maintenance database.

    Attributes:
        info: what its backend knows.
        session: the admin session that verified it. It holds the sign of life (a shared advisory lock)
            until :meth:`close`, so the server does not end itself meanwhile.
        started: whether this call started it; False where it was found.
        seconds: how long finding or starting took.
    """

    info: ServerInfo
    session: Session
    started: bool
    seconds: float
    _settings: Settings = field(repr=False)
    _environ: Mapping[str, str] = field(repr=False)
    _hint: Hint = field(repr=False)

    @property
    def admin_dsn(self) -> Dsn:
        """The superuser's address of the maintenance database."""
        return self.info.dsn

    @property
    def backend(self) -> Backend:
        """What started it, for :meth:`stop` and :meth:`logs`; made when it is asked for."""
        return select.named(self.info.backend, self._settings, self._environ)

    def hold_life(self, session: Session) -> None:
        """Hold the sign of life in another session too, for as long as that session lives.

        Blocks while the dead-man's switch looks (microseconds). A server without a TTL has no switch:
        the lock is harmless there.

        Raises:
            ServerLost: the server is ending itself, or gone: ask :func:`ensure` again.
        """
        session.value("SELECT pg_advisory_lock_shared(%s)", (life_key(self.info),))

    def logs(self, follow: bool = False) -> Iterator[str]:
        """Lines of the server's log."""
        return self.backend.logs(self.info, follow)

    def stop(self) -> None:
        """End the server and remove its data. A server that someone else runs is left alone."""
        self.close()
        self._hint.forget()
        self.backend.stop(self.info)

    def close(self) -> None:
        """Let go of it: log out. The server goes on, until its TTL has passed."""
        self.session.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ensure(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    purpose: str = "run",
    ttl: float | None = None,
    base: Callable[[Backend], str | None] = lambda backend: None,
    story: Story = silent,
) -> Server:
    """The server of this checkout for this purpose: the one that runs, else a new one.

    Safe under concurrency: of several processes at once, one starts it and the others use it.

    Args:
        purpose: ``"run"``, ``"run-1"``… for tests, ``"up"`` for a person.
        ttl: seconds; for ``up``, None means that it never ends itself. Runs have ``settings.ttl``.
        base: asked where a new one must be started: what to start from, see :mod:`harness.backends.bases`.

    Raises:
        BackendUnavailable, ServerStartError: see the backends.
        ServerLost: a person's server runs and does not answer: its data is not thrown away.
        PoolTimeout: another process was busy starting it for too long.
    """
    began = time.monotonic()
    hint = Hint.of(settings, environ, purpose)
    if settings.server_url is not None:
        return _external(settings, environ, hint, purpose, story, began)

    # Beside a server that others use, and that other settings started, there may be a second one.
    second = f"{purpose}-{made_with.mark(settings)}"
    places = [(purpose, hint)]
    if purpose != "up":
        places.append((second, Hint.of(settings, environ, second)))

    def result(info: ServerInfo, session: Session, place: Hint, started: bool) -> Server:
        if purpose == "up":
            _tell_changes(info, settings, story)
        return Server(info, session, started, time.monotonic() - began, settings, environ, place)

    refused: dict[Path, tuple[ServerInfo | None, str]] = {}
    for _, place in places:
        info, reason = place.read()
        if info is not None and _wanted(info, settings, purpose):
            session, reason = attach(info)
            if session is not None:
                return result(info, session, place, False)
        refused[place.path] = info, reason
    with file_lock(
        hint.path.with_suffix(".lock"),
        timeout=settings.start_timeout + LOCK_EXTRA,
        waiting_for=f"the {purpose} server of this checkout",
    ):
        for _, place in places:
            before, reason = refused[place.path]
            again, why = place.read()
            if again is not None and again != before and _wanted(again, settings, purpose):
                session, why = attach(again)
                if session is not None:
                    return result(again, session, place, False)
            if reason or why:
                story(f"server: the noted one is not used: {reason or why}")
        backend = select.choose(settings, environ, story)
        for purpose_, place in places:
            found = backend.find(place.project, purpose_)
            if found is None:
                break
            # Its backend says that it runs: it may be starting (`docker restart`).
            session, why = attach(found, patience=RESTART_PATIENCE)
            if session is None:
                _give_up(backend, found, purpose, why, story)
                break
            changed = made_with.changes(found, settings)
            if purpose == "up" or not changed:
                place.write(found)
                return result(found, session, place, False)
            if _replaced(backend, found, session, changed, story):
                break
        request = replace(_request(settings, hint.project, purpose_, ttl), base=base(backend))
        new = _start(backend, request, settings, environ, story)
        session, why = attach(new)
        if session is None:
            raise ServerLost(f"the server {new.description} was started and is gone again: {why}")
        place.write(new)
        return result(new, session, place, True)


def join(settings: Settings, environ: Mapping[str, str], info: ServerInfo, *, purpose: str = "run") -> Server:
    """A server that another process of the same run has found: log in and compare its id, look for nothing.

    Raises:
        ServerLost: it is gone, or another one answers at its address.
    """
    from harness.catalog.session import Session

    began = time.monotonic()
    hint = Hint.of(settings, environ, purpose)
    if info.backend == "external":
        session: Session | None = Session.connect(info.dsn)
        why = ""
    else:
        session, why = attach(info)
    if session is None:
        raise ServerLost(f"the server of this run ({info.description}) is gone: {why}")
    return Server(info, session, False, time.monotonic() - began, settings, environ, hint)


def private(
    settings: Settings,
    environ: Mapping[str, str],
    backend: Backend,
    *,
    purpose: str,
    ttl: float,
    base: str | None = None,
    memory: int | None = None,
    story: Story = silent,
) -> Server:
    """A new server for one owner: nobody else starts one of that name, so there is no lock. Its hint is for `status`.

    Args:
        purpose: ``"run-<run>-<worker>"`` or ``"bake-<key>"``, unique.
        base, memory: see :class:`harness.backends.base.ServerRequest`.

    Raises:
        BackendUnavailable, ServerStartError: see the backends. ServerLost: it ended again at once.
    """
    began = time.monotonic()
    hint = Hint.of(settings, environ, purpose)
    request = replace(_request(settings, hint.project, purpose, ttl), base=base, memory=memory)
    info = backend.start(request, story)
    session, why = attach(info)
    if session is None:
        backend.stop(info)
        raise ServerLost(f"the server {info.description} was started and is gone again: {why}")
    hint.write(info)
    return Server(info, session, True, time.monotonic() - began, settings, environ, hint)


def forget_gone(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """Remove the hints of workers' servers that do not answer any more; return their purposes."""
    folder = Hint.of(settings, environ, "run").path.parent
    gone = []
    for path in sorted(folder.glob("run-*.json")):
        hint = Hint.of(settings, environ, path.stem)
        info, _ = hint.read()
        session = attach(info)[0] if info is not None else None
        if session is None:
            hint.forget()
            gone.append(path.stem)
        else:
            session.close()
    return gone


def find(settings: Settings, environ: Mapping[str, str], *, purpose: str = "run") -> Server | None:
    """The server that runs for this checkout and purpose; never starts one.

    Raises:
        BackendUnavailable: an external server that is named does not answer.
    """
    began = time.monotonic()
    hint = Hint.of(settings, environ, purpose)
    if settings.server_url is not None:
        return _external(settings, environ, hint, purpose, silent, began)
    info, _ = hint.read()
    candidates = [info] if info is not None else []
    session = None
    if info is not None:
        session, _ = attach(info)
    if session is None:
        candidates = [
            found
            for backend in working_backends(settings, environ)
            if (found := backend.find(hint.project, purpose))
        ]
        for info in candidates:
            session, _ = attach(info)
            if session is not None:
                hint.write(info)
                break
    if session is None or info is None:
        return None
    return Server(info, session, False, time.monotonic() - began, settings, environ, hint)


def stop(
    settings: Settings, environ: Mapping[str, str], *, purpose: str = "run", story: Story = silent
) -> bool:
    """End the server of this checkout and purpose and remove its data, whether it answers or not.

    Returns:
        Whether there was one. A server that someone else runs is never touched.
    """
    hint = Hint.of(settings, environ, purpose)
    with _locked(hint, settings, purpose):
        doomed: dict[str, tuple[Backend, ServerInfo]] = {}
        for backend in working_backends(settings, environ):
            for info in backend.list(hint.project):
                if info.purpose == purpose:
                    doomed[info.handle] = (backend, info)
        for backend, info in doomed.values():
            backend.stop(info)
            story(f"{info.backend}: ended {info.description}")
        hint.forget()
    return bool(doomed)


def _locked(hint: Hint, settings: Settings, purpose: str) -> AbstractContextManager[None]:
    # A worker's own server has one owner, and a lock file for each would stay for ever.
    if "-" in purpose:
        return nullcontext()
    return file_lock(
        hint.path.with_suffix(".lock"),
        timeout=settings.start_timeout + LOCK_EXTRA,
        waiting_for=f"the {purpose} server of this checkout",
    )


def servers(settings: Settings, environ: Mapping[str, str], *, everywhere: bool = False) -> list[ServerInfo]:
    """All servers of this checkout, running or stopped, of all backends that work here."""
    mine = None if everywhere else project.project_id(settings.root)
    return [info for backend in working_backends(settings, environ) for info in backend.list(mine)]


def working_backends(settings: Settings, environ: Mapping[str, str]) -> Iterator[Backend]:
    """Those that may hold a server of ours; a daemon that does not answer holds none that could be ended."""
    for name in ("process", "docker"):
        backend = select.named(
            name, settings, environ, timeout=select.AUTO_TIMEOUT if settings.backend == "auto" else 10
        )
        try:
            backend.list("0000000000")
        except BackendError:
            continue
        yield backend


def _request(settings: Settings, project_id: str, purpose: str, ttl: float | None) -> ServerRequest:
    return ServerRequest(
        project=project_id,
        purpose=purpose,
        server_id=str(uuid.uuid4()),
        root=Path(settings.root).resolve(),
        password=secrets.token_hex(24),
        settings=defaults.throwaway(max_connections=settings.max_connections, user=settings.postgres),
        storage=settings.storage,
        ttl=ttl if purpose == "up" else (ttl or settings.ttl),
        start_timeout=settings.start_timeout,
    )


def _start(
    backend: Backend, request: ServerRequest, settings: Settings, environ: Mapping[str, str], story: Story
) -> ServerInfo:
    """Start it; where nobody chose Docker or an image and the default one cannot be had, from local binaries."""
    try:
        return backend.start(replace(request, made_with=made_with.of(settings, backend.name)), story)
    except BackendUnavailable as error:
        # An image that somebody named is meant: another server in its place would be a surprise.
        if settings.backend != "auto" or backend.name != "docker" or settings.origin("image") != "default":
            raise
        other = select.named("process", settings, environ)
        try:
            select.usable(other)
        except BackendUnavailable as second:
            raise BackendUnavailable(
                error.message.splitlines()[0],
                checked=[*error.checked, second.message.splitlines()[0], *second.checked],
                remedies=[*error.remedies, *second.remedies],
            ) from error
        story(f"docker: {error.message.splitlines()[0]}")
        story("backend: process instead, because neither a backend nor an image is named in the settings")
        return other.start(replace(request, made_with=made_with.of(settings, other.name)), story)


def _wanted(info: ServerInfo, settings: Settings, purpose: str) -> bool:
    """Whether the settings still mean this server. A person's is never replaced: its data would be out of sight."""
    if info.backend == "external" or purpose == "up":
        return info.backend != "external"
    return settings.backend in ("auto", info.backend) and not made_with.changes(info, settings)


def _replaced(
    backend: Backend, info: ServerInfo, session: Session, changed: Sequence[str], story: Story
) -> bool:
    """End a server that other settings started, unless somebody uses it; never a restart under others."""
    with session:
        told = f"{info.description} was started with other settings ({', '.join(changed)})"
        if not claim_alone(info, session):
            story(f"server: {told} and is in use: a second one is used beside it")
            return False
        story(f"server: {told}: replacing it")
        backend.stop(info)
    return True


def _tell_changes(info: ServerInfo, settings: Settings, story: Story) -> None:
    changed = made_with.changes(info, settings)
    if settings.backend not in ("auto", info.backend):
        changed.append(f"backend {info.backend} → {settings.backend}")
    if changed:
        story(
            f"server: yours was started with other settings ({', '.join(changed)}) and is used as it is, because "
            f"its data would be lost: `pg-harness down`, then `pg-harness up`, starts a new one"
        )


def _give_up(backend: Backend, info: ServerInfo, purpose: str, why: str, story: Story) -> None:
    if purpose == "up":
        raise ServerLost(
            f"your server {info.description} is there and does not answer: {why}. It was not replaced, "
            f"because its data would be lost: look at its log, or end it with `pg-harness down`."
        )
    story(f"{info.backend}: {info.description} does not answer ({why}): replacing it")
    backend.stop(info)


def _external(
    settings: Settings, environ: Mapping[str, str], hint: Hint, purpose: str, story: Story, began: float
) -> Server:
    from harness.catalog.session import Session

    backend = select.choose(settings, environ, story)
    info = backend.start(_request(settings, hint.project, purpose, None), story)
    session = Session.connect(info.dsn)
    return Server(info, session, False, time.monotonic() - began, settings, environ, hint)
