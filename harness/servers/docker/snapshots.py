"""Snapshots of containers: local images, committed from a container that was stopped cleanly."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.state_file import StateFile
from harness.errors import BackendError, ServerStartError
from harness.postgres import roles
from harness.postgres.session import Session
from harness.servers.docker import abandoned, spec
from harness.servers.docker import container as container_
from harness.servers.docker import image as image_
from harness.servers.docker.daemon import gone, translated
from harness.servers.docker.spec import LABEL
from harness.servers.port import (
    CUT_OFF,
    STOP_PATIENCE,
    Finding,
    Origin,
    ServerInfo,
    Shared,
    Snapshot,
    SnapshotStore,
    private,
)

if TYPE_CHECKING:
    from harness.servers.docker.backend import DockerBackend
    from harness.servers.docker.repository import Repository

REPOSITORY = "pg-harness/baked"
"""Images of ours are ``pg-harness/baked:<key>``: a name that a registry's prefix can be put before."""

_FORMAT = "docker 1"

_COMMENT = "pg-harness baked"
"""On the layer that a bake commits. Labels pass on to whatever a person builds or commits on top of it; this does not."""

_LOOKS = 5
"""How often images are listed where one of them goes meanwhile."""

logger = logging.getLogger("pg_harness.servers.docker")


