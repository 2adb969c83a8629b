"""The one server of a checkout and purpose: found, or started under a file lock.

The warm path reads a hint file, logs in, compares ``harness.server_id`` and takes the sign of life, in
one round trip; nothing of Docker's is imported. A hint is never believed before that comparison.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness import made_with, starting
from harness.answering import attach, claim_alone
from harness.backends import select
from harness.backends.base import Backend, ServerInfo
from harness.config.settings import Settings
from harness.errors import BackendUnavailable, ServerLost
from harness.hint import Hint
from harness.joining import Server
from harness.telling import Story, silent

if TYPE_CHECKING:
    from harness.postgres.session import Session

RESTART_PATIENCE = 5.0
"""Seconds to wait for a server whose backend says that it runs, and which does not answer."""


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
    search = _Search(settings, environ, purpose, story)
    if settings.server_url is not None:
        return external(settings, environ, purpose=purpose, story=story)
    if found := search.noted():
        return found
    with starting.locked(search.places[0].hint, settings, purpose):
        if found := search.noted():
            return found
        search.tell_refused()
        backend = select.choose(settings, environ, story)
        try:
            return search.listed_or_new(backend, ttl, base(backend))
        except BackendUnavailable as error:
            backend = starting.instead(error, backend, settings, environ, story)
            return search.listed_or_new(backend, ttl, base(backend))


@dataclass(frozen=True)
class _Place:
    """Where one of the servers that may serve is noted."""

    purpose: str
    hint: Hint


class _Search:
    """Looks for the server of one checkout and purpose.

    Attributes:
        places: where it may be, the usual one first. Beside a server that others use and that other settings
            started, there may be a second one of a test run; a person has one.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str], purpose: str, story: Story) -> None:
        self._settings = settings
        self._environ = environ
        self._purpose = purpose
        self._story = story
        self._began = time.monotonic()
        self._refused: dict[Path, tuple[ServerInfo | None, str]] = {}
        self.places = [self._place(purpose)]
        if purpose != "up":
            self.places.append(self._place(f"{purpose}-{made_with.mark(settings)}"))

    def _place(self, purpose: str) -> _Place:
        return _Place(purpose, Hint.of(self._settings, self._environ, purpose))

    def noted(self) -> Server | None:
        """One that a hint names, fits the settings and answers. What was refused before is not tried again."""
        for place in self.places:
            info, reason = place.hint.read()
            before, _ = self._refused.get(place.hint.path, (None, ""))
            if info is None or info == before:
                self._refused.setdefault(place.hint.path, (info, reason))
                continue
            if made_with.fits(info, self._settings, self._purpose):
                session, reason = attach(info)
                if session is not None:
                    return self.result(info, session, place)
            self._refused[place.hint.path] = info, reason
        return None

    def tell_refused(self) -> None:
        """Say why what was noted is not used."""
        for _, reason in self._refused.values():
            if reason:
                self._story(f"server: the noted one is not used: {reason}")

    def listed_or_new(self, backend: Backend, ttl: float | None, base: str | None) -> Server:
        """One of this backend's, started where there is none that fits."""
        found, place = self.listed(backend)
        if found is not None:
            return found
        request = starting.request(self._settings, place.hint.project, place.purpose, ttl)
        marked = made_with.of(self._settings, backend.name)
        info = backend.start(replace(request, base=base, made_with=marked), self._story)
        session, why = attach(info)
        if session is None:
            raise starting.gone_again(info, why)
        place.hint.write(info)
        return self.result(info, session, place, started=True)

    def listed(self, backend: Backend) -> tuple[Server | None, _Place]:
        """One that runs by its backend's own records and fits; else None, and the place for a new one."""
        for place in self.places:
            info = backend.find(place.hint.project, place.purpose)
            if info is None:
                return None, place
            # Its backend says that it runs: it may be starting (`docker restart`).
            session, why = attach(info, patience=RESTART_PATIENCE)
            if session is None:
                self._give_up(backend, info, why)
                return None, place
            changed = made_with.changes(info, self._settings)
            if self._purpose == "up" or not changed:
                place.hint.write(info)
                return self.result(info, session, place), place
            if self._replace(backend, info, session, ", ".join(changed)):
                return None, place
        return None, self.places[-1]

    def result(self, info: ServerInfo, session: Session, place: _Place, started: bool = False) -> Server:
        """What was found or started; a person is told where the settings have changed since."""
        if self._purpose == "up" and (changed := made_with.told(info, self._settings)):
            self._story(
                f"server: yours was started with other settings ({', '.join(changed)}) and is used as it is, "
                f"because its data would be lost: `pg-harness down`, then `pg-harness up`, starts a new one"
            )
        seconds = time.monotonic() - self._began
        return Server(info, session, started, seconds, self._settings, self._environ, place.hint.forget)

    def _give_up(self, backend: Backend, info: ServerInfo, why: str) -> None:
        if self._purpose == "up":
            raise ServerLost(
                f"your server {info.description} is there and does not answer: {why}. It was not replaced, "
                f"because its data would be lost: look at its log, or end it with `pg-harness down`."
            )
        self._story(f"{info.backend}: {info.description} does not answer ({why}): replacing it")
        backend.stop(info)

    def _replace(self, backend: Backend, info: ServerInfo, session: Session, changed: str) -> bool:
        """End a server that other settings started, unless somebody uses it; never a restart under others."""
        with session:
            told = f"{info.description} was started with other settings ({changed})"
            if not claim_alone(info, session):
                self._story(f"server: {told} and is in use: a second one is used beside it")
                return False
            self._story(f"server: {told}: replacing it")
            backend.stop(info)
        return True


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
    request = starting.request(settings, hint.project, purpose, ttl)
    info = backend.start(replace(request, base=base, memory=memory), story)
    session, why = attach(info)
    if session is None:
        backend.stop(info)
        raise starting.gone_again(info, why)
    hint.write(info)
    return Server(info, session, True, time.monotonic() - began, settings, environ, hint.forget)


def external(
    settings: Settings, environ: Mapping[str, str], *, purpose: str, story: Story = silent
) -> Server:
    """The server that someone else runs, and that the settings name.

    Raises:
        BackendUnavailable: it does not answer, or cannot be used.
    """
    from harness.postgres.session import Session

    began = time.monotonic()
    hint = Hint.of(settings, environ, purpose)
    backend = select.choose(settings, environ, story)
    info = backend.start(starting.request(settings, hint.project, purpose, None), story)
    session = Session.connect(info.dsn)
    return Server(info, session, False, time.monotonic() - began, settings, environ, hint.forget)
