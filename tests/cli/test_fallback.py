"""What `auto` takes where Docker cannot be used: the same for a shared server and for a server each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_cli import Project

ASK = (
    "import os, psycopg\n"
    "ports = set()\n"
    "for number in (1, 2):\n"
    "    with psycopg.connect(os.environ[f'DATABASE_URL_{number}']) as connection:\n"
    "        connection.execute('insert into users (name) values (%s)', ['x'])\n"
    "        ports.add(connection.info.port)\n"
    "print(len(ports))\n"
)

NOBODY = {"PGHARNESS_BACKEND": "auto", "DOCKER_HOST": "tcp://127.0.0.1:1"}
"""No daemon answers there."""

NO_IMAGE = {
    "PGHARNESS_BACKEND": "auto",
    "TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX": "127.0.0.1:1/",
    "TESTCONTAINERS_RYUK_DISABLED": "true",
}
"""A daemon answers, and the registry that its images would come from does not."""

WITHOUT_DOCKER = [
    pytest.param(NOBODY, id="no daemon"),
    pytest.param(NO_IMAGE, id="no image", marks=pytest.mark.docker),
]


@pytest.fixture
def mine(new_project: Callable[..., Project]) -> Project:
    """A project without servers, and without what was baked of it."""
    return new_project("fallback")


@pytest.mark.parametrize("environ", WITHOUT_DOCKER)
@pytest.mark.parametrize(("isolation", "servers"), [("database", "1"), ("server", "2")])
def test_local_binaries_instead_of_docker(
    mine: Project, isolation: str, servers: str, environ: dict[str, str]
) -> None:
    words = ("run", "--isolation", isolation, "-n", "2", "--", sys.executable, "-c", ASK)
    done = mine.run(*words, **environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [servers]
    assert "process: started PostgreSQL" in done.stderr


@pytest.mark.docker
def test_a_named_image_is_not_replaced(mine: Project) -> None:
    for isolation in ("database", "server"):
        words = ("run", "--isolation", isolation, "--image", "no-such-image:1", "--", "true")
        assert "no-such-image:1 is not on this Docker daemon" in mine.fails(121, *words, **NO_IMAGE)


@pytest.mark.parametrize("environ", WITHOUT_DOCKER)
def test_bake(mine: Project, environ: dict[str, str]) -> None:
    done = mine.run("bake", **environ)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_dir()


@pytest.mark.docker
def test_workers_of_pytest(mine: Project) -> None:
    """Whoever joins takes what the controller fell back to, and asks no registry once more."""
    (mine.root / "pg-harness.toml").write_text('isolation = "server"\n')
    (mine.root / "test_users.py").write_text(
        "import os, psycopg, pytest\n"
        "@pytest.mark.parametrize('n', range(4))\n"
        "def test_empty(n):\n"
        "    with psycopg.connect(os.environ['DATABASE_URL']) as c:\n"
        "        assert c.execute('select count(*) from users').fetchone() == (0,)\n"
        "        c.execute('insert into users (name) values (%s)', ['x'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "pg_harness_pytest", "-p", "no:cacheprovider"],
        cwd=mine.root, env={**mine.environ, **NO_IMAGE, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
