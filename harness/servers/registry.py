"""The kinds of backends: what may stand in ``backend``, and which of them starts servers here.

A backend is one :class:`BackendKind`, ours in :data:`BACKENDS`, others' named by an installed package's entry point
in the group ``pg_harness.backends``. Nothing else knows the words: settings, options, ``doctor`` and messages ask
here. The code is named by strings, so that a server that runs is found without an import of what could start one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from harness.config import decisions
from harness.config.extensions import Extensions, resolved
from harness.config.project import Project
from harness.config.settings import Settings
from harness.errors import BackendUnavailable, ConfigError
from harness.servers.port import Backend

logger = logging.getLogger("pg_harness.servers")

GROUP = "pg_harness.backends"
"""The entry points of other packages: the word, and ``module:KIND``."""

AUTO = "auto"
"""The word for the first backend that works."""

AUTO_TIMEOUT = 1.0
"""Seconds that a backend (a Docker daemon, say) may take to answer before ``auto`` goes on to the next."""


@dataclass(frozen=True)
class BackendKind:
    """One kind of backend.

    Attributes:
        backend: called with ``(project, timeout=…)`` (seconds that a service may take to answer), gives the
            :class:`~harness.servers.port.Backend`; or ``"module:name"`` of it, imported when the backend is wanted.
        lacking: why it cannot be used where it cannot, in one clause for messages.
        auto: whether ``backend = "auto"`` tries it, in the order of :data:`BACKENDS`.
        decided_by: the settings that a server of it cannot change while it runs → the word that is noted for the
            default; empty: the default itself.
        implied_by: a setting by which a user means this backend without naming it → what that setting names, for
            messages. ``auto`` takes no other in its place then.
        address: the setting that names the one server that this backend has. Where it is set it stands for
            ``backend``, and the server is not ours: used, and never started, noted or ended.
        title: what ``doctor`` calls it; empty: its word.
        elsewhere: whether its servers are on other machines, by a service that most have none of: commands that look
            for all servers ask it only where the settings name it, or it is noted of this checkout.
        no_standbys: why no server of it can have one (setting ``replicas``), in one clause; empty: one may.
    """

    backend: str | Callable[..., Backend]
    lacking: str = ""
    auto: bool = False
    decided_by: Mapping[str, str] = field(default_factory=dict)
    implied_by: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    title: str = ""
    elsewhere: bool = False
    no_standbys: str = ""


BACKENDS: Mapping[str, BackendKind] = {
    "docker": BackendKind(
        "harness.servers.docker.backend:DockerBackend.of",
        lacking="no Docker daemon answers",
        auto=True,
        decided_by={"image": "", "shm_size": "", "memory_limit": "auto"},
        implied_by={"image": "an image", "hosts": "Docker hosts"},
    ),
    "process": BackendKind(
        "harness.servers.process.backend:ProcessBackend.of",
        lacking="no local binaries were found",
        auto=True,
        # The image too: `auto` takes local binaries only while nobody names one.
        decided_by={"pg_version": "any", "binaries": "any", "image": "any"},
    ),
    "swarm": BackendKind(
        "harness.servers.swarm.backend:SwarmBackend",
        lacking="no manager of a Docker Swarm answers",
        decided_by={"image": "", "shm_size": "", "memory_limit": "auto", "swarm_constraints": "none"},
        elsewhere=True,
        no_standbys="a Swarm's task publishes one port, and may be moved to another node",
    ),
    "external": BackendKind(
        "harness.servers.external:ExternalBackend.of",
        address="server_url",
        title="server URL",
        no_standbys="the server is somebody else's, and pg-harness starts standbys beside its own only",
    ),
}
"""Word → kind, those that come with us."""

_EXTENSIONS = Extensions(GROUP, BACKENDS, BackendKind, noun="backend", key="backend")


def kinds() -> Mapping[str, BackendKind]:
    """Word → kind, ours first, then those of installed packages.

    Raises:
        ConfigError: a package's kind cannot be imported, or takes a word that is in use.
    """
    return _EXTENSIONS.all()


def find_kind(word: str) -> BackendKind | None:
    """The kind of that word; None where there is none (any more)."""
    return _EXTENSIONS.find(word)


def packages() -> Mapping[str, str]:
    """Word → the package that adds the kind, for people; ours are not in it."""
    return _EXTENSIONS.packages()


def starting() -> list[str]:
    """The words of all that start servers of ours."""
    return [word for word, kind in kinds().items() if not kind.address]


class Words:
    """All that ``backend`` may be: a container that asks for other packages' words only when it must."""

    def __contains__(self, word: object) -> bool:
        return word == AUTO or (isinstance(word, str) and find_kind(word) is not None)

    def __iter__(self) -> Iterator[str]:
        return iter((AUTO, *kinds()))


