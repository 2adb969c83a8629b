"""A Docker daemon of the tests' own: one that may be restarted, killed, or run out of disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_backends import docker

SMALL = "pgharness-test:busybox"


class OwnDaemon:
    """One dockerd with its own data, socket and bridge. It touches neither iptables nor another daemon's files.

    Args:
        folder: for everything; removed by the fixture.
        size: megabytes of the memory file system that images and containers lie on.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.host = f"unix://{folder}/docker.sock"
        self.environ = {**os.environ, "DOCKER_HOST": self.host}
        self._bridge = f"pgh{os.getpid() % 100000}"
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._data.mkdir()
        _must("mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(self._data))
        _must("ip", "link", "add", self._bridge, "type", "bridge")
        _must("ip", "addr", "add", f"10.213.{os.getpid() % 250}.1/24", "dev", self._bridge)
        _must("ip", "link", "set", self._bridge, "up")

    def start(self) -> None:
        """Start it and wait until it answers."""
        for name in ("dockerd.pid", "exec/containerd/containerd.pid"):
            # After SIGKILL: where process 1 reaps nobody, the old number still looks alive.
            (self.folder / name).unlink(missing_ok=True)
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                ["dockerd", "--data-root", self._data, "--exec-root", self.folder / "exec", "--pidfile", self.folder / "dockerd.pid",
                 "-H", self.host, "--bridge", self._bridge, "--iptables=false", "--ip-masq=false",
                 "--containerd-namespace", self._bridge, "--containerd-plugins-namespace", f"{self._bridge}-plugins"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 40
        while subprocess.run(
            ["docker", "version"], env=self.environ, capture_output=True, check=False, timeout=20
        ).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"a second dockerd cannot run here: {self._tail()}")
            time.sleep(0.05)

    def _tail(self) -> str:
        return (self.folder / "log").read_text(errors="replace").strip().splitlines()[-1][-300:]

    def end(self, *, kill: bool = False) -> None:
        """Stop it, containers and all, as a machine's service does; or kill it, which leaves containers running."""
        if self._process is not None:
            if kill:
                self._process.kill()
            else:
                self._process.terminate()
            self._process.wait(timeout=60)
            self._process = None

    def docker(self, *arguments: str) -> str:
        """The docker client's output, from this daemon."""
        return docker(*arguments, environ=self.environ)

    def close(self) -> None:
        """End it; what it mounted and its bridge are gone."""
        if self._process is not None:
            for handle in self.docker("ps", "-aq").split():
                self.docker("rm", "-f", handle)
        self.end()
        subprocess.run(["ip", "link", "delete", self._bridge], check=False, capture_output=True)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for place in sorted((each for each in mounts if each.startswith(f"{self.folder}/")), reverse=True):
            subprocess.run(["umount", "-l", place], check=True)


def _must(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a second dockerd cannot run here: {' '.join(command)}: {done.stderr.strip()}")


@pytest.fixture
def own_daemon() -> Iterator[Callable[[int], OwnDaemon]]:
    """Starts a daemon that has the small image, on so many megabytes."""
    if os.geteuid() != 0 or shutil.which("dockerd") is None or shutil.which("ip") is None:
        pytest.skip("a second dockerd needs root, dockerd and ip")
    made: list[OwnDaemon] = []

    def make(size: int) -> OwnDaemon:
        # Short: the path of a Unix socket has at most 107 bytes.
        daemon = OwnDaemon(Path(tempfile.mkdtemp(prefix="pgh-dockerd-", dir="/tmp")), size)
        made.append(daemon)
        daemon.start()
        with subprocess.Popen(["docker", "save", SMALL], stdout=subprocess.PIPE) as saved:
            assert saved.stdout is not None
            loaded = subprocess.run(
                ["docker", "load", "-q"], stdin=saved.stdout, env=daemon.environ, check=False, timeout=120, capture_output=True
            )  # fmt: skip
        assert loaded.returncode == 0, loaded.stderr.decode()
        return daemon

    yield make
    for daemon in made:
        daemon.close()
        shutil.rmtree(daemon.folder, ignore_errors=True)
        assert not daemon.folder.exists()
