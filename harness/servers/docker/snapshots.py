"""Snapshots of containers: local images, committed from a container that was stopped cleanly."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.state_file import StateFile
from harness.errors import BackendError, ServerStartError
from harness.postgres import roles
from harness.postgres.session import Session
from harness.servers.docker import container as container_
from harness.servers.docker import image as image_
from harness.servers.docker import spec
from harness.servers.docker.daemon import gone, translated
from harness.servers.docker.spec import LABEL
from harness.servers.port import CUT_OFF, STOP_PATIENCE, Origin, ServerInfo, Snapshot, SnapshotStore, private

if TYPE_CHECKING:
    from harness.servers.docker.backend import DockerBackend

REPOSITORY = "pg-harness/baked"
"""Images of ours are ``pg-harness/baked:<key>``: a name that a registry's prefix can be put before."""

_FORMAT = "docker 1"


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

    def find(self, key: str) -> Snapshot | None:
        """The image of that key, if its label agrees."""
        image = image_.find(self._backend.daemon, f"{REPOSITORY}:{key}")
        found = None if image is None else _snapshot(image)
        return found if found is not None and found.key == key else None

    def keep(self, info: ServerInfo, key: str, facts: Mapping[str, str]) -> Snapshot:
        """Forget the passwords, stop, commit; the tag, which makes it findable, comes with the last step."""
        with Session.connect(info.dsn) as session:
            session.execute("alter role postgres password null")
            roles.forget_verifiers(session)
        daemon = self._backend.daemon
        with translated("stop the container that was baked"):
            container = daemon.client.containers.get(info.handle)
            # Written into the container's own layer, and removed before that becomes an image's.
            secrets = [f"{spec.HOME}/password", f"{spec.DISK}/.pwfile"]
            done = container.exec_run(["rm", "-f", *secrets], user="0:0")
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
            made = daemon.client.api.commit(
                container.id, repository=REPOSITORY, tag=key, changes=_changes(key, facts)
            )
            container_.remove(daemon, container.id)
            image = daemon.client.images.get(made["Id"])
        found = _snapshot(image)
        if found is None:
            raise BackendError(f"the image {REPOSITORY}:{key} was committed and lacks its labels")
        # Baked again (`bake --rebuild`): the one before has lost its tag, and nobody would ever look for it.
        for older in self.list():
            if older.key == key and older.ref != found.ref:
                self.remove(older)
        return found

    def touch(self, snapshot: Snapshot) -> None:
        """Tag it again: the daemon notes when that was."""
        with translated("tag an image"):
            self._backend.daemon.client.api.tag(snapshot.ref, REPOSITORY, snapshot.key, force=True)

    def list(self) -> Sequence[Snapshot]:
        """All images of ours on this daemon."""
        with translated("list its images"):
            images = self._backend.daemon.client.images.list(filters={"label": f"{LABEL}.baked"})
        found = [_snapshot(image) for image in images]
        return [snapshot for snapshot in found if snapshot is not None]

    def remove(self, snapshot: Snapshot) -> bool:
        """Remove the image; one that containers still use is left."""
        with translated("remove an image"):
            try:
                # By its id: layers that lost their tag to a newer image go as well.
                self._backend.daemon.client.images.remove(snapshot.ref, force=False)
            except Exception as error:
                if status := gone(error):
                    return status == 404
                raise
        return True

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
            ended = container.attrs.get("State", {}).get("FinishedAt") or ""
            began = container.attrs.get("Created") or ""
            idle = time.time() - max(_seconds(ended), _seconds(began))
            own = private(container.labels.get(f"{LABEL}.purpose", ""))
            if own and idle > CUT_OFF:
                with translated(f"remove the container {container.short_id}"):
                    container_.remove(daemon, container.id)
                gone.append(container.name)
        return [*gone, *self._untagged()]

    def _untagged(self) -> Sequence[str]:
        """Remove images that lost their tag to one that was baked again, or whose maker was killed before it had one."""
        with translated("list its images"):
            images = self._backend.daemon.client.images.list(filters={"label": f"{LABEL}.baked"})
        made = [(image, snapshot) for image in images if (snapshot := _snapshot(image)) is not None]
        tagged = {snapshot.key for image, snapshot in made if snapshot.name in image.tags}
        gone = []
        for image, snapshot in made:
            # Of another bake that is being committed now, the tag comes with the next moment.
            over = snapshot.key in tagged or time.time() - snapshot.created > CUT_OFF
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
            for name in ("project", "purpose", "server-id", "root", "owner", "ttl", "storage")
        },
        f"{LABEL}.baked": key,
        # They lie in it, with the settings: a later start has to bring neither.
        spec.SCRIPTS: spec.scripts_mark(),
        f"{LABEL}.created": f"{time.time():.0f}",
        f"{LABEL}.facts": json.dumps(dict(facts)),
    }
    variables = {"PGHARNESS_BASE": spec.DISK, "PGHARNESS_TTL": "", "PGHARNESS_LOCK_KEY": ""}
    return [
        *(f"LABEL {name}={_quoted(value)}" for name, value in labels.items()),
        *(f"ENV {name}={_quoted(value)}" for name, value in variables.items()),
    ]


def _quoted(value: str) -> str:
    """A word of a Dockerfile: in double quotes, with ``\\``, ``"`` and ``$`` escaped, and no line ends."""
    escaped = re.sub(r'(["\\$])', r"\\\1", value)
    return '"' + " ".join(escaped.splitlines()) + '"'


def _snapshot(image: Any) -> Snapshot | None:
    labels = image.labels or {}
    try:
        key = labels[f"{LABEL}.baked"]
        created = float(labels[f"{LABEL}.created"])
        facts = json.loads(labels.get(f"{LABEL}.facts") or "{}")
    except (KeyError, ValueError):
        return None
    tagged = _seconds((image.attrs.get("Metadata") or {}).get("LastTagTime") or "")
    used = max(created, tagged)
    return Snapshot(
        image.id, key, "docker", _own_size(image), created, used, facts, name=f"{REPOSITORY}:{key}"
    )


def _own_size(image: Any) -> int:
    """Bytes of the layer that was committed; what lies below is there anyway."""
    with translated("look at an image"):
        history = image.history()
    return int(history[0].get("Size") or 0) if history else 0


def _seconds(text: str) -> float:
    """Seconds since 1970 of Docker's times; 0 for none, which may be in the year 1."""
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp())
    except ValueError:
        return 0.0
