"""What one container is made of: image, storage, labels, and the files that are put into it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import tarfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.servers import defaults, memory
from harness.servers.docker.daemon import Daemon, translated
from harness.servers.handshake import life_key
from harness.servers.port import ServerRequest, watching

if TYPE_CHECKING:
    from harness.servers.docker.tls import Certificate

LABEL = "dev.pg-harness"
HOME = "/pgharness"
"""Our folder in the container. No image declares it as a VOLUME, so a commit keeps what lies in it."""
PORT = 5432
"""Where the server listens in its container; its standbys on the ports behind it."""
DISK, MEMORY = f"{HOME}/data", f"{HOME}/memory"
SCRIPTS = f"{LABEL}.scripts"
"""Label of a baked image: which scripts lie in it."""
CERTIFICATE = f"{LABEL}.certificate"
"""Label of a server that its clients reach by TLS: the certificate that they pin."""
SECRETS = (
    f"{HOME}/password",
    f"{HOME}/server.key",
    f"{HOME}/server.crt",
    f"{DISK}/.pwfile",
    f"{DISK}/server.key",
    f"{DISK}/server.crt",
)
"""Files of one server that no image may hold."""


REPLICAS = f"{LABEL}.replicas"
"""Label of a server's container: how many standbys it may have."""

MAKER = f"{LABEL}.maker"
"""Label of a server's container: the process that made it, and where its number means something."""

MEMORY_LABEL = f"{LABEL}.memory"
"""Label of a server's container: bytes of memory that it may take, for whoever places further ones."""


@dataclass(frozen=True)
class ContainerSpec:
    """What one container is made of.

    Attributes:
        image: ``docker.models.images.Image``.
        name: the image's name, for people.
        storage: ``"memory"`` or ``"disk"``.
        memory: bytes of the tmpfs.
        certificate: of a server that is reached over a network; None: it listens for this machine alone.
        foreign: for people, where the image is for another architecture than the daemon's machine; else empty.
    """

    image: Any
    name: str
    storage: str
    memory: int
    shm_size: int
    foreign: str = ""
    certificate: Certificate | None = None

    @property
    def machine(self) -> str:
        """What the image is for, as ``uname -m`` says; empty where it does not say."""
        wanted = str(self.image.attrs.get("Architecture") or "")
        return next((name for name, images in _SAME.items() if images == wanted), wanted)

    @property
    def fed(self) -> bool:
        """Whether the image has our scripts of today: then nothing has to be unpacked into the container."""
        return bool((self.image.labels or {}).get(SCRIPTS) == scripts_mark())

    @classmethod
    def of(
        cls,
        request: ServerRequest,
        about: Mapping[str, Any],
        *,
        image: Any,
        name: str,
        memory_limit: int | None,
        shm_size: int,
    ) -> ContainerSpec:
        """Decide the storage: memory for runs, where the daemon's machine has room for it.

        Args:
            about: what the daemon says of itself (`docker info`).
        """
        total = int(about.get("MemTotal") or 0)
        # The daemon's machine may be another one: its MemTotal is all that is known of it. On this
        # machine, what is free counts.
        local = memory.budget(None)
        room = min(total // 4, local) if local else total // 4
        if memory_limit is not None:
            room = memory_limit if request.storage == "memory" else min(memory_limit, room)
        storage = memory.storage(request.storage, room, throwaway=request.throwaway)
        return cls(image, name, storage, room, shm_size, foreign(image, about))


def folder(storage: str) -> str:
    """Where data directories and the server's socket lie inside the container."""
    return MEMORY if storage == "memory" else DISK


_SAME = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i686": "386",
    "i386": "386",
}
"""What `docker info` calls an architecture → what images call it."""


def foreign(image: Any, about: Mapping[str, Any]) -> str:
    """How an image's architecture differs from the machine's; empty where it does not.

    Args:
        about: what the daemon says of itself (`docker info`).
    """
    mine, wanted = architecture(about), str(image.attrs.get("Architecture") or "")
    if not mine or not wanted or mine == wanted:
        return ""
    return f"it is for {wanted}, and the daemon's machine is {mine}"


