"""The same search on a server in a container: its port is forwarded, its files are its own, and it is another build of PostgreSQL.

All other searches have their servers on this machine, where processes can be killed and files be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from fix_reset_servers import Server, running_in_container
from fix_rewind import ENGINES
from test_differential import WORKLOADS, search

VERSION = 17

pytestmark = [pytest.mark.docker, pytest.mark.server]


@pytest.fixture(scope="module")
def in_container() -> Iterator[Server]:
    with running_in_container(VERSION) as server:
        yield server


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.timeout(300)
def test_every_reset_in_a_container_gives_what_a_fresh_clone_gives(
    engine: str, in_container: Server, rewind_schema: Callable[[Server], str]
) -> None:
    server = in_container
    if engine == "rewind":
        server = replace(server, module=rewind_schema(server))
    search(server, min(WORKLOADS, 60))
