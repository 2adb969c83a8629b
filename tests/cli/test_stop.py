"""`stop` keeps a person's data, `down` removes it; the port stays, so that files with the URL stay right."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from fix_cli import Project

from harness.servers.port import free_port

BACKENDS = [
    pytest.param({"PGHARNESS_BACKEND": "process"}, id="process"),
    pytest.param(
        {"PGHARNESS_BACKEND": "docker", "PGHARNESS_IMAGE": "pgharness-test:15", "TESTCONTAINERS_RYUK_DISABLED": "true"},
        id="docker", marks=pytest.mark.docker,
    ),
]  # fmt: skip


@pytest.fixture(params=BACKENDS)
def mine(request: pytest.FixtureRequest, new_project: Callable[..., Project]) -> Project:
    project = new_project("stopped")
    project.environ |= request.param
    return project


def add(url: str, name: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("insert into users (name) values (%s)", (name,))


def mine_id(url: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(url)["dbname"]).split("_")[1]


def names(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [name for (name,) in connection.execute("select name from users order by id").fetchall()]


def test_stop_and_up_keep_data_and_urls(mine: Project) -> None:
    before = mine.ok("up", "-n", "2")
    first, second = before.split()
    add(first, "precious")
    add(second, "too")
    done = mine.run("stop")
    assert done.returncode == 0, done.stderr
    assert "with its data: `pg-harness up` starts it again" in done.stderr
    with pytest.raises(psycopg.OperationalError):
        names(first)
    # Twice is once.
    assert "no server of yours runs here" in mine.run("stop").stderr
    assert json.loads(mine.ok("stop", "--json")) == {"stopped": []}
    assert mine.ok("up") == before
    assert (names(first), names(second)) == (["precious"], ["too"])
    # What was there before a test run came and went, too.
    assert (
        mine.ok("run", "--", "sh", "-c", 'psql "$DATABASE_URL" -Atc "select count(*) from users"').strip()
        == "0"
    )
    assert names(first) == ["precious"]


def test_the_port_stays_over_down_and_up(mine: Project) -> None:
    before = mine.ok("up").strip()
    add(before, "x")
    mine.ok("down", "--yes")
    # The same address, password too: files and tools that have it go on.
    after = mine.ok("up").strip()
    assert after == before
    port = psycopg.conninfo.conninfo_to_dict(before)["port"]
    assert names(after) == []
    (noted,) = Path(mine.environ["PGHARNESS_STATE_DIR"]).glob(f"{mine_id(before)}/address.json")
    assert noted.stat().st_mode & 0o777 == 0o600
    mine.ok("down")
    # Somebody else has it now: another one, and no fault.
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(str(port))))
        taken.listen()
        other = mine.ok("up").strip()
        assert psycopg.conninfo.conninfo_to_dict(other)["port"] != port
        assert names(other) == []
        mine.ok("down")
        # One that is named is a demand.
        said = mine.fails(122, "up", PGHARNESS_PORT=str(port))
        assert f"port {port} (setting port) is in use on 127.0.0.1: name another, or none" in said
    assert f":{port}/" in mine.ok("up", PGHARNESS_PORT=str(port))


def test_a_run_has_its_own_port(mine: Project) -> None:
    port = str(free_port("127.0.0.1"))
    url = mine.ok("up", PGHARNESS_PORT=port).strip()
    assert f":{port}/" in url
    assert f":{port}/" not in mine.ok("run", "--", "sh", "-c", "echo $DATABASE_URL", PGHARNESS_PORT=port)
    assert "must be a port from 1024 to 65535" in mine.fails(120, "up", PGHARNESS_PORT="80")
    assert "pg-harness.toml" not in mine.fails(120, "up", PGHARNESS_PORT="70000")


def test_what_is_in_a_containers_memory_is_not_thrown_away(mine: Project) -> None:
    if mine.environ["PGHARNESS_BACKEND"] != "docker":
        url = mine.ok("up", PGHARNESS_STORAGE="memory").strip()
        add(url, "kept")
        mine.ok("stop")
        assert mine.ok("up", PGHARNESS_STORAGE="memory").strip() == url
        assert names(url) == ["kept"]
        return
    url = mine.ok("up", PGHARNESS_STORAGE="memory").strip()
    add(url, "kept")
    assert "has its data in memory, which is gone when the container stops" in mine.fails(121, "stop")
    assert names(url) == ["kept"]


def test_a_server_of_somebody_else_is_not_stopped(mine: Project) -> None:
    said = mine.fails(120, "stop", PGHARNESS_SERVER_URL="postgresql://me:secret@127.0.0.1:1/postgres")
    assert "that server is not ours to stop" in said
    assert "secret" not in said


def test_down_asks_where_something_would_be_missed(mine: Project) -> None:
    url, other = mine.ok("up", "-n", "2").split()
    # Nothing was changed: nothing is asked.
    mine.ok("down")
    assert mine.ok("up", "-n", "2").split() == [url, other]
    add(other, "precious")
    said = mine.fails(120, "down")
    assert "worker 2: users" in said
    assert "worker 1" not in said
    assert "Add --yes, or keep the data: `pg-harness stop`" in said
    assert names(other) == ["precious"]
    assert "precious" not in mine.ok("down", "--dry-run")
    assert mine.fails(120, "down", "--all", "--json")
    assert names(other) == ["precious"]
    # Brought back, it is as the migrations made it.
    mine.ok("reset", "2")
    mine.ok("mark", "2")
    assert "worker 2: its marks" in mine.fails(120, "down")
    # Of one that is stopped nobody knows.
    mine.ok("stop")
    assert "it does not answer, so what is in it cannot be told" in mine.fails(120, "down")
    mine.ok("down", "--yes")
    assert mine.ok("down") == ""
    assert json.loads(mine.ok("status", "--json"))["servers"] == []
