"""A service of a real Swarm over three engines: what it is given, what it places, what it leaves."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg
import pytest
from fix_backends import until
from fix_engines import Engine, Network
from fix_swarm import Site, make_swarm, node_of, nodes_ready

from harness.errors import BackendUnavailable, HarnessError
from harness.postgres.session import greet
from harness.servers import acquire

pytestmark = [pytest.mark.docker, pytest.mark.server]


@pytest.fixture(scope="module")
def site(network: Network, engines: Sequence[Engine], tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A checkout that is baked, and whose image all nodes have."""
    make_swarm(engines)
    made = Site.on(tmp_path_factory.mktemp("swarm") / "shop", network, engines)
    made.share_baked()
    return made


@pytest.fixture(autouse=True)
def nothing_stays(site: Site) -> Iterator[None]:
    yield
    site.ok("down", "--all", "--yes")
    site.empty()


def test_servers_come_and_go_with_the_workers(site: Site) -> None:
    """One service; each worker has a server of its own, on whichever node; what is released is what ends."""
    with site.open(swarm_labels={"team": "shop"}) as run:
        leases = {worker: run.lease(worker) for worker in ("a", "b", "c")}
        assert len(site.services()) == 1
        assert site.replicas() == [3]
        assert len({(lease.dsn.host, lease.dsn.port) for lease in leases.values()}) == 3
        # A Swarm spreads the tasks of one service.
        assert {lease.dsn.host for lease in leases.values()} == {engine.address for engine in site.engines}
        for number, lease in enumerate(leases.values()):
            with psycopg.connect(lease.url) as connection:
                connection.execute(
                    "insert into users (name) select 'more' from generate_series(1, %s)", [number]
                )
        leases["b"].release()
        until(lambda: site.replicas() == [2], seconds=10, what="two servers are left")
        for worker, count in (("a", 1), ("c", 3)):
            with psycopg.connect(leases[worker].url) as connection:
                assert connection.execute("select count(*) from users").fetchone() == (count,)
        assert run.lease("d").dsn.host
        assert site.replicas() == [3]
        labels = json.loads(site.inspect(site.services()[0]))[0]["Spec"]["Labels"]
        assert labels["team"] == "shop"
    site.empty()


def test_nobody_gets_in_without_tls_and_no_secret_is_told(site: Site, network: Network) -> None:
    with site.open() as run:
        lease = run.lease("a")
        told = site.inspect(site.services()[0])
        note = json.loads(next(Path(site.environ["PGHARNESS_STATE_DIR"]).glob("*/swarm/*.json")).read_text())
        assert len(note["password"]) == 48
        # So that a gc at another Swarm does not forget it.
        manager = site.engines[0]
        assert note["swarm"] == manager.docker("info", "--format", "{{.Swarm.Cluster.ID}}").strip()
        # A setting may hold a password.
        assert "settings" not in manager.docker("config", "ls", "--format", "{{.Name}}")
        assert "settings" in manager.docker("secret", "ls", "--format", "{{.Name}}")
        for engine in site.engines:
            for handle in engine.docker("ps", "-q").split():
                told += engine.docker("inspect", handle) + engine.docker("exec", handle, "env")
        assert note["password"] not in told
        assert "PRIVATE KEY" not in told
        assert lease.dsn.password not in told
        plain = lease.dsn.with_options({"sslmode": "disable"})
        with pytest.raises(psycopg.OperationalError, match="no encryption"):
            psycopg.connect(plain.url)
        assert lease.dsn.options["sslmode"] == "verify-full"
        other = network.folder / "certificates" / "ca.pem"
        with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
            psycopg.connect(lease.dsn.with_options({"sslrootcert": str(other)}).url)


def test_placed_where_the_constraints_say(site: Site) -> None:
    manager, _, last = site.engines
    handle = node_of(manager, last)
    wanted = ["node.labels.db == yes"]
    with pytest.raises(BackendUnavailable) as caught, site.open(swarm_constraints=wanted) as run:
        run.lease("a")
    text = str(caught.value)
    assert "no node of the Swarm may take the server" in text
    assert "scheduling constraints not satisfied on 3 nodes" in text
    assert "swarm_constraints = ['node.labels.db == yes']" in text
    assert "docker node update --label-add" in text
    site.empty()
    manager.docker("node", "update", "--label-add", "db=yes", handle)
    with site.open(swarm_constraints=wanted) as run:
        assert {run.lease(worker).dsn.host for worker in "ab"} == {last.address}
    manager.docker("node", "update", "--label-rm", "db", handle)


