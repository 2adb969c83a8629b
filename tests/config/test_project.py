"""The project: what is known of a checkout once its settings are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.config import project
from harness.config.project import Project, checkout_id, project_id
from harness.config.settings import Settings


def test_what_a_project_is(tmp_path: Path) -> None:
    environ = {"HOME": "/home/me", "XDG_CACHE_HOME": "/var/cache/me"}
    found = Project.of(Settings(root=tmp_path), environ)
    assert found.id == project_id(tmp_path)
    assert (found.state, found.cache) == (
        Path("/home/me/.local/state/pg-harness"),
        Path("/var/cache/me/pg-harness"),
    )
    assert found.folder == found.state / found.id


def test_the_environment_is_as_it_was(tmp_path: Path) -> None:
    environ = {"HOME": "/home/me", "DATABASE_URL": "theirs"}
    found = Project.of(Settings(root=tmp_path), environ)
    environ["DATABASE_URL"] = "ours"
    assert found.environ == {"HOME": "/home/me", "DATABASE_URL": "theirs"}
    # It may hold passwords.
    assert "theirs" not in repr(found)


def test_settings_change_and_the_checkout_stays(tmp_path: Path) -> None:
    before = Project.of(Settings(root=tmp_path, storage="auto"), {"HOME": "/home/me"})
    after = before.having(storage="disk", connections_per_worker=3)
    assert (after.settings.storage, after.settings.connections_per_worker) == ("disk", 3)
    assert before.settings.storage == "auto"
    assert (after.id, after.state, after.cache, after.environ) == (
        before.id, before.state, before.cache, before.environ,
    )  # fmt: skip
    with pytest.raises(TypeError, match="colour"):
        before.having(colour="red")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The id that a checkout has on a machine of that name, network card and system, with or without a machine-id."""

    def on(name: str, *, files: Mapping[str, str], system: str = "linux") -> str:
        def read(path: Path) -> str:
            if str(path) not in files:
                raise FileNotFoundError(path)
            return files[str(path)]

        monkeypatch.setattr(project, "Path", lambda path: SimpleNamespace(read_text=lambda: read(path)))
        monkeypatch.setattr(project.uuid, "getnode", lambda: 0x0242AC110002)
        monkeypatch.setattr(project.os, "uname", lambda: SimpleNamespace(nodename=name))
        monkeypatch.setattr(project.sys, "platform", system)
        return project_id(Path("/builds/shop"))

    return on


def test_containers_of_two_machines_are_two(machine: Callable[..., str]) -> None:
    """Images of CI have no machine-id, and where Docker derives a card's address from the container's, many have the same."""
    assert machine("runner-1", files={}) != machine("runner-2", files={})
    assert machine("runner-1", files={}) == machine("runner-1", files={})
    # A Mac has none either: its card is its own, and its name is that of the network's day.
    assert machine("mac.local", files={}, system="darwin") == machine("mac.lan", files={}, system="darwin")


@pytest.mark.parametrize("path", ["/etc/machine-id", "/var/lib/dbus/machine-id"])
def test_a_machine_that_has_an_id_keeps_its_checkouts(machine: Callable[..., str], path: str) -> None:
    """What runs there is found by it, from one version to the next."""
    found = machine("db2", files={path: "0123456789abcdef0123456789abcdef\n"})
    assert found == checkout_id("0123456789abcdef0123456789abcdef:db2", "/builds/shop") == "7994b55ed4"
