"""PostgreSQL 14, the oldest that works: everything but the reset by the log, and it says so. Older ones are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fix_backends import INSTALLED
from fix_reset_servers import Server, running

from harness import Harness
from harness.config.project import project_id
from harness.servers.external import OLDEST, Capabilities


@pytest.fixture(scope="module")
def old() -> Iterator[Server]:
    """A server of the oldest version, where its programs are on this machine: ``scripts/fetch-servers`` gets them."""
    with running(OLDEST) as server:
        yield server


@pytest.fixture
def environ(old: Server, tmp_path: Path) -> dict[str, str]:
    """A project with migrations, and the old server named for it."""
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "1.sql").write_text(
        "create table users (id serial primary key, name text); insert into users (name) values ('seed')"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PGHARNESS_", "PG"))}
    state, cache = str(tmp_path / "state"), str(tmp_path / "cache")
    names = {"SERVER_URL": old.dsn().url, "STATE_DIR": state, "CACHE_DIR": cache, "ALLOW_FOREIGN": "1"}
    return {**clean, **{f"PGHARNESS_{name}": value for name, value in names.items()}}


@pytest.mark.server
def test_leases_on_it_are_reset_by_fresh_clones(
    environ: dict[str, str], tmp_path: Path, told: list[str]
) -> None:
    with Harness.open(root=tmp_path, environ=environ, migrations=["sql:migrations"]) as harness:
        assert any("before PostgreSQL 15 there is no pg_walinspect" in line for line in told)
        with harness.lease("1") as one, harness.lease("2") as two:
            for lease in (one, two):
                with lease.connect() as connection:
                    connection.execute("insert into users (name) values ('dirt')")
            report = one.reset()
            assert report.strategy == "clone"
            for lease, count in ((one, 1), (two, 2)):
                with lease.connect() as connection:
                    assert connection.execute("select count(*) from users").fetchone() == (count,)


@pytest.mark.server
def test_the_commands_on_it(environ: dict[str, str], old: Server, tmp_path: Path) -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "harness", *words], cwd=tmp_path, text=True, timeout=60, check=False,
            env={**environ, "PYTHONPATH": str(INSTALLED)}, stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    up = call("up", "-n", "2")
    assert len(up.stdout.splitlines()) == 2
    assert "each reset is a new clone" in up.stderr
    assert call("up").stdout == up.stdout
    assert "1 fresh clone" in call("reset").stderr
    (server,) = json.loads(call("status", "--json").stdout)["servers"]
    assert f"PostgreSQL {OLDEST}" in json.dumps(server)
    call("run", "--", "true")
    call("gc")
    # What is in it cannot be told before 15.
    call("down", "--all", "--yes")
    with old.session() as session:
        mine = f"pgh_{project_id(tmp_path)}%"
        assert session.rows("select datname from pg_database where datname like %s", (mine,)) == []
        assert session.rows("select rolname from pg_roles where rolname like %s", (mine,)) == []


def test_what_is_too_old_is_refused() -> None:
    fine = Capabilities(
        version=140000, user="postgres", superuser=True, createdb=True, createrole=True, recovery=False,
        read_only=False, pooler=False, max_connections=100,
    )  # fmt: skip
    assert fine.forbids() == []
    assert replace(fine, version=130020).forbids() == ["it is PostgreSQL 13; 14 is the oldest that works"]
