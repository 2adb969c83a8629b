"""pg-harness in a container: a CI job's, a dev container's. With the machine's Docker socket in it, and without any Docker."""

from __future__ import annotations

import subprocess
import sys
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
