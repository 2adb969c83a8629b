"""One container: starting it, waiting for it, reading from it, removing it."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
import time
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from harness.config import processes
from harness.config.project import machine_id
from harness.dsn import Dsn
from harness.errors import BackendError, ServerStartError
from harness.servers import defaults, handshake, memory
from harness.servers.docker import spec
from harness.servers.docker.daemon import Daemon, gone, translated
from harness.servers.docker.output import Output, feeding
from harness.servers.port import ServerInfo, ServerRequest, free_port

logger = logging.getLogger("pg_harness.servers.docker")

_REMOVAL = 10.0
"""Seconds that the daemon may take to remove a container."""
_PASSWORD = 64 * 1024
"""Bytes that the password's file may have."""
_WRAPPING = 64 * 1024
"""Bytes that a tar file may have beside the one file in it: names, and zeros up to a whole record."""
_LATE = 1.0
"""Seconds in which a container appears whose creation was interrupted."""


def run(daemon: Daemon, made_of: spec.ContainerSpec, request: ServerRequest) -> ServerInfo:
    """Create, fill, start, wait. Whatever goes wrong (Ctrl-C too), nothing is left behind."""
    if made_of.foreign:
        # Not refused: an emulator may be registered, as Docker Desktop's is.
        logger.info(
            "docker: the image %s: %s; it runs slowly by emulation, or not at all",
            made_of.name,
            made_of.foreign,
        )
    fed = made_of.fed and daemon.feeds
    try:
        # Of a person's, Docker would choose others each time that the container is started.
        ports = [free_port(daemon.bind) for _ in range(request.replicas)] if _stays(daemon, request) else []
        container = spec.create(daemon, made_of, request, fed=fed, standbys=ports)
    except BackendError as error:
        raise ServerStartError(f"{error} (image {made_of.name})") from error
    except BaseException:
        _remove_late(daemon, spec.name_of(request))
        raise
    output = Output(brought=request.snapshot is not None)
    try:
        with translated(f"fill the container {container.short_id}"):
            # Unpacking takes the daemon 45 ms, a process of its own and a mount.
            if not fed:
                container.put_archive("/", spec.archive(request, made_of))
            # Before the start: auto_remove destroys the log together with the container.
            output.attach(container)
        with feeding(daemon, container, spec.feed(request, made_of)) if fed else nullcontext(), daemon.turn():
            _start(container, made_of.name, made_of.foreign)
        info = info_of(_wait_for_address(daemon, container, request), container)
        wait(daemon, container, info, timeout=request.start_timeout, output=output, foreign=made_of.foreign)
    except BaseException:
        with translated(f"remove the container {container.short_id}"):
            remove(daemon, container.id)
        if not daemon.local:
            # Here: of a server of this machine nothing is noted there.
            from harness.servers.docker import tunnel

            tunnel.forget(daemon.folder, container.id, request.server_id)
        raise
    finally:
        output.detach()
    where = (
        f"in memory (at most {made_of.memory // memory.MB} MB)" if made_of.storage == "memory" else "on disk"
    )
    logger.info("docker: started %s, data %s", info.description, where)
    if daemon.encrypted:
        logger.info("docker: the daemon is on %s; the port is open there, for TLS alone", daemon.host)
    return info


def _stays(daemon: Daemon, request: ServerRequest) -> bool:
    return request.purpose == "up" and bool(daemon.bind) and daemon.local


def _remove_late(daemon: Daemon, name: str) -> None:
    """After Ctrl-C while the daemon was creating it: its answer was not read, and the container may come yet."""
    deadline = time.monotonic() + _LATE
    while time.monotonic() < deadline and _ask_to_remove(daemon, name) != 0:
        time.sleep(0.05)


def _start(container: Any, name: str, foreign: str) -> None:
    try:
        with translated(f"start a container of {name}"):
            container.start()
    except BackendError as error:
        text = str(error)
        raise ServerStartError(_plainly(text, name, foreign) or f"{text} (image {name})") from error


