"""The port of a tunnel is taken by another program between the look for a free one and ssh's own: by a stand-in for ssh."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.config import processes
from harness.errors import BackendUnavailable, ServerStartError
from harness.servers.docker import tunnel
from harness.servers.docker.daemon import Daemon
from harness.servers.port import free_port

SSH = """#!{python}
import socket, sys, time
time.sleep(0.3)  # it logs in first
port = int(sys.argv[sys.argv.index("-L") + 1].split(":")[1])
listening = socket.socket()
listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
try:
    listening.bind(("127.0.0.1", port))
except OSError:
    sys.exit(f"bind [127.0.0.1]:{{port}}: Address already in use\\ncannot listen to port: {{port}}")
listening.listen()
while True:
    listening.accept()[0].close()
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    """One that is reached by a program called ssh, which does nothing but listen."""
    script = tmp_path / "ssh"
    script.write_text(SSH.format(python=sys.executable))
    script.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return Daemon(
        None,
        "127.0.0.1",
        "127.0.0.1",
        None,
        "",
        "ssh://there",
        ssh="ssh://there",
        folder=tmp_path / "remote",
        environ=environ,
    )


@pytest.fixture
def taken() -> Iterator[Callable[[bool], int]]:
    """Takes ports as another program does, which answers there or not; returns them."""
    held: list[socket.socket] = []

    def take(answers: bool) -> int:
        held.append(socket.socket())
        held[-1].bind(("127.0.0.1", 0))
        if answers:
            held[-1].listen()
        return int(held[-1].getsockname()[1])

    yield take
    for each in held:
        each.close()


@pytest.mark.parametrize("answers", [True, False])
def test_a_port_that_was_taken_meanwhile_is_not_the_last(
    daemon: Daemon, taken: Callable[[bool], int], monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    ports = [taken(answers), taken(answers)]
    monkeypatch.setattr(tunnel, "free_port", lambda host: ports.pop(0) if ports else free_port(host))
    before = [*ports]
    port = tunnel.to(daemon, "c" * 64, 5432)
    found = tunnel.noted(daemon.folder, "c" * 64)
    assert found is not None
    try:
        assert port == found.port
        assert port not in before
        assert ports == []
        assert found.is_open()
    finally:
        found.end()
    subprocess.run(["tail", f"--pid={found.pid}", "-f", "/dev/null"], check=True, timeout=10)
    assert not processes.running(found.pid)


def test_a_port_that_is_named_is_not_exchanged(
    daemon: Daemon, taken: Callable[[bool], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = taken(False)
    with pytest.raises(ServerStartError, match=f"port {port} .setting port. is in use on 127.0.0.1"):
        tunnel.to(daemon, "d" * 64, 5432, wanted=port, named=True)
    assert tunnel.noted(daemon.folder, "d" * 64) is None
    # Where all are taken, it ends.
    tried: list[int] = []

    def every(host: str) -> int:
        tried.append(taken(False))
        return tried[-1]

    monkeypatch.setattr(tunnel, "free_port", every)
    with pytest.raises(BackendUnavailable, match="ports were taken by other programs"):
        tunnel.to(daemon, "d" * 64, 5432)
    assert len(tried) == 5
