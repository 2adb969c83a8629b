"""A project whose workers have servers of their own, with caches that nobody shares."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fix_backends import INSTALLED
from fix_last_will import leave

from harness.config.load import load
from harness.config.settings import Settings
from harness.errors import BackendError
from harness.postgres.session import Session
from harness.runs import bake
from harness.runs.harness import Fleet
from harness.servers import inventory, registry
from harness.servers.registry import bakery_of

USERS = "create table users (id bigserial primary key, name text); insert into users (name) values ('a');"
"""The migrations of every new project here, until a test writes others."""


@dataclass
class Estate:
    """One checkout, for one backend."""

    root: Path
    environ: dict[str, str]
    given: dict[str, Any]
    told: list[str] = field(default_factory=list)

    def migrate(self, text: str, name: str = "001.sql") -> None:
        """Write a migration."""
        (self.root / "migrations").mkdir(exist_ok=True)
        (self.root / "migrations" / name).write_text(text)

    def settings(self, **values: Any) -> Settings:
        given = {
            "isolation": "server",
            "migrations": ["sql:migrations"],
            "ttl": "30s",
            **self.given,
            **values,
        }
        return load(self.environ, start=self.root, overrides=given)

    def open(self, **values: Any) -> Fleet:
        return Fleet.open_with(self.settings(**values), self.environ)

    def oven(self, **values: Any) -> bake.Oven:
        settings = self.settings(**values)
        return bake.oven_of(settings, self.environ, registry.choose(settings, self.environ))

    def ensure(self, **values: Any) -> bake.Baked:
        return self.oven(**values).ensure()

    def cli(self, *words: str, **environ: str) -> subprocess.Popen[str]:
        """The command line, in a process of its own."""
        options = [f"--{name.replace('_', '-')}={value}" for name, value in self.given.items()]
        return subprocess.Popen(
            [sys.executable, "-m", "harness", words[0], *options, *words[1:]],
            cwd=self.root,
            env={**self.environ, "PYTHONPATH": str(INSTALLED), **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def four_servers(self) -> str:
        """`run -n 4` with a role made in one of the four; return what was told meanwhile."""
        ask = (
            'psql -Xq "$DATABASE_URL_2" -c "create role only_here"\n'
            'for u in $DATABASE_URL_1 $DATABASE_URL_2 $DATABASE_URL_3 $DATABASE_URL_4; do psql -XAtq "$u" -c "'
            "select current_setting('harness.server_id'), count(*) from pg_roles where rolname = 'only_here'\"; done; exit 3"
        )
        child = self.cli(
            "run", "--isolation", "server", "-n", "4", "--", "sh", "-c", ask, PGHARNESS_SUPERUSER="true"
        )
        out, err = child.communicate(timeout=120)
        assert child.returncode == 3, err
        found = [line.split("|") for line in out.split()]
        assert len({server_id for server_id, _ in found}) == 4, out
        assert [count for _, count in found] == ["0", "1", "0", "0"]
        assert self.purposes() == []
        return err

    def python(self, code: str) -> subprocess.Popen[str]:
        """Some code in a process of its own; ``estate_open(ttl)`` there opens this project's fleet."""
        prelude = (
            "import os, sys, time\nfrom pathlib import Path\nfrom harness.runs import bake\nfrom harness.config.load import load\n"
            "from harness.runs.harness import Fleet\n"
            f"def estate_open(**values):\n    given = {{'isolation': 'server', 'migrations': ['sql:migrations'], **{self.given!r}, **values}}\n"
            f"    return Fleet.open_with(load(os.environ, start=Path({str(self.root)!r}), overrides=given), os.environ)\n"
        )
        return subprocess.Popen(
            [sys.executable, "-c", prelude + code],
            # In the checkout, `python -c` would find its `harness` before the one that is installed.
            cwd=self.root,
            env={**self.environ, "PYTHONPATH": str(INSTALLED)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def migrating(self) -> bool:
        """Whether a migration of this project is in ``pg_sleep`` now."""
        ask = "select count(*) from pg_stat_activity where query ~ 'pg_sleep.20' and state = 'active'"
        for info in inventory.servers(self.settings(), self.environ):
            try:
                with Session.connect(info.dsn) as session:
                    return bool(session.value(ask))
            except BackendError:
                # It is starting.
                continue
        return False

    def purposes(self) -> list[str]:
        """Of the servers that there are, running or not."""
        return sorted(info.purpose for info in inventory.servers(self.settings(), self.environ))

    def bases(self) -> list[Any]:
        """What is baked for this project."""
        mine = str(self.root)
        return [base for base in self.oven().bakery.list() if base.facts.get("root") == mine]


@pytest.fixture(scope="session")
def initialised() -> Iterator[Path]:
    """Where empty clusters lie, made once for all tests of this session."""
    folder = Path(tempfile.mkdtemp(prefix="pg-harness-initdb-"))
    leave("folder", str(folder))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def new_estate(tmp_path: Path, initialised: Path, told: list[str]) -> Iterator[Callable[..., Estate]]:
    """Makes projects; afterwards their servers and what they baked are removed, and nothing may be left."""
    made: list[Estate] = []
    # Not below pytest's own folder: another pytest that starts meanwhile closes that one to other users, and
    # where this suite runs as root, the servers' user must reach the cache.
    private = Path(tempfile.mkdtemp(prefix="pg-harness-fleet-"))
    leave("folder", str(private))

    def make(**given: Any) -> Estate:
        root = tmp_path / f"project{len(made)}"
        root.mkdir()
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("PGHARNESS_", "PG"))}
        environ = {
            **clean,
            "PGHARNESS_STATE_DIR": str(private / "state"),
            "PGHARNESS_CACHE_DIR": str(private / "cache"),
        }
        # The same initdb for all tests: only what is baked must be this test's own.
        (private / "cache").mkdir(parents=True, exist_ok=True)
        for path in (private, private / "cache"):
            path.chmod(0o755)
        for found in initialised.iterdir():
            if found.is_dir() and not (private / "cache" / found.name).exists():
                (private / "cache" / found.name).symlink_to(found)
        estate = Estate(root, environ, given, told)
        estate.migrate(USERS)
        made.append(estate)
        return estate

    yield make
    for estate in made:
        settings = estate.settings()
        for purpose in estate.purposes():
            inventory.stop(settings, estate.environ, purpose=purpose)
        bakery = bakery_of(registry.choose(settings, estate.environ), private / "cache")
        for base in estate.bases():
            bakery.remove(base)
        assert estate.purposes() == []
        assert estate.bases() == []
    for found in (private / "cache").glob("initdb-*"):
        if found.is_dir() and not found.is_symlink() and not (initialised / found.name).exists():
            found.rename(initialised / found.name)
    shutil.rmtree(private, ignore_errors=True)
