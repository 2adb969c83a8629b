#!/usr/bin/env python3
"""The real ``plan()`` over simulated hosts that die and come back, against two plainer ways of placing, in the same run.

python benchmarks/placement.py [HOSTS] [WORKERS] [ROUNDS]

Nothing is started: hosts are values. In each round some hosts die, some that died come back, and a tenth of the workers ends and is
replaced by new ones. Told for each way:

- decisions a second: workers placed anew, by the time that placing took (wall and processor), the hosts' facts given;
- moved: of the workers that were there before and after a round, the share that has another host. What nobody can avoid is the
  share whose host died;
- fairness: Jain's index of servers per processor over the hosts that are up, (Σx)² / (n Σx²): 1 where all are used alike, 1/n
  where one has everything;
- over: rounds in which some host was given more memory than it has.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from harness.servers.balance import HostRoom, plan

GB = 1024**3
NEED = GB // 2
"""Of one worker's server: what a template of some 60 tables, its clone and a server's own take in memory."""
DIES, RETURNS = 0.01, 0.2
"""Chance of a host in each round."""

Place = Callable[[Sequence[HostRoom], Sequence[str], Mapping[str, str], Mapping[str, int]], Mapping[str, str]]


def ours(
    up: Sequence[HostRoom], workers: Sequence[str], placed: Mapping[str, str], taken: Mapping[str, int]
) -> Mapping[str, str]:
    """As the product does it: with what daemons would tell now."""
    told = [
        HostRoom(host.word, max(1, host.memory - taken[host.word] * NEED), host.processors, taken[host.word])
        for host in up
    ]
    return plan(told, workers, need=NEED, placed=placed).places


def in_turn(
    up: Sequence[HostRoom], workers: Sequence[str], placed: Mapping[str, str], taken: Mapping[str, int]
) -> Mapping[str, str]:
    """Worker i on host i, as a list of hosts in a CI's matrix does it."""
    return {worker: up[number % len(up)].word for number, worker in enumerate(workers)}


def hashed(
    up: Sequence[HostRoom], workers: Sequence[str], placed: Mapping[str, str], taken: Mapping[str, int]
) -> Mapping[str, str]:
    """By rendezvous hashing: a worker's host is the one whose name hashes highest with its own. It moves the least without asking."""
    places = {}
    for worker in workers:
        key = worker.encode()
        places[worker] = max(
            up, key=lambda host: blake2b(key + host.word.encode(), digest_size=8).digest()
        ).word
    return places


WAYS: Mapping[str, Place] = {"plan()": ours, "in turn": in_turn, "hashed": hashed}


@dataclass
class Told:
    """What one way did over all rounds."""

    placed_anew: int = 0
    wall: float = 0.0
    processor: float = 0.0
    stayed_on: int = 0
    moved: int = 0
    unavoidable: int = 0
    fairness: list[float] = field(default_factory=list)
    over: int = 0
    unplaced: int = 0


def simulate(place: Place, hosts: Sequence[HostRoom], count: int, rounds: int, *, seed: int) -> Told:
    """The same deaths and the same workers for every way: all chance is the seed's."""
    chance = random.Random(seed)
    told = Told()
    by_word = {host.word: host for host in hosts}
    down: set[str] = set()
    workers = [f"w{number}" for number in range(count)]
    fresh = count
    places: dict[str, str] = {}
    for round_ in range(rounds + 1):
        before = dict(places)
        if round_:
            down = {word for word in down if chance.random() > RETURNS} | {
                host.word for host in hosts if host.word not in down and chance.random() < DIES
            }
            gone = set(chance.sample(workers, count // 10))
            workers = [worker for worker in workers if worker not in gone]
            workers += [f"w{fresh + number}" for number in range(len(gone))]
            fresh += len(gone)
        up = [host for host in hosts if host.word not in down]
        kept = {worker: word for worker in workers if (word := before.get(worker)) is not None}
        taken = Counter(word for word in kept.values() if word not in down)
        began, processor = time.perf_counter(), time.process_time()
        places = dict(place(up, workers, kept, taken))
        told.wall += time.perf_counter() - began
        told.processor += time.process_time() - processor
        told.placed_anew += sum(places.get(worker) != before.get(worker) for worker in workers)
        told.unplaced += len(workers) - len(places)
        told.stayed_on += len(kept)
        told.moved += sum(places.get(worker) != word for worker, word in kept.items())
        told.unavoidable += sum(word in down for word in kept.values())
        load = Counter(places.values())
        use = [load[host.word] / host.processors for host in up]
        told.fairness.append(sum(use) ** 2 / (len(use) * sum(x * x for x in use)))
        told.over += any(number * NEED > by_word[word].memory for word, number in load.items())
    return told


def main(hosts: int = 1000, workers: int = 10_000, rounds: int = 20) -> None:
    """Simulate, and print a table."""
    chance = random.Random(1)
    machines = [
        HostRoom(
            f"tcp://host-{number}:2376",
            chance.choice((8, 16, 32, 64, 128)) * GB,
            chance.choice((4, 8, 16, 32, 64)),
        )
        for number in range(hosts)
    ]
    print(f"{hosts} hosts, {workers} workers of {NEED // 2**20} MB, {rounds} rounds; 1 % of the hosts die in each, "
          "a tenth of the workers is replaced")  # fmt: skip
    print(
        f"{'':8} {'decisions/s':>12} {'CPU s':>7} {'moved':>7} {'unavoidable':>12} {'fairness, worst':>16} {'over':>5} {'unplaced':>9}"
    )
    for name, place in WAYS.items():
        # Hashing asks every host for every worker: as many rounds of it would take an hour.
        told = simulate(place, machines, workers, rounds if name != "hashed" else min(rounds, 3), seed=7)
        print(
            f"{name:8} {told.placed_anew / told.wall:12,.0f} {told.processor:7.2f} {told.moved / max(1, told.stayed_on):7.2%} "
            f"{told.unavoidable / max(1, told.stayed_on):12.2%} {min(told.fairness):16.3f} {told.over:5} {told.unplaced:9}"
        )
    one = machines[:]
    began = time.perf_counter()
    for number in range(100):
        plan(one, [f"w{number}"], need=NEED)
    print(f"one worker alone, {hosts} hosts: {(time.perf_counter() - began) * 10:.2f} ms")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
