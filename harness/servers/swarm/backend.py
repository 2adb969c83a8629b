"""A service of a Docker Swarm for each run, with a server for each of its workers: the Swarm places them."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from typing import Any

from harness.config.project import Project, file_lock
from harness.dsn import Dsn
from harness.errors import BackendError, HarnessError
from harness.listing import counted
from harness.postgres.session import greet
from harness.servers import memory
from harness.servers.docker import image as image_
from harness.servers.docker import spec as docker_spec
from harness.servers.docker.backend import DockerBackend
from harness.servers.docker.container import made_with
from harness.servers.docker.daemon import Daemon
from harness.servers.docker.spec import HOME, LABEL
from harness.servers.port import Backend, Finding, ServerInfo, ServerRequest, Shelf, SnapshotStore
from harness.servers.swarm import spec
from harness.servers.swarm.claim import shut_down
from harness.servers.swarm.cluster import Cluster, Node, Service, Task
from harness.servers.swarm.note import Note, Notes
from harness.servers.swarm.placing import Placing

logger = logging.getLogger("pg_harness.servers.swarm")

ENDING = 15.0
"""Seconds that the Swarm may take to tell that a server has ended, or that a service is gone."""

REMOVED = 2.0
"""Seconds that it may take to forget an ended one."""

LOCKED = 120.0
"""Seconds to wait for others of this checkout that change a service."""

LEFT = 15 * 60.0
"""Seconds after which a secret or a config that no service uses, and nothing here is noted of, is nobody's work in progress."""

_NOWHERE = Dsn("127.0.0.1", 1, "postgres", "", "postgres")


