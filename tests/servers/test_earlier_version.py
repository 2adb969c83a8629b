"""A server that an earlier version left running, with the files that it wrote: found, used, started again and ended.

The files are those of version 0.1.0 before its packages were laid out anew, to the letter; what names a place, a process or a
password is replaced by what is so here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fix_backends import INSTALLED, Checkout, until

from harness.config.processes import running as alive
from harness.config.settings import Settings
from harness.dsn import Dsn
from harness.servers import drift
from harness.servers.docker.container import info_of
from harness.servers.port import ServerInfo
from harness.servers.process.record import Record

UP_RECORD = """{"project": "b273bb3440", "purpose": "up", "server_id": "a9f8b73d-9270-4f40-9b44-b7cd943f1b64", "root": "/home/ann/shop", "password": "658e9a62ca5e3c18e7c12b6457749e4f7c326290a3a11175", "storage": "disk", "binaries": "/usr/lib/postgresql/15/bin", "version": "15.20", "ttl": null, "pid": 31389, "watcher": 0, "port": 54565, "made_with": {"max_connections": "500", "storage": "auto", "version": "any", "binaries": "any", "image": "any"}}"""
"""``server.json`` in the server's folder."""

UP_HINT = """{"format": 1, "dsn": {"host": "127.0.0.1", "port": 54565, "user": "postgres", "password": "658e9a62ca5e3c18e7c12b6457749e4f7c326290a3a11175", "database": "postgres", "options": {}}, "server_id": "a9f8b73d-9270-4f40-9b44-b7cd943f1b64", "backend": "process", "purpose": "up", "storage": "disk", "handle": "/home/ann/.local/state/pg-harness/servers/b273bb3440-up-a9f8b73d", "binaries": "/usr/lib/postgresql/15/bin", "ttl": null, "description": "PostgreSQL 15.20 as process 31389 on port 54565", "project": "b273bb3440", "root": "/home/ann/shop", "made_with": {"max_connections": "500", "storage": "auto", "version": "any", "binaries": "any", "image": "any"}}"""
"""``up.json`` in the checkout's state folder."""

RUN_RECORD = """{"project": "b273bb3440", "purpose": "run", "server_id": "3b1b620d-3ebc-44be-a1d5-6eff6726fa5b", "root": "/home/ann/shop", "password": "658e9a62ca5e3c18e7c12b6457749e4f7c326290a3a11175", "storage": "memory", "binaries": "/usr/lib/postgresql/15/bin", "version": "15.20", "ttl": 900, "pid": 31545, "watcher": 31546, "port": 44309, "made_with": {"max_connections": "500", "storage": "auto", "version": "any", "binaries": "any", "image": "any"}}"""

RUN_HINT = """{"format": 1, "dsn": {"host": "127.0.0.1", "port": 44309, "user": "postgres", "password": "658e9a62ca5e3c18e7c12b6457749e4f7c326290a3a11175", "database": "postgres", "options": {}}, "server_id": "3b1b620d-3ebc-44be-a1d5-6eff6726fa5b", "backend": "process", "purpose": "run", "storage": "memory", "handle": "/dev/shm/pg-harness-1000/b273bb3440-run-3b1b620d", "binaries": "/usr/lib/postgresql/15/bin", "ttl": 900, "description": "PostgreSQL 15.20 as process 31545 on port 44309", "project": "b273bb3440", "root": "/home/ann/shop", "made_with": {"max_connections": "500", "storage": "auto", "version": "any", "binaries": "any", "image": "any"}}"""

LABELS = {
    "dev.pg-harness.project": "b273bb3440",
    "dev.pg-harness.purpose": "run",
    "dev.pg-harness.server-id": "3b1b620d-3ebc-44be-a1d5-6eff6726fa5b",
    "dev.pg-harness.root": "/home/ann/shop",
    "dev.pg-harness.storage": "memory",
    "dev.pg-harness.image": "postgres:17",
    "dev.pg-harness.ttl": "900",
    "dev.pg-harness.made-with": '{"max_connections": "500", "storage": "auto", "image": "postgres:17", "shm_size": "268435456", "memory_limit": "1000000000", "postgres.work_mem": "64be9e04"}',
}
"""Of a container."""

WRITTEN = {"up": (UP_RECORD, UP_HINT), "run": (RUN_RECORD, RUN_HINT)}


