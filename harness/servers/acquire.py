"""The one server of a checkout and purpose: found, or started under a file lock.

The warm path reads a hint file, logs in, compares ``harness.server_id`` and takes the sign of life, in
one round trip; nothing of Docker's is imported. A hint is never believed before that comparison.

Below: what is asked of a backend where one must be started, alone.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from harness.config import decisions
from harness.config.project import Project, file_lock
from harness.config.settings import Settings
from harness.config.state_file import StateFile, Unreadable
from harness.errors import BackendUnavailable, PoolTimeout, ServerLost
from harness.postgres.session import Session
from harness.servers import defaults, drift, preload, registry
from harness.servers.handle import Server
from harness.servers.handshake import attach, claim_alone
from harness.servers.port import OF_VERSION, Backend, ServerInfo, ServerRequest
from harness.servers.records import Hint
from harness.servers.version import is_another, other_version

logger = logging.getLogger("pg_harness.servers")

Files = Mapping[str, Mapping[str, bytes]]
"""Machine → name → content: :attr:`harness.servers.port.ServerRequest.files`."""

RESTART_PATIENCE = 5.0
"""Seconds to wait for a server whose backend says that it runs, and which does not answer."""

START_PATIENCE = 20.0
"""As that, for a person's: beside it no other is started, and it may be initialising, because whoever started it was killed."""


def ensure(
    project: Project,
    *,
    purpose: str = "run",
    ttl: float | None = None,
    base: Callable[[Backend], str | None] = lambda backend: None,
    files: Callable[[], Files] = dict,
) -> Server:
    """The server of this checkout for this purpose: the one that runs, else a new one.

    Safe under concurrency: of several processes at once, one starts it and the others use it.

    Args:
        purpose: ``"run"``, ``"run-1"``… for tests, ``"up"`` for a person.
        ttl: seconds; for ``up``, None means that it never ends itself. Runs have ``settings.ttl``.
        base: asked where a new one must be started: what to start from, see :mod:`harness.servers.port`.
        files: asked likewise, for :attr:`harness.servers.port.ServerRequest.files`.

    Raises:
        BackendUnavailable, ServerStartError: see the backends.
        ServerLost: a person's server runs and does not answer: its data is not thrown away.
        PoolTimeout: another process was busy starting it for too long.
    """
    search = _Search(project, purpose)
    if not registry.starts(project.settings):
        return external(project, purpose=purpose)
    if found := search.noted():
        return found
    with locked(search.hints[0], project.settings):
        if found := search.noted():
            return found
        search.tell_refused()
        backend = registry.choose(project)
        try:
            return search.listed_or_new(backend, ttl, base(backend), files)
        except BackendUnavailable as error:
            backend = registry.fallback(error, backend, project)
            return search.listed_or_new(backend, ttl, base(backend), files)