def test_more_memory_than_a_node_has(site: Site) -> None:
    """It is asked for on a node, where `memory_limit` says how much."""
    with pytest.raises(BackendUnavailable, match="insufficient resources on 3 nodes") as caught:
        acquire.ensure(site.project(memory_limit="900GB", storage="memory"))
    assert "a smaller memory_limit" in str(caught.value)


def test_an_image_that_no_node_has(site: Site) -> None:
    with pytest.raises(BackendUnavailable, match="is not on this Docker daemon and cannot be pulled"):
        acquire.ensure(site.project(image="127.0.0.1:1/no-such-image:1"))


def test_nodes_without_the_image_are_left_out(site: Site, told: list[str]) -> None:
    manager, second, third = site.engines
    image = manager.docker("images", "-q", "pg-harness/baked").split()[0]
    for engine in (second, third):
        engine.docker("rmi", "-f", image)
    try:
        with site.open() as run:
            assert {run.lease(worker).dsn.host for worker in "abc"} == {manager.address}
        assert any("is left out: it does not have the image" in line for line in told)
    finally:
        site.share_baked()


def test_a_drained_node_loses_its_leases_and_the_run_goes_on(site: Site) -> None:
    manager, _, last = site.engines
    handle = node_of(manager, last)
    with site.open() as run:
        leases = [run.lease(worker) for worker in ("a", "b", "c")]
        lost = next(lease for lease in leases if lease.dsn.host == last.address)
        try:
            manager.docker("node", "update", "--availability", "drain", handle)
            until(lambda: not last.docker("ps", "-q").split(), seconds=20, what="nothing runs on the node")
            info = next(one for one in site.backend().list(site.project().id) if one.dsn.host != last.address)
            session = greet(info.dsn, info.server_id)
            assert session is not None
            session.close()
            members = run._run.placement.members
            fate = members[lost.worker].server.fate
            assert re.fullmatch(
                rf"the node .+ \({re.escape(last.address)}\) of the Swarm was drained: "
                "what was leased there is gone, and the run goes on elsewhere",
                fate,
            )
            with pytest.raises(HarnessError):
                lost.renew()
            for lease in leases:
                if lease is not lost:
                    lease.renew()
            # A new worker is served by the nodes that are left.
            assert run.lease("d").dsn.host != last.address
        finally:
            manager.docker("node", "update", "--availability", "active", handle)


def test_the_server_that_runs_share(site: Site) -> None:
    """It is kept warm, found by others, told by the commands, and ends by its switch: its service starts no other."""
    site.write("look.py", "import os; print(os.environ['DATABASE_URL'])")
    first = site.ok("run", "--", "python", "look.py", PGHARNESS_TTL="6s")
    assert "verify-full" in first
    assert len(site.services()) == 1
    again = site.ok("run", "--", "python", "look.py", PGHARNESS_TTL="6s")
    assert first.split("@")[1].split("/")[0] == again.split("@")[1].split("/")[0]
    status = site.ok("status")
    assert "of the Swarm, on" in status
    assert "database system is ready to accept connections" in site.ok("logs", "run")
    doctor = site.ok("doctor", DOCKER_HOSTS="local")
    assert "the variable DOCKER_HOSTS is not used: the Swarm places servers" in doctor
    assert "a Swarm of 3 nodes, 3 of them ready" in doctor
    until(
        lambda: not any(engine.docker("ps", "-q").split() for engine in site.engines),
        seconds=30,
        what="the server has ended itself",
    )
    assert len(site.services()) == 1
    assert site.services()[0] in site.ok("gc")
    site.empty()


def test_a_person_s_server(site: Site) -> None:
    """Its data lies on the node's disk; an image as it is, that is initialised there, by scripts that the Swarm brings."""
    url = site.ok("up", PGHARNESS_ENGINE="rewind").split()[-1]
    with psycopg.connect(url) as connection:
        connection.execute("insert into users (name) values ('mine')")
    site.ok("reset")
    with psycopg.connect(url) as connection:
        assert connection.execute("select count(*) from users").fetchone() == (1,)
    code, said = site.call("harness", "stop")
    assert code != 0
    assert "cannot be stopped with its data kept" in said
    assert site.ok("url").strip() in url