class DockerSnapshots(SnapshotStore):
    """Keeps images.

    Args:
        backend: whose containers are kept, and started from what was kept.
        cache: where the versions of images are noted.
    """

    # An image is made of what lies on disk.
    from_disk = True

    def __init__(self, backend: DockerBackend, cache: Path) -> None:
        self._backend = backend
        self._cache = cache
        self.repository = backend.repository

    def origin(self) -> Origin:
        """The image's id holds programs, C library and all; the entrypoint initialises."""
        image = image_.ensure(self._backend.daemon, self._backend.image)
        attributes = image.attrs
        platform = f"{attributes.get('Os')}/{attributes.get('Architecture')}/{attributes.get('Variant', '')}"
        return Origin(self._major(image), "\n".join([_FORMAT, image.id, platform]))

    def _major(self, image: Any) -> int:
        """Of the server in an image; asked once, in a container, and noted by the image's id."""
        note = StateFile(
            self._cache / "images" / f"{image.id.rpartition(':')[2][:24]}.json", folder_mode=0o755
        )
        try:
            return int(note.read()["major"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass
        said = container_.version_in(self._backend.daemon, image, self._backend.image)
        found = re.search(r"\(PostgreSQL\) (\d+)", said)
        if found is None:
            raise ServerStartError(
                f"the image {self._backend.image} does not tell its PostgreSQL version", log_tail=said
            )
        # Where it cannot be noted, it is asked again next time.
        note.note({"major": int(found[1])})
        return int(found[1])

    @property
    def _shared(self) -> Repository:
        # Here: who shares nothing imports nothing of it.
        from harness.servers.docker.repository import Repository

        return Repository(self.repository, self._backend.daemon, self._cache)

    def find(self, key: str) -> Snapshot | None:
        """The image of that key, if its label agrees; else what the repository has under it, if that stands all proofs."""
        return self.here(key) or (self._fetch(key) if self.repository else None)

    def here(self, key: str) -> Snapshot | None:
        """The image of that key, if its label agrees."""
        image = image_.find(self._backend.daemon, f"{REPOSITORY}:{key}")
        found = None if image is None else _snapshot(image)
        return found if found is not None and found.key == key else None

    def _fetch(self, key: str) -> Snapshot | None:
        """Pull it. It gets our tag, which makes it findable, when somebody has started from it (:meth:`touch`)."""
        # Here: as there.
        from harness.servers.docker import proof

        daemon, shared = self._backend.daemon, self._shared
        found = shared.look_patiently(key)
        if found is None:
            return None
        base = image_.ensure(daemon, self._backend.image)
        wanted = f"{base.attrs.get('Os')}/{base.attrs.get('Architecture')}"
        if found.platforms and wanted not in found.platforms:
            why = f"it is for {image_.printable(', '.join(found.platforms)[:80])}, and not for {wanted}"
            self._distrust(found, why)
            return None
        image = shared.pull(found)
        if image is None:
            return None
        why = proof.against(daemon, image, base, key)
        snapshot = _snapshot(image)
        if not why and snapshot is None:
            why = "its labels cannot be read"
        if why or snapshot is None:
            self._distrust(found, why)
            self._untag([found.reference])
            return None
        return replace(snapshot, shared=found.reference, fetched=True)

    def _distrust(self, found: Shared, why: str) -> None:
        self._shared.distrust(found.digest, why)
        logger.warning("%s is passed over: %s", found.reference, why)

    def refuse(self, snapshot: Snapshot, why: str) -> None:
        """Take its tag, whoever runs from it, and never pull it again from where it lies."""
        image = image_.find(self._backend.daemon, snapshot.ref)
        digests = [] if image is None else image.attrs.get("RepoDigests") or []
        mine = [name for name in digests if self.repository and name.startswith(f"{self.repository}@")]
        for name in mine:
            self._shared.distrust(name.rpartition("@")[2], why)
        if snapshot.shared:
            logger.warning("bake: %s is passed over, and not pulled again: %s", snapshot.shared, why)
        self._untag([snapshot.name, *mine])

    def _untag(self, names: Sequence[str]) -> None:
        """Take these names from an image, which goes with its last one, or once no container needs it; a person's stay."""
        for name in names:
            with translated(f"untag {name}"):
                try:
                    # By its name it loses that one, even while containers run from it.
                    self._backend.daemon.client.images.remove(name, force=True)
                except Exception as error:
                    if not gone(error):
                        raise

    def push(self, snapshot: Snapshot, *, replace: bool) -> tuple[Shared, bool]:
        """Push it, unless the repository has something under its key that is not known to be wrong."""
        shared = self._shared
        there = None if replace else shared.look(snapshot.key)
        if there is not None and not shared.distrusted(there.digest):
            shared.answered()
            return there, False
        logger.info("docker: pushing %s to %s:%s", snapshot.name, shared.name, snapshot.key)
        pushed = shared.push(snapshot.ref, snapshot.key)
        shared.answered()
        return pushed, True

    def examine(self, key: Callable[[], str]) -> Iterator[Finding]:
        """Whether the repository answers, and has today's migrations. Pulls nothing."""
        if not self.repository:
            return
        # Here: as in `_shared`.
        from harness.servers.docker.repository import Unreached

        daemon, shared = self._backend.daemon, self._shared
        # Without the base image the key is not known: any other tag tells whether the registry answers.
        known = image_.find(daemon, daemon.prefix + self._backend.image) is not None
        try:
            found = shared.look(key() if known else "doctor")
        except Unreached as error:
            yield Finding("note", error.message.splitlines()[0], error.remedies)
            return
        shared.answered()
        if not known:
            yield Finding(
                "ok",
                f"{self.repository} answers; what it has for {self._backend.image} is known once that is here",
            )
        elif found is None:
            yield Finding(
                "note",
                f"{self.repository} answers, and has nothing for these migrations",
                ["pg-harness bake --push"],
            )
        elif why := shared.distrusted(found.digest):
            yield Finding(
                "note", f"{found.reference} is passed over: {why}", ["pg-harness bake --rebuild --push"]
            )
        else:
            yield Finding("ok", f"these migrations are in {found.reference}")

    def keep(self, info: ServerInfo, key: str, facts: Mapping[str, str]) -> Snapshot:
        """Forget the passwords, stop, commit; the tag, which makes it findable, comes with the last step."""
        with Session.connect(info.dsn) as session:
            session.execute("alter role postgres password null")
            roles.forget_verifiers(session)
        daemon = self._backend.daemon
        with translated("stop the container that was baked"):
            container = daemon.client.containers.get(info.handle)
            # Written into the container's own layer, and removed before that becomes an image's.
            done = container.exec_run(["rm", "-f", *spec.SECRETS], user="0:0")
            if done.exit_code != 0:
                raise BackendError(f"the password file cannot be removed before baking: {done.output!r}")
            container.stop(timeout=int(STOP_PATIENCE))
            container.reload()
        code = container.attrs["State"].get("ExitCode")
        if code != 0:
            raise ServerStartError(
                f"the server that was baked ended with code {code} instead of a clean stop",
                log_tail=container.logs(tail=25).decode("utf-8", "replace"),
            )
        with translated("commit the container that was baked"):
            daemon.client.api.commit(
                container.id, repository=REPOSITORY, tag=key, message=_COMMENT, changes=_changes(key, facts)
            )
            container_.remove(daemon, container.id)
        # By its name: a client on another machine may have baked the same meanwhile, and removed the one that lost it.
        found = self.here(key)
        if found is None:
            raise BackendError(f"the image {REPOSITORY}:{key} was committed and lacks its labels")
        # Baked again (`bake --rebuild`): the one before has lost its tag, and nobody would ever look for it.
        for older in self.list():
            if older.key == key and older.ref != found.ref:
                self.remove(older)
        return found

    def touch(self, snapshot: Snapshot) -> None:
        """Tag it again: the daemon notes when that was. One that is gone meanwhile has nothing to note."""
        with translated("tag an image"):
            try:
                self._backend.daemon.client.api.tag(snapshot.ref, REPOSITORY, snapshot.key, force=True)
            except Exception as error:
                if gone(error) != 404:
                    raise

    def list(self) -> Sequence[Snapshot]:
        """All images of ours on this daemon; not what a person has built or committed on top of one, or kept by a name of his."""
        return [snapshot for _, snapshot in self._images()]

    def _images(self) -> Sequence[tuple[Any, Snapshot]]:
        """Images of ours, with what they say."""
        images = self._backend.daemon.client.images
        looks = 0
        while True:
            try:
                with translated("list its images"):
                    found = images.list(filters={"label": f"{LABEL}.baked"})
                    made = [(each, told) for each in found if (told := _snapshot(each)) is not None]
                    return [(image, snapshot) for image, snapshot in made if self._is_ours(image, snapshot)]
            except BackendError as error:
                # Each is looked at by itself: one of them was removed since they were listed.
                looks += 1
                if error.__cause__ is None or gone(error.__cause__) != 404 or looks == _LOOKS:
                    raise

    def _is_ours(self, image: Any, snapshot: Snapshot) -> bool:
        """Whether it has a name of ours, or lost it, and is no person's: labels alone are inherited by what he makes of it."""
        if image.tags:
            return any(self._is_name_of_ours(tag, snapshot) for tag in image.tags)
        digests: Sequence[str] = image.attrs.get("RepoDigests") or []
        if self.repository and any(name.startswith(f"{self.repository}@") for name in digests):
            return True
        history: Sequence[Mapping[str, Any]] = image.history()
        return bool(history) and history[0].get("Comment") == _COMMENT

    def _is_name_of_ours(self, tag: str, snapshot: Snapshot) -> bool:
        return tag.startswith(f"{REPOSITORY}:") or bool(
            self.repository and tag == f"{self.repository}:{snapshot.key}"
        )

    def remove(self, snapshot: Snapshot) -> bool:
        """Remove the image; one that containers still use is left. One that has a person's name too loses ours, and stays."""
        image = image_.find(self._backend.daemon, snapshot.ref)
        if image is None:
            return True
        with translated("look at an image"):
            ours = self._is_ours(image, snapshot)
        names = [tag for tag in image.tags if self._is_name_of_ours(tag, snapshot)]
        if not ours or len(names) < len(image.tags):
            self._untag(names)
            return ours
        with translated("remove an image"):
            try:
                # By its id it would be refused while it has names in two repositories; a person's own names stay.
                for name in self._names_of_ours(image, snapshot):
                    self._backend.daemon.client.images.remove(name, force=False, noprune=True)
                # By its id: layers that lost their tag to a newer image go as well.
                self._backend.daemon.client.images.remove(snapshot.ref, force=False)
            except Exception as error:
                if status := gone(error):
                    return status == 404
                raise
        return True

    def _names_of_ours(self, image: Any, snapshot: Snapshot) -> Sequence[str]:
        """Names in registries that go with it, as long as it keeps another one."""
        tags: Sequence[str] = image.attrs.get("RepoTags") or []
        digests: Sequence[str] = image.attrs.get("RepoDigests") or []
        if snapshot.name not in tags:
            return digests[1:]
        # What a push that was killed has left.
        return [*digests, *(tag for tag in tags if tag == f"{self.repository}:{snapshot.key}")]

    def leftovers(self) -> Sequence[str]:
        """Containers that do not run and whose maker was killed: builders before their commit, servers before their start,
        those that tell an image's version; and images that another one has taken the tag from."""
        daemon = self._backend.daemon
        gone = [*self._asked_by_nobody()]
        with translated("list its containers"):
            containers = daemon.client.containers.list(
                all=True,
                filters={"label": f"{LABEL}.purpose", "status": ["exited", "created", "dead"]},
                ignore_removed=True,
            )
        for container in containers:
            own = spec.made_here(container) and private(container.labels.get(f"{LABEL}.purpose", ""))
            if own and abandoned.idle(daemon, container) > CUT_OFF:
                with translated(f"remove the container {container.short_id}"):
                    container_.remove(daemon, container.id)
                gone.append(container.name)
        return [*gone, *self._untagged()]

    def _untagged(self) -> Sequence[str]:
        """Remove images that lost their tag to one that was baked again, or whose maker was killed before it had one."""
        made = self._images()
        tagged = {snapshot.key for image, snapshot in made if snapshot.name in image.tags}
        gone = []
        for image, snapshot in made:
            # Of another bake that is being committed now, the tag comes with the next moment.
            over = snapshot.key in tagged or time.time() - snapshot.created > CUT_OFF
            # One that was pulled gets its tag once a server has started from it: nobody knows since when it is here. It
            # goes as all do, by age and number.
            if snapshot.shared and snapshot.key not in tagged:
                continue
            if snapshot.name not in image.tags and over and self.remove(snapshot):
                gone.append(f"{snapshot.name} without its tag ({image.short_id})")
        return gone

    def _asked_by_nobody(self) -> Iterator[str]:
        daemon = self._backend.daemon
        with translated("list its containers"):
            containers = daemon.client.containers.list(
                all=True, filters={"label": f"{LABEL}.version-of"}, ignore_removed=True
            )
        for container in containers:
            if container_.asked_by_nobody(container):
                with translated(f"remove the container {container.short_id}"):
                    container_.remove(daemon, container.id)
                yield container.name


def _changes(key: str, facts: Mapping[str, str]) -> list[str]:
    labels = {
        # The builder's own would pass on to every container that a person runs from this image.
        **{
            f"{LABEL}.{name}": ""
            for name in (
                "project",
                "purpose",
                "server-id",
                "root",
                "owner",
                "maker",
                "ttl",
                "storage",
                "certificate",
                "memory",
            )
        },
        f"{LABEL}.baked": key,
        # They lie in it, with the settings: a later start has to bring neither.
        spec.SCRIPTS: spec.scripts_mark(),
        f"{LABEL}.created": f"{time.time():.0f}",
        f"{LABEL}.facts": json.dumps(dict(facts)),
    }
    variables = {
        "PGHARNESS_BASE": spec.DISK,
        "PGHARNESS_TTL": "",
        "PGHARNESS_LOCK_KEY": "",
        "PGHARNESS_TLS": "",
    }
    return [
        *(f"LABEL {name}={_quoted(value)}" for name, value in labels.items()),
        *(f"ENV {name}={_quoted(value)}" for name, value in variables.items()),
    ]


def _quoted(value: str) -> str:
    """A word of a Dockerfile: in double quotes, with ``\\``, ``"`` and ``$`` escaped, and no line ends."""
    escaped = re.sub(r'(["\\$])', r"\\\1", value)
    return '"' + " ".join(escaped.splitlines()) + '"'


_LARGEST = 64 * 1024
"""Characters of the label with the facts: an image from elsewhere may have any."""


def _snapshot(image: Any) -> Snapshot | None:
    """What the labels say; None where they are not as ours are: somebody else may have written them."""
    labels = image.labels or {}
    try:
        key = labels[f"{LABEL}.baked"]
        created = float(labels[f"{LABEL}.created"])
        told = labels.get(f"{LABEL}.facts") or "{}"
        facts = json.loads(told) if len(told) <= _LARGEST else None
    except (KeyError, ValueError, RecursionError):
        return None
    if not re.fullmatch("[0-9a-f]{24}", key) or not math.isfinite(created) or not isinstance(facts, dict):
        return None
    tagged = abandoned.seconds((image.attrs.get("Metadata") or {}).get("LastTagTime") or "")
    # Of a clock that was ahead: it would be the newest one for ever.
    created = min(max(0.0, created), time.time())
    shared: list[str] = image.attrs.get("RepoDigests") or []
    return Snapshot(
        image.id,
        key,
        "docker",
        _own_size(image),
        created,
        max(created, tagged),
        {image_.printable(str(name)): image_.printable(str(value)) for name, value in facts.items()},
        name=f"{REPOSITORY}:{key}",
        shared=shared[0] if shared else "",
    )


def _own_size(image: Any) -> int:
    """Bytes of the layer that was committed; what lies below is there anyway."""
    with translated("look at an image"):
        history = image.history()
    return int(history[0].get("Size") or 0) if history else 0
