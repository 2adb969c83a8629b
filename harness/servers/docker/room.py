"""What one Docker host has: its memory, its processors, its servers, as its daemon tells them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from harness.servers import memory
from harness.servers.balance import HostRoom
from harness.servers.docker.daemon import Daemon, translated
from harness.servers.docker.spec import LABEL, MEMORY_LABEL
from harness.servers.port import HostState

if TYPE_CHECKING:
    from harness.servers.docker.backend import DockerBackend

CLOCKS = 60.0
"""Seconds by which two machines' clocks may differ before a person is told."""

_ASKED = 32
"""Containers whose memory is asked for one by one; of more, the rest counts as their average."""


def identity(member: DockerBackend) -> str:
    """What tells one daemon from another, whatever address it is reached by.

    Its own ID (`docker info`) does not suffice: copies of one machine have the same, and daemons of one machine may. Its
    network ``bridge`` is made anew, with a random id, whenever a daemon starts.
    """
    daemon = member.daemon
    about = daemon.about()
    with translated("list its networks"):
        networks = daemon.client.api.networks(names=["bridge"])
    bridge = next((str(each["Id"]) for each in networks if each.get("Name") == "bridge"), "")
    return " ".join([str(about.get("ID")), bridge or f"{about.get('Name')} {about.get('DockerRootDir')}"])


def of(member: DockerBackend) -> HostRoom:
    """What further servers may take there.

    Raises:
        BackendError: its daemon does not tell.
    """
    daemon = member.daemon
    about = daemon.about()
    with translated("list its containers"):
        running = daemon.client.api.containers()
    known = int(about.get("MemTotal") or 0)
    free = max(1, known - _taken(daemon, running, known)) if known else 0
    if daemon.local and (here := memory.free_memory()):
        # On this machine others than containers count too.
        free = min(free or here, here)
    return HostRoom(daemon.where, free, int(about.get("NCPU") or 0), len(running))


def _taken(daemon: Daemon, running: Sequence[dict[str, Any]], known: int) -> int:
    """Bytes that the running containers may take: their limit, or what a server of ours may grow to; else what they use."""
    if not running:
        return 0
    asked = running[:_ASKED]
    with ThreadPoolExecutor(8) as pool:
        each = list(pool.map(lambda container: _takes(daemon, container, known), asked))
    return sum(each) + sum(each) // len(each) * (len(running) - len(asked))


def _takes(daemon: Daemon, container: dict[str, Any], known: int) -> int:
    labels = container.get("Labels") or {}
    ours = int(labels[MEMORY_LABEL]) if str(labels.get(MEMORY_LABEL, "")).isdecimal() else 0
    try:
        with translated("tell a container's memory"):
            told = (
                daemon.client.api.stats(container["Id"], stream=False, one_shot=True).get("memory_stats")
                or {}
            )
    except Exception:  # noqa: BLE001 - it has ended meanwhile, or the daemon's machine does not count memory
        return ours
    limit, usage = int(told.get("limit") or 0), int(told.get("usage") or 0)
    if 0 < limit < known * 95 // 100:
        return limit
    return max(ours, usage)


def state(member: DockerBackend) -> HostState:
    """As of now, for people.

    Raises:
        BackendError: its daemon does not tell.
    """
    found = of(member)
    with translated("list its containers"):
        mine = member.daemon.client.api.containers(filters={"label": f"{LABEL}.server-id"})
    about = member.daemon.about()
    return HostState(
        found.word, str(about.get("ServerVersion") or ""), found.processors, found.memory, len(mine)
    )
