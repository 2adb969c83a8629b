"""One container: what it is made of, starting it, waiting for it."""

from __future__ import annotations

import io
import json
import tarfile
import time
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from harness.backends import defaults, ready
from harness.backends.base import ServerInfo, ServerRequest
from harness.backends.docker_daemon import Daemon, gone, translated
from harness.backends.docker_output import Output
from harness.dsn import Dsn
from harness.errors import BackendError, ServerStartError
from harness.telling import Story

LABEL = "dev.pg-harness"
HOME = "/pgharness"
"""Our folder in the container. No image declares it as a VOLUME, so a commit keeps what lies in it."""
_REMOVAL = 10.0
"""Seconds that the daemon may take to remove a container."""
_LATE = 1.0
"""Seconds in which a container appears whose creation was interrupted."""
DISK, MEMORY = f"{HOME}/data", f"{HOME}/memory"


@dataclass(frozen=True)
class Plan:
    """What one container is made of.

    Attributes:
        image: ``docker.models.images.Image``.
        name: the image's name, for people.
        storage: ``"memory"`` or ``"disk"``.
        memory: bytes of the tmpfs.
    """

    image: Any
    name: str
    storage: str
    memory: int
    shm_size: int

    @classmethod
    def of(
        cls, request: ServerRequest, *, image: Any, name: str, memory_limit: int | None, shm_size: int
    ) -> Plan:
        """Decide the storage: memory for runs, where the daemon's machine has room for it."""
        with translated("tell its memory"):
            total = int(image.client.info().get("MemTotal") or 0)
        # The daemon's machine may be another one: its MemTotal is all that is known of it. On this
        # machine, what is free counts.
        local = defaults.memory_budget(None)
        share = min(total // 4, local) if local else total // 4
        memory = min(memory_limit, share) if memory_limit is not None else share
        storage = request.storage
        if storage == "auto":
            throwaway = request.ttl is not None or request.purpose != "up"
            storage = "memory" if throwaway and memory >= defaults.MEMORY_AT_LEAST else "disk"
        elif storage == "memory" and memory_limit is not None:
            memory = memory_limit
        return cls(image, name, storage, memory, shm_size)


def folder(storage: str) -> str:
    """Where data directories and the server's socket lie inside the container."""
    return MEMORY if storage == "memory" else DISK


def run(daemon: Daemon, plan: Plan, request: ServerRequest, story: Story) -> ServerInfo:
    """Create, fill, start, wait. Whatever goes wrong (Ctrl-C too), nothing is left behind."""
    try:
        container = _create(daemon, plan, request)
    except BackendError as error:
        raise ServerStartError(f"{error} (image {plan.name})") from error
    except BaseException:
        _remove_late(daemon, _name(request))
        raise
    output = Output()
    try:
        with translated(f"fill the container {container.short_id}"):
            container.put_archive("/", _archive(request, plan))
            # Before the start: auto_remove destroys the log together with the container.
            output.attach(container)
        _start(container, plan)
        info = info_of(_wait_for_address(daemon, container, request.password), container)
        info = replace(info, ttl=request.ttl)
        wait(daemon, container, info, timeout=request.start_timeout, output=output)
    except BaseException:
        with translated(f"remove the container {container.short_id}"):
            remove(daemon, container.id)
        raise
    finally:
        output.detach()
    where = f"in memory (at most {plan.memory // defaults.MB} MB)" if plan.storage == "memory" else "on disk"
    story(f"docker: started {info.description}, data {where}")
    if not daemon.local and daemon.host:
        story(
            f"docker: the daemon is on {daemon.host}; the port is open on {daemon.bind} there, with a password"
        )
    return info


def _create(daemon: Daemon, plan: Plan, request: ServerRequest) -> Any:
    from harness.catalog.session import lock_key

    labels = {
        f"{LABEL}.project": request.project,
        f"{LABEL}.purpose": request.purpose,
        f"{LABEL}.server-id": request.server_id,
        f"{LABEL}.root": str(request.root),
        f"{LABEL}.storage": plan.storage,
        f"{LABEL}.image": plan.name,
        f"{LABEL}.ttl": "" if request.ttl is None else f"{request.ttl:g}",
        f"{LABEL}.made-with": json.dumps(dict(request.made_with)),
    }
    environment = {
        "PGHARNESS_BASE": folder(plan.storage),
        "PGHARNESS_USER": (plan.image.attrs.get("Config") or {}).get("User") or "",
        "PGHARNESS_TTL": "" if request.ttl is None else f"{request.ttl:g}",
        "PGHARNESS_LOCK_KEY": str(lock_key("server", request.server_id)),
    }
    options: dict[str, Any] = {}
    if daemon.bind:
        options["ports"] = {"5432/tcp": (daemon.bind, None)}
    if daemon.network:
        options["network"] = daemon.network
    if plan.storage == "memory":
        options["tmpfs"] = {MEMORY: f"size={plan.memory},mode=1777"}
    with translated(f"create a container from {plan.name}"):
        return daemon.client.containers.create(
            plan.image.id,
            command=[],
            entrypoint=["/bin/sh", f"{HOME}/entrypoint.sh"],
            name=_name(request),
            user="0:0",
            working_dir="/",
            labels=labels,
            environment=environment,
            # A stopped `up` server keeps its data; what a run started is gone with it.
            # A bake is committed after it has stopped; its baker removes it.
            auto_remove=(request.purpose != "up" or request.ttl is not None)
            and not request.purpose.startswith("bake-"),
            # Reaps the watcher: it must not be the postmaster's child.
            init=True,
            shm_size=plan.shm_size,
            stop_signal="SIGINT",
            healthcheck={"test": ["NONE"]},
            **options,
        )


def _name(request: ServerRequest) -> str:
    return f"pg-harness-{request.project}-{request.purpose}-{request.server_id[:8]}"


def _remove_late(daemon: Daemon, name: str) -> None:
    """After Ctrl-C while the daemon was creating it: its answer was not read, and the container may come yet."""
    deadline = time.monotonic() + _LATE
    while time.monotonic() < deadline:
        try:
            daemon.client.api.remove_container(name, v=True, force=True)
        except Exception as error:
            if not gone(error):
                raise
            time.sleep(0.05)
        else:
            return


def _archive(request: ServerRequest, plan: Plan) -> bytes:
    settings = defaults.complete(request.settings, storage=plan.storage, server_id=request.server_id)
    settings = {**settings, "listen_addresses": "*", "port": "5432"}
    scripts = {name: _script(name) for name in ("entrypoint.sh", "watch.sh")}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, mode in ((HOME, 0o755), (DISK, 0o1777)):
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)
        files = [(f"{HOME}/{name}", 0o755, text) for name, text in scripts.items()]
        files.append((f"{HOME}/settings", 0o644, defaults.render(settings).encode()))
        files.append((f"{HOME}/password", 0o400, request.password.encode() + b"\n"))
        for path, mode, content in files:
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _script(name: str) -> bytes:
    return resources.files("harness.backends").joinpath(name).read_bytes()


