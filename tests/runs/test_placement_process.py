"""A postmaster for each worker."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from fix_backends import processes_naming, until
from fix_fleets import Estate, Fleet

from harness import Lease
from harness.config.project import Project
from harness.errors import BackendError, LeaseError, ServerLost
from harness.runs.run import Run
from harness.servers import acquire, inventory, memory
from harness.servers.handle import Server

ASK = "select current_setting('harness.server_id')"


@pytest.fixture
def estate(new_estate: Callable[..., Estate]) -> Estate:
    return new_estate(backend="process")


def test_each_worker_has_a_server(estate: Estate) -> None:
    with estate.open() as fleet:
        leases = fleet.leases(3)
        ids = set()
        for lease in leases:
            with lease.connect() as connection:
                ids.add(connection.execute(ASK).fetchone()[0])
        assert len(ids) == 3
        first = fleet.members["1"].link.session
        first.execute("create role only_here")
        there = [
            m.link.session.value("select count(*) from pg_roles where rolname = 'only_here'")
            for m in fleet.members.values()
        ]
        assert sorted(there) == [0, 0, 1]
        with leases[0].connect() as connection:
            connection.execute("delete from users")
        leases[0].reset()
        with leases[0].connect() as connection:
            assert connection.execute("select name from users").fetchall() == [("a",)]
        assert fleet.variables(leases[2])["DATABASE_URL"] == leases[2].url
        assert repr(fleet).startswith(f"<Fleet {fleet.project} run {fleet.run}: 3 servers of process")
        leases[1].release()
        assert sorted(fleet.members) == ["1", "3"]
        # The same worker again has a new server.
        with fleet.lease("2").connect() as connection:
            assert connection.execute(ASK).fetchone()[0] not in ids
        folders = [m.server.info.handle for m in fleet.members.values()]
    assert estate.purposes() == []
    assert not [folder for folder in folders if Path(folder).exists() or processes_naming(folder)]


def test_two_runs_of_one_checkout_share_nothing(estate: Estate) -> None:
    with estate.open() as one, estate.open() as other:
        lease, theirs = one.lease("1"), other.lease("1")
        assert lease.dsn.port != theirs.dsn.port
        one.close()
        with theirs.connect() as connection:
            assert connection.execute("select 1").fetchone() == (1,)


def test_killed_nothing_remains(estate: Estate) -> None:
    estate.ensure()
    mark = estate.root / "began"
    words = ("run", "--isolation", "server", "-n", "2", "--", "sh", "-c", f"touch {mark}; exec sleep 60")
    child = estate.cli(*words, PGHARNESS_TTL="1s")
    try:
        # Before that, a server may be no more than a record, which stays for a while (decision 62).
        until(mark.exists, seconds=30, what="the command to run")
        assert len(estate.purposes()) == 2
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=20)
    for name in ("stdout", "stderr"):
        getattr(child, name).close()
    took = until(lambda: estate.purposes() == [], seconds=30, what="the servers to end themselves")
    assert took < 20
    inventory.forget_gone(Project.of(estate.settings(), estate.environ))
    assert list(Path(estate.environ["PGHARNESS_STATE_DIR"]).glob("*/run-*.json")) == []


def test_the_command_line(estate: Estate) -> None:
    assert "memory: 4 ×" in estate.four_servers()


def test_other_commands_see_each_workers_server(estate: Estate) -> None:
    (estate.root / "pg-harness.toml").write_text('migrations = ["sql:migrations"]\nisolation = "server"\n')

    def call(*words: str) -> str:
        other = estate.cli(*words)
        out, err = other.communicate(timeout=60)
        assert other.returncode == 0, err
        return out

    estate.ensure()
    mark = estate.root / "began"
    child = estate.cli("run", "-n", "2", "--", "sh", "-c", f"touch {mark}; exec sleep 60")
    until(mark.exists, seconds=60, what="the command to run")
    servers = json.loads(call("status", "--json"))["servers"]
    assert sorted(worker["worker"] for server in servers for worker in server["workers"]) == ["1", "2"]
    assert all(server["bytes"] > 2**20 for server in servers)
    assert call("psql", "2", "--", "-Atc", "select name from users").strip() == "a"
    call("down", "--all", "--yes")
    assert estate.purposes() == []
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)


def test_memory_that_is_too_small_is_told_before_anything_starts(
    estate: Estate, monkeypatch: pytest.MonkeyPatch
) -> None:
    with estate.open() as fleet:
        monkeypatch.setattr(memory, "free_memory", lambda: 500 * 1024**2)
        with pytest.raises(
            BackendError, match=r"4 servers do not fit into memory: 4 × 176 MB = 704 MB.*500 MB are free"
        ):
            fleet.leases(4)
        assert estate.purposes() == []
        fleet.leases(2)
        assert fleet.members["1"].server.info.storage == "disk"


def test_a_server_that_was_killed_is_named_at_once(estate: Estate) -> None:
    with estate.open() as fleet:
        lease = fleet.lease()
        data = Path(fleet.members["1"].server.info.handle) / "data"
        os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        # Sessions end when they see the end of their postmaster, a moment later.
        until(
            lambda: not processes_naming(str(data.parent)), seconds=20, what="the server's processes to end"
        )
        began = time.monotonic()
        with pytest.raises(ServerLost):
            lease.reset()
        assert time.monotonic() - began < 10
    assert estate.purposes() == []


def test_a_workers_process_leases_on_its_own_server_only(estate: Estate) -> None:
    with Run.open_project(Project.of(estate.settings(), estate.environ), worker="gw0") as run:
        assert run.shared is None
        with pytest.raises(LeaseError, match="this process has 0 of them"):
            _ = run.server
        leases = [run.lease("gw0"), run.lease(), run.lease("another"), *run.leases(2, first=2)]
        assert [lease.worker for lease in leases] == ["gw0", "1", "another", "2", "3"]
        assert {lease.dsn.port for lease in leases} == {run.server.info.dsn.port}
        assert len(estate.purposes()) == 1
        for lease in leases[:-1]:
            lease.release()
        assert len(estate.purposes()) == 1
        # It ends with the last of them, whoever's that is.
        leases[-1].release()
        assert estate.purposes() == []


def test_two_threads_that_lease_without_a_name_get_a_server_each(estate: Estate) -> None:
    with estate.open() as fleet, ThreadPoolExecutor(2) as threads:
        leases = [future.result() for future in [threads.submit(fleet.lease) for _ in range(2)]]
        assert sorted(lease.worker for lease in leases) == sorted(fleet.members) == ["1", "2"]
        assert len({lease.dsn.port for lease in leases}) == 2
    assert estate.purposes() == []


def test_two_threads_of_one_worker_get_one_server(estate: Estate) -> None:
    both = Barrier(2)

    def lease(fleet: Fleet) -> Lease:
        both.wait(10)
        return fleet.lease("gw0")

    with estate.open() as fleet, ThreadPoolExecutor(2) as threads:
        leases = [future.result() for future in [threads.submit(lease, fleet) for _ in range(2)]]
        assert len({lease.dsn.port for lease in leases}) == 1
        assert len(estate.purposes()) == len(fleet.members) == 1
    assert estate.purposes() == []


def test_where_one_of_several_servers_fails_none_is_left(
    estate: Estate, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = acquire.private

    def only_the_first(*given: Any, purpose: str, **more: Any) -> Server:
        if purpose.endswith("2"):
            raise BackendError("no second one")
        return start(*given, purpose=purpose, **more)

    with estate.open() as fleet:
        monkeypatch.setattr(acquire, "private", only_the_first)
        with pytest.raises(BackendError, match="no second one"):
            fleet.leases(2)
        assert dict(fleet.members) == {}
        assert estate.purposes() == []


def test_what_is_kept_keeps_its_server(estate: Estate) -> None:
    with estate.open(ttl="40s") as fleet:
        lease = fleet.lease()
        kept = lease.keep("a test failed")["default"]
        member = fleet.members["1"]
    found = inventory.find(Project.of(estate.settings(), estate.environ), purpose=member.server.info.purpose)
    assert found is not None
    with found:
        assert found.session.value("select count(*) from pg_database where datname = %s", (kept,)) == 1
        assert found.session.value("select setconfig::text from pg_db_role_setting") == "{harness.ttl=40}"
    assert any(kept in line and "40 s" in line for line in estate.told)


def test_a_server_of_somebody_elses_is_refused(estate: Estate) -> None:
    with pytest.raises(BackendError, match='isolation = "database"'):
        estate.open(backend="external", server_url="postgresql://nobody@127.0.0.1:1/x")


def test_pytest_with_workers(estate: Estate) -> None:
    (estate.root / "test_it.py").write_text(
        "import os, pytest\n"
        "@pytest.mark.parametrize('n', range(4))\n"
        "def test_it(pg, n):\n"
        "    with pg.connect() as c:\n"
        f"        print(os.environ['PYTEST_XDIST_WORKER'], c.execute({ASK!r}).fetchone()[0], file=open(os.environ['SEEN'], 'a'))\n"
        "        assert c.execute('select count(*) from users').fetchone() == (1,)\n"
        "        c.execute('delete from users')\n"
    )
    (estate.root / "pg-harness.toml").write_text(
        'isolation = "server"\nbackend = "process"\nfresh = "reset"\nmigrations = ["sql:migrations"]\n'
    )
    seen = estate.root / "seen"
    child = estate.python(
        f"os.environ['SEEN'] = {str(seen)!r}\nos.chdir({str(estate.root)!r})\nimport pytest\n"
        "from importlib.metadata import entry_points\n"
        # Installed, the plugin is there by itself; in a bare checkout it has to be named.
        "named = [] if entry_points(group='pytest11', name='pg_harness') else ['-p', 'pg_harness_pytest']\n"
        "sys.exit(pytest.main([*named, '-n', '2', 'test_it.py']))\n"
    )
    out, err = child.communicate(timeout=100)
    assert child.returncode == 0, out + err
    pairs = {tuple(line.split()) for line in seen.read_text().splitlines()}
    assert {worker for worker, _ in pairs} == {"gw0", "gw1"}
    assert len({number for _, number in pairs}) == 2
    # The controller has no server: it knows how resets are made from what the servers start from.
    assert len(re.findall(r"^pg-harness: reset: (?:rewind|rows \(.+\))$", out, re.MULTILINE)) == 1, out
