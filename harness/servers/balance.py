"""Which of several hosts each worker's server goes to: a pure plan; who asks the daemons and starts servers is elsewhere."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class HostRoom:
    """What one host has, as its daemon tells.

    Attributes:
        word: what the settings call it.
        memory: bytes that further servers may take; 0: unknown, and processors decide alone.
        processors: of its machine; 0: unknown, as one.
        servers: how many run there already, whoever's they are.
    """

    word: str
    memory: int
    processors: int
    servers: int = 0


@dataclass(frozen=True)
class Plan:
    """Where the servers of workers go.

    Attributes:
        places: worker → word of its host.
        moved: those that had another one before, which is not among the hosts any more.
        unplaced: those for whom no host has the memory.
    """

    places: Mapping[str, str] = field(default_factory=dict)
    moved: Sequence[str] = ()
    unplaced: Sequence[str] = ()


def plan(
    hosts: Sequence[HostRoom],
    workers: Sequence[str],
    *,
    need: int,
    placed: Mapping[str, str] | None = None,
) -> Plan:
    """Place each worker on the host that is the least used with it there.

    How much a host is used is the larger of two shares: of its free memory that new servers would take, and servers per
    processor. Memory that is not there is never given away; processors may be shared by any number of servers.
    Who is placed on a host that is still there stays: a lease that moves has lost its database. The same hosts, workers and
    places give the same plan in every process. It takes O((workers + hosts) · log hosts).

    Args:
        hosts: those that can be used, each once; of equal ones the first comes first.
        workers: in the order in which they are placed.
        need: bytes of memory of one server.
        placed: worker → word, of an earlier plan; what they take is told by ``hosts`` already.

    Raises:
        ValueError: a host is named twice.
    """
    words = {host.word for host in hosts}
    if len(words) != len(hosts):
        raise ValueError(f"a host is named twice: {', '.join(host.word for host in hosts)}")
    before = placed or {}
    places: dict[str, str] = {}
    moved: list[str] = []
    unplaced: list[str] = []
    heap = [entry for order, host in enumerate(hosts) if (entry := _entry(host, order, 1, need))]
    heapq.heapify(heap)
    for worker in workers:
        if before.get(worker) in words:
            places[worker] = before[worker]
            continue
        if not heap:
            unplaced.append(worker)
            continue
        _, order, new = heap[0]
        host = hosts[order]
        places[worker] = host.word
        if worker in before:
            moved.append(worker)
        if entry := _entry(host, order, new + 1, need):
            heapq.heapreplace(heap, entry)
        else:
            heapq.heappop(heap)
    return Plan(places, tuple(moved), tuple(unplaced))


def _entry(host: HostRoom, order: int, new: int, need: int) -> tuple[float, int, int] | None:
    """How much the host is used with that many new servers, for the heap; None where its memory does not suffice."""
    memory = new * need / host.memory if host.memory else 0.0
    if memory > 1:
        return None
    return max(memory, (host.servers + new) / max(1, host.processors)), order, new
