"""The project: what is known of a checkout once its settings are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config.project import Project, project_id
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
