"""Commands beside each other in one checkout: each does its work, whole, before or after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
from fix_backends import until
from fix_cli import Project

from harness.config.project import project_id

ROUNDS = 5


def test_up_beside_down(new_project: Callable[..., Project]) -> None:
    """It failed fifteen times of fifteen: the server was ended while its databases were being made."""
    project = new_project("beside", migrations=False)
    project.migrate("001_a.sql", "create table a (id int); insert into a select generate_series(1, 1000)")
    project.migrate("002_b.sql", "create table b (id int); select pg_sleep(0.3)")
    for number in range(ROUNDS):
        commands = [project.start("up", "-n", "2"), project.start("down")]
        if number % 2:
            # Down first by a little.
            commands.reverse()
        for command in commands:
            out, err = command.communicate(timeout=120)
            assert command.returncode == 0, (number, command.args, out, err)
        for url in project.ok("up", "-n", "2").split():
            with psycopg.connect(url) as connection:
                assert connection.execute("select count(*) from a").fetchone() == (1000,)


def test_whoever_waits_for_another_command_says_so(new_project: Callable[..., Project]) -> None:
    project = new_project("waiting", migrations=False)
    project.migrate("001_a.sql", "select pg_sleep(8)")
    first = project.start("up")
    lock = Path(project.environ["PGHARNESS_STATE_DIR"], project_id(project.root), "commands.lock")
    until(lock.exists, seconds=60, what="up to begin")
    done = project.run("down")
    assert done.returncode == 0, done.stderr
    assert first.wait(60) == 0
    assert "waiting for another process that is busy with `up` or `down` in this checkout" in done.stderr