def version_in(daemon: Daemon, image: Any, name: str) -> str:
    """What ``postgres --version`` says in an image; its binaries are looked for as at every start.

    Raises:
        ServerStartError: the container cannot be started. BackendError: the daemon refused.
    """
    with translated(f"ask {name} for its version"):
        foreign = spec.foreign(image, daemon.about())
        container = daemon.client.containers.create(
            image.id,
            command=["version"],
            entrypoint=["/bin/sh", f"{spec.HOME}/entrypoint.sh"],
            user="0:0",
            network_mode="none",
            healthcheck={"test": ["NONE"]},
            labels={
                f"{spec.LABEL}.version-of": name,
                f"{spec.LABEL}.asked-by": f"{os.getpid()} {machine_id()}",
            },
        )
    try:
        with translated(f"ask {name} for its version"):
            container.put_archive("/", spec.entrypoint())
        _start(container, name, foreign)
        with translated(f"ask {name} for its version"):
            container.wait(timeout=30)
            said: str = container.logs().decode("utf-8", "replace")
        if plain := _plainly(said, name, foreign):
            raise ServerStartError(plain, log_tail=said)
        return said
    finally:
        with translated(f"remove the container {container.short_id}"):
            remove(daemon, container.id)


def asked_by_nobody(container: Any) -> bool:
    """Whether a container of :func:`version_in` is left over: the process of this machine that made it is gone."""
    pid, _, machine = container.labels.get(f"{spec.LABEL}.asked-by", "").partition(" ")
    return machine == machine_id() and pid.isdecimal() and not processes.alive(int(pid))


def wait(
    daemon: Daemon,
    container: Any,
    info: ServerInfo,
    *,
    timeout: float,
    output: Output | None = None,
    foreign: str = "",
) -> None:
    """Wait until the server in the container answers as itself, or say why it never will."""

    def died() -> str | None:
        if output is not None and not output.ended.is_set():
            return None
        state = state_of(container)
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
        nap = time.sleep if output is None else output.nap
        handshake.wait(info.dsn, info.server_id, timeout=timeout, died=died, tail=tail, nap=nap)
    except ServerStartError as error:
        # With an init process in the container the daemon's own refusals become lines of its log.
        plain = _plainly(error.log_tail, info.description, foreign)
        raise ServerStartError(plain, log_tail=error.log_tail) if plain else error from None


def _plainly(text: str, image: str, foreign: str) -> str | None:
    """What a refusal to run our entrypoint means; None for everything else."""
    low = text.lower()
    if "exec format error" in low:
        why = foreign or "it is for another architecture than the daemon's machine"
        return f"the image {image} cannot run here: {why}. Take one for this machine, or register an emulator"
    if "ssl is not supported by this build" in low:
        return (
            f"the PostgreSQL of {image} was built without OpenSSL, so that its server cannot be reached over a network: "
            "take another image, or reach the daemon by ssh://"
        )
    if "/bin/sh" in low and ("no such file" in low or "not found" in low):
        return f"the image {image} has no /bin/sh, so it cannot be a PostgreSQL image with our entrypoint"
    return None


def state_of(container: Any) -> dict[str, Any] | None:
    """What the daemon says of it now; None where it is gone."""
    with translated(f"look at the container {container.short_id}"):
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
    while (refusal := _ask_to_remove(daemon, handle)) != 404:
        # 409: the daemon is removing it by itself (auto_remove), and it is still listed meanwhile.
        if refusal:
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)


def _ask_to_remove(daemon: Daemon, handle: str) -> int:
    """0 where the daemon does it; 404 where there is no such container, 409 where it is removing it already."""
    try:
        daemon.client.api.remove_container(handle, v=True, force=True)
    except Exception as error:
        if status := gone(error):
            return status
        raise
    return 0


def _wait_for_address(daemon: Daemon, container: Any, request: ServerRequest) -> Dsn:
    state = state_of(container)
    if state is None or not state.get("Running"):
        # It ended at once: any address will do, the wait sees the end and shows the log.
        return Dsn("127.0.0.1", 1, "postgres", request.password, "postgres")
    return address(daemon, container, request.password, port=request.port, port_named=request.port_named)