def architecture(about: Mapping[str, Any]) -> str:
    """The daemon's machine's, as images call it; empty where it is not told."""
    told = str(about.get("Architecture") or "")
    return _SAME.get(told, told)


def create(
    daemon: Daemon,
    made_of: ContainerSpec,
    request: ServerRequest,
    *,
    fed: bool,
    standbys: Sequence[int] = (),
) -> Any:
    """Create the container, not yet filled or started.

    Args:
        fed: whether its password and settings will come by standard input.
        standbys: the ports of its standbys; empty: any.

    Raises:
        BackendError: the daemon refused.
    """
    labels = {
        f"{LABEL}.project": request.project,
        f"{LABEL}.purpose": request.purpose,
        f"{LABEL}.server-id": request.server_id,
        f"{LABEL}.root": str(request.root),
        f"{LABEL}.owner": owner(),
        MAKER: f"{os.getpid()} {process_space()}",
        f"{LABEL}.storage": made_of.storage,
        f"{LABEL}.image": made_of.name,
        f"{LABEL}.ttl": "" if request.ttl is None else f"{request.ttl:g}",
        f"{LABEL}.made-with": json.dumps(dict(request.made_with)),
        MEMORY_LABEL: str(_takes(request, made_of)),
    }
    if request.replicas:
        labels[REPLICAS] = str(request.replicas)
    environment = {
        "PGHARNESS_BASE": folder(made_of.storage),
        "PGHARNESS_USER": (made_of.image.attrs.get("Config") or {}).get("User") or "",
        "PGHARNESS_TTL": "" if request.ttl is None else f"{request.ttl:g}",
        "PGHARNESS_LOCK_KEY": str(life_key(request)),
        **watching(request.purpose),
    }
    options: dict[str, Any] = {}
    if made_of.certificate is not None:
        # The key comes with the password. What the server shows to everybody is for whoever finds it here.
        labels[CERTIFICATE] = made_of.certificate.certificate
        environment["PGHARNESS_TLS"] = "yes"
    if fed:
        environment["PGHARNESS_STDIN"] = "yes"
        options["stdin_open"] = True
    if daemon.bind:
        # By ssh, the port is the one of this machine, where the tunnel begins.
        port = None if daemon.ssh else request.port or None
        options["ports"] = {f"{PORT}/tcp": (daemon.bind, port)}
        for number, its in enumerate(standbys or [None] * request.replicas, 1):
            options["ports"][f"{PORT + number}/tcp"] = (daemon.bind, its)
    if daemon.network:
        options["network"] = daemon.network
    if made_of.storage == "memory":
        options["tmpfs"] = {MEMORY: f"size={made_of.memory},mode=1777"}
    with translated(f"create a container from {made_of.name}"):
        return daemon.client.containers.create(
            made_of.image.id,
            command=[],
            entrypoint=["/bin/sh", f"{HOME}/entrypoint.sh"],
            name=name_of(request),
            user="0:0",
            working_dir="/",
            labels=labels,
            environment=environment,
            # A stopped `up` server keeps its data; what a run started is gone with it.
            # A bake is committed after it has stopped; its baker removes it.
            auto_remove=request.throwaway and not request.purpose.startswith("bake-"),
            # Reaps the watcher: it must not be the postmaster's child.
            init=True,
            shm_size=made_of.shm_size,
            stop_signal="SIGINT",
            healthcheck={"test": ["NONE"]},
            # The client would add its proxies, with their passwords, and a bake keeps the variables.
            use_config_proxy=False,
            **options,
        )


def _takes(request: ServerRequest, made_of: ContainerSpec) -> int:
    """Bytes that the server may take: its buffers and processes, and its data where that is in memory."""
    buffers = memory.bytes_of(request.settings.get("shared_buffers", "128MB"))
    # The tmpfs is a limit, far beyond what most servers write.
    data = min(made_of.memory, memory.AT_LEAST) if made_of.storage == "memory" else 0
    return (buffers + memory.PROCESSES + data) * (1 + request.replicas)


def owner() -> str:
    """The number of the user as whom we run; empty on systems without such numbers."""
    return str(os.geteuid()) if hasattr(os, "geteuid") else ""


