"""The dead-man's switch of a person's server, killed: `doctor` tells, every other command mends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fix_backends import until
from fix_cli import Project
from fix_switch import kill_switch

from harness.config.project import project_id
from harness.servers.records import Hint


def test_doctor_tells_and_other_commands_mend(new_project: Callable[..., Project]) -> None:
    project = new_project("switch")
    project.ok("up", "--ttl", "1h")
    hint = Path(project.environ["PGHARNESS_STATE_DIR"], project_id(project.root), "up.json")
    info, _ = Hint(hint).read()
    assert info is not None
    assert "switch is dead" not in project.ok("doctor")
    for command in (["status"], ["url"], ["up"], ["mark"], ["reset"], ["gc"]):
        kill_switch(info)
        until(
            lambda: "its dead-man's switch is dead" in project.ok("doctor"), seconds=30, what="doctor to tell"
        )
        done = project.run(*command)
        assert done.returncode == 0, done.stderr
        assert "its switch was dead, and is started again" in done.stderr, command
        assert "switch is dead" not in project.ok("doctor")
