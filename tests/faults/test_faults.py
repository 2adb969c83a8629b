"""A sample of all faults: wherever a command fails, hangs or is killed, the next one works and a sweep leaves nothing.

``scripts/faults --all`` tries all of them; a failure prints the line that tries it again.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from fix_fault_search import COMMANDS, Search
from fix_faults import docker, plant
from fix_servers import enterable_folder

from harness.servers.port import ServerInfo

SEED = int(os.environ.get("PGHARNESS_TEST_FAULT_SEED") or random.randrange(10**6))

SIZES = {
    "up": 14, "run": 12, "down": 6, "bake": 6, "own": 6, "up-again": 28, "fresh": 28, "reset": 36, "mark": 28,
    "run-warm": 28, "gc": 14, "pytest": 4, "worker": 4, "docker-up": 4, "docker-run": 4, "docker-down": 3,
    "docker-bake": 4,
}  # fmt: skip
"""How many of each command, each time others: more than 200 on local servers. 300 took a quarter of an hour in CI."""


@pytest.fixture
def search(
    server_of: Callable[[str], ServerInfo], capsys: pytest.CaptureFixture[str]
) -> Callable[[str], Search]:
    """Tries a sample on one backend, beside somebody else's server."""

    def run(backend: str) -> Search:
        canary = server_of("15").dsn
        plant(canary)

        def tell(line: str) -> None:
            with capsys.disabled():
                print(f"\n{line}", end="", flush=True)

        commands = [command for command in COMMANDS if command.backend == backend]
        with enterable_folder("faults") as top:
            search = Search(
                top, commands, SEED, lambda command: SIZES[command.name], tell=tell, canary=canary
            )
            tell(f"faults of the seed {SEED} (PGHARNESS_TEST_FAULT_SEED):")
            search.run()
            tell(search.table())
        return search

    return run


@pytest.mark.server
@pytest.mark.timeout(900)
def test_faults_of_local_servers(search: Callable[[str], Search]) -> None:
    found = search("process")
    assert found.failures == []
    assert sum(found.tried.values()) >= 200


@pytest.mark.docker
@pytest.mark.server
@pytest.mark.timeout(600)
def test_faults_of_the_daemon(search: Callable[[str], Search]) -> None:
    container = docker(
        "run", "-d", "--name", f"pgh-canary-{os.getpid()}", "pgharness-test:busybox", "sleep", "900"
    )
    looks = "{{.Id}} {{.State.StartedAt}} {{.State.Status}} {{.RestartCount}} {{json .Config}}"
    try:
        before = docker("inspect", "-f", looks, *container)
        found = search("docker")
        assert found.failures == []
        assert docker("inspect", "-f", looks, *container) == before
    finally:
        docker("rm", "-f", *container)