class SwarmBackend(Backend):
    """Servers that a Swarm places on its nodes. Nothing but its manager is asked, and the servers themselves.

    Args:
        project: whose settings and environment say which manager, which image, and where tasks may be placed.
        timeout: seconds that the manager may take to answer.
    """

    name = "swarm"

    def __init__(self, project: Project, *, timeout: float = 10) -> None:
        self._project = project
        self.settings = project.settings
        # On the manager's own daemon: what is baked, and the images that services are made of.
        self._beside = DockerBackend.on(project, None, timeout=timeout)
        self._notes = Notes(project.folder / "swarm")

    @property
    def _daemon(self) -> Daemon:
        return self._beside.daemon

    @cached_property
    def cluster(self) -> Cluster:
        """The Swarm.

        Raises:
            BackendUnavailable: no daemon answers.
        """
        return Cluster(self._daemon)

    # --- what there is -------------------------------------------------------------------------------

    def available(self) -> str:
        """The Swarm, if a manager answers.

        Raises:
            BackendUnavailable: none does, or it is of no use.
        """
        nodes = self.cluster.nodes()
        usable = sum(node.usable for node in nodes.values())
        return f"a Swarm of {counted(len(nodes), 'node')}, {usable} of them ready, answers at {self._daemon.where}"

    def examine(self) -> Iterator[Finding]:
        """The Swarm, its nodes, and the image."""
        yield Finding("ok", self.available())
        if self.settings.hosts:
            told = f"{self.settings.origin('hosts')} is not used: the Swarm places servers, on its own nodes"
            yield Finding("note", told, ['leave hosts out, or take backend = "docker"'])
        for node in self.cluster.nodes().values():
            if why := node.trouble:
                yield Finding("note", f"the node {node} {why}: no server is placed there")
            else:
                yield Finding("ok", f"the node {node}: {node.memory // memory.MB} MB, {node.machine}")
        if image_.find(self._daemon, self._daemon.prefix + self.settings.image) is None:
            yield Finding(
                "note",
                f"the image {self.settings.image} is not on the manager yet: it is pulled when it is first needed",
                [f"docker pull {self.settings.image}"],
            )
        if unmet := [each for each in self.settings.swarm_constraints if "node.labels" in each]:
            yield Finding("ok", f"servers are placed where {', '.join(unmet)} (swarm_constraints)")

    def find(self, project: str, purpose: str) -> ServerInfo | None:
        """The running server of that identity, by the labels of its service."""
        for service in self._services(project, spec.group_of(purpose)):
            for info in self._infos(service, self.cluster.nodes()):
                if info.purpose == purpose and info.dsn.port > 1:
                    return info
        return None

    def list(self, project: str | None) -> list[ServerInfo]:
        """All servers, and services that have none any more, to be ended."""
        services = self._services(project, None)
        nodes = self.cluster.nodes() if services else {}
        return [info for service in services for info in self._infos(service, nodes)]

    def _services(self, project: str | None, group: str | None) -> Sequence[Service]:
        labels = [
            f"{spec.BACKEND}=swarm",
            f"{LABEL}.project" if project is None else f"{LABEL}.project={project}",
        ]
        if group is not None:
            labels.append(f"{LABEL}.purpose={group}")
        return [service for service in self.cluster.services(labels) if _mine(service)]

    def _infos(self, service: Service, nodes: Mapping[str, Node]) -> Sequence[ServerInfo]:
        note = self.note_of(service)
        tasks = [task for task in self.cluster.tasks(service.id) if task.alive]
        return [self.info(service, task, nodes, note) for task in tasks] or [self._idle(service)]

    def info(self, service: Service, task: Task, nodes: Mapping[str, Node], note: Note | None) -> ServerInfo:
        """What is known of one server.

        Args:
            note: None where another machine, or nobody, knows its password.
        """
        node = nodes.get(task.node)
        group = service.labels.get(f"{LABEL}.purpose", "")
        purpose = group
        if spec.is_group(group):
            # A worker's, once one has claimed it.
            purpose = (note.claims if note is not None else {}).get(task.id) or f"{group}-{task.id[:6]}"
        dsn = _NOWHERE
        if node is not None and task.state == "running" and task.port:
            dsn = Dsn(node.address, task.port, "postgres", note.password if note else "", "postgres")
            if note is not None and note.certificate:
                where = self._notes.certificate(service.labels.get(spec.NOTE, ""))
                dsn = dsn.with_options({"sslmode": "verify-full", "sslrootcert": str(where)})
        where_ = f"on {node}" if node is not None else "not placed yet"
        described = (
            f"{service.labels.get(f'{LABEL}.image', '?')} in task {task.id[:12]} of the Swarm, {where_}"
        )
        return replace(
            self._idle(service),
            dsn=dsn,
            server_id=task.id,
            purpose=purpose,
            handle=f"{service.id}:{task.id}",
            description=described,
        )

    def _idle(self, service: Service) -> ServerInfo:
        """A service without servers."""
        said = {key.removeprefix(f"{LABEL}."): value for key, value in service.labels.items()}
        return ServerInfo(
            dsn=_NOWHERE,
            server_id="none",
            backend=self.name,
            purpose=said.get("purpose", ""),
            storage=said.get("storage", "disk"),
            handle=f"{service.id}:",
            ttl=float(said["ttl"]) if said.get("ttl") else None,
            description=f"the service {service.name} of the Swarm, whose servers have ended",
            project=said.get("project", ""),
            root=said.get("root", ""),
            made_with=made_with(said.get("made-with", "{}")),
        )

    def free_memory(self) -> int:
        """Bytes that servers may take on all nodes together: half of what they have, because no manager tells what is free."""
        return sum(node.memory for node in self.cluster.nodes().values() if node.usable) // 2

    def snapshots(self) -> SnapshotStore:
        """Images, baked on the manager's daemon: other nodes take them from `baked_repository`, or have them already."""
        # Here: only what bakes, or starts from a snapshot, needs it.
        from harness.servers.swarm.snapshots import SwarmSnapshots

        return SwarmSnapshots(self, self._beside, self._project.cache)

    def shelf(self, info: ServerInfo) -> Shelf:
        """Our folder in the container: what lies there was mounted when the service was made."""

        def put(name: str, content: bytes) -> None:
            raise BackendError(f"a server that runs in a Swarm takes no files any more ({name})")

        return Shelf(HOME, put)

    # --- starting ------------------------------------------------------------------------------------

    def start(self, request: ServerRequest) -> ServerInfo:
        """A server of the service of that purpose: made where there is none, scaled up where it is a run's with several workers.

        Raises:
            BackendUnavailable: no Swarm, no image, or no node that may take the server.
            ServerStartError: it ended or did not become ready; its log is in the error.
        """
        if request.purpose.startswith("bake-"):
            # What is baked becomes an image of the manager's daemon: in a container there, and no task.
            return self._beside.start(request)
        placing = Placing(self, request)
        try:
            with self.alone():
                service = self._ready(request)
                placing.begin(service or self._create(request), made=service is None)
            return placing.wait()
        except BaseException:
            placing.undo()
            raise

    def alone(self) -> AbstractContextManager[None]:
        """Alone among this checkout's processes with its services: who looks and then changes must not be overtaken.

        Raises:
            PoolTimeout: another one was busy with them for too long.
        """
        return file_lock(
            self._notes.folder / "services.lock",
            timeout=LOCKED,
            waiting_for="a service of the Swarm",
        )

    def _ready(self, request: ServerRequest) -> Service | None:
        """The service of that name, if it can be used; one whose servers have ended is removed.

        Raises:
            BackendError: its password is not known here, and others may be using it.
        """
        group = spec.group_of(request.purpose)
        for service in self._services(request.project, group):
            note = self.note_of(service)
            tasks = self.cluster.tasks(service.id)
            if note is None and not (tasks and all(task.ended for task in tasks) and group != "up"):
                raise self._not_noted(service, group)
            if note is not None and (group != request.purpose or any(task.alive for task in tasks)):
                return service
            self.remove(service)
        return None

    def _not_noted(self, service: Service, group: str) -> BackendError:
        command = "pg-harness down" if group == "up" else "pg-harness down --all"
        return BackendError(
            f"the service {service.name} of the Swarm is there, and its password is not noted in {self._notes.folder}: it was "
            "started with another state folder (PGHARNESS_STATE_DIR) or by another machine or version, or the note was removed. "
            f"It was not replaced, because others may be using it: `{command}` ends it, with its data."
        )

    def _create(self, request: ServerRequest) -> Service:
        daemon, nodes = self._daemon, self.cluster.nodes()
        if request.snapshot is None:
            image = image_.ensure(daemon, self.settings.image)
        else:
            image = image_.baked(daemon, request.snapshot)
        made_of = self._made_of(request, image, nodes)
        mark = secrets.token_hex(6)
        names = tuple(sorted({node.address for node in nodes.values() if node.address}))
        certificate, key = _certificate(names)
        note = Note(str(request.root), request.password, certificate, names, swarm=self.cluster.id)
        self._note(mark, note)
        labels = {**self.settings.swarm_labels, **spec.labels_of(request, made_of, mark)}
        try:
            mounted = []
            for file in spec.files(request, made_of, certificate=certificate, key=key):
                kept_as = f"pg-harness-{mark}-{file.name.replace('_', '-')}"[:64]
                put = self.cluster.put_secret if file.secret else self.cluster.put_config
                mounted.append(file.mounted(put(kept_as, file.content, labels), kept_as))
            return self.cluster.create(
                spec.service(
                    request,
                    made_of,
                    image=_everywhere(image),
                    labels=labels,
                    mounted=mounted,
                    constraints=self.settings.swarm_constraints,
                    reserve=made_of.memory
                    if self.settings.memory_limit and made_of.storage == "memory"
                    else 0,
                )
            )
        except BaseException:
            self._forget(mark)
            raise

    def _made_of(
        self, request: ServerRequest, image: object, nodes: Mapping[str, Node]
    ) -> docker_spec.ContainerSpec:
        # The smallest: which of them it will be, the Swarm decides.
        room = min((node.memory for node in nodes.values() if node.usable), default=0) // 4
        limit = self.settings.memory_limit if request.memory is None else request.memory
        if limit is not None:
            room = limit if request.storage == "memory" else min(limit, room)
        storage = memory.storage(request.storage, room, throwaway=request.throwaway)
        return docker_spec.ContainerSpec(image, self.settings.image, storage, room, self.settings.shm_size)

    # --- ending --------------------------------------------------------------------------------------

    def stop(self, info: ServerInfo) -> None:
        """End the server; its service goes with the last one. That either is gone already is success."""
        if info.backend != self.name:
            self._beside.stop(info)
            return
        handle, _, task = info.handle.partition(":")
        others = [other for other in self.cluster.tasks(handle) if other.alive and other.id != task]
        if others and task:
            self._end_one(handle, task, info)
        with self.alone():
            # Without its password none of its servers can be ended by itself: whoever ends one nevertheless ends all.
            self.tidy(handle, ended=task, whole=not info.dsn.password)

    def _end_one(self, handle: str, task: str, info: ServerInfo) -> None:
        """Have one server of several end itself: a smaller number of replicas alone would leave it to the Swarm which one ends."""
        try:
            session = greet(info.dsn, task, timeout=3)
        except HarnessError as error:
            # Its node is gone, or it hangs: it ends with its service, or by its switch.
            logger.debug("swarm: %s is not ended by itself: %s", info.description, error.message)
            return
        if session is None:
            return
        with session:
            shut_down(session)
        deadline = time.monotonic() + ENDING
        while time.monotonic() < deadline:
            if not any(other.id == task and not other.ended for other in self.cluster.tasks(handle)):
                return
            time.sleep(0.05)

    def fit(self, handle: str) -> None:
        """Have a run's service as many servers as its workers have and wait for, at least. Under the lock alone."""
        service = self.cluster.service(handle)
        note = self.note_of(service) if service is not None else None
        if service is None or note is None:
            return
        tasks, nodes = self.cluster.tasks(handle), self.cluster.nodes()
        alive = [task for task in tasks if _there(task, nodes)]
        # The Swarm makes the tasks of a change a moment after it.
        coming = max(0, service.replicas - len({task.slot for task in tasks}))
        wanted = sum(task.id in note.claims for task in alive) + note.waiters
        if (missing := wanted - len(alive) - coming) > 0:
            self.cluster.change(handle, lambda spec_: _scale(spec_, service.replicas + missing))
        elif coming:
            # A number that was raised again while the Swarm still removed an ended task counts that one: it looks once more
            # at a service that is changed, be it into what it was.
            self.cluster.change(handle, lambda _: True)

    def tidy(self, handle: str, *, ended: str = "", whole: bool = False) -> None:
        """Remove a service of which nobody has a server, or waits for one; else have it no more replicas than servers. Under the
        lock alone.

        Args:
            ended: a task that is nobody's any more, whatever the Swarm says of it.
            whole: whether a service that nothing is noted of is removed although others of its servers may be used.
        """
        service = self.cluster.service(handle)
        if service is None:
            return
        nodes = self.cluster.nodes()
        there = [task for task in self.cluster.tasks(handle) if _there(task, nodes)]
        alive = [task for task in there if task.id != ended]
        note = self.note_of(service)
        if not alive or (note is None and whole):
            self.remove(service)
            return
        if note is None:
            logger.warning(
                "swarm: nothing is noted any more of the service %s, and others may be using it", service.name
            )
            return
        if ended in note.claims:
            note = note.left(ended) if len(there) > len(alive) else note.released(ended)
            self.note(service, note)
        claimed = sum(bool(note.claims.get(task.id)) for task in alive)
        if spec.is_group(service.labels.get(f"{LABEL}.purpose", "")) and not claimed + note.waiters:
            self.remove(service)
            return
        if len(there) > len(alive):
            # It hangs, or its node is gone and the Swarm has not noticed: it counts there, and a smaller number would end
            # another worker's server instead.
            return
        if any(task.state != "running" and not task.unplaced for task in alive):
            # Of those that do not run the newest would go first: another worker's start.
            return
        running = sum(task.state == "running" for task in alive)
        target = max(running, claimed + note.waiters)
        if target < service.replicas:
            self.cluster.change(handle, lambda spec_: _scale(spec_, target))
            self._removed(handle, target)

    def _removed(self, handle: str, replicas: int) -> None:
        """Wait until the Swarm has removed what is more than so many: a start that follows would count it."""
        deadline = time.monotonic() + REMOVED
        while time.monotonic() < deadline:
            if len({task.slot for task in self.cluster.tasks(handle)}) <= replicas:
                return
            time.sleep(0.05)

    def note_of(self, service: Service) -> Note | None:
        """What is noted of a service; None where nothing is."""
        return self._notes.read(service.labels.get(spec.NOTE, ""))

    def note(self, service: Service, note: Note) -> None:
        """Replace it. Under the lock alone.

        Raises:
            BackendError: it cannot be written.
        """
        self._note(service.labels[spec.NOTE], note)

    def _note(self, mark: str, note: Note) -> None:
        try:
            self._notes.write(mark, note)
        except OSError as error:
            raise BackendError(
                f"a service cannot be noted in {self._notes.folder}: {error.strerror}"
            ) from error

    def remove(self, service: Service) -> None:
        """Remove a service with its servers and all that was kept for it, and wait until they are gone. Under the lock alone."""
        self.cluster.remove(service.id)
        deadline = time.monotonic() + ENDING
        nodes = self.cluster.nodes()
        # The Swarm forgets the tasks of a service once their nodes have ended them; of a node that is gone that is never told.
        while time.monotonic() < deadline:
            left = [task for task in self.cluster.tasks(service.id) if not task.ended]
            if not any(task.node and not _lost(task, nodes) for task in left):
                break
            time.sleep(0.05)
            nodes = self.cluster.nodes()
        self._forget(service.labels.get(spec.NOTE, ""))

    def _forget(self, mark: str) -> None:
        """Remove what was kept for a service that is gone."""
        if not mark:
            return
        for file in self.cluster.files([f"{spec.NOTE}={mark}"]):
            self.cluster.remove_file(file.kind, file.id)
        self._notes.forget(mark)

    def leftovers(self) -> Sequence[str]:
        """Remove services of this checkout whose servers have all ended, and files of services that are gone; return their names."""
        gone = []
        with self.alone():
            known = set()
            for service in self._services(self._project.id, None):
                tasks = self.cluster.tasks(service.id)
                nodes = self.cluster.nodes()
                if any(_there(task, nodes) for task in tasks) or not tasks:
                    known.add(service.labels.get(spec.NOTE, ""))
                    continue
                if service.labels.get(f"{LABEL}.ttl") == "":
                    # A person's: that it has ended is told him by `down` or `up`.
                    known.add(service.labels.get(spec.NOTE, ""))
                    continue
                self.remove(service)
                gone.append(service.name)
            noted = self._notes.marks()
            labels = [f"{spec.BACKEND}=swarm", f"{LABEL}.project={self._project.id}"]
            for file in self.cluster.files(labels):
                mark = file.labels.get(spec.NOTE, "")
                if (
                    file.labels.get(f"{LABEL}.owner", docker_spec.owner()) != docker_spec.owner()
                    or mark in known
                ):
                    continue
                # Their service is made after them: under this lock, or under that of another state folder.
                if mark not in noted and self.cluster.now() - file.created < LEFT:
                    continue
                if self.cluster.remove_file(file.kind, file.id):
                    gone.append(f"the {file.kind} {file.id} of the Swarm")
            for mark in noted:
                note = self._notes.read(mark)
                # What this Swarm does not know may be another one's, which this checkout uses by turns.
                if mark not in known and note is not None and note.swarm == self.cluster.id:
                    self._notes.forget(mark)
        return gone

    # --- the rest ------------------------------------------------------------------------------------

    def logs(self, info: ServerInfo, follow: bool) -> Iterator[str]:
        """Lines of the task's output, which the manager fetches from its node; of the last task where all have ended."""
        handle, _, task = info.handle.partition(":")
        if not task:
            task = next((other.id for other in reversed(self.cluster.tasks(handle))), "")
        if task:
            yield from self.cluster.log(task, follow=follow)

    def fate(self, info: ServerInfo) -> str:
        """What has become of a server that does not answer, for people."""
        handle, _, wanted = info.handle.partition(":")
        nodes = self.cluster.nodes()
        task = next((task for task in self.cluster.tasks(handle) if task.id == wanted), None)
        if task is None:
            return "the Swarm does not know its task any more: its service was removed"
        node = nodes.get(task.node)
        if node is None:
            return f"its node {task.node} has left the Swarm" if task.node else ""
        lost = "what was leased there is gone, and the run goes on elsewhere"
        if why := node.trouble:
            return f"the node {node} of the Swarm {why}: {lost}"
        if task.ended or not task.wanted:
            told = f": {task.error}" if task.error else ""
            return f"the server on the node {node} of the Swarm is {task.state}, with exit code {task.exit_code}{told}: {lost}"
        return (
            f"the node {node} of the Swarm does not answer, of which the Swarm says that it is ready "
            "(it notices after a quarter of a minute)"
        )


