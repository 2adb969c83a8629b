"""Where workers' servers go: the plan alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.servers.balance import HostRoom, plan

GB = 1024**3


def names(count: int) -> list[str]:
    return [f"gw{n}" for n in range(count)]


def test_equal_hosts_get_equally_many() -> None:
    hosts = [HostRoom(word, 16 * GB, 8) for word in ("a", "b", "c")]
    assert Counter(plan(hosts, names(9), need=GB).places.values()) == {"a": 3, "b": 3, "c": 3}


def test_a_host_with_more_processors_gets_more() -> None:
    found = plan([HostRoom("small", 64 * GB, 4), HostRoom("large", 64 * GB, 12)], names(16), need=GB // 4)
    assert Counter(found.places.values()) == {"small": 4, "large": 12}


def test_memory_that_is_not_there_is_not_given_away() -> None:
    found = plan([HostRoom("full", GB // 2, 64), HostRoom("tight", 2 * GB, 1)], names(3), need=GB)
    assert found.places == {"gw0": "tight", "gw1": "tight"}
    assert found.unplaced == ("gw2",)


def test_servers_that_run_already_count() -> None:
    found = plan([HostRoom("busy", 64 * GB, 4, servers=4), HostRoom("idle", 64 * GB, 4)], names(4), need=GB)
    assert Counter(found.places.values()) == {"idle": 4}


def test_unknown_memory_and_processors_are_used() -> None:
    found = plan([HostRoom("unknown", 0, 0), HostRoom("known", 64 * GB, 3)], names(4), need=GB)
    assert Counter(found.places.values()) == {"known": 3, "unknown": 1}


def test_who_is_placed_stays_and_those_of_a_host_that_died_move() -> None:
    hosts = [HostRoom(word, 64 * GB, 4) for word in ("a", "b", "c")]
    before = plan(hosts, names(9), need=GB).places
    left = [HostRoom(host.word, host.memory, host.processors, servers=3) for host in hosts[1:]]
    after = plan(left, names(9), need=GB, placed=before)
    lost = [worker for worker, word in before.items() if word == "a"]
    assert list(after.moved) == lost
    assert all(after.places[w] == before[w] for w in before if w not in lost)
    assert {after.places[w] for w in lost} == {"b", "c"}


def test_without_a_host_all_are_unplaced() -> None:
    assert plan([], names(2), need=GB).unplaced == ("gw0", "gw1")


def test_a_host_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="named twice: a, a"):
        plan([HostRoom("a", GB, 1), HostRoom("a", GB, 1)], names(1), need=1)


HOSTS = st.lists(
    st.builds(
        HostRoom,
        st.uuids().map(str),
        st.integers(0, 64).map(lambda n: n * GB // 2),
        st.integers(0, 64),
        st.integers(0, 20),
    ),
    unique_by=lambda host: host.word,
    max_size=12,
)


@given(hosts=HOSTS, wanted=st.integers(0, 60), need=st.integers(1, 8), data=st.data())
def test_what_holds_for_all_hosts(hosts: list[HostRoom], wanted: int, need: int, data: st.DataObject) -> None:
    need *= GB // 2
    workers = names(wanted)
    words = [*(host.word for host in hosts), "gone"]
    placed = data.draw(st.dictionaries(st.sampled_from(workers or ["nobody"]), st.sampled_from(words)))
    found = plan(hosts, workers, need=need, placed=placed)
    assert sorted([*found.places, *found.unplaced]) == sorted(workers)
    assert found == plan(hosts, workers, need=need, placed=placed)
    new = Counter(word for worker, word in found.places.items() if placed.get(worker) not in words[:-1])
    for host in hosts:
        assert not host.memory or new[host.word] * need <= host.memory
        # Whoever was left out has found no room anywhere.
        if found.unplaced:
            assert host.memory
            assert (new[host.word] + 1) * need > host.memory
    for worker, word in found.places.items():
        if placed.get(worker) in words[:-1]:
            assert word == placed[worker]

    # No host is used more than another one would be with one of its new servers.
    def used(host: HostRoom, count: int) -> float:
        return max(
            count * need / host.memory if host.memory else 0, (host.servers + count) / max(1, host.processors)
        )

    for one in hosts:
        for other in hosts:
            if new[one.word] and (not other.memory or (new[other.word] + 1) * need <= other.memory):
                assert used(one, new[one.word]) <= used(other, new[other.word] + 1)
