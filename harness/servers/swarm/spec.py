"""What a service is made of: the image, its files, where it may be placed, and what its tasks are told."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.postgres.session import LOCK_PREFIX
from harness.servers.docker import spec as docker
from harness.servers.docker.spec import HOME, LABEL
from harness.servers.port import ServerRequest, watching

NOTE = f"{LABEL}.note"
"""Label of a service, its secrets and its configs: what its note is called, and what belongs together."""

BACKEND = f"{LABEL}.backend"
"""Label of all of them: containers have none."""

GRACE = 10
"""Seconds that a server may take to shut down before its node kills it."""

LIFE_KEY = (
    f"(('x'||left(encode(sha256(('{LOCK_PREFIX}server:'||current_setting('harness.server_id'))::bytea),'hex'),16))"
    "::bit(64)::bigint)"
)
"""The key of a server's sign of life (:func:`harness.postgres.session.lock_key`), as the server itself reckons it: its id is its
task's, which nobody knows before the Swarm has made it."""

_WORKER = re.compile(r"(run-[0-9a-f]{8})-.+")


def group_of(purpose: str) -> str:
    """The purpose of the service: workers of one run are served by one; every other server has its own."""
    found = _WORKER.fullmatch(purpose)
    return found[1] if found else purpose


def is_group(purpose: str) -> bool:
    """Whether it is that of a service whose servers are several workers'."""
    return group_of(f"{purpose}-0") == purpose


def name_of(request: ServerRequest) -> str:
    """What the service is called; there is at most one of a checkout, user and purpose: several users may have one checkout."""
    return "-".join(filter(None, ("pg-harness", request.project, docker.owner(), group_of(request.purpose))))


@dataclass(frozen=True)
class File:
    """One file that a task finds, wherever its node is.

    Attributes:
        name: in :data:`harness.servers.docker.spec.HOME`.
        secret: whether the Swarm keeps it as a secret: in memory on the nodes, and told to nobody.
    """

    name: str
    content: bytes = field(repr=False)
    mode: int
    secret: bool = False

    def mounted(self, handle: str, kept_as: str) -> dict[str, Any]:
        """As a service's specification refers to it."""
        kind = "Secret" if self.secret else "Config"
        target = {"Name": f"{HOME}/{self.name}", "UID": "0", "GID": "0", "Mode": self.mode}
        return {f"{kind}ID": handle, f"{kind}Name": kept_as, "File": target}


def files(request: ServerRequest, made_of: docker.ContainerSpec, *, certificate: str, key: str) -> list[File]:
    """All that the image does not hold.

    Args:
        certificate, key: of the servers, PEM.
    """
    found = []
    if not made_of.fed:
        found += [File(name, content, 0o755) for name, content in docker.script_files()]
        brought = request.files.get(made_of.machine, {})
        found += [File(name, content, 0o644) for name, content in brought.items()]
    # A setting may hold a password; the server's user reads it.
    found.append(File("settings", docker.settings_of(request, made_of), 0o444, secret=True))
    found.append(File("password", request.password.encode() + b"\n", 0o400, secret=True))
    if certificate:
        found.append(File("server.crt", certificate.encode(), 0o644))
        found.append(File("server.key", key.encode(), 0o400, secret=True))
    return found


_SERVICE_ONLY = frozenset(
    f"{LABEL}.{name}"
    for name in ("project", "purpose", "root", "owner", "storage", "image", "ttl", "made-with")
)


def labels_of(request: ServerRequest, made_of: docker.ContainerSpec, mark: str) -> dict[str, str]:
    """What says whose a service is."""
    return {
        BACKEND: "swarm",
        NOTE: mark,
        f"{LABEL}.project": request.project,
        f"{LABEL}.purpose": group_of(request.purpose),
        f"{LABEL}.root": str(request.root),
        f"{LABEL}.owner": docker.owner(),
        f"{LABEL}.storage": made_of.storage,
        f"{LABEL}.image": made_of.name,
        f"{LABEL}.ttl": "" if request.ttl is None else f"{request.ttl:g}",
        f"{LABEL}.made-with": json.dumps(dict(request.made_with)),
    }


