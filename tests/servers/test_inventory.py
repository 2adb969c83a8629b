"""Servers of deleted checkouts: found and ended where they are ours, and nobody else's is touched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from fix_backends import Checkout, until

from harness.config.project import Project, checkout_id, machine_id, state_dir
from harness.servers import inventory


def test_a_server_whose_checkout_was_removed(
    new_checkout: Callable[..., Checkout], kind: dict[str, str]
) -> None:
    gone, here, other = new_checkout("gone"), new_checkout("here"), new_checkout("other")
    with (
        gone.ensure(gone.settings(**kind), purpose="up") as lost,
        other.ensure(other.settings(**kind), purpose="up"),
    ):

        def found(place: Checkout = here) -> list[inventory.Orphan]:
            # Other suites on this machine may have lost theirs.
            known = {gone.project, other.project, here.project}
            everywhere = inventory.orphans(Project.of(place.settings(**kind), place.environ))
            return [orphan for orphan in everywhere if orphan.info.project in known]

        assert found() == []
        shutil.rmtree(gone.root)
        (orphan,) = found()
        assert orphan.info.handle == lost.info.handle
        # From the checkout itself it is no orphan: whoever stands there may still call `down`.
        assert found(gone) == []
        assert orphan.end() == "somebody uses it"
        lost.close()
        # The server notices a moment later that its session is gone.
        until(lambda: orphan.end() == "", seconds=10, what="the server that nobody uses to be ended")
        assert found() == []
        assert [i.purpose for i in inventory.servers(Project.of(other.settings(**kind), other.environ))] == [
            "up"
        ]
    noted = state_dir(here.environ)
    assert (noted / gone.project).exists()
    inventory.forget_deleted(Project.of(here.settings(**kind), here.environ))
    assert not (noted / gone.project).exists()
    assert (noted / other.project).exists()


def test_only_what_was_on_this_machine_and_is_surely_removed(tmp_path: Path) -> None:
    def mine(root: str) -> str:
        return checkout_id(machine_id(), root)

    gone = str(tmp_path / "gone")
    assert inventory.deleted(gone, mine(gone))
    assert not inventory.deleted(str(tmp_path), mine(str(tmp_path)))
    assert not inventory.deleted(gone, checkout_id("another machine", gone))
    assert not inventory.deleted("", mine(""))
    # A disk that is not plugged in.
    assert not inventory.deleted("/media/nobody/disk/shop", mine("/media/nobody/disk/shop"))
    (tmp_path / "file").write_text("")
    assert inventory.deleted(str(tmp_path / "file" / "shop"), mine(str(tmp_path / "file" / "shop")))
