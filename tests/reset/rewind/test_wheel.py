"""What users install: the wheel, in an environment of its own, on a PATH without a compiler."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fix_backends import ROOT
from fix_native import lacking, packaged
from fix_servers import enterable_folder

pytestmark = pytest.mark.timeout(600)

TESTS = """
import os
import psycopg

def use():
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        assert connection.execute("select name from users").fetchall() == [("a",)]
        connection.execute("insert into users (name) values ('b')")
        connection.execute("alter table users add column age int")

def test_one():
    use()

def test_two():
    use()

def test_three():
    use()
"""


@dataclass
class Installed:
    """A project beside an environment that has the wheel, and no other package of ours."""

    folder: Path
    python: Path

    def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Call the environment's Python in the project."""
        clean = {"PATH": str(self.python.parent), "HOME": str(self.folder / "home"), "NO_COLOR": "1"}
        kept = {name: os.environ[name] for name in ("DOCKER_HOST", "TMPDIR") if name in os.environ}
        state = {
            "PGHARNESS_STATE_DIR": str(self.folder / "state"),
            "PGHARNESS_CACHE_DIR": str(self.folder / "cache"),
            "PGHARNESS_TTL": "30s",
        }
        return subprocess.run(
            [self.python, *words],
            cwd=self.folder / "project",
            env={**clean, **kept, **state, **environ},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a wheel that was made of a sdist that was made of this checkout."""
    packaged(15)
    packaged(17)
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lacking(f"nothing can be built here: {done.stdout[-500:]} {done.stderr[-500:]}")
    return out


@pytest.fixture(scope="module")
def installed(built: Path) -> Iterator[Installed]:
    """The wheel with what it needs, installed by pip."""
    with enterable_folder("wheel") as folder:
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True, timeout=120)
        python = folder / "venv" / "bin" / "python"
        (wheel,) = built.glob("*.whl")
        done = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", str(wheel)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lacking(f"nothing can be installed here: {done.stderr[-500:]}")
        project = folder / "project"
        (project / "migrations").mkdir(parents=True)
        (project / "migrations" / "001.sql").write_text(
            "create table users (id bigserial primary key, name text); insert into users (name) values ('a');"
        )
        (project / "pyproject.toml").write_text('[tool.pg-harness]\nmigrations = ["sql:migrations"]\n')
        (project / "test_it.py").write_text(TESTS)
        made = Installed(folder, python)
        yield made
        made.run("-m", "harness", "down", "--all", "--yes")


def test_the_wheel_and_the_sdist_hold_what_is_needed(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    assert "harness/reset/rewind/modules/pgh_rewind-15-x86_64.so" in names
    assert "harness/reset/rewind/native/rewind.c" in names
    assert not [name for name in names if name.endswith(".built")]
    with tarfile.open(sdist) as tar:
        assert any(re.fullmatch(r"[^/]+/native/rewind\.c", name) for name in tar.getnames())


def test_there_is_no_compiler(installed: Installed) -> None:
    done = installed.run("-m", "harness", "build-native", "--headers", "/nowhere")
    assert done.returncode == 121
    assert "/venv/" in installed.run("-c", "import harness; print(harness.__file__)").stdout


def said(done: subprocess.CompletedProcess[str]) -> str:
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    assert "3 passed" in text
    assert "pg-harness: reset: rewind\n" in text
    assert re.search(r"\d rewound", text), text
    assert "clone" not in text.partition("passed")[0].rpartition("resets,")[2]
    return text


def test_it_rewinds_on_a_local_server(installed: Installed) -> None:
    text = said(installed.run("-m", "pytest", PGHARNESS_BACKEND="process"))
    assert "process" in text


@pytest.mark.docker
def test_it_rewinds_in_a_container(installed: Installed) -> None:
    text = said(
        installed.run("-m", "pytest", PGHARNESS_BACKEND="docker", PGHARNESS_IMAGE="pgharness-test:17")
    )
    assert "docker" in text


def test_the_engine_can_be_switched_off_and_insisted_on(installed: Installed) -> None:
    off = installed.run("-m", "pytest", PGHARNESS_BACKEND="process", PGHARNESS_ENGINE="rows")
    assert 'pg-harness: reset: rows (engine = "rows", the variable PGHARNESS_ENGINE)' in off.stdout
    on = installed.run("-m", "pytest", PGHARNESS_BACKEND="process", PGHARNESS_ENGINE="rewind")
    assert said(on)
    wrong = installed.run("-m", "pytest", PGHARNESS_ENGINE="pages")
    assert wrong.returncode != 0
    assert "must be one of 'auto', 'rewind', 'rows'" in wrong.stdout + wrong.stderr
