"""Baked images on several hosts: found on any of them, and taken from there by the one that needs it.

Never migrated twice: what one host has, the others get by ``save`` and ``load`` between the daemons, without a file and without
holding it all in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from harness.config.project import Project, file_lock, make_folder
from harness.errors import BackendError
from harness.postgres import names
from harness.servers.docker.daemon import translated
from harness.servers.docker.spec import foreign
from harness.servers.port import Finding, Origin, ServerInfo, Shared, Snapshot, SnapshotStore

if TYPE_CHECKING:
    from harness.servers.docker.backend import DockerBackend
    from harness.servers.docker.fleet import Fleet

logger = logging.getLogger("pg_harness.servers.docker")

PATIENCE = 600.0
"""Seconds to wait for another process of this machine that brings the same image to the same host."""

_CHUNK = 1024**2

Answer = TypeVar("Answer")


def take(
    key: str, word: str, members: Mapping[str, DockerBackend], project: Project, *, ref: str = ""
) -> Snapshot:
    """The baked image of that key on a host, brought there from another one where it is missing, or from where it is shared.

    Two clients that do the same at once do no harm: a daemon loads what it has already without storing it twice.

    Args:
        ref: of the image that was found: nothing else that is shared under its key by now is taken.

    Raises:
        BackendError: no host has it, or the host cannot take it (a full disk, another architecture).
    """
    store = members[word].snapshots()
    if (found := store.here(key)) is not None:
        return found
    make_folder(project.cache, 0o755)
    place = names.digest(f"{word} {key}", 2)
    with file_lock(
        project.cache / f"take-{place}.lock",
        timeout=PATIENCE,
        waiting_for=f"bringing a baked image to {word}",
    ):
        held = ((other, _there(member, key)) for other, member in members.items() if other != word)
        source, there = next(((other, there) for other, there in held if there is not None), ("", None))
        found = store.find(key)
        if found is not None and found.fetched:
            if found.ref != (there.ref if there is not None else ref or found.ref):
                # Something else is shared under this key by now, which nobody has tried.
                logger.info("docker: %s is not what this run has found: it is not used", found.shared)
                found = None
            elif there is not None:
                # Only what was tried has a tag over there.
                store.touch(found)
        if found is None and there is not None:
            _stream(there, source, members[source], word, members[word])
            found = store.here(key)
    if found is None:
        raise BackendError(
            f"the baked image {key} is on none of the hosts {', '.join(members)}: run again, and it is baked anew"
        )
    return found


def _there(member: DockerBackend, key: str) -> Snapshot | None:
    try:
        return member.snapshots().here(key)
    except BackendError:
        # That one is lost, which is no fault of the host that wants it: others may have it.
        return None


def _stream(snapshot: Snapshot, source: str, from_: DockerBackend, target: str, to: DockerBackend) -> None:
    name = snapshot.name
    with translated(f"look at the image {name}"):
        image = from_.daemon.client.images.get(name)
    if why := foreign(image, to.daemon.about()):
        raise BackendError(f"the image that was baked on {source} cannot run on {target}: {why}")
    logger.info("docker: %s takes the migrated server from %s", target, source)
    saved = _Saved(from_, name)
    with translated(f"load an image on {target}"):
        # Not quiet: as long as it stores, it says something, and no time-out ends the call.
        for event in to.daemon.client.api.load_image(saved, quiet=False):
            if "error" in event:
                raise BackendError(
                    f"Docker refused to load an image on {target}: {str(event['error']).strip()}"
                )
    if saved.failed is not None:
        raise saved.failed


class _Saved:
    """What a daemon saves, as it comes; a body of another request. An error of this side must not pass for one of the other."""

    def __init__(self, member: DockerBackend, name: str) -> None:
        self.failed: BackendError | None = None
        self._member, self._name = member, name

    def __iter__(self) -> Iterator[bytes]:
        try:
            with translated(f"save the image {self._name}"):
                chunks: Iterable[bytes] = self._member.daemon.client.api.get_image(
                    self._name, chunk_size=_CHUNK
                )
                yield from chunks
        except BackendError as error:
            self.failed = error
            raise


class FleetSnapshots(SnapshotStore):
    """Baked images on all hosts.

    Args:
        fleet: the hosts.
    """

    from_disk = True

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.repository = fleet.project.settings.baked_repository or ""

    def _stores(self) -> dict[str, SnapshotStore]:
        return {word: member.snapshots() for word, member in self._fleet.usable().items()}

    def origin(self) -> Origin:
        """As the first host that can tell it: whose image is there, or can be had."""
        return self._first(lambda store: store.origin())

    def _first(self, call: Callable[[SnapshotStore], Answer]) -> Answer:
        error: BackendError | None = None
        for word, store in self._stores().items():
            try:
                return call(store)
            except BackendError as failed:
                self._fleet.failed(word, failed)
                error = error or failed
        raise error or BackendError("no Docker host can be used")

    def find(self, key: str) -> Snapshot | None:
        """On any host; else as the first one finds it, which may fetch it."""
        return self.here(key) or self._noted(self._first(lambda store: store.find(key)))

    def here(self, key: str) -> Snapshot | None:
        """On any host."""
        for word, store in self._stores().items():
            try:
                found = store.here(key)
            except BackendError as error:
                self._fleet.failed(word, error)
                continue
            if found is not None:
                return self._noted(found)
        return None

    def _noted(self, found: Snapshot | None) -> Snapshot | None:
        if found is not None:
            self._fleet.keys[found.ref] = found.key
        return found

    def keep(self, info: ServerInfo, key: str, facts: Mapping[str, str]) -> Snapshot:
        """On the host that it was baked on."""
        store = self._stores().get(info.host)
        if store is None:
            raise BackendError(
                f"{info.description}: its host does not answer any more, and what was baked there is lost"
            )
        found = store.keep(info, key, facts)
        self._fleet.keys[found.ref] = found.key
        return found

    def touch(self, snapshot: Snapshot) -> None:
        """Wherever it is."""
        for word, store in self._stores().items():
            try:
                # What was fetched has no tag to be found by, on whichever host it is: it gets that here. Others know no such image.
                store.touch(store.here(snapshot.key) or snapshot)
            except BackendError as error:
                self._fleet.failed(word, error)

    def list(self) -> Sequence[Snapshot]:
        """Each key once, however many hosts have it."""
        found: dict[str, Snapshot] = {}
        for word, store in self._stores().items():
            try:
                for snapshot in store.list():
                    found.setdefault(snapshot.key, snapshot)
            except BackendError as error:
                self._fleet.failed(word, error)
        return list(found.values())

    def remove(self, snapshot: Snapshot) -> bool:
        """On all hosts that have it; False where one of them still uses it."""
        gone = True
        for word, store in self._stores().items():
            try:
                for there in store.list():
                    if there.key == snapshot.key:
                        gone = store.remove(there) and gone
            except BackendError as error:
                self._fleet.failed(word, error)
        return gone

    def refuse(self, snapshot: Snapshot, why: str) -> None:
        """On all hosts: any of them may have fetched it."""
        for word, store in self._stores().items():
            try:
                store.refuse(snapshot, why)
            except BackendError as error:
                self._fleet.failed(word, error)

    def push(self, snapshot: Snapshot, *, replace: bool) -> tuple[Shared, bool]:
        """From the first host that has it."""
        stores = self._stores()
        there = [store for store in stores.values() if store.here(snapshot.key) is not None]
        return (there or [*stores.values()])[0].push(snapshot, replace=replace)

    def examine(self, key: Callable[[], str]) -> Iterator[Finding]:
        """As the first host that answers sees the repository: each pulls for itself."""
        return next(iter(self._stores().values())).examine(key)

    def leftovers(self) -> Sequence[str]:
        """Of all hosts."""
        found: list[str] = []
        for word, store in self._stores().items():
            try:
                found += [f"{each} on {word}" for each in store.leftovers()]
            except BackendError as error:
                self._fleet.failed(word, error)
        return found