class _Search:
    """Looks for the server of one checkout and purpose.

    Attributes:
        hints: of the purposes that it may have, the usual one first. Beside a server of another version, one of the version
            that is asked for; beside a server that others use and that other settings started, there may be a second one
            of a test run. A person has one.
    """

    def __init__(self, project: Project, purpose: str) -> None:
        self._project = project
        self._settings = project.settings
        self._purpose = purpose
        self._began = time.monotonic()
        self._refused: dict[Hint, tuple[ServerInfo | None, str]] = {}
        self._kept: dict[str, str] = {}
        self.hints = [Hint.of(project, purpose)]
        if purpose != "up":
            if purpose == "run" and project.settings.pg_version is not None:
                self.hints.append(Hint.of(project, f"{OF_VERSION}{project.settings.pg_version}"))
            self.hints.append(Hint.of(project, f"{purpose}-{drift.mark(project.settings)}"))

    def noted(self) -> Server | None:
        """One that a hint names, fits the settings and answers. What was refused before is not tried again."""
        for hint in self.hints:
            info, reason = hint.read()
            before, _ = self._refused.get(hint, (None, ""))
            if info is None or info == before:
                self._refused.setdefault(hint, (info, reason))
                continue
            if drift.fits(info, self._settings, self._purpose):
                session, reason = self._attach(info)
                if session is not None:
                    self._check_version(info, session)
                    if info.host:
                        hint.seen()
                    return self.result(info, session, hint)
            self._refused[hint] = info, reason
        return None

    def _attach(self, info: ServerInfo, patience: float = 0) -> tuple[Session | None, str]:
        """As :func:`attach`; where somebody keeps its sign of life from everybody, that is waited for once."""
        if info.server_id not in self._kept:
            try:
                return attach(info, patience)
            except PoolTimeout as error:
                self._kept[info.server_id] = error.message
        return None, self._kept[info.server_id]

    def _check_version(self, info: ServerInfo, session: Session) -> None:
        """The same image is what all versions name, where it has no place for the version: only one of them is in it.

        Raises:
            ConfigError: the server is of another version than is asked for.
        """
        if self._purpose != "up" and (wrong := other_version(self._settings, info, session)):
            session.close()
            raise wrong

    def tell_refused(self) -> None:
        """Say why what was noted is not used."""
        for info, reason in self._refused.values():
            if info is not None and info.ttl and "Connection refused" in reason:
                # As it is meant to: no fault.
                patience = f"{info.ttl:g} s" if info.ttl < 120 else f"{info.ttl / 60:g} min"
                told = f"{info.description} has ended, as it does where nobody uses it for {patience} (ttl)"
                logger.info("server: %s. A new one is started", told)
                decisions.note(self._project, "server", told)
            elif reason:
                logger.info("server: the noted one is not used: %s", reason)
                decisions.note(self._project, "server", f"the noted one is not used: {reason}")

    def listed_or_new(
        self, backend: Backend, ttl: float | None, base: str | None, files: Callable[[], Files]
    ) -> Server:
        """One of this backend's, started where there is none that fits."""
        found, hint = self.listed(backend)
        if found is not None:
            return found
        # A person's that was stopped starts again, with its data: it is used as it is, whatever is asked for now.
        stopped = (
            self._settings.pg_version is not None
            and self._purpose == "up"
            and any(one.purpose == hint.purpose for one in backend.list(self._project.id))
        )
        request = new_request(self._project, hint.purpose, ttl)
        marked = drift.of(self._settings, backend.name)
        with preload.explaining(self._settings):
            info = backend.start(replace(request, snapshot=base, made_with=marked, files=files()))
        session, why = attach(info)
        if session is None:
            raise gone_again(info, why)
        if not stopped and (wrong := other_version(self._settings, info, session)):
            session.close()
            backend.stop(info)
            raise wrong
        hint.write(info)
        if self._purpose == "up":
            # With the root: it is forgotten where the checkout is gone.
            noted = {"root": info.root, "port": info.dsn.port, "password": str(info.dsn.password)}
            _last_of_person(self._project).note(noted)
        return self.result(info, session, hint, started=True)

    def listed(self, backend: Backend) -> tuple[Server | None, Hint]:
        """One that runs by its backend's own records and fits; else None, and the hint for a new one.

        Raises:
            ServerLost: those that run do not answer.
        """
        silent = ""
        for hint in self.hints:
            info = backend.find(self._project.id, hint.purpose)
            if info is None:
                return None, hint
            if self._purpose != "up" and not drift.on_named_host(info, self._settings):
                told = f"{info.description} is left alone: the settings do not name its host any more"
                decisions.note(self._project, "server", told)
                continue
            # Its backend says that it runs: it may be starting (`docker restart`).
            patience = START_PATIENCE if self._purpose == "up" else RESTART_PATIENCE
            session, why = self._attach(info, patience)
            if session is None:
                silent = self._pass_over(info, why, hint)
                continue
            changed = drift.changes(info, self._settings)
            if self._purpose == "up" or not changed:
                self._check_version(info, session)
                hint.write(info)
                return self.result(info, session, hint), hint
            if is_another(self._settings, session) and hint is not self.hints[-1]:
                # Versions stand side by side: a project that is tested on three of them starts three servers, once.
                session.close()
                continue
            if self._replace(backend, info, session, ", ".join(changed)):
                return None, hint
        if silent:
            raise ServerLost(silent)
        return None, self.hints[-1]

    def result(self, info: ServerInfo, session: Session, hint: Hint, started: bool = False) -> Server:
        """What was found or started; a person is told where the settings have changed since."""
        if self._purpose == "up" and (changed := drift.told(info, self._settings)):
            logger.info(
                "server: yours was started with other settings (%s) and is used as it is, "
                "because its data would be lost: `pg-harness down`, then `pg-harness up`, starts a new one",
                ", ".join(changed),
            )
        seconds = time.monotonic() - self._began
        did = "started" if started else "found"
        decisions.note(
            self._project, "server", f"{self._purpose}: {did} {info.description} in {seconds:.2f} s"
        )
        logger.debug("server: %s %s in %.3f s", "started" if started else "using", info.description, seconds)
        found = Server(info, session, started, seconds, self._project, hint.forget)
        if not started:
            found.guard()
        return found

    def _pass_over(self, info: ServerInfo, why: str, hint: Hint) -> str:
        """Leave alone a server that runs and does not answer *us*: others may be using it. Returns what to say of it.

        Raises:
            ServerLost: it is a person's, who wants this one.
        """
        if self._purpose == "up":
            raise ServerLost(
                f"your server {info.description} is there and does not answer: {why}. It was not replaced, "
                f"because its data would be lost: look at its log, or end it with `pg-harness down`."
            )
        told = f"the server {info.description} runs and does not answer ({why}). It is left alone, others may be using it"
        decisions.note(self._project, "server", told)
        logger.warning("%s: a second one is used beside it. `pg-harness down --all` ends both", told)
        # So that the next start does not wait for it again.
        hint.forget()
        return f"{told}: look at its log, or end it with `pg-harness down --all`."

    def _replace(self, backend: Backend, info: ServerInfo, session: Session, changed: str) -> bool:
        """End a server that other settings started, unless somebody uses it; never a restart under others."""
        with session:
            told = f"{info.description} was started with other settings ({changed})"
            decisions.note(self._project, "server", told)
            if not claim_alone(info, session):
                logger.info("server: %s and is in use: a second one is used beside it", told)
                return False
            logger.info("server: %s: replacing it", told)
            backend.stop(info)
        return True


