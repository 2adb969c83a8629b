"""A container for each worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_backends import docker, until
from fix_daemons import SMALL
from fix_fleets import USERS, Estate

from harness.errors import ServerLost

pytestmark = pytest.mark.docker

ASK = "select current_setting('harness.server_id')"


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The image that all projects of this module start from: baked once, as their migrations are the same."""
    root = tmp_path_factory.mktemp("baked")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PGHARNESS_", "PG"))}
    folders = {f"PGHARNESS_{kind}_DIR": str(root / kind) for kind in ("STATE", "CACHE")}
    first = Estate(root, {**clean, **folders}, {"backend": "docker", "image": SMALL})
    first.migrate(USERS)
    first.ensure()
    yield
    for base in first.bases():
        first.baker().store.remove(base)


@pytest.fixture
def estate(new_estate: Callable[..., Estate], baked: None) -> Estate:
    return new_estate(backend="docker", image=SMALL)


def test_each_worker_has_a_container(estate: Estate) -> None:
    with estate.open() as fleet:
        leases = fleet.leases(2)
        ids = set()
        for lease in leases:
            with lease.connect() as connection:
                ids.add(connection.execute(ASK).fetchone()[0])
        assert len(ids) == 2
        fleet.members["2"].link.session.execute("create role only_here")
        there = [
            m.link.session.value("select count(*) from pg_roles where rolname = 'only_here'")
            for m in fleet.members.values()
        ]
        assert sorted(there) == [0, 1]
        with leases[0].connect() as connection:
            connection.execute("delete from users")
        leases[0].reset()
        with leases[0].connect() as connection:
            assert connection.execute("select name from users").fetchall() == [("a",)]
        # Ports are open on loopback only.
        for member in fleet.members.values():
            assert "127.0.0.1" in docker("port", member.server.info.handle)
            assert "0.0.0.0" not in docker("port", member.server.info.handle)
    assert estate.purposes() == []


def test_the_command_line(estate: Estate) -> None:
    assert "memory: 4 ×" in estate.four_servers()


def test_killed_nothing_remains(estate: Estate) -> None:
    child = estate.cli("run", "--isolation", "server", "-n", "2", "--", "sleep", "60", PGHARNESS_TTL="1s")
    mine = ["ps", "-aq", "--filter", f"label=dev.pg-harness.root={estate.root.resolve()}"]
    try:
        until(lambda: len(estate.purposes()) == 2, seconds=30, what="two servers")
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        until(lambda: children.read_text().strip(), seconds=30, what="the command to run")
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=20)
    child.stdout.close()  # type: ignore[union-attr]
    child.stderr.close()  # type: ignore[union-attr]
    assert until(lambda: docker(*mine) == "", seconds=30, what="the containers to end themselves") < 20


def test_containers_that_people_touched(estate: Estate) -> None:
    with estate.open() as fleet:
        gone, paused, restarted = fleet.leases(3)
        handles = [fleet.members[str(number)].server.info.handle for number in (1, 2, 3)]
        docker("rm", "-f", handles[0])
        with pytest.raises(ServerLost):
            gone.reset()
        docker("pause", handles[1])
        docker("unpause", handles[1])
        paused.reset()
        # Its port is another one now, and what lay in memory is gone: never somebody else's server.
        docker("restart", "-t", "5", handles[2])
        with pytest.raises(ServerLost):
            restarted.reset()
    assert estate.purposes() == []


def test_a_removed_container_does_not_hide_the_blocks_own_error(estate: Estate) -> None:
    def lose_it() -> None:
        with estate.open() as fleet:
            fleet.lease()
            docker("rm", "-f", fleet.members["1"].server.info.handle)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lose_it()
    assert estate.purposes() == []
