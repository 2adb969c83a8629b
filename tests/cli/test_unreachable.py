"""What could not be asked is named: a command that ends things never says that there was nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_cli import Project

from harness.config.project import project_id

NOBODY = "tcp://127.0.0.1:1"


@pytest.fixture(scope="module")
def project(new_project: Callable[..., Project]) -> Project:
    """A project without a server of its own."""
    return new_project("unreachable")


@pytest.mark.parametrize("words", [("down",), ("down", "--all"), ("gc",), ("gc", "--dry-run")])
def test_a_daemon_that_does_not_answer_is_named(project: Project, words: tuple[str, ...]) -> None:
    said = project.fails(121, *words, PGHARNESS_BACKEND="auto", DOCKER_HOST=NOBODY)
    assert "not everything could be asked" in said
    assert f"docker: the Docker daemon at {NOBODY} does not answer" in said
    assert "nothing" not in said.replace("nothing else", "")


@pytest.mark.parametrize("words", [("down", "--all"), ("gc",)])
def test_the_answer_is_given_all_the_same(project: Project, words: tuple[str, ...]) -> None:
    done = project.run(*words, "--json", PGHARNESS_BACKEND="auto", DOCKER_HOST=NOBODY)
    assert done.returncode == 121
    assert [*json.loads(done.stdout).values()][-1] == []


@pytest.mark.parametrize("words", [("down", "--all"), ("gc",)])
def test_a_backend_that_the_settings_leave_out_is_missed_by_nobody(
    project: Project, words: tuple[str, ...]
) -> None:
    project.ok(*words, PGHARNESS_BACKEND="process", DOCKER_HOST=NOBODY)


def test_a_server_that_was_noted_is_missed_and_its_note_stays(new_project: Callable[..., Project]) -> None:
    """Whatever the settings say today: its container may run on."""
    project = new_project("noted")
    project.ok("up")
    hint = Path(project.environ["PGHARNESS_STATE_DIR"], project_id(project.root), "up.json")
    told = json.loads(hint.read_text())
    hint.write_text(json.dumps({**told, "backend": "docker", "handle": "0" * 64}))
    said = project.fails(121, "down", PGHARNESS_BACKEND="process", DOCKER_HOST=NOBODY)
    assert "process: ended" in said
    assert hint.exists()
    hint.unlink()
    project.ok("down", PGHARNESS_BACKEND="process", DOCKER_HOST=NOBODY)
