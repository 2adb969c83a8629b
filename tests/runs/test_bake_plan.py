"""Which baked bases go, and what memory servers take: pure decisions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.databases.sweep import Retention
from harness.errors import BackendError
from harness.runs.bake import plan
from harness.servers.memory import MB, Room, bytes_of, told_full
from harness.servers.port import Snapshot

DAY = 86400.0
LIMITS = Retention(12, 14 * DAY, 4 * 1024**3, ("keep_baked", "baked_size"))


def base(key: str, *, used: float, size: int = 10) -> Snapshot:
    return Snapshot(ref=f"/cache/base-{key}", key=key, backend="process", size=size, created=0, used=used)


def test_nothing_goes_within_the_limits() -> None:
    assert plan([base("a", used=0), base("b", used=DAY)], LIMITS, now=2 * DAY) == []


@pytest.mark.parametrize(
    ("limits", "gone", "why"),
    [
        (replace(LIMITS, count=2), {"a", "b"}, "keep_baked = 2"),
        (replace(LIMITS, age=2.5 * DAY), {"a", "b"}, "not used for"),
        (replace(LIMITS, size=25), {"a", "b"}, "baked_size"),
    ],
)
def test_the_least_recently_used_go_first(limits: Retention, gone: set[str], why: str) -> None:
    bases = [base(key, used=place * DAY) for place, key in enumerate("abcd", 1)]
    doomed = plan(bases, limits, now=5 * DAY)
    assert {found.item.key for found in doomed} == gone
    assert all(why in found.reason for found in doomed)


def test_the_one_that_was_just_baked_stays_whatever_the_limits() -> None:
    bases = [base("old", used=0, size=100), base("new", used=1, size=100)]
    doomed = plan(bases, Retention(count=1, age=1, size=1), now=100 * DAY, keep="old")
    assert [found.item.key for found in doomed] == ["new"]


def test_memory_is_told_before_it_is_exceeded(told: list[str]) -> None:
    room = Room(free=1000 * MB, work=150 * MB, data=400 * MB, wanted="auto")
    assert room.storage(1) == "disk"  # 550 MB are more than half of what is free
    room.check(4)
    assert told == ["memory: 4 × 150 MB = 600 MB (data on disk), 1000 MB are free"]
    with pytest.raises(
        BackendError, match=r"8 servers do not fit into memory: 8 × 150 MB = 1200 MB"
    ) as caught:
        room.check(8)
    assert "at most 6 workers" in str(caught.value)
    assert len(told) == 1


def test_memory_that_was_asked_for_is_reckoned_with_the_data() -> None:
    room = Room(free=1000 * MB, work=150 * MB, data=400 * MB, wanted="memory")
    with pytest.raises(BackendError, match='storage = "disk"'):
        room.check(2)
    assert room.tmpfs(1) == 500 * MB
    assert room.tmpfs(4) == 400 * MB


@pytest.mark.parametrize(
    ("text", "number"),
    [("128MB", 128 * MB), ("1GB", 1024 * MB), ("16384", 128 * MB), ("64 kB", 65536), ("?", 128 * MB)],
)
def test_memory_settings(text: str, number: int) -> None:
    assert bytes_of(text) == number


@pytest.mark.parametrize(
    "said",
    [
        'ERROR:  could not extend file "base/5/16385": No space left on device',
        'could not extend file "base/16405/16415": wrote only 4096 of 8192 bytes at block 9\nHINT: Check free disk space.',
        "cp: error writing '/dev/shm/x/base/1/1259': No space left on device",
    ],
)
def test_a_full_file_system_is_known_by_what_is_said(said: str) -> None:
    assert told_full(said)


def test_another_failure_is_not_taken_for_a_full_file_system() -> None:
    assert not told_full('ERROR:  could not open file "base/5/16385": No such file or directory')