def address(daemon: Daemon, container: Any, password: str, *, port: int = 0, port_named: bool = False) -> Dsn:
    """The superuser's address of the container's server.

    Args:
        port: of a new tunnel on this machine, where the daemon is reached by ssh and that is free; 0: any.
        port_named: nothing but that port will do.

    Raises:
        BackendError: the container has no published port (it does not run).
    """
    network = container.attrs.get("NetworkSettings") or {}
    if not daemon.bind:
        for name, settings in (network.get("Networks") or {}).items():
            if settings.get("IPAddress") and daemon.network in (None, name):
                return Dsn(settings["IPAddress"], spec.PORT, "postgres", password, "postgres")
    for published in (network.get("Ports") or {}).get(f"{spec.PORT}/tcp") or ():
        there = int(published["HostPort"])
        options: dict[str, str] = {}
        if certificate := container.labels.get(spec.CERTIFICATE):
            # Here: no server of this machine has one.
            from harness.servers.docker import tls

            server_id = container.labels.get(f"{spec.LABEL}.server-id", "")
            options = tls.options(daemon.folder, server_id, certificate)
        if daemon.ssh:
            from harness.servers.docker import tunnel

            there = tunnel.to(daemon, container.id, there, wanted=port, named=port_named)
        return Dsn(daemon.host, there, "postgres", password, "postgres", options)
    if container.status != "running":
        return Dsn(daemon.host or "127.0.0.1", 1, "postgres", password, "postgres")
    raise BackendError(f"the container {container.short_id} publishes no port")


def info_of(dsn: Dsn, container: Any) -> ServerInfo:
    """What the labels say."""
    said = {key.removeprefix(f"{spec.LABEL}."): value for key, value in container.labels.items()}
    return ServerInfo(
        dsn=dsn,
        server_id=said.get("server-id", ""),
        backend="docker",
        purpose=said.get("purpose", ""),
        storage=said.get("storage", "disk"),
        handle=container.id,
        ttl=float(said["ttl"]) if said.get("ttl") else None,
        description=f"{said.get('image', '?')} in container {container.short_id}",
        project=said.get("project", ""),
        root=said.get("root", ""),
        made_with=made_with(said.get("made-with", "{}")),
        standbys=_standbys(dsn, container, int(said.get("replicas") or 0)),
    )


def _standbys(dsn: Dsn, container: Any, count: int) -> tuple[int, ...]:
    """The ports of a container's standbys; none where it does not run."""
    if not count:
        return ()
    inside = [spec.PORT + number for number in range(1, count + 1)]
    published = (container.attrs.get("NetworkSettings") or {}).get("Ports") or {}
    if not published.get(f"{spec.PORT}/tcp"):
        # Reached by the container's own address, or not at all.
        return tuple(inside) if dsn.port == spec.PORT else ()
    found = [int(entry["HostPort"]) for port in inside for entry in (published.get(f"{port}/tcp") or ())[:1]]
    return tuple(found) if len(found) == count else ()


def made_with(text: str) -> dict[str, str]:
    """What a label says of the settings that decided a start."""
    try:
        content = json.loads(text)
        return {str(key): str(value) for key, value in content.items()}
    except (ValueError, AttributeError):
        return {}


def read_password(container: Any) -> str:
    """The password file's content; the daemon reads it, whatever the state of the container."""
    with translated(f"read from the container {container.short_id}"):
        chunks, _ = container.get_archive(f"{spec.HOME}/password")
        content = limited(chunks, _PASSWORD)
        if content is None:
            raise BackendError(
                f"{spec.HOME}/password in the container {container.short_id} is not what was put there"
            )
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            member = tar.extractfile("password")
            return member.read().decode().strip() if member else ""


def limited(chunks: Iterable[bytes], most: int) -> bytes | None:
    """What the daemon sends of a file, as a tar file; None where it is more than a file of so many bytes.

    The size that is told with it is of no use: a folder's is its own, and all that lies in it is sent.
    """
    content = bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) > most + _WRAPPING:
            # The rest is not read: the connection is closed with the last reference to it.
            return None
    return bytes(content)
