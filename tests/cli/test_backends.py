"""A backend that a package adds from one file, and that starts nothing: the example of the docs, installed and used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from fix_backends import ROOT
from fix_cli import Project
from fix_packages import install

from harness.servers.port import ServerInfo
from harness.servers.registry import BACKENDS, GROUP

TEST = """\
import os, psycopg, pytest

@pytest.mark.parametrize("number", [1, 2])
def test_users(number):
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        assert connection.info.port == int(os.environ["LENT_PORT"])
        assert connection.execute("select count(*) from users").fetchone() == (0,)
        connection.execute("insert into users (name) values ('x')")
"""
COUNT = (
    "import os, psycopg; connection = psycopg.connect(os.environ['DATABASE_URL']); "
    "print(connection.info.port, connection.execute('select count(*) from users').fetchone()[0])"
)


@pytest.fixture
def mine(
    new_project: Callable[..., Project], server_of: Callable[[str], ServerInfo], tmp_path: Path
) -> Project:
    """A project whose backend is that of the docs, with the suite's own server lent to it."""
    project = new_project()
    block, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "backends.md").read_text(), re.DOTALL)
    install(tmp_path / "site", block, name="pg_harness_lent", word="lent", group=GROUP)
    server = server_of("15")
    note = {"url": server.dsn.url, "id": server.server_id, "by": "a test"}
    (tmp_path / "lent.json").write_text(json.dumps(note))
    environ = project.environ
    environ["PYTHONPATH"] = os.pathsep.join([environ["PYTHONPATH"], str(tmp_path / "site")])
    environ["LENT_SERVER"] = str(tmp_path / "lent.json")
    environ["LENT_PORT"] = str(server.dsn.port)
    environ["PGHARNESS_BACKEND"] = "lent"
    return project


def pytest_in(project: Project, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "pg_harness_pytest", "-q", *words],
        cwd=project.root, env={**project.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environ},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def port(url: str) -> int:
    with psycopg.connect(url) as connection:
        return connection.info.port


def test_a_backend_from_one_file_goes_everywhere(
    mine: Project, server_of: Callable[[str], ServerInfo]
) -> None:
    lent = server_of("15").dsn
    # By an option, by the variable; the second time by the address that was noted.
    for words, environ in ((["--backend", "lent"], {"PGHARNESS_BACKEND": "process"}), ([], {})):
        assert port(mine.ok("up", *words, **environ).strip()) == lent.port
    assert "the PostgreSQL lent by a test" in mine.ok("status")
    assert mine.ok("run", "--", sys.executable, "-c", COUNT).split() == [str(lent.port), "0"]
    report = mine.ok("doctor")
    assert "lent is a backend of pg-harness-lent 1.2" in report
    assert f"ok    lent        {lent.masked} is lent" in report
    assert "up: the PostgreSQL lent by a test answers" in report
    assert "lent by a test" not in mine.ok("gc")
    assert "is with whoever lends the server" in mine.ok("logs")

    (mine.root / "test_users.py").write_text(TEST)
    (mine.root / "pg-harness.toml").write_text('backend = "lent"\n')
    del mine.environ["PGHARNESS_BACKEND"]
    done = pytest_in(mine)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    done = pytest_in(mine, "--pg-harness-backend", "lent", PGHARNESS_BACKEND="docker")
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_auto_takes_it_where_it_says_so(mine: Project, tmp_path: Path) -> None:
    code = (tmp_path / "site" / "pg_harness_lent.py").read_text()
    automatic = code.replace('lacking="no server is lent"', 'lacking="no server is lent", auto=True')
    (tmp_path / "site" / "pg_harness_lent.py").write_text(automatic)
    # Neither a daemon nor binaries here.
    nothing = {
        "PGHARNESS_BACKEND": "auto", "DOCKER_HOST": "tcp://127.0.0.1:1", "PGHARNESS_BINARIES": str(tmp_path / "none"),
    }  # fmt: skip
    done = mine.run("up", **nothing)
    assert done.returncode == 0, done.stderr
    assert "backend: lent, " in done.stderr
    mine.ok("down")
    told = " ".join(mine.fails(121, "up", **nothing, LENT_SERVER="/nowhere").split())
    assert "no Docker daemon answers and no local binaries were found and no server is lent" in told
    assert "lent: no server is lent to this checkout" in told


def test_messages_and_help_name_it(mine: Project) -> None:
    told = " ".join(mine.fails(121, "up", LENT_SERVER="/nowhere/lent.json").split())
    assert "no server is lent to this checkout" in told
    assert "LENT_SERVER: [Errno 2] No such file or directory: '/nowhere/lent.json'" in told
    assert "lend postgres > lent.json" in told
    report = mine.run("doctor", LENT_SERVER="/nowhere/lent.json")
    assert report.returncode == 121
    assert "fail  lent        no server is lent to this checkout" in report.stdout

    words = [*("auto", *BACKENDS), "lent"]
    assert ", ".join(words) in " ".join(mine.ok("--help").split())
    (mine.root / "test_users.py").write_text(TEST)
    (mine.root / "pg-harness.toml").write_text("")
    done = pytest_in(mine, "--pg-harness-backend", "lend")
    for told in (
        mine.fails(120, "up", PGHARNESS_BACKEND="lend"),
        mine.fails(120, "--backend", "lend", "up"),
        done.stdout + done.stderr,
    ):
        assert "lend" in told
        for word in words:
            assert repr(word) in told
    told = " ".join(mine.fails(121, "bake").split())
    assert "the lent backend cannot start servers of our own" in told
    assert 'or backend = "docker" or "process", without server_url' in told


def test_a_server_whose_backend_is_gone_is_not_used(mine: Project) -> None:
    assert mine.ok("up")
    without = {
        "PYTHONPATH": mine.environ["PYTHONPATH"].partition(os.pathsep)[0],
        "PGHARNESS_BACKEND": "process",
    }
    assert "lent" in mine.fails(120, "up", **{**without, "PGHARNESS_BACKEND": "lent"})
    told = mine.run("run", "--", sys.executable, "-c", COUNT, **without)
    assert told.returncode == 0, told.stderr


@pytest.mark.parametrize(
    ("code", "word", "told"),
    [
        ("import nothing_of_that_name", "other", "'other' cannot be imported from broken:KIND (broken 1.2)"),
        ("KIND = 7", "other", "must name a harness.servers.registry.BackendKind; broken:KIND is int"),
        ("KIND = 7", "lent", "has the same word as"),
        ("KIND = 7", "docker", "has the same word as one of pg-harness itself"),
    ],
)
def test_a_package_that_is_wrong_is_named(
    mine: Project, tmp_path: Path, code: str, word: str, told: str
) -> None:
    install(tmp_path / "site", code, name="broken", word=word, group=GROUP)
    assert told in " ".join(mine.fails(120, "up", PGHARNESS_BACKEND="nothing").split())
