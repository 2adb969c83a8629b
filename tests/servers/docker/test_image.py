"""The project's own image: built from any base, run by hand and by the harness."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

import pytest
from fix_backends import ROOT, Checkout, docker, until

from harness.dsn import Dsn
from harness.postgres.session import Session
from harness.servers.docker.backend import DockerBackend

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module", params=["15", "17"])
def built(request: pytest.FixtureRequest) -> Iterator[str]:
    tag = f"pgharness-built-{os.getpid()}:{request.param}"
    base = f"BASE=pgharness-test:{request.param}"
    # The older builder: it needs no plugin and no network.
    docker("build", "-q", "-f", str(ROOT / "images" / "Dockerfile"), "--build-arg", base, "-t", tag, str(ROOT),
           environ={**os.environ, "DOCKER_BUILDKIT": "0"})  # fmt: skip
    yield tag
    docker("rmi", "-f", tag)


def test_run_by_hand(built: str) -> None:
    handle = docker(
        "run", "-d", "--rm", "--init", "-e", "POSTGRES_PASSWORD=by-hand_1", "-p", "127.0.0.1::5432", built
    )
    try:
        address = docker("port", handle, "5432/tcp").splitlines()[0]
        dsn = Dsn("127.0.0.1", int(address.rpartition(":")[2]), "postgres", "by-hand_1", "postgres")

        def healthy() -> bool:
            return docker("inspect", "-f", "{{.State.Health.Status}}", handle) == "healthy"

        until(healthy, seconds=30, what="the health check says healthy")
        with Session.connect(dsn) as session:
            assert session.value("SHOW data_directory") == "/pgharness/data/1"
            assert session.value("SHOW fsync") == "off"
        users = {line.split()[0] for line in docker("top", handle, "-eo", "user,pid,args").splitlines()[1:]}
        assert "root" not in users
    finally:
        docker("rm", "-f", handle)


def test_without_a_password_it_says_so(built: str) -> None:
    done = subprocess.run(
        ["docker", "run", "--rm", built], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 64
    assert "set POSTGRES_PASSWORD" in done.stderr


def test_run_by_the_harness(place: Checkout, built: str) -> None:
    ours = DockerBackend(place.environ, image=built)
    request = place.request(storage="disk")
    info = ours.start(request)
    with Session.connect(info.dsn) as session:
        assert info.dsn.password == request.password
        assert session.value("SELECT current_setting('harness.server_id')") == info.server_id
    # It was not initialised again: one directory, the image's.
    assert docker("exec", info.handle, "ls", "/pgharness/data").split() == ["1", "1.ready"]
    ours.stop(info)


def test_nothing_secret_in_it(built: str) -> None:
    shown = json.loads(docker("inspect", built))[0]["Config"]
    assert not [line for line in shown["Env"] or [] if "PASSWORD" in line]
    assert shown["User"] == "postgres"
    assert shown["StopSignal"] == "SIGINT"
    roles = ["docker", "run", "--rm", "--entrypoint", "/bin/sh", built, "-c", "ls /pgharness /pgharness/data"]
    listed = subprocess.run(roles, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    assert "password" not in listed