WORDS = Words()


def check_settings(settings: Settings) -> None:
    """Refuse what :func:`chosen` would refuse for its form, and settings that do not go together, before anything is looked for.

    Raises:
        ConfigError: there is no such backend, the setting that it needs is missing, or it has no standbys; with the place.
    """
    if settings.backend != AUTO:
        _kind(settings.backend, settings)
    if settings.replicas and (kind := find_kind(wanted(settings))) is not None and kind.no_standbys:
        origin = settings.origin("replicas")
        beside = kind.address or f'backend = "{settings.backend}"'
        raise ConfigError(
            f"{origin}: replicas = {settings.replicas} cannot be had beside {beside} "
            f"({settings.origin(kind.address or 'backend')}): {kind.no_standbys}. "
            "Leave `replicas` out, or let pg-harness start a server of its own on this machine or a Docker host",
            key="replicas",
            origin=origin,
            value=str(settings.replicas),
        )


def _kind(word: str, settings: Settings) -> BackendKind:
    origin = settings.origin("backend")
    kind = find_kind(word)
    if kind is None:
        raise ConfigError(
            f"{origin}: there is no backend {word!r}, it must be one of {', '.join(map(repr, WORDS))}",
            key="backend",
            origin=origin,
            value=word,
        )
    if kind.address and not getattr(settings, kind.address):
        raise ConfigError(
            f'{origin}: backend = "{word}" needs {kind.address} (or the variable PGHARNESS_{kind.address.upper()}); '
            "DATABASE_URL is never taken: it may be production",
            key=kind.address,
            origin=origin,
        )
    return kind


def wanted(settings: Settings) -> str:
    """The word of the backend that the settings mean; ``"auto"`` where they leave it open."""
    for word, kind in BACKENDS.items():
        if kind.address and getattr(settings, kind.address) is not None:
            return word
    # Hosts are Docker's: `auto` has nothing to look for, and would wait too short for another machine.
    return "docker" if settings.backend == AUTO and settings.hosts else settings.backend


def starts(settings: Settings) -> bool:
    """Whether the server will be one of ours; else the settings name one that others look after."""
    kind = find_kind(word) if (word := wanted(settings)) != AUTO else None
    return kind is None or not kind.address


def choose(project: Project) -> Backend:
    """The backend to start servers with; what ``auto`` comes to is told in one line.

    Raises:
        BackendUnavailable, ConfigError: as :func:`chosen`.
    """
    backend, why = chosen(project)
    if why:
        logger.info("backend: %s, %s", backend.name, why)
        decisions.note(project, "backend", f"{backend.name}, {why}")
    return backend