def _start(container: Any, plan: Plan) -> None:
    try:
        with translated(f"start a container of {plan.name}"):
            container.start()
    except BackendError as error:
        text = str(error)
        raise ServerStartError(_plainly(text, plan.name) or f"{text} (image {plan.name})") from error


def version_in(daemon: Daemon, image: Any, name: str) -> str:
    """What ``postgres --version`` says in an image; its binaries are looked for as at every start.

    Raises:
        ServerStartError: the container cannot be started. BackendError: the daemon refused.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        content = _script("entrypoint.sh")
        entry = tarfile.TarInfo(f"{HOME}/entrypoint.sh".lstrip("/"))
        entry.size, entry.mode = len(content), 0o755
        tar.addfile(entry, io.BytesIO(content))
    with translated(f"ask {name} for its version"):
        container = daemon.client.containers.create(
            image.id,
            command=["version"],
            entrypoint=["/bin/sh", f"{HOME}/entrypoint.sh"],
            user="0:0",
            network_mode="none",
            healthcheck={"test": ["NONE"]},
            labels={f"{LABEL}.version-of": name},
        )
    try:
        with translated(f"ask {name} for its version"):
            container.put_archive("/", buffer.getvalue())
        _start(container, Plan(image, name, "disk", 0, 0))
        with translated(f"ask {name} for its version"):
            container.wait(timeout=30)
            said: bytes = container.logs()
            return said.decode("utf-8", "replace")
    finally:
        with translated(f"remove the container {container.short_id}"):
            remove(daemon, container.id)


def wait(
    daemon: Daemon, container: Any, info: ServerInfo, *, timeout: float, output: Output | None = None
) -> None:
    """Wait until the server in the container answers as itself, or say why it never will."""

    def died() -> str | None:
        if output is not None and not output.ended.is_set():
            return None
        state = _state(container)
        if state is None:
            return f"the container of {info.description} ended at once"
        if state.get("Running"):
            return None
        return f"the container of {info.description} ended with code {state.get('ExitCode')}"

    def tail() -> str:
        if output is not None:
            output.ended.wait(0.5)
            return output.tail()
        return _tail_of(container)

    try:
        ready.wait(info.dsn, info.server_id, timeout=timeout, died=died, tail=tail)
    except ServerStartError as error:
        # With an init process in the container the daemon's own refusals become lines of its log.
        plain = _plainly(error.log_tail, info.description)
        raise ServerStartError(plain, log_tail=error.log_tail) if plain else error from None


def _plainly(text: str, image: str) -> str | None:
    """What a refusal to run our entrypoint means; None for everything else."""
    low = text.lower()
    if "exec format error" in low:
        return f"the image {image} is for another architecture than this Docker daemon's"
    if "/bin/sh" in low and ("no such file" in low or "not found" in low):
        return f"the image {image} has no /bin/sh, so it cannot be a PostgreSQL image with our entrypoint"
    return None


def _state(container: Any) -> dict[str, Any] | None:
    try:
        container.reload()
    except Exception as error:
        if gone(error):
            return None
        raise
    state: dict[str, Any] = container.attrs["State"]
    return state


def _tail_of(container: Any) -> str:
    try:
        return defaults.tail(container.logs(tail=25).decode("utf-8", "replace"))
    except Exception as error:
        if gone(error):
            return ""
        raise


def remove(daemon: Daemon, handle: str) -> None:
    """Remove a container and its volumes, and wait until it is gone; that it is gone already is success."""
    deadline = time.monotonic() + _REMOVAL
    while True:
        try:
            daemon.client.api.remove_container(handle, v=True, force=True)
        except Exception as error:
            if not gone(error):
                raise
            # 409: the daemon is removing it by itself (auto_remove), and it is still listed meanwhile.
            if error.response.status_code == 404 or time.monotonic() > deadline:  # type: ignore[attr-defined]
                return
            time.sleep(0.02)


def _wait_for_address(daemon: Daemon, container: Any, password: str) -> Dsn:
    state = _state(container)
    if state is None or not state.get("Running"):
        # It ended at once: any address will do, the wait sees the end and shows the log.
        return Dsn("127.0.0.1", 1, "postgres", password, "postgres")
    return address(daemon, container, password)


def address(daemon: Daemon, container: Any, password: str) -> Dsn:
    """The superuser's address of the container's server.

    Raises:
        BackendError: the container has no published port (it does not run).
    """
    network = container.attrs.get("NetworkSettings") or {}
    if not daemon.bind:
        for name, settings in (network.get("Networks") or {}).items():
            if settings.get("IPAddress") and daemon.network in (None, name):
                return Dsn(settings["IPAddress"], 5432, "postgres", password, "postgres")
    for published in (network.get("Ports") or {}).get("5432/tcp") or ():
        return Dsn(daemon.host, int(published["HostPort"]), "postgres", password, "postgres")
    if container.status != "running":
        return Dsn(daemon.host or "127.0.0.1", 1, "postgres", password, "postgres")
    raise BackendError(f"the container {container.short_id} publishes no port")


def info_of(dsn: Dsn, container: Any) -> ServerInfo:
    """What the labels say."""
    labels = container.labels
    image = labels.get(f"{LABEL}.image", "?")
    return ServerInfo(
        dsn=dsn,
        server_id=labels.get(f"{LABEL}.server-id", ""),
        backend="docker",
        purpose=labels.get(f"{LABEL}.purpose", ""),
        storage=labels.get(f"{LABEL}.storage", "disk"),
        handle=container.id,
        description=f"{image} in container {container.short_id}",
        project=labels.get(f"{LABEL}.project", ""),
        root=labels.get(f"{LABEL}.root", ""),
        made_with=_made_with(labels.get(f"{LABEL}.made-with", "{}")),
    )


def _made_with(text: str) -> dict[str, str]:
    try:
        content = json.loads(text)
        return {str(key): str(value) for key, value in content.items()}
    except (ValueError, AttributeError):
        return {}


def read_password(container: Any) -> str:
    """The password file's content; the daemon reads it, whatever the state of the container."""
    with translated(f"read from the container {container.short_id}"):
        chunks, _ = container.get_archive(f"{HOME}/password")
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
            member = tar.extractfile("password")
            return member.read().decode().strip() if member else ""