@dataclass
class Left:
    """A server that runs, and whose files are an earlier version's.

    Attributes:
        folder: its data, and its record.
        was: the record that was put there.
    """

    place: Checkout
    folder: Path
    was: Record

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One of the commands, in the checkout."""
        done = subprocess.run(
            [sys.executable, "-m", "harness", *words], cwd=self.place.root, text=True, timeout=120, check=False,
            env={**self.place.environ, "PYTHONPATH": str(INSTALLED)}, stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    def servers(self) -> list[dict[str, object]]:
        """What `status` says of the servers."""
        found: list[dict[str, object]] = json.loads(self.call("status", "--json").stdout)["servers"]
        return found


def left(place: Checkout, purpose: str) -> Left:
    """Start a server, and put the earlier version's files in the place of today's."""
    (place.root / "migrations").mkdir()
    (place.root / "migrations" / "1.sql").write_text("create table users (id serial primary key, name text)")
    (place.root / "pyproject.toml").write_text(
        '[tool.pg-harness]\nbackend = "process"\nmigrations = ["sql:migrations"]\n'
    )
    with place.ensure(place.settings(backend="process"), purpose=purpose) as server:
        folder = Path(server.info.handle)
    now = Record.read(folder)
    assert now is not None
    record, hint = WRITTEN[purpose]
    then = json.loads(record)
    here = {
        # First: the folder's name holds the project.
        json.loads(hint)["handle"]: str(folder),
        **{str(then[key]): str(getattr(now, key)) for key in ("project", "server_id", "root", "password")},
        then["binaries"]: now.binaries,
        f'"storage": "{then["storage"]}"': f'"storage": "{now.storage}"',
        f'"version": "{then["version"]}"': f'"version": "{now.version}"',
        f'"pid": {then["pid"]}': f'"pid": {now.pid}',
        f'"watcher": {then["watcher"]}': f'"watcher": {now.watcher}',
        f'"port": {then["port"]}': f'"port": {now.port}',
        f"PostgreSQL {then['version']} as process {then['pid']} on port {then['port']}": (
            f"PostgreSQL {now.version} as process {now.pid} on port {now.port}"
        ),
    }
    for path, text in ((folder / "server.json", record), (place.hint(purpose), hint)):
        said = text
        for was, is_ in here.items():
            said = said.replace(was, is_)
        assert "/home/ann" not in said
        path.write_text(said)
    return Left(place, folder, now)


@pytest.fixture(params=["up", "run"])
def old(request: pytest.FixtureRequest, place: Checkout) -> Left:
    """The server of a person, and that of the test runs."""
    return left(place, request.param)


@pytest.mark.parametrize("lost", ["nothing", "hint"])
def test_it_is_found_and_used(old: Left, lost: str) -> None:
    hint = old.place.hint(old.was.purpose)
    written = hint.read_text()
    if lost == "hint":
        hint.unlink()
    with old.place.ensure(old.place.settings(backend="process"), purpose=old.was.purpose) as found:
        assert not found.started
        assert found.info.server_id == old.was.server_id
        assert found.info.handle == str(old.folder)
        assert found.session.value("select current_setting('harness.server_id')") == old.was.server_id
    # Nobody's settings have changed: it is neither replaced nor told of.
    assert not [line for line in old.place.told if "other settings" in line]
    # Found anew, it is noted as it was noted then: the earlier version goes on using it as well.
    assert json.loads(hint.read_text()) == json.loads(written)


def test_the_commands_know_and_end_it(old: Left) -> None:
    (server,) = old.servers()
    assert server["purpose"] == old.was.purpose
    if old.was.purpose == "up":
        url = old.call("up").stdout.strip()
        assert f":{old.was.port}/" in url
        assert old.call("up").stdout.strip() == url
        old.call("reset")
    else:
        shown = old.call("run", "--", sys.executable, "-c", "import os; print(os.environ['PGPORT'])").stdout
        assert shown.strip() == str(old.was.port)
    assert [one["purpose"] for one in old.servers()] == [old.was.purpose]
    old.call("down", "--all")
    assert not old.folder.exists()
    assert not old.place.hint(old.was.purpose).exists()
    until(lambda: not alive(old.was.pid), seconds=10, what="the end of the postmaster")


def test_one_that_was_stopped_starts_again_with_its_data(place: Checkout) -> None:
    old = left(place, "up")
    settings = place.settings(backend="process")
    with place.ensure(settings, purpose="up") as found:
        found.session.execute("create table precious ()")
    # As a shutdown of the machine ends it.
    os.kill(old.was.pid, signal.SIGTERM)
    until(lambda: not alive(old.was.pid), seconds=30, what="the end of the postmaster")
    with place.ensure(settings, purpose="up") as again:
        assert again.info.handle == str(old.folder)
        assert again.info.dsn.port == old.was.port
        assert again.session.value("select count(*) from precious") == 0


def test_one_whose_checkout_is_gone_is_ended(old: Left) -> None:
    away = old.place.root.with_name("away")
    old.place.root.rename(away)
    other = old.place.root.with_name("other")
    other.mkdir()
    (other / "pyproject.toml").write_text('[tool.pg-harness]\nbackend = "process"\n')
    Left(Checkout(other, old.place.environ), old.folder, old.was).call("gc")
    assert not old.folder.exists()
    until(lambda: not alive(old.was.pid), seconds=10, what="the end of the postmaster")
    away.rename(old.place.root)


def test_a_container_is_known_by_its_labels() -> None:
    container = SimpleNamespace(id="3f9a1c02be57" * 5, short_id="3f9a1c02be57", labels=LABELS)
    dsn = Dsn("127.0.0.1", 44309, "postgres", "s3cret", "postgres")
    found = info_of(dsn, container)
    assert found == ServerInfo(
        dsn=dsn, server_id="3b1b620d-3ebc-44be-a1d5-6eff6726fa5b", backend="docker", purpose="run", storage="memory",
        handle=container.id, ttl=900, description="postgres:17 in container 3f9a1c02be57", project="b273bb3440",
        root="/home/ann/shop", made_with=json.loads(LABELS["dev.pg-harness.made-with"]),
    )  # fmt: skip
    same = Settings(root=Path("/home/ann/shop"), memory_limit=10**9, postgres={"work_mem": "8MB"})
    assert drift.fits(found, same, "run")
    assert drift.changes(found, replace(same, memory_limit=None)) == ["memory_limit 1000000000 → auto"]