def private(
    project: Project,
    backend: Backend,
    *,
    purpose: str,
    ttl: float,
    base: str | None = None,
    memory: int | None = None,
    files: Files | None = None,
    host: str = "",
) -> Server:
    """A new server for one owner: nobody else starts one of that name, so there is no lock. Its hint is for `status`.

    Args:
        purpose: ``"run-<run>-<worker>"`` or ``"bake-<key>"``, unique.
        base, memory, files, host: see :class:`harness.servers.port.ServerRequest`.

    Raises:
        BackendUnavailable, ServerStartError: see the backends. ServerLost: it ended again at once.
    """
    began = time.monotonic()
    hint = Hint.of(project, purpose)
    request = new_request(project, purpose, ttl)
    with preload.explaining(project.settings):
        info = backend.start(replace(request, snapshot=base, memory=memory, files=files or {}, host=host))
    session, why = attach(info)
    if session is None:
        backend.stop(info)
        raise gone_again(info, why)
    if wrong := other_version(project.settings, info, session):
        session.close()
        backend.stop(info)
        raise wrong
    hint.write(info)
    return Server(info, session, True, time.monotonic() - began, project, hint.forget)


def external(project: Project, *, purpose: str) -> Server:
    """The server that someone else runs, and that the settings name.

    Raises:
        BackendUnavailable: it does not answer, or cannot be used. ConfigError: another version is asked for.
    """
    began = time.monotonic()
    hint = Hint.of(project, purpose)
    backend = registry.choose(project)
    info = backend.start(new_request(project, purpose, None))
    session, why = attach(info)
    if session is None:
        raise ServerLost(f"the server {info.description} does not answer as itself: {why}")
    if wrong := other_version(project.settings, info, session):
        session.close()
        raise wrong
    return Server(info, session, False, time.monotonic() - began, project, hint.forget)


LOCK_EXTRA = 600.0
"""Seconds, beyond ``start_timeout``, to wait for another process that may be pulling an image."""


def locked(hint: Hint, settings: Settings) -> AbstractContextManager[None]:
    """Alone with the server of this checkout and purpose.

    Raises:
        PoolTimeout: another process was busy with it for too long.
    """
    # A worker's own server has one owner, and a lock file for each would stay for ever.
    if "-" in hint.purpose:
        return nullcontext()
    return file_lock(
        hint.path.with_suffix(".lock"),
        timeout=settings.start_timeout + LOCK_EXTRA,
        waiting_for=f"the {hint.purpose} server of this checkout",
    )


def alone(project: Project) -> AbstractContextManager[None]:
    """Keeps `up` and `down` of a checkout apart: a server must not be ended while its databases are being made.

    Raises:
        PoolTimeout: another process was busy for too long.
    """
    return file_lock(
        project.folder / "commands.lock",
        timeout=project.settings.start_timeout + LOCK_EXTRA,
        waiting_for="`up` or `down` in this checkout",
    )


def new_request(project: Project, purpose: str, ttl: float | None) -> ServerRequest:
    """What is asked of a backend; its password and id are made here.

    Args:
        ttl: seconds; for ``up``, None means that it never ends itself.
    """
    settings = project.settings
    port, password = _last_address(project) if purpose == "up" else (0, "")
    named = settings.port if purpose == "up" else 0
    return ServerRequest(
        project=project.id,
        purpose=purpose,
        server_id=str(uuid.uuid4()),
        root=Path(settings.root).resolve(),
        password=password or secrets.token_hex(24),
        settings=defaults.throwaway(
            max_connections=settings.max_connections, user=preload.postgres(settings, project.id)
        ),
        storage=settings.storage,
        port=named or port,
        port_named=bool(named),
        ttl=ttl if purpose == "up" else (ttl or settings.ttl),
        start_timeout=settings.start_timeout,
        # What is baked starts many servers, and has no use of one.
        replicas=0 if purpose.startswith("bake-") else settings.replicas,
    )


def _last_of_person(project: Project) -> StateFile:
    """What decided the URLs of the person's last server, for its owner alone: who has them goes on after `down` and `up`."""
    return StateFile(project.folder / "address.json", 1)


def _last_address(project: Project) -> tuple[int, str]:
    """Port and password; 0 and nothing where there was none."""
    try:
        noted = _last_of_person(project).read()
    except (FileNotFoundError, Unreadable):
        return 0, ""
    port, password = noted.get("port"), noted.get("password")
    if not (isinstance(port, int) and 1023 < port < 65536 and isinstance(password, str)):
        return 0, ""
    return port, password if re.fullmatch("[0-9a-f]{48}", password) else ""


def gone_again(info: ServerInfo, why: str) -> ServerLost:
    """What to raise where a server that has just been started does not answer."""
    return ServerLost(f"the server {info.description} was started and is gone again: {why}")