def test_a_killed_run_leaves_nothing(site: Site) -> None:
    site.write(
        "hold.py",
        """
        import time, harness
        run = harness.Harness.open(isolation="server", ttl=3)
        for worker in "ab":
            print(run.lease(worker).url, flush=True)
        time.sleep(100)
        """,
    )
    child = subprocess.Popen(
        [sys.executable, "hold.py"], cwd=site.root, env=site.environ, stdout=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline()
    assert child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    until(
        lambda: not any(engine.docker("ps", "-q").split() for engine in site.engines),
        seconds=40,
        what="both servers have ended themselves",
    )
    site.ok("gc")
    site.empty()


SUITE = """
import os, time
import psycopg, pytest

@pytest.mark.parametrize("number", range(22))
def test_one(number):
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        assert connection.execute("select count(*) from users").fetchone() == (1,)
        connection.execute("insert into users (name) values ('b')")
    with open("told", "a") as file:
        print(os.environ["PYTEST_XDIST_WORKER"], os.environ["DATABASE_URL"], file=file)
    while not os.path.exists("go"):
        time.sleep(0.05)
    time.sleep(0.4)
"""


def test_a_suite_of_four_workers_with_one_node_killed_in_the_middle(site: Site) -> None:
    """Its workers' tests fail with an error that names the node; all others pass, and nothing is left."""
    last = site.engines[2]
    site.write("test_suite.py", SUITE)
    told = site.root / "told"
    with site.start(
        "pytest",
        "-n",
        "4",
        "-v",
        "-p",
        "no:asyncio",
        "-p",
        "no:cacheprovider",
        "test_suite.py",
        PGHARNESS_ISOLATION="server",
    ) as child:
        try:
            until(
                lambda: told.exists() and len(told.read_text().splitlines()) == 4,
                seconds=60,
                what="each worker has begun",
            )
            workers = {
                line.split()[0]: line.split("@")[1].split(":")[0] for line in told.read_text().splitlines()
            }
            assert len(set(workers.values())) == 3, workers
            (site.root / "go").touch()
            until(
                lambda: len(told.read_text().splitlines()) >= 8, seconds=30, what="the suite is in its middle"
            )
            last.kill()
            said, _ = child.communicate(timeout=170)
        finally:
            child.kill()
            last.start()
            nodes_ready(site.engines, count=3)
    lost = {worker for worker, host in workers.items() if host == last.address}
    assert lost
    assert len(lost) < 4
    outcomes = re.findall(r"^\[(gw\d)\].*(PASSED|FAILED|ERROR) ", said, re.MULTILINE)
    assert len(outcomes) == 22, said
    wrong = [worker for worker, outcome in outcomes if outcome != "PASSED"]
    assert set(wrong) == lost, said
    passed = {worker for worker, outcome in outcomes if outcome == "PASSED"}
    assert passed == set(workers), said
    assert re.search(
        rf"the node \S+ \({re.escape(last.address)}\) of the Swarm (is down|does not answer)", said
    ), said
    assert "Traceback" not in said.replace("tracebackhide", "")


def test_a_worker_of_the_swarm_is_no_manager(site: Site) -> None:
    code, said = site.call("harness", "up", DOCKER_HOST=site.engines[1].tcp)
    assert code == BackendUnavailable.exit_code
    assert "is a worker of its Swarm, and only managers are asked" in said
    assert "name a manager: DOCKER_HOST or a Docker context" in said


def test_a_password_that_is_lost(site: Site, told: list[str]) -> None:
    """The Swarm does not tell it again: the server is left to whoever may be using it, and another one is started beside it."""
    first = acquire.ensure(site.project())
    first.close()
    for path in Path(site.environ["PGHARNESS_STATE_DIR"]).rglob("*.json"):
        path.unlink()
    with acquire.ensure(site.project()) as second:
        assert second.info.server_id != first.info.server_id
        assert len(site.services()) == 2
    assert any("`pg-harness down --all` ends both" in line for line in told)


def test_a_swarm_without_a_leader(site: Site) -> None:
    """Nothing can be started or ended: that is said soon, servers that run go on, and so does all once it has one again.

    The last test of the module: its second engine stays dead.
    """
    manager, second, _ = site.engines
    second_id = node_of(manager, second)
    manager.docker("node", "update", "--label-add", "here=yes", node_of(manager, manager))
    with site.open(swarm_constraints=["node.labels.here == yes"]) as run:
        lease = run.lease("a")
        manager.docker("node", "promote", second_id)
        until(
            lambda: "Reachable" in manager.docker("node", "ls", "--format", "{{.ManagerStatus}}"),
            seconds=20,
            what="there are two managers",
        )
        second.kill()
        try:
            began = time.monotonic()
            with pytest.raises(
                BackendUnavailable, match="has no leader: too few of its managers answer"
            ) as caught:
                run.lease("b")
            assert time.monotonic() - began < 45
            assert "--force-new-cluster" in str(caught.value)
            lease.renew()
            with psycopg.connect(lease.url) as connection:
                assert connection.execute("select count(*) from users").fetchone() == (1,)
        finally:
            # The remedy that was told.
            manager.docker("swarm", "init", "--force-new-cluster", "--advertise-addr", manager.address)
        until(lambda: "Leader" in manager.docker("node", "ls"), seconds=30, what="the manager leads alone")
        assert run.lease("b").dsn.host == manager.address
