"""A checkout of its own for a test, other processes that start its server, and a look at what is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.config import project
from harness.config.settings import Settings
from harness.servers import acquire, defaults, inventory
from harness.servers.handle import Server
from harness.servers.port import ServerRequest

ROOT = Path(__file__).resolve().parent.parent

INSTALLED = Path(harness.__file__).resolve().parents[1]
"""Where this suite's own ``harness`` lies: the checkout, or in CI the wheel that was built from it."""

STARTER = """
import json, os, sys, time
from pathlib import Path
from harness.servers import acquire, inventory
from harness.config.settings import Settings
given = json.loads(sys.argv[1])
settings = Settings(root=Path(given.pop("root")), **given)
found = acquire.ensure(settings, os.environ)
heavy = sorted({"docker", "testcontainers"} & set(sys.modules))
print(json.dumps({"id": found.info.server_id, "handle": found.info.handle, "started": found.started, "heavy": heavy}), flush=True)
if "--hold" in sys.argv:
    time.sleep(120)
"""


@dataclass
class Checkout:
    """A project folder with state and caches of its own."""

    root: Path
    environ: dict[str, str]
    told: list[str] = field(default_factory=list)

    @property
    def project(self) -> str:
        return project.project_id(self.root)

    def settings(self, **values: Any) -> Settings:
        return Settings(root=self.root, **{"start_timeout": 60, "ttl": 300, **values})

    def ensure(self, settings: Settings, **options: Any) -> Server:
        return acquire.ensure(settings, self.environ, **options)

    def hint(self, purpose: str = "run") -> Path:
        return project.state_dir(self.environ) / self.project / f"{purpose}.json"

    def starter(self, *arguments: str, **values: Any) -> subprocess.Popen[str]:
        """Another process that ensures the server and prints what it got as JSON."""
        given = json.dumps({"root": str(self.root), "ttl": 300, **values})
        return subprocess.Popen(
            [sys.executable, "-c", STARTER, given, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.environ, "PYTHONPATH": str(INSTALLED)},
        )

    def answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """What a starter printed when it was done."""
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        answer: dict[str, Any] = json.loads(out)
        return answer

    def request(self, purpose: str = "run", **values: Any) -> ServerRequest:
        given: dict[str, Any] = {
            "project": self.project,
            "purpose": purpose,
            "server_id": str(uuid.uuid4()),
            "root": self.root,
            "password": uuid.uuid4().hex,
            "settings": defaults.throwaway(max_connections=50, user={}),
            "ttl": None if purpose == "up" else 300,
        }
        return ServerRequest(**{**given, **values})


@pytest.fixture
def new_checkout(
    tmp_path: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> Iterator[Callable[..., Checkout]]:
    """Makes checkouts; afterwards all of their servers are ended, and nothing of theirs may be left."""
    made: list[Checkout] = []
    state = folders[0].parent / f"state-{uuid.uuid4().hex[:8]}"

    def make(name: str = "checkout") -> Checkout:
        root = tmp_path / name
        root.mkdir(parents=True, exist_ok=True)
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("PGHARNESS_", "PG"))}
        environ = {**clean, "PGHARNESS_STATE_DIR": str(state), "PGHARNESS_CACHE_DIR": str(folders[1])}
        made.append(Checkout(root, environ, told))
        return made[-1]

    yield make
    for checkout in made:
        for purpose in ("run", "up", "run-1", "run-2"):
            inventory.stop(checkout.settings(), checkout.environ, purpose=purpose)
        assert inventory.servers(checkout.settings(), checkout.environ) == []


@pytest.fixture
def place(new_checkout: Callable[..., Checkout]) -> Checkout:
    """One checkout."""
    return new_checkout()


BACKENDS = [
    pytest.param({"backend": "process"}, id="process"),
    pytest.param({"backend": "docker", "image": "pgharness-test:15"}, id="docker", marks=pytest.mark.docker),
]


@pytest.fixture(params=BACKENDS)
def kind(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings that choose a backend: each in turn."""
    values: dict[str, str] = request.param
    return values


def until(condition: Callable[[], object], *, seconds: float, what: str) -> float:
    """Wait for a condition; return how long it took. Fails after ``seconds``."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - began


def processes_naming(text: str) -> list[str]:
    """Command lines of live processes that name ``text``: a server's folder, for instance."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line and str(os.getpid()) != path.parent.name:
            found.append(line.strip())
    return found


def docker(*arguments: str, stdin: bytes | None = None, environ: Mapping[str, str] | None = None) -> str:
    """The docker client's output."""
    command: Sequence[str] = ["docker", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False, env=environ)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()
