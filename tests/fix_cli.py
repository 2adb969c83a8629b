"""The command line as people use it: another process, a project of its own, servers ended afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from fix_backends import INSTALLED

from harness.config.environment import BENDING
from harness.dsn import Dsn

MIGRATION = "create table users (id int generated always as identity primary key, name text);\n"

STARTED: list[subprocess.Popen[str]] = []
"""What the test at hand called and did not wait for."""


class Project:
    """A folder with migrations, and pg-harness called in it."""

    def __init__(self, root: Path, state: Path, cache: Path) -> None:
        self.root = root
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PGHARNESS_") and k not in BENDING},
            "PGHARNESS_STATE_DIR": str(state),
            "PGHARNESS_CACHE_DIR": str(cache),
            "PGHARNESS_BACKEND": "process",
            "PYTHONPATH": str(INSTALLED),
            "NO_COLOR": "1",
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "harness", *words]

    def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Call it and wait."""
        return subprocess.run(
            self.command(*words), cwd=self.root, env={**self.environ, **environ}, text=True, timeout=120,
            stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip

    def ok(self, *words: str, **environ: str) -> str:
        """Call it, expect success, return stdout."""
        done = self.run(*words, **environ)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    def fails(self, code: int, *words: str, **environ: str) -> str:
        """Call it, expect this exit code and one screen of words; return stderr."""
        done = self.run(*words, **environ)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        assert 0 < len(done.stderr.splitlines()) <= 40
        return done.stderr

    def start(self, *words: str, **environ: str) -> subprocess.Popen[str]:
        """Call it and go on."""
        child = subprocess.Popen(
            self.command(*words), cwd=self.root, env={**self.environ, **environ}, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        STARTED.append(child)
        return child

    def admin(self) -> Dsn:
        """The superuser, on the maintenance database of the server that `up` has started."""
        database = str(psycopg.conninfo.conninfo_to_dict(self.ok("url").strip())["dbname"])
        for hint in Path(self.environ["PGHARNESS_STATE_DIR"]).glob("*/up.json"):
            if hint.parent.name == database.split("_")[1]:
                return Dsn(**json.loads(hint.read_text())["dsn"])
        raise AssertionError("no hint")

    def migrate(self, name: str, text: str) -> None:
        """Add a migration."""
        folder = self.root / "db" / "migrations"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def install(site: Path, code: str, *, name: str, word: str, group: str) -> None:
    """What pip leaves of a package of one module with one entry point, which names its ``KIND``."""
    info = site / f"{name}-1.2.dist-info"
    info.mkdir(parents=True)
    (site / f"{name}.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{word} = {name}:KIND\n")


@pytest.fixture(scope="session")
def new_project(
    tmp_path_factory: pytest.TempPathFactory, folders: tuple[Path, Path]
) -> Iterator[Callable[..., Project]]:
    """Makes projects; their servers are ended when all tests are done."""
    made: list[Project] = []

    def make(name: str = "project", *, migrations: bool = True) -> Project:
        root = tmp_path_factory.mktemp("cli") / name
        root.mkdir()
        project = Project(root, *folders)
        made.append(project)
        if migrations:
            project.migrate("001_users.sql", MIGRATION)
        return project

    yield make
    for project in made:
        project.root.mkdir(parents=True, exist_ok=True)
        project.run("down", "--all")


@pytest.fixture(scope="session")
def project(new_project: Callable[..., Project]) -> Project:
    """One project with two databases of a person's, for tests that change nothing of it."""
    made = new_project()
    made.ok("up", "-n", "2")
    return made


@pytest.fixture
def interrupt() -> Callable[[subprocess.Popen[str], int], tuple[int, str]]:
    """Sends a signal and waits for the end: (exit code, stderr)."""

    def send(child: subprocess.Popen[str], signum: int = signal.SIGINT) -> tuple[int, str]:
        child.send_signal(signum)
        _, err = child.communicate(timeout=60)
        return child.returncode, err

    return send


@pytest.fixture(autouse=True)
def end_what_was_started() -> Iterator[None]:
    """A failed test's run would go on, and the next tests would find its databases."""
    yield
    for child in STARTED:
        if child.poll() is None:
            # The session of its own holds the command below it too.
            os.killpg(child.pid, signal.SIGKILL)
            child.wait(timeout=30)
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()
    STARTED.clear()
