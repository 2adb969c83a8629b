"""A clock that was set: what somebody makes just now looks old, and stays."""

from __future__ import annotations

import os
from pathlib import Path

from harness.servers.process.backend import ProcessBackend
from harness.servers.process.snapshots import ProcessSnapshots
from harness.servers.process.user import renamed_last


def test_a_snapshot_that_is_being_made_is_not_left_over(folders: tuple[Path, Path]) -> None:
    state, cache = folders
    store = ProcessSnapshots(ProcessBackend(dict(os.environ), state=state, cache=cache))
    store.folder.mkdir(parents=True, exist_ok=True)
    with renamed_last(store.folder / "base-0123") as aside:
        (aside / "half").touch()
        os.utime(aside, (1, 1))
        assert store.leftovers() == []
        assert (aside / "half").exists()
    made = store.folder / "base-0123"
    # Cut off: nobody holds it any more.
    half = made.rename(store.folder / "base-0123.0a1b2c3d")
    os.utime(half, (1, 1))
    assert store.leftovers() == [str(half)]
    assert not half.exists()