@cache
def process_space() -> str:
    """Sixteen hex digits of where our number means us, and that of a dead process nobody: one boot of one kernel, one namespace.

    Not :func:`harness.config.project.machine_id`: machines that were copied may share that one.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        where = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        where = f"{uuid.getnode():012x} {socket.gethostname()}"
    return hashlib.sha256(where.encode()).hexdigest()[:16]


def made_here(container: Any) -> bool:
    """Whether we have created a container that has our labels.

    An image that a person made of a server of ours (``docker commit``) has them too, and whatever is run from it: a
    database of that person. Its name is another.
    """
    said = (container.labels.get(f"{LABEL}.{word}", "") for word in ("project", "purpose", "server-id"))
    return bool(container.name == _called(*said))


def mine(container: Any) -> bool:
    """Whether a container of a checkout is this user's; those of earlier versions do not say."""
    return made_here(container) and bool(container.labels.get(f"{LABEL}.owner", owner()) == owner())


def name_of(request: ServerRequest) -> str:
    """What the container is called."""
    return _called(request.project, request.purpose, request.server_id)


def _called(project: str, purpose: str, server_id: str) -> str:
    return f"pg-harness-{project}-{purpose}-{server_id[:8]}"


def settings_of(request: ServerRequest, made_of: ContainerSpec) -> bytes:
    """The server's settings, one a line."""
    settings = defaults.complete(
        request.settings,
        storage=made_of.storage,
        server_id=request.server_id,
        replicas=request.replicas,
    )
    return defaults.render({**settings, "listen_addresses": "*", "port": str(PORT)}).encode()


def feed(request: ServerRequest, made_of: ContainerSpec) -> bytes:
    """What a container whose image has the scripts reads from its standard input."""
    certified = made_of.certificate
    tls = (certified.certificate + "\n" + certified.key + "\n").encode() if certified is not None else b""
    return request.password.encode() + b"\n" + settings_of(request, made_of) + b"\n" + tls


def archive(request: ServerRequest, made_of: ContainerSpec) -> bytes:
    """All that is put into the container before it starts, as a tar file."""
    files = [(name, 0o755, _script(name)) for name in _SCRIPTS]
    files += [(name, 0o644, content) for name, content in request.files.get(made_of.machine, {}).items()]
    files.append(("settings", 0o644, settings_of(request, made_of)))
    files.append(("password", 0o400, request.password.encode() + b"\n"))
    if made_of.certificate is not None:
        files.append(("server.crt", 0o444, made_of.certificate.certificate.encode()))
        files.append(("server.key", 0o400, made_of.certificate.key.encode()))
    return _tar(((HOME, 0o755), (DISK, 0o1777)), files)


_SCRIPTS = ("entrypoint.sh", "watch.sh", "standby.sh")


@cache
def scripts_mark() -> str:
    """Sixteen hex digits of the scripts' text: an image that an older version baked has others in it."""
    return hashlib.sha256(b"\0".join(_script(name) for name in _SCRIPTS)).hexdigest()[:16]


def script_files() -> Iterable[tuple[str, bytes]]:
    """Name and text of each."""
    return [(name, _script(name)) for name in _SCRIPTS]


def _script(name: str) -> bytes:
    return resources.files("harness.servers").joinpath("scripts", name).read_bytes()


def scripts() -> bytes:
    """The scripts alone, as a tar file, for a container that runs."""
    return _tar((), [(name, 0o755, _script(name)) for name in _SCRIPTS])


def entrypoint() -> bytes:
    """The entrypoint alone, as a tar file: it can tell the version of an image's PostgreSQL."""
    return _tar((), [("entrypoint.sh", 0o755, _script("entrypoint.sh"))])


def beside(name: str, content: bytes) -> bytes:
    """One more file beside the scripts, readable by all, as a tar file."""
    return _tar((), [(name, 0o644, content)])


def _tar(folders: Iterable[tuple[str, int]], files: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A tar file of folders, and of files in :data:`HOME`; each with its mode."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, mode in folders:
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)
        for name, mode, content in files:
            entry = tarfile.TarInfo(f"{HOME}/{name}".lstrip("/"))
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
