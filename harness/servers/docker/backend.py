"""Any image with PostgreSQL binaries, started through our own entrypoint."""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from harness.config.project import Project, cache_dir, file_lock, make_folder
from harness.dsn import Dsn
from harness.errors import BackendError, BackendUnavailable, ServerStartError
from harness.servers import memory
from harness.servers.docker import abandoned, spec
from harness.servers.docker import container as container_
from harness.servers.docker import image as image_
from harness.servers.docker.daemon import Daemon, connect, translated
from harness.servers.docker.hosts import Host
from harness.servers.port import (
    Backend,
    Finding,
    ServerInfo,
    ServerRequest,
    Shelf,
    SnapshotStore,
    StandbyPlace,
    free_port,
    private,
)
from harness.servers.records import noted_hosts

logger = logging.getLogger("pg_harness.servers.docker")

LABEL = spec.LABEL


class DockerBackend(Backend):
    """Servers in containers.

    Args:
        environ: where the daemon is looked for (``DOCKER_HOST`` and the like).
        image: any image with ``initdb`` and ``postgres`` in it.
        memory_limit: bytes that data in memory may take; None: a share of what is free.
        shm_size: bytes of the container's ``/dev/shm``.
        timeout: seconds that the daemon may take to answer.
        cache: where it is noted which version an image holds.
        repository: where baked images are shared; empty: nowhere.
        host: the daemon, where the settings name several; None: it is looked for.
    """

    name = "docker"

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        image: str,
        memory_limit: int | None = None,
        shm_size: int = 256 * 1024**2,
        timeout: float = 10,
        cache: Path | None = None,
        repository: str = "",
        host: Host | None = None,
    ) -> None:
        self._host = host
        self._environ = environ
        self._cache = cache or cache_dir(environ)
        self._timeout = timeout
        self._daemon: Daemon | None = None
        # Servers are started side by side: one client serves them all.
        self._connecting = threading.Lock()
        self.image = image
        self.memory_limit = memory_limit
        self.shm_size = shm_size
        self.repository = repository

    @classmethod
    def of(cls, project: Project, *, timeout: float) -> Backend:
        """The backend as the settings describe it; over several daemons, where they name them."""
        if project.settings.hosts or noted_hosts(project):
            # Here: who has one daemon imports nothing of it.
            from harness.servers.docker.fleet import Fleet

            return Fleet.of(project, timeout=timeout)
        return cls.on(project, None, timeout=timeout)

    @classmethod
    def on(cls, project: Project, host: Host | None, *, timeout: float) -> Self:
        """The backend of one daemon.

        Args:
            host: None: the one that is looked for where no hosts are named.
        """
        settings = project.settings
        return cls(
            project.environ,
            image=settings.image,
            memory_limit=settings.memory_limit,
            shm_size=settings.shm_size,
            timeout=timeout,
            cache=project.cache,
            repository=settings.baked_repository or "",
            host=host,
        )

    @property
    def daemon(self) -> Daemon:
        """The daemon, looked for once.

        Raises:
            BackendUnavailable: none answers.
        """
        with self._connecting:
            if self._daemon is None:
                self._daemon = connect(self._environ, timeout=self._timeout, host=self._host)
            return self._daemon

    def available(self) -> str:
        """Where a daemon answers.

        Raises:
            BackendUnavailable: none answers.
        """
        return f"a daemon answers at {self.daemon.where}"

    def examine(self) -> Iterator[Finding]:
        """The daemon and the image."""
        yield Finding("ok", self.available())
        if image_.find(self.daemon, self.daemon.prefix + self.image) is not None:
            yield Finding("ok", f"the image {self.image} is there")
        else:
            yield Finding(
                "note",
                f"the image {self.image} is not there yet: it is pulled when it is first needed",
                [f"docker pull {self.image}"],
            )

    def find(self, project: str, purpose: str) -> ServerInfo | None:
        """The running container with these labels; its password is read from the container."""
        for container in self._containers(project, purpose):
            if container.status == "running" and (info := self._info(container)) is not None:
                return info
        return None

    def start(self, request: ServerRequest) -> ServerInfo:
        """Create and start a container; for one that was stopped or paused by hand, start it again.

        Raises:
            BackendUnavailable: no daemon, or no such image.
            ServerStartError: the container ended or did not become ready; its log is in the error.
        """
        if request.replicas and self.daemon.ssh:
            raise BackendUnavailable(
                f"replicas = {request.replicas}: the daemon at {self.daemon.where} is reached by ssh, whose tunnel leads to one port of a server",
                remedies=[
                    "reach it by tcp:// with TLS, take a daemon or local programs of this machine, or leave `replicas` out"
                ],
            )
        for container in self._containers(request.project, request.purpose):
            if container.status == "created" or private(request.purpose):
                # Its maker was killed, as a rule: before it started, or while it was baked.
                self._clear(container)
                continue
            info = self._revive(container, request)
            if info is not None:
                return info
        if request.snapshot is None:
            image = image_.ensure(self.daemon, self.image)
        else:
            image = image_.baked(self.daemon, request.snapshot)
        limit = self.memory_limit if request.memory is None else request.memory
        made_of = spec.ContainerSpec.of(
            request,
            self.daemon.about(),
            image=image,
            name=self.image,
            memory_limit=limit,
            shm_size=self.shm_size,
        )
        if self.daemon.encrypted:
            # Here: no server of this machine has one.
            from harness.servers.docker import tls

            made_of = replace(made_of, certificate=tls.make([self.daemon.host]))
        # Of a person's, Docker would choose another port each time that the container is started. What a tunnel leads to
        # nobody sees.
        if request.purpose != "up" or not self.daemon.bind or self.daemon.ssh:
            return container_.run(self.daemon, made_of, request)
        request = replace(request, port=request.port or self._free_port())
        try:
            return container_.run(self.daemon, made_of, request)
        except ServerStartError as error:
            if not re.search("port is already allocated|address already in use", str(error)):
                raise
            if request.port_named:
                where = self.daemon.bind if self.daemon.local else self.daemon.host
                raise ServerStartError(
                    f"port {request.port} (setting port) is in use on {where}: name another, or none"
                ) from error
            request = replace(request, port=self._free_port())
            return container_.run(self.daemon, made_of, request)

    def _clear(self, container: Any) -> None:
        """Remove a container that nobody goes on with; one that another client may be at work with stays, and ends by itself."""
        held = None
        if container.status == "running":
            try:
                info = self._info(container)
            except BackendUnavailable:
                return
            held = abandoned.claim(info) if info is not None else None
            if held is None:
                return
        elif container.status not in abandoned.IDLE or not abandoned.half_made(self.daemon, container):
            return
        try:
            with translated(f"remove the container {container.short_id}"):
                container_.remove(self.daemon, container.id)
        finally:
            if held is not None:
                held.close()

    def _free_port(self) -> int:
        """One that is free, on this machine; of another one it is not known, and a guess among ten thousand seldom fails."""
        return free_port(self.daemon.bind) if self.daemon.local else random.randrange(20000, 30000)

    def free_memory(self) -> int:
        """Bytes that containers may take: the daemon's, cut by what is free on this machine where it runs here.

        Raises:
            BackendUnavailable: no daemon. ServerLost: it stopped answering.
        """
        known, here = int(self.daemon.about().get("MemTotal") or 0), memory.free_memory()
        # Of a daemon elsewhere only the whole is known: half of it may be taken already.
        return min(known, here) if self.daemon.local and here else known // 2

    def snapshots(self) -> SnapshotStore:
        """Images that are committed from containers."""
        # Here: only what bakes, or starts from a snapshot, needs it.
        from harness.servers.docker.snapshots import DockerSnapshots

        return DockerSnapshots(self, self._cache)

    def _revive(self, container: Any, request: ServerRequest) -> ServerInfo | None:
        state = container.status
        with translated(f"start the container {container.short_id} again"):
            if state == "paused":
                logger.info("docker: container %s was paused: going on with it", container.short_id)
                container.unpause()
            elif state == "exited" and request.purpose == "up":
                logger.info(
                    "docker: container %s was stopped: starting it again, with its data", container.short_id
                )
                container.start()
            elif state != "running":
                return None
        info = self._info(container)
        if info is None:
            return None
        container_.wait(self.daemon, container, info, timeout=request.start_timeout)
        return info

    def stop(self, info: ServerInfo) -> None:
        """Remove the container and its volumes. 404 and 409 (a removal under way) are success."""
        with translated(f"remove the container {info.handle}"):
            container_.remove(self.daemon, info.handle)
        if not self.daemon.local or info.dsn.options:
            # Here: of a server of this machine nothing is noted there.
            from harness.servers.docker import tunnel

            tunnel.forget(self.daemon.folder, info.handle, info.server_id)

    def halt(self, info: ServerInfo) -> None:
        """Stop the container, which stays with its volumes."""
        if info.storage == "memory":
            raise BackendError(
                f"{info.description} has its data in memory, which is gone when the container stops: `pg-harness down` ends it"
            )
        with translated(f"stop the container {info.handle[:12]}"):
            self.daemon.client.containers.get(info.handle).stop(timeout=60)

    def watched(self, info: ServerInfo) -> bool:
        """By the processes of the container; of one that has ended there is nothing to watch."""
        with translated(f"look at the processes of {info.handle[:12]}"):
            container = self.daemon.client.containers.get(info.handle)
            if container.status != "running":
                return True
            lines = container.top(ps_args="-eo pid,args")["Processes"] or ()
        return any(f"{spec.HOME}/watch.sh watch" in " ".join(line) for line in lines)

    def watch(self, info: ServerInfo) -> None:
        """Start it in the container, by scripts of today: those that lie there may know no such mode."""
        # Before the lock makes it, closed to others: it is the local servers' cache too.
        make_folder(self._cache, 0o755)
        with (
            file_lock(self._cache / "switch.lock", timeout=30, waiting_for="starting a server's switch"),
            translated(f"start the switch in the container {info.handle[:12]}"),
        ):
            if self.watched(info):
                return
            container = self.daemon.client.containers.get(info.handle)
            container.put_archive("/", spec.scripts())
            container.exec_run(["/bin/sh", f"{spec.HOME}/entrypoint.sh", "watch"], user="0:0", detach=True)
            # It runs once its psql shows: until then another caller would start one more.
            deadline = time.monotonic() + 5
            while not self.watched(info):
                if time.monotonic() > deadline:
                    raise BackendError("it did not start within 5 s")
                time.sleep(0.05)

    def list(self, project: str | None) -> list[ServerInfo]:
        """All containers of ours, running or stopped; half made ones and those that were committed too, to be ended."""
        infos = [
            self._listed(container) or (container_.info_of(_NOWHERE, container) if _idle(container) else None)
            for container in self._containers(project, None)
        ]
        return [info for info in infos if info is not None]

    def logs(self, info: ServerInfo, follow: bool) -> Iterator[str]:
        """Lines of the container's output."""
        with translated(f"read the log of {info.handle}"):
            container = self.daemon.client.containers.get(info.handle)
            if not follow:
                yield from container.logs(stream=False).decode("utf-8", "replace").splitlines()
                return
            rest = ""
            for chunk in container.logs(stream=True, follow=True):
                *lines, rest = (rest + chunk.decode("utf-8", "replace")).split("\n")
                yield from lines
            if rest:
                yield rest

    def psql(
        self, info: ServerInfo, database: str, words: Sequence[str], *, user: str, terminal: bool
    ) -> Sequence[str] | None:
        """The command line that runs psql inside the container; None where there is no docker command.

        Args:
            user: role to log in as (without a password: the container's own socket is trusted).
            terminal: whether a person types; `docker exec -t` refuses a pipe.
        """
        if shutil.which("docker", path=self._environ.get("PATH", os.defpath)) is None:
            return None
        find = (
            'for d in "$@" ""; do :; done; for d in $(IFS=:; echo $PATH) /usr/lib/postgresql/*/bin '
            "/usr/local/pgsql/bin /usr/local/bin /opt/*/bin /opt/*/*/bin; do "
            '[ -x "$d/psql" ] && exec "$d/psql" "$@"; done; echo "this image has no psql" >&2; exit 127'
        )
        # The default context would follow DOCKER_HOST.
        docker = (
            ["docker"] if self._host is None else self._host.command or ["docker", "-H", self.daemon.where]
        )
        base = [*docker, "exec", "-it" if terminal else "-i", info.handle, "/bin/sh", "-c", find, "psql"]
        socket = spec.folder(info.storage)
        return [*base, "-h", socket, "-U", user, "-d", database, *words]

    def shelf(self, info: ServerInfo) -> Shelf:
        """Our own folder in the container, beside the entrypoint."""

        def put(name: str, content: bytes) -> None:
            with translated(f"put a file into the container {info.handle[:12]}"):
                container = self.daemon.client.containers.get(info.handle)
                container.put_archive("/", spec.beside(name, content))

        def remove(name: str) -> None:
            with translated(f"remove a file from the container {info.handle[:12]}"):
                container = self.daemon.client.containers.get(info.handle)
                container.exec_run(["rm", "-f", f"{spec.HOME}/{name}"], user="root")

        return Shelf(spec.HOME, put, remove)

    def standbys(self, info: ServerInfo) -> StandbyPlace:
        """In the same container."""
        # Here: most servers have none.
        from harness.servers.docker.standbys import DockerStandbys

        return DockerStandbys(self.daemon, info)

    def holds(self, project: str, purpose: str) -> bool:
        """Whether there is a container of that identity, running or not."""
        return bool(self._containers(project, purpose))

    def _containers(self, project: str | None, purpose: str | None) -> Sequence[Any]:
        labels = [f"{LABEL}.project" if project is None else f"{LABEL}.project={project}"]
        if purpose is not None:
            labels.append(f"{LABEL}.purpose={purpose}")
        with translated("list its containers"):
            found: Sequence[Any] = self.daemon.client.containers.list(
                all=True, filters={"label": labels}, ignore_removed=True
            )
        # A daemon that several users share, and a checkout that several enter: each has servers of his own.
        return [container for container in found if spec.mine(container)]

    def _listed(self, container: Any) -> ServerInfo | None:
        try:
            return self._info(container)
        except BackendUnavailable:
            # No way leads to it, and it can be ended all the same.
            return container_.info_of(_NOWHERE, container)

    def _info(self, container: Any) -> ServerInfo | None:
        """What a container is.

        Raises:
            BackendUnavailable: it is a server, and no tunnel to it can be opened.
        """
        try:
            password = container_.read_password(container)
            with translated(f"look at the container {container.short_id}"):
                container.reload()
            dsn = container_.address(self.daemon, container, password)
        except BackendUnavailable:
            raise
        except (BackendError, ServerStartError):
            # Removed between two looks, or half made: not a server.
            return None
        return container_.info_of(dsn, container)


_NOWHERE = Dsn("127.0.0.1", 1, "postgres", "", "postgres")


def _idle(container: Any) -> bool:
    """Whether a container that is there does not run: it was not started yet, or has ended."""
    state = container_.state_of(container)
    return state is not None and state["Status"] in abandoned.IDLE