def _mine(service: Service) -> bool:
    """Whether it is this user's: a Swarm may be several users', and a checkout too."""
    return service.labels.get(f"{LABEL}.owner", "") == docker_spec.owner()


def _there(task: Task, nodes: Mapping[str, Node]) -> bool:
    """Whether a task runs or is on its way, as far as the Swarm knows."""
    return task.alive and not _lost(task, nodes)


def _lost(task: Task, nodes: Mapping[str, Node]) -> bool:
    """Whether a task is on a node that does not answer."""
    return bool(task.node) and (task.node not in nodes or nodes[task.node].state == "down")


def _scale(spec_: dict[str, Any], replicas: int) -> bool:
    replicated = spec_["Mode"]["Replicated"]
    if replicated.get("Replicas") == replicas:
        return False
    replicated["Replicas"] = replicas
    return True


def _everywhere(image: object) -> str:
    """A name of the image that means the same on every node: with a registry's digest where there is one, else its id.

    By an id no node asks a registry, which takes it seconds where none answers.
    """
    attributes = getattr(image, "attrs", {})
    digests = attributes.get("RepoDigests") or ()
    return str(next(iter(digests), attributes.get("Id") or ""))


def _certificate(names: Sequence[str]) -> tuple[str, str]:
    """Certificate and key of the servers, PEM."""
    # Here: a server that runs needs none.
    from harness.servers.docker import tls

    made = tls.make(names)
    return made.certificate, made.key