def chosen(project: Project) -> tuple[Backend, str]:
    """The backend to start servers with, and what decided for it where the setting is ``auto`` ("": it is named).

    Raises:
        BackendUnavailable: ``auto`` found none that works; it lists what was tried.
        ConfigError: the setting names no backend, or one that needs another setting.
    """
    if (word := wanted(project.settings)) != AUTO:
        return named(word, project), ""
    failures: dict[str, BackendUnavailable] = {}
    for word in _automatic():
        backend = named(word, project, timeout=AUTO_TIMEOUT)
        try:
            reason = backend.available()
        except BackendUnavailable as error:
            failures[word] = error
            if asked := _asked_of(word, project.settings):
                raise _demanded(asked, word, error, project.settings) from error
            continue
        because = f" ({_tried(failures)[0]})" if failures else ""
        return backend, f"{reason}{because}"
    lacking = [kinds()[word].lacking or f"{word} cannot be used" for word in failures]
    raise BackendUnavailable(
        f"no PostgreSQL server can be started here: {' and '.join(lacking)}",
        checked=_tried(failures),
        remedies=_remedies(failures),
    )


def _asked_of(word: str, settings: Settings) -> str:
    """The setting by which a user means this backend without naming it; empty: there is none."""
    kind = find_kind(word)
    implied = kind.implied_by if kind is not None else {}
    return next((key for key in implied if settings.origin(key) != "default"), "")


def _demanded(asked: str, word: str, error: BackendUnavailable, settings: Settings) -> BackendUnavailable:
    """What to raise where the backend that somebody means cannot be used: another server would be a surprise."""
    return BackendUnavailable(
        f"{settings.origin(asked)} names {kinds()[word].implied_by[asked]}, {getattr(settings, asked)}, "
        f"and {kinds()[word].lacking or error.message.splitlines()[0]}",
        checked=_tried({word: error}),
        remedies=[
            *error.remedies,
            f'or leave {asked} out, or name a backend: then it does not count (backend = "process", PGHARNESS_BACKEND)',
        ],
    )


def fallback(error: BackendUnavailable, backend: Backend, project: Project) -> Backend:
    """What ``auto`` takes instead of a backend that answered and could not start a server (no such image, say).

    Raises:
        BackendUnavailable: the error, where the user meant this backend: another server in its place would be a
            surprise; with what the others lack, where they do not work either.
    """
    order = list(_automatic()) if wanted(project.settings) == AUTO else []
    after = order[order.index(backend.name) + 1 :] if backend.name in order else []
    if not after or _asked_of(backend.name, project.settings):
        raise error
    kind = find_kind(backend.name)
    implied = kind.implied_by if kind is not None else {}
    failures: dict[str, BackendUnavailable] = {}
    for word in after:
        other = named(word, project)
        try:
            other.available()
        except BackendUnavailable as another:
            failures[word] = another
            continue
        logger.info("%s: %s", backend.name, error.message.splitlines()[0])
        unnamed = " nor ".join(["neither a backend", *implied.values()])
        logger.info("backend: %s instead, because %s is named in the settings", other.name, unnamed)
        return other
    raise BackendUnavailable(
        error.message.splitlines()[0],
        checked=[*error.checked, *_tried(failures)],
        remedies=_remedies({backend.name: error, **failures}),
    ) from error


def _tried(failures: Mapping[str, BackendUnavailable]) -> list[str]:
    """What was looked at, one line each, with the backend's word before it."""
    return [
        f"{word}: {line}"
        for word, error in failures.items()
        for line in (error.message.splitlines()[0], *error.checked)
    ]


def _remedies(failures: Mapping[str, BackendUnavailable]) -> list[str]:
    return list(dict.fromkeys(remedy for error in failures.values() for remedy in error.remedies))


def named(word: str, project: Project, *, timeout: float = 10) -> Backend:
    """The backend of that word, not yet asked for anything; used for hints of servers that run.

    Args:
        timeout: seconds that a service may take to answer.

    Raises:
        ConfigError: there is no such backend, or it needs a setting that is missing.
    """
    backend: Backend = resolved(_kind(word, project.settings).backend)(project, timeout=timeout)
    return backend


def _automatic() -> Iterator[str]:
    """The words that ``auto`` tries, in order; other packages are asked once none of ours works."""
    yield from (word for word, kind in BACKENDS.items() if kind.auto)
    yield from (word for word, kind in kinds().items() if kind.auto and word not in BACKENDS)
