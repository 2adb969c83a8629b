"""The compose files, with a real compose v2."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from fix_backends import INSTALLED, ROOT, docker

from harness.dsn import Dsn
from harness.postgres.session import Session

COMPOSE = ROOT / "compose"


@cache
def problem() -> str:
    """Why compose cannot be tested here; empty where it can."""
    done = subprocess.run(
        ["docker", "compose", "version", "--short"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        return "docker compose v2 is not installed (Debian 13 packages it: docker-compose)"
    numbers = done.stdout.strip().lstrip("v").split("-")[0].split("+")[0].split(".")
    if tuple(int(number) for number in numbers[:2]) < (2, 24):
        return f"docker compose {done.stdout.strip()} does not know !override (2.24 does)"
    return ""


pytestmark = [pytest.mark.docker]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    if reason := problem():
        if (
            os.environ.get("PGHARNESS_TEST_REQUIRE_DOCKER") == "1"
            and os.environ.get("PGHARNESS_TEST_REQUIRE_COMPOSE") == "1"
        ):
            pytest.fail(reason)
        pytest.skip(reason)
    tag = f"pgharness-compose-{os.getpid()}"
    docker("build", "-q", "-f", str(ROOT / "images" / "Dockerfile"), "--build-arg", "BASE=pgharness-test:17", "-t", tag,
           str(ROOT), environ={**os.environ, "DOCKER_BUILDKIT": "0"})  # fmt: skip
    yield tag
    docker("rmi", "-f", tag)


@pytest.fixture
def compose(image: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Run]:
    """Calls compose on one file, under a project name of this test's own; takes all of it down afterwards."""
    name = f"pghtest-{os.getpid()}-{request.node.name.lower().replace('_', '-')}"
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "001.sql").write_text(
        "create table users (name text); insert into users values ('a');"
    )
    (tmp_path / "pg-harness.toml").write_text('migrations = ["sql:migrations"]\n')
    environ = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("PGHARNESS_", "POSTGRES_"))},
        "PGHARNESS_IMAGE": image, "POSTGRES_PASSWORD": "compose_1", "POSTGRES_PORT": "0", "COMPOSE_PROJECT_NAME": name,
        "PGHARNESS_PROJECT": str(tmp_path),
        # The interpreter and packages that run this test, in an image that has neither: nothing is downloaded.
        "PGHARNESS_PYTHON_IMAGE": "pgharness-test:17", "PGHARNESS_INSTALL": "",
        "PGHARNESS_COMMAND": f"env PYTHONPATH={INSTALLED} {sys.executable} -m harness",
        "TEST_IMAGE": "pgharness-test:17", "TEST_COMMAND": "true",
    }  # fmt: skip
    files: list[str] = []

    def run(
        file: str, *arguments: str, extra: str | None = None, program: str = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        files[:] = [file, *([extra] if extra else [])]
        named = [part for path in files for part in ("-f", str(COMPOSE / path))]
        command = [program, *arguments] if program else ["docker", "compose", *named, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
                              env={**environ, **more}, stdin=subprocess.DEVNULL)  # fmt: skip

    yield run
    done = run(
        files[0],
        "down",
        "-v",
        "--timeout",
        "5",
        "--remove-orphans",
        extra=files[1] if len(files) > 1 else None,
    )
    assert done.returncode == 0, done.stderr
    assert docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={name}") == ""


def test_one_server(compose: Run) -> None:
    done = compose("local.yml", "up", "-d", "--wait")
    assert done.returncode == 0, done.stderr
    address = compose("local.yml", "port", "postgres", "5432").stdout.strip()
    host, _, port = address.rpartition(":")
    assert host == "127.0.0.1"
    with Session.connect(Dsn(host, int(port), "postgres", "compose_1", "postgres")) as session:
        assert session.value("show fsync") == "off"


def test_four_workers(compose: Run, tmp_path: Path) -> None:
    done = compose("workers.yml", "up", "-d", "--wait", "--scale", "postgres=4")
    assert done.returncode == 0, done.stderr
    told = compose("workers.yml", "4", program=str(COMPOSE / "urls"))
    assert told.returncode == 0, told.stderr
    urls = dict(line.split("=", 1) for line in told.stdout.splitlines())
    assert list(urls) == [f"DATABASE_URL_{number}" for number in range(1, 5)]
    assert len(set(urls.values())) == 4
    with Session.connect(Dsn.parse(urls["DATABASE_URL_3"])) as session:
        assert session.value("show data_directory") == "/pgharness/memory/1"
    migrated = compose("workers.yml", "--migrate", "2", program=str(COMPOSE / "urls"), PGHARNESS_PYTHON=sys.executable,
                       PYTHONPATH=str(INSTALLED), PGHARNESS_STATE_DIR=str(tmp_path / "state"),
                       PGHARNESS_CACHE_DIR=str(tmp_path / "cache"))  # fmt: skip
    assert migrated.returncode == 0, migrated.stderr
    for line in migrated.stdout.splitlines():
        with Session.connect(Dsn.parse(line.split("=", 1)[1])) as session:
            assert session.rows("select name from users") == [("a",)]
    missing = compose("workers.yml", "5", program=str(COMPOSE / "urls"))
    assert missing.returncode == 1
    assert "no server 5" in missing.stderr


def test_ci_with_the_sidecar(compose: Run, tmp_path: Path) -> None:
    extra = tmp_path / "interpreter.yml"
    roots = {str(INSTALLED), os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix), sys.prefix}
    mounts = "".join(f'      - "{path}:{path}:ro"\n' for path in sorted(roots) if path not in ("/usr", "/"))
    if sys.base_prefix == "/usr":
        pytest.skip("the system's own Python cannot be put into another image")
    extra.write_text(f"services:\n  harness:\n    volumes:\n{mounts}")
    ask = '/usr/lib/postgresql/17/bin/psql -XAtq "$DATABASE_URL" -c "select name from users" && exit 7'
    done = compose("ci.yml", "run", "--rm", "-T", "tests", extra=str(extra), TEST_COMMAND=ask)
    assert done.returncode == 7, (
        done.stdout + done.stderr + compose("ci.yml", "logs", "harness", extra=str(extra)).stdout
    )
    assert done.stdout.strip().splitlines()[-1] == "a"


def test_mistakes_are_plain(compose: Run) -> None:
    assert "TEST_COMMAND is what runs your tests" in compose("ci.yml", "config", TEST_COMMAND="").stderr
    assert compose("workers.yml", "x", program=str(COMPOSE / "urls")).returncode == 2
    assert compose("local.yml", "config", "-q").returncode == 0
