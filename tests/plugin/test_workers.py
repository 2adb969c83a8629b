"""xdist's workers: servers of their own, ways of distributing, failures to join, impatient people."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fix_plugin import Folder, Place

from harness.config.load import load
from harness.config.project import Project
from harness.servers import inventory

SERVERS = """
    import os, pytest
    @pytest.mark.parametrize("i", range(4))
    def test_it(i, pg, pg_conn, pg_url):
        assert os.environ["DATABASE_URL"] == pg_url
        found = pg_conn.execute("select current_setting('harness.server_id'), count(*) from users").fetchone()
        assert found[1] == 0
        pg_conn.execute("insert into users (name) values ('dirt')"); pg_conn.commit()
        with open(f"server-{pg.worker}-{i}", "w") as file: file.write(found[0])
"""


def purposes(place: Place) -> list[str]:
    settings = load(place.environ, start=place.root)
    return sorted(info.purpose for info in inventory.servers(Project.of(settings, place.environ)))


def test_a_server_for_each_worker(folder: Folder, place: Place) -> None:
    folder.write(test_a=SERVERS)
    before = purposes(place)
    folder.pytest("-n", "2", env={"PGHARNESS_ISOLATION": "server"}).ok(4)
    ids: dict[str, set[str]] = {}
    for path in folder.path.glob("server-*"):
        ids.setdefault(path.name.split("-")[1], set()).add(path.read_text())
    assert sorted(ids) == ["gw0", "gw1"]
    assert [len(of_one) for of_one in ids.values()] == [1, 1]
    assert ids["gw0"] != ids["gw1"]
    assert purposes(place) == before
    # Without xdist the one process has a server as well, and it ends too.
    folder.pytest(env={"PGHARNESS_ISOLATION": "server"}).ok(4)
    assert {path.read_text() for path in folder.path.glob("server-main-*")}.isdisjoint(
        set.union(*ids.values())
    )
    assert purposes(place) == before


def test_the_controller_has_no_server_of_its_own(folder: Folder, place: Place) -> None:
    folder.write(
        conftest="""
            import os, socket, psycopg, pytest
            from harness.servers import inventory
            from harness.config.load import load
            from harness.config.project import Project
            URL = os.environ["DATABASE_URL"]

            def pytest_sessionfinish(session):
                if hasattr(session.config, "workerinput"):
                    return
                assert os.environ["DATABASE_URL"] == URL
                with pytest.raises(psycopg.OperationalError, match="refused"):
                    psycopg.connect(URL, connect_timeout=5)
                print("CONTROLLER", URL.rpartition("/")[2])

            @pytest.fixture(scope="session", autouse=True)
            def look():
                settings = load(os.environ, start=os.getcwd())
                found = inventory.servers(Project.of(settings, os.environ))
                with open("purposes-" + os.environ["PYTEST_XDIST_WORKER"], "w") as file:
                    file.write("\\n".join(info.purpose for info in found))
        """,
        test_a=SERVERS,
    )
    before = purposes(place)
    result = folder.pytest("-n", "2", "-s", env={"PGHARNESS_ISOLATION": "server"}).ok(4)
    assert "CONTROLLER not_started" in result.text, result.text
    assert "a server for each worker and none for this process" in result.text, result.text
    seen = {line for path in folder.path.glob("purposes-*") for line in path.read_text().split()}
    assert {purpose.rpartition("-")[2] for purpose in seen - set(before)} <= {"gw0", "gw1"}
    assert seen - set(before)
    assert purposes(place) == before


def test_a_controller_without_workers_says_what_to_do(folder: Folder, place: Place) -> None:
    folder.write(conftest="def pytest_xdist_auto_num_workers(config): return 0", test_a=SERVERS)
    before = purposes(place)
    result = folder.pytest("-n", "auto", env={"PGHARNESS_ISOLATION": "server"})
    assert (result.code, result.text.count("Say -n 0.")) == (4, 1), result.text
    # Where the environment says so, it is known in time.
    none = {"PGHARNESS_ISOLATION": "server", "PYTEST_XDIST_AUTO_NUM_WORKERS": "0"}
    (folder.path / "conftest.py").unlink()
    folder.pytest("-n", "auto", env=none).ok(4)
    assert purposes(place) == before


def test_dist_each_is_refused(folder: Folder, place: Place) -> None:
    folder.write(test_a="def test_it(): pass")
    result = folder.pytest("--dist", "each", "--tx", "2*popen")
    assert result.code == 4, result.text
    assert result.text.count("pg-harness: --dist each runs every test once in each worker") == 1
    assert "Traceback" not in result.text
    assert place.leases() == []


@pytest.mark.parametrize("workers", [1, 3])
def test_who_cannot_join_says_so_once(workers: int, folder: Folder, place: Place) -> None:
    folder.write(
        conftest="""
        import os
        def pytest_configure_node(node):
            path = node.gateway.spec.env["PGHARNESS_RUN_FILE"]
            if os.path.exists(path): os.unlink(path)
        """,
        test_a="def test_it(): open('ran', 'w')",
    )
    result = folder.pytest("-n", str(workers))
    assert result.code == 4, result.text
    assert result.text.count("is gone: the pytest that wrote it has ended") == 1, result.text
    assert "said by worker gw" in result.text
    assert "Traceback" not in result.text, result.text
    assert not (folder.path / "ran").exists()
    assert place.leases() == []


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} never came"
        time.sleep(0.02)


@pytest.mark.parametrize("arguments", [(), ("-n", "2")])
def test_interrupted_again_and_again(arguments: tuple[str, ...], folder: Folder, place: Place) -> None:
    folder.write(
        test_a="""
        import time
        def test_slow(pg_conn):
            pg_conn.execute("insert into users (name) values ('dirt')")
            open("slow", "w").close()
            time.sleep(60)
        """,
        test_b="def test_it(pg_conn): assert pg_conn.execute('select count(*) from users').fetchone() == (0,)",
    )
    process = folder.start(*arguments, "test_a.py")
    wait_for(folder.path / "slow")
    end = time.monotonic() + 30
    # As a terminal does it: to all of them, while they wind up what the one before has begun.
    while process.poll() is None and time.monotonic() < end:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(timeout=0.15)
        except subprocess.TimeoutExpired:
            continue
    assert folder.finish(process, timeout=5).code != 0
    folder.pytest("test_b.py").ok(1)
    # What it left is swept as soon as the server has noticed the end of its sessions.
    end = time.monotonic() + 40
    with place.harness() as harness:
        while place.leases():
            assert time.monotonic() < end, place.leases()
            harness.sweep()
