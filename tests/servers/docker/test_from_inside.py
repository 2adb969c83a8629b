"""pg-harness in a container: a CI job's, a dev container's. With the machine's Docker socket in it, and without any Docker."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_backends import ROOT, docker

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

SOCKET = "/var/run/docker.sock"

LOOK = """
set -e
psql "$DATABASE_URL_2" -qc "insert into users values (1)"
%(python)s -m harness reset 2
psql "$DATABASE_URL_2" -Atc "select 'rows', count(*) from users"
psql "$DATABASE_URL_2" -Atc "select 'address', inet_server_addr()"
"""


def job(project: Path, *options: str) -> tuple[str, str]:
    """``run -n 2`` in a container that has this Python and this checkout, as its root; both outputs."""
    python = sys.executable
    seen = {str(Path(sys.base_prefix)), str(Path(sys.prefix)), str(ROOT)}
    mounts = [word for path in sorted(seen) for word in ("-v", f"{path}:{path}:ro")]
    done = subprocess.run(
        [
            "docker", "run", "--rm", "--label", "pg-harness-test=inside", *mounts, "-v", f"{project}:{project}", "-w", str(project),
            "-e", "PGHARNESS_STATE_DIR=/tmp/state", "-e", "PGHARNESS_CACHE_DIR=/tmp/cache", "-e", f"PYTHONPATH={ROOT}",
            "-e", "PYTHONDONTWRITEBYTECODE=1", *options, "pgharness-test:15",
            python, "-m", "harness", "run", "-n", "2", "--", "sh", "-c", LOOK % {"python": python},
        ],
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "a job"
    (folder / "db").mkdir(parents=True)
    (folder / "db" / "001.sql").write_text("create table users (id int);")
    (folder / "pg-harness.toml").write_text('migrations = ["sql:db"]\n')
    return folder


def test_with_the_runners_socket_the_server_is_a_container_beside_it(project: Path) -> None:
    out, err = job(project, "-v", f"{SOCKET}:{SOCKET}", "-e", "PGHARNESS_IMAGE=pgharness-test:15")
    assert "started pgharness-test:15 in container" in err
    assert "rows|0" in out.splitlines()
    address = out.rsplit("address|", 1)[1].strip()
    # What the job reached is the other container, over the network that both are on.
    ours = docker("ps", "-q", "--filter", "name=pg-harness-").split()
    found = [
        c for c in ours if docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", c).strip() == address
    ]
    assert len(found) == 1
    docker("rm", "-f", found[0])


def test_without_docker_the_server_runs_in_the_jobs_own_container(project: Path) -> None:
    out, err = job(project)
    assert "process: started PostgreSQL 15" in err
    assert "rows|0" in out.splitlines()
    assert "address|127.0.0.1" in out.splitlines()


DAEMON = """
mount -o remount,rw /sys
mount -o remount,rw /proc/sys
exec dockerd --host tcp://0.0.0.0:2375 --tls=false
"""


@pytest.fixture
def inner() -> Iterator[str]:
    """The address of a daemon that runs in a container, as CI's service ``docker:dind`` does; it has one image."""
    rights = [word for right in ("NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE") for word in ("--cap-add", right)]
    # The machine's own programs, in a system of the same distribution.
    mounts = [
        "-v",
        "/usr:/usr:ro",
        "-v",
        "/etc/alternatives:/etc/alternatives:ro",
        "-v",
        "/sys/fs/cgroup:/sys/fs/cgroup",
    ]
    name = f"pgh-dind-{os.getpid()}"
    docker(
        "run", "-d", "--name", name, "--label", "pg-harness-test=inside", *rights, "--security-opt", "seccomp=unconfined", *mounts,
        "-v", "/var/lib/docker", "--tmpfs", "/run", "--entrypoint", "sh", "pgharness-test:15", "-ec", DAEMON,
    )  # fmt: skip
    try:
        address = docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", name).strip()
        here = ["docker", "--host", f"tcp://{address}:2375"]
        deadline = time.monotonic() + 40
        while subprocess.run([*here, "version"], capture_output=True, check=False, timeout=20).returncode:
            if time.monotonic() > deadline or docker("inspect", "-f", "{{.State.Running}}", name) == "false":
                pytest.skip(
                    f"no daemon starts in a container of this engine: {docker('logs', '--tail', '3', name)}"
                )
            time.sleep(0.3)
        with subprocess.Popen(["docker", "save", "pgharness-test:15"], stdout=subprocess.PIPE) as saved:
            subprocess.run([*here, "load"], stdin=saved.stdout, capture_output=True, check=True, timeout=120)
        yield address
    finally:
        docker("rm", "-f", "-v", name)


def test_with_docker_in_docker_the_server_is_the_other_daemons(project: Path, inner: str) -> None:
    out, err = job(
        project, "--add-host", f"docker:{inner}", "-e", "DOCKER_HOST=tcp://docker:2375", "-e", "PGHARNESS_IMAGE=pgharness-test:15",
    )  # fmt: skip
    assert "started pgharness-test:15 in container" in err
    assert "rows|0" in out.splitlines()
    here = ["docker", "--host", f"tcp://{inner}:2375"]
    (ours,) = subprocess.run(
        [*here, "ps", "-q", "--filter", "name=pg-harness-"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout.split()
    address = subprocess.run(
        [*here, "inspect", "-f", "{{.NetworkSettings.IPAddress}}", ours], capture_output=True, text=True, check=True, timeout=30,
    ).stdout.strip()  # fmt: skip
    # The server's own address is one of the inner daemon's network; the job reached it by the daemon's.
    assert out.rsplit("address|", 1)[1].strip() == address
