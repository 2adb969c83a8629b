"""The compose files, with a real compose v2."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from fix_backends import INSTALLED
from fix_compose import COMPOSE, Run

from harness.dsn import Dsn
from harness.postgres.session import Session

pytestmark = [pytest.mark.docker]


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
