"""Variables of libpq in the developer's shell: `up`, `run` and pytest do the same with each of them, cold and warm.

What a session of ours makes of each is ``tests/postgres/test_bent.py``; here whole commands are called.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_backends import INSTALLED
from fix_cli import Project
from psycopg import pq

from harness.config.environment import BENDING
from harness.config.project import project_id

WRONG = {
    "PGCHANNELBINDING": "require",
    "PGCLIENTENCODING": "SQL_ASCII",
    "PGDATABASE": "nowhere",
    "PGGSSENCMODE": "require",
    "PGHOST": "db.production.invalid",
    "PGHOSTADDR": "192.0.2.1",
    "PGMINPROTOCOLVERSION": "latest",
    "PGOPTIONS": "-c default_transaction_read_only=on",
    "PGPASSFILE": "/nonexistent/pgpass",
    "PGPASSWORD": "secret",
    "PGPORT": "1",
    "PGREQUIREAUTH": "none",
    "PGREQUIREPEER": "nobody",
    "PGREQUIRESSL": "1",
    "PGSERVICE": "production",
    "PGSERVICEFILE": "/nonexistent/services",
    "PGSSLCERTMODE": "require",
    "PGSSLMODE": "verify-full",
    "PGTARGETSESSIONATTRS": "standby",
    "PGTZ": "bogus",
    "PGUSER": "postgres",
    # The application's own affair, which is not taken away from it: it has to be able to live with it.
    "PGCONNECT_TIMEOUT": "3",
    "PGAPPNAME": "shell",
}
"""What bends most; any other variable is given a word that means nothing."""

WORST = ("PGSERVICE", "PGHOSTADDR", "PGSSLMODE", "PGREQUIREAUTH", "PGOPTIONS", "PGTZ")
"""Tried one by one where a command takes a second or more; all of them with PGHARNESS_TEST_LONG=1."""


def variables() -> list[str]:
    """All that this libpq reads, and all that any does."""
    known = {option.envvar.decode() for option in pq.Conninfo.get_defaults() if option.envvar}
    return sorted(known | BENDING)


def bent(*names: str) -> dict[str, str]:
    return {name: WRONG.get(name, "bogus") for name in names}


COSTLY = [
    pytest.param(variables(), id="all at once"),
    *(pytest.param([name], id=name, marks=() if name in WORST else pytest.mark.slow) for name in variables()),
]

TEST = """
import json, os, psycopg
def test_it():
    with psycopg.connect(os.environ["DATABASE_URL"]) as url, psycopg.connect() as parts:
        assert url.info.dbname == parts.info.dbname and url.info.port == parts.info.port
        assert parts.execute("show TimeZone").fetchone() == ("UTC",)
        parts.execute("insert into users (name) values ('x')")
    print(json.dumps(dict(os.environ)))
"""


@pytest.fixture(scope="module")
def warm(new_project: Callable[..., Project]) -> Project:
    """A project whose servers run, and go on: each test looks that they are the same afterwards."""
    made = new_project("bent")
    (made.root / "test_it.py").write_text(TEST)
    # The plugin does nothing in a project that has not asked for it.
    (made.root / "pg-harness.toml").write_text('migrations = ["sql:db/migrations"]\n')
    made.ok("up")
    made.ok("run", "--", "true")
    return made


@pytest.fixture(scope="module")
def url(warm: Project) -> str:
    """What `up` says there in a shell that bends nothing."""
    return warm.ok("up")


@pytest.fixture
def cold(new_project: Callable[..., Project]) -> Iterator[Project]:
    """A project without a server."""
    made = new_project("bent-cold")
    (made.root / "test_it.py").write_text(TEST)
    # The plugin does nothing in a project that has not asked for it.
    (made.root / "pg-harness.toml").write_text('migrations = ["sql:db/migrations"]\n')
    yield made
    made.ok("down", "--all", "--yes")


def servers(project: Project) -> dict[str, str]:
    """Purpose → which server it is, as it was noted."""
    folder = Path(project.environ["PGHARNESS_STATE_DIR"], project_id(project.root))
    noted = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    # The address that a person's server had is noted beside them.
    return {purpose: hint["server_id"] for purpose, hint in noted.items() if purpose != "address"}


def check(environ: dict[str, str], names: list[str]) -> None:
    """The application's environment is as cli.md says: the parts are the URL's, and nothing bends them."""
    assert not BENDING & environ.keys()
    user, _, rest = environ["DATABASE_URL"].removeprefix("postgresql://").partition(":")
    password, _, rest = rest.partition("@")
    host, _, database = rest.partition("/")
    said = [environ[name] for name in ("PGUSER", "PGPASSWORD", "PGHOST", "PGPORT", "PGDATABASE")]
    assert said == [user, password, *host.split(":"), database]
    for name in ("PGCONNECT_TIMEOUT", "PGAPPNAME"):
        assert environ.get(name) == (WRONG[name] if name in names else None)


def lines(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def by_pytest(project: Project, environ: dict[str, str]) -> dict[str, str]:
    # Of the plugins that this suite's environment holds, ours: the others take longer to import than all the rest.
    plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "pg_harness_pytest"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider"], cwd=project.root, text=True,
        env={**project.environ, "PYTHONPATH": str(INSTALLED), **plugins, **environ}, capture_output=True, check=False,
        timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, str] = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("{"))
    )
    return found


@pytest.mark.parametrize("name", variables())
def test_warm_up_and_run(warm: Project, url: str, name: str) -> None:
    before = servers(warm)
    assert warm.ok("up", **bent(name)) == url
    check(lines(warm.ok("run", "--", "env", **bent(name))), [name])
    assert servers(warm) == before


@pytest.mark.parametrize("names", COSTLY)
def test_warm_pytest(warm: Project, names: list[str]) -> None:
    before = servers(warm)
    check(by_pytest(warm, bent(*names)), names)
    assert servers(warm) == before


@pytest.mark.parametrize("names", COSTLY)
def test_cold(cold: Project, names: list[str]) -> None:
    environ = bent(*names)
    url = cold.ok("up", **environ).strip()
    check(lines(cold.ok("run", "--", "env", **environ)), names)
    before = servers(cold)
    assert cold.ok("up").strip() == url
    check(lines(cold.ok("run", "--", "env")), [])
    assert servers(cold) == before


def test_cold_pytest(cold: Project) -> None:
    names = variables()
    check(by_pytest(cold, bent(*names)), names)


def test_all_at_once_for_every_other_command(warm: Project) -> None:
    environ, before = bent(*variables()), servers(warm)
    for words in (
        ("status",),
        ("url",),
        ("env",),
        ("mark",),
        ("reset",),
        ("reset", "--to", "template"),
        ("gc",),
        ("logs",),
    ):
        warm.ok(*words, **environ)
    assert servers(warm) == before
    assert "users" in warm.ok("psql", "--", "-c", "\\dt", **environ)