def service(
    request: ServerRequest,
    made_of: docker.ContainerSpec,
    *,
    image: str,
    labels: Mapping[str, str],
    mounted: Sequence[Mapping[str, Any]],
    constraints: Sequence[str],
    reserve: int,
) -> dict[str, Any]:
    """The specification, as the interface takes it; with one server.

    Args:
        image: what every node understands: an id, or a name with a digest.
        mounted: secrets and configs, see :meth:`File.mounted`.
        reserve: bytes of memory that a node must have left; 0: it is not asked for.
    """
    environment = {
        "PGHARNESS_BASE": docker.folder(made_of.storage),
        "PGHARNESS_USER": (made_of.image.attrs.get("Config") or {}).get("User") or "",
        "PGHARNESS_TTL": "" if request.ttl is None else f"{request.ttl:g}",
        "PGHARNESS_LOCK_KEY": LIFE_KEY,
        # The Swarm puts it in, for each task its own.
        "PGHARNESS_SERVER_ID": "{{.Task.ID}}",
        **({"PGHARNESS_TLS": "yes"} if any(_is_key(file) for file in mounted) else {}),
        **watching(request.purpose),
    }
    mounts = [_in_memory("/dev/shm", made_of.shm_size)]  # noqa: S108 - of the container
    if made_of.storage == "memory":
        mounts.append(_in_memory(docker.MEMORY, made_of.memory))
    container = {
        "Image": image,
        # None by which the docker backend would take it for a container of its own, on a manager's daemon.
        "Labels": {name: value for name, value in labels.items() if name not in _SERVICE_ONLY},
        "Command": ["/bin/sh", f"{HOME}/entrypoint.sh"],
        "User": "0:0",
        "Dir": "/",
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "Mounts": mounts,
        # Reaps the watcher: it must not be the postmaster's child.
        "Init": True,
        "StopSignal": "SIGINT",
        "StopGracePeriod": GRACE * 10**9,
        "Healthcheck": {"Test": ["NONE"]},
        "Secrets": [file for file in mounted if "SecretID" in file],
        "Configs": [file for file in mounted if "ConfigID" in file],
    }
    architecture = str(made_of.image.attrs.get("Architecture") or "")
    placement: dict[str, Any] = {"Constraints": list(constraints)}
    if architecture:
        placement["Platforms"] = [
            {"OS": str(made_of.image.attrs.get("Os") or "linux"), "Architecture": architecture}
        ]
    task: dict[str, Any] = {
        "ContainerSpec": container,
        # A server that has ended has ended itself, or lost its data: another in its place is nobody's.
        "RestartPolicy": {"Condition": "none"},
        "Placement": placement,
    }
    if reserve:
        task["Resources"] = {"Reservations": {"MemoryBytes": reserve}}
    # Of the node itself, any that is free: neither ingress nor an overlay network is needed, nor ip_vs.
    port: dict[str, Any] = {"Protocol": "tcp", "TargetPort": 5432, "PublishMode": "host"}
    if request.port_named:
        port["PublishedPort"] = request.port
    return {
        "Name": name_of(request),
        "Labels": dict(labels),
        "TaskTemplate": task,
        "Mode": {"Replicated": {"Replicas": 1}},
        "EndpointSpec": {"Mode": "dnsrr", "Ports": [port]},
        # What moves because its node was left out moves at once: one after the other, each is looked at for five seconds.
        "UpdateConfig": {"Parallelism": 0, "FailureAction": "continue"},
    }


def _is_key(file: Mapping[str, Any]) -> bool:
    return str(file["File"]["Name"]).endswith("/server.key")


def _in_memory(path: str, size: int) -> dict[str, Any]:
    return {"Type": "tmpfs", "Target": path, "TmpfsOptions": {"SizeBytes": size, "Mode": 0o1777}}
