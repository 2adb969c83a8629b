"""Servers on several Docker hosts: real daemons, each in a network namespace of its own."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg
import pytest
import trustme
from fix_backends import docker, until
from fix_daemons import SMALL
from fix_engines import Engine, Network
from fix_hosts import Site, baked, servers

from harness.errors import BackendError
from harness.servers import registry
from harness.servers.port import Backend

pytestmark = [pytest.mark.docker, pytest.mark.timeout(240)]


@pytest.fixture
def site(tmp_path: Path, network: Network, engines: Sequence[Engine]) -> Iterator[Site]:
    """A checkout whose servers are on three engines."""
    yield Site.on(tmp_path / "site", network, engines)
    for engine in engines:
        engine.forget()


def backend(site: Site) -> Backend:
    """A new one, as a command makes it."""
    return registry.choose(site.project())


def context(site: Site, name: str, engine: Engine, certificates: Path) -> str:
    """A context as `docker context create` makes it; its word."""
    files = ",".join(
        f"{key}={certificates / file}"
        for key, file in (("ca", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem"))
    )
    site.environ["DOCKER_CONFIG"] = str(site.root / ".docker")
    environ = {key: value for key, value in site.environ.items() if not key.startswith("DOCKER_TLS")}
    docker("context", "create", name, "--docker", f"host={engine.tcp},{files}", environ=environ)
    return f"context:{name}"


def test_a_server_for_each_worker_on_three_hosts(
    site: Site, engines: Sequence[Engine], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pg_harness")
    with site.open(workers=4, isolation="server") as run:
        leases = run.leases(4)
        hosts = [session.server.info.host for session in run.placement.members.values()]
        assert sorted({*hosts}) == [engine.tcp for engine in engines]
        assert sorted(len(servers(engine)) for engine in engines) == [1, 1, 2]
        for lease in leases:
            with lease.connect() as connection:
                assert connection.execute("select name from users").fetchall() == [("a",)]
                connection.execute("delete from users")
            lease.reset()
            with lease.connect() as connection:
                assert connection.execute("select name from users").fetchall() == [("a",)]
    assert [servers(engine) for engine in engines] == [[], [], []]
    # Migrated once: one image, the same on all.
    assert len({*baked(engines[0]), *baked(engines[1]), *baked(engines[2])}) == 1
    assert caplog.text.count("baked in") == 1
    assert caplog.text.count("takes the migrated server from") == 2


def test_one_shared_server_a_host_stays_warm_and_follows_the_migrations(
    site: Site, engines: Sequence[Engine], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pg_harness")
    with site.open(workers=4) as run:
        assert sorted(lease.dsn.host for lease in run.leases(4))[1:3].count(engines[0].address) >= 1
        before = [servers(engine) for engine in engines]
        assert [len(each) for each in before] == [1, 1, 1]
    with site.open(workers=4) as run:
        assert len(run.leases(4)) == 4
    assert [servers(engine) for engine in engines] == before
    # Other migrations run once, wherever servers are warm.
    caplog.clear()
    (site.root / "migrations" / "002.sql").write_text("create table more (id int);")
    with site.open(workers=4) as run:
        for lease in run.leases(4):
            with lease.connect() as connection:
                assert connection.execute("select count(*) from more").fetchone() == (0,)
    assert caplog.text.count("migrating default") == 1
    assert [len(servers(engine)) for engine in engines] == [1, 1, 1]
    # A run of one worker uses one of them, and status tells all with their hosts.
    told, _ = site.ok("status")
    for engine in engines:
        assert f" on {engine.tcp}, data in memory" in told
        assert told.count(f"host      {engine.tcp}") == 1
    assert told.count(" of ours  ok") == 3
    told, _ = site.ok("down", "--all", "--json")
    assert len(json.loads(told)["ended"]) == 3
    assert [servers(engine) for engine in engines] == [[], [], []]


def test_a_server_on_a_host_that_is_not_named_any_more(site: Site, engines: Sequence[Engine]) -> None:
    """No run uses it; `down --all` ends it."""
    one, two, three = engines
    ask = ("run", "-n", "1", "--", "sh", "-c", 'echo "$DATABASE_URL"')
    for engine in (one, two):
        site.environ["DOCKER_HOSTS"] = engine.tcp
        assert f"@{engine.address}:" in site.ok(*ask)[0]
    site.environ["DOCKER_HOSTS"] = three.tcp
    assert len(json.loads(site.ok("down", "--all", "--json")[0])["ended"]) == 2
    assert [servers(engine) for engine in engines] == [[], [], []]


def test_hosts_that_cannot_be_used_are_named_once_and_left_out(
    site: Site, engines: Sequence[Engine], network: Network, tmp_path: Path
) -> None:
    """The same daemon twice, certificates of another authority, none at all, and nobody there."""
    one, two, three = engines
    strange = tmp_path / "strange"
    strange.mkdir()
    authority = trustme.CA()
    leaf = authority.issue_cert("client@example.invalid")
    authority.cert_pem.write_to_path(strange / "ca.pem")
    leaf.cert_chain_pems[0].write_to_path(strange / "cert.pem")
    leaf.private_key_pem.write_to_path(strange / "key.pem")
    twice = context(site, "twice", one, network.certificates)
    wrong = context(site, "wrong", two, strange)
    site.environ["PGHARNESS_HOSTS"] = f"{one.tcp},{twice},{wrong},tcp://{three.address}:1"
    _, err = site.ok("run", "-n", "2", "--isolation", "server", "--", "true")
    assert err.count(f"the host {twice} is left out: it is the same daemon as {one.tcp}") == 1
    assert err.count(f"the host {wrong} is left out") == 1
    assert "certificate verify failed" in err
    assert err.count(f"the host tcp://{three.address}:1 is left out") == 1
    assert "Connection refused" in err
    told, err = site.ok("doctor")
    assert err.count(f"the host {twice} is left out") == 1
    assert f"note  docker      {twice}" in told
    assert "1 of 4 Docker hosts can be used" in told
    # None of them: told with each reason, and what to do.
    site.environ["PGHARNESS_HOSTS"] = f"{wrong},tcp://{three.address}:1"
    code, _, err = site.call("run", "--", "true")
    assert code == 121
    assert "no Docker host can be used: the variable PGHARNESS_HOSTS names 2 hosts" in err
    assert f"tcp://{three.address}:1: " in err
    # Without certificates, where the daemon wants them.
    for name in ("DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        del site.environ[name]
    site.environ["PGHARNESS_HOSTS"] = one.tcp
    code, _, err = site.call("run", "--", "true")
    assert code == 121
    assert "HTTP request to an HTTPS server" in err
    site.environ["PGHARNESS_HOSTS"] = f"{twice},context:twide"
    code, _, err = site.call("run", "--", "true")
    assert code == 120
    assert (
        "there is no Docker context 'twide' (there are: default, twice, wrong); did you mean context:twice?"
        in err
    )


def test_a_host_that_is_silent_costs_its_patience_once(site: Site, engines: Sequence[Engine]) -> None:
    one, two, _ = engines
    site.environ["DOCKER_HOSTS"] = f"{one.tcp},{two.tcp}"
    out, _ = site.ok("up")
    first = next(engine for engine in (one, two) if servers(engine))
    other = two if first is one else one
    assert first.address in out
    other.unplug()
    try:
        began = time.monotonic()
        _, err = site.ok("run", "-n", "2", "--isolation", "server", "--", "true")
        assert time.monotonic() - began < 60
        assert err.count(f"the host {other.tcp} is left out") == 1
        assert "did not answer within" in err
        # What may be there is not said to be nothing.
        code, _, err = site.call("gc")
        assert code == 121
        assert f"not everything could be asked, and what runs there was not ended: {other.tcp}" in err
    finally:
        other.plug()
    # A person's databases are not made anew elsewhere while their host is silent.
    first.unplug()
    try:
        code, _, err = site.call("up")
        assert code == 121
        assert f"your server was on the Docker host {first.tcp}, which does not answer" in err
        assert servers(other) == []
        code, _, err = site.call("down", "--all", "--yes")
        assert code == 121
        assert first.tcp in err
    finally:
        first.plug()
    assert site.ok("up")[0] == out
    site.ok("down", "--all", "--yes")
    assert [servers(engine) for engine in (one, two)] == [[], []]


def test_a_host_behind_ssh(site: Site, engines: Sequence[Engine]) -> None:
    # What reaches a daemon by the system's ssh: docker-py alone needs paramiko for it.
    pytest.importorskip("harness.servers.docker.over_ssh")
    one, two, _ = engines
    site.environ["DOCKER_HOSTS"] = f"{two.ssh()},{one.tcp}"
    ask = 'psql -XAtq "$DATABASE_URL" -c "select name from users" && psql -XAtq "$DATABASE_URL_2" -c "select name from users"'
    out, err = site.ok("run", "-n", "2", "--isolation", "server", "--", "sh", "-c", ask)
    assert out == "a\na\n"
    assert "left out" not in err
    assert f"ok    docker      {two.ssh()}" in site.ok("doctor")[0]


def test_what_a_killed_client_left_ends_by_its_switch(site: Site, engines: Sequence[Engine]) -> None:
    runs = site.root / "runs"
    words = ["run", "-n", "3", "--isolation", "server", "--", "sh", "-c", f"touch {runs}; sleep 60"]
    child = site.start("harness", *words, PGHARNESS_TTL="1s")
    try:
        until(runs.exists, seconds=90, what="the command to run")
        assert sum(len(servers(engine)) for engine in engines) == 3
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=20)
    until(lambda: not any(servers(e) for e in engines), seconds=60, what="the servers to end themselves")


def test_two_clients_on_two_machines_at_once(
    site: Site, engines: Sequence[Engine], network: Network, tmp_path: Path
) -> None:
    """Each migrates, bakes and spreads by itself; neither ends what is the other's."""
    other = Site.on(tmp_path / "other", network, engines)
    machines = [network.machine(), network.machine()]
    ask = 'psql -XAtq "$DATABASE_URL" -c "select name from users" && psql -XAtq "$DATABASE_URL_3" -c "select name from users"'
    children = []
    for each, machine in zip((site, other), machines, strict=True):
        (each.root / "migrations" / "003.sql").write_text("create table three (id int);")
        command = ("harness", "run", "-n", "3", "--isolation", "server", "--", "sh", "-c", ask)
        children.append(each.start(*command, machine=machine))
    for child in children:
        out, err = child.communicate(timeout=170)
        assert (child.returncode, out) == (0, "a\na\n"), err
        assert "left out" not in err
    assert [servers(engine) for engine in engines] == [[], [], []]


def test_a_full_disk_on_one_host(site: Site, engines: Sequence[Engine]) -> None:
    one, two, _ = engines
    site.environ["DOCKER_HOSTS"] = f"{one.tcp},{two.tcp}"
    (site.root / "migrations" / "005.sql").write_text("create table five (id int);")
    with two.full():
        _, err = site.ok("run", "-n", "2", "--isolation", "server", "--", "true")
        assert err.count(f"the host {two.tcp} is left out") == 1
        assert "no space left on device" in err
        assert servers(two) == []
    # With room again it takes part.
    _, err = site.ok("run", "-n", "2", "--", "true")
    assert "left out" not in err
    assert [len(servers(engine)) for engine in (one, two)] == [1, 1]


def test_an_image_of_another_architecture(site: Site, engines: Sequence[Engine]) -> None:
    """On the first host the image is for another machine: it is named, and the next one bakes."""
    one, two, _ = engines
    one.docker("rmi", "-f", SMALL)
    docker("load", "-q", stdin=_of_architecture("arm64", SMALL), environ=one.environ)
    site.environ["DOCKER_HOSTS"] = f"{one.tcp},{two.tcp}"
    (site.root / "migrations" / "004.sql").write_text("create table four (id int);")
    try:
        _, err = site.ok("run", "--", "true")
    finally:
        one.docker("rmi", "-f", SMALL)
        one.load()
    assert err.count(f"the host {one.tcp} is left out") == 1
    assert "it is for arm64, and the daemon's machine is amd64" in err or "cannot run here" in err


def _of_architecture(architecture: str, tag: str) -> bytes:
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("nothing"), io.BytesIO())
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
        "history": [{"created_by": "test"}],
    }
    manifest = [{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def test_no_host_has_the_memory(site: Site, engines: Sequence[Engine]) -> None:
    fleet = backend(site)
    assert set(fleet.places(["a", "b", "c"], need=2**20).values()) == {engine.tcp for engine in engines}
    with pytest.raises(
        BackendError, match=r"2 servers of \d+ MB each have no room on any of the Docker hosts"
    ):
        fleet.places(["a", "b"], need=2**50)


def test_clocks_that_differ_by_an_hour(
    site: Site, engines: Sequence[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another client's container that is about to start is not an hour old, whatever our clock says; one that is, goes."""
    site.environ["DOCKER_HOSTS"] = engines[0].tcp
    labels = {"purpose": "run-x", "project": "0123456789", "server-id": "01234567"}
    words = [word for name, value in labels.items() for word in ("--label", f"dev.pg-harness.{name}={value}")]
    handle = engines[0].docker(
        "create", *words, "--name", "pg-harness-0123456789-run-x-01234567", SMALL, "true"
    )
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    fleet = backend(site)
    store = fleet.snapshots()
    assert store is not None
    assert store.leftovers() == []
    assert [each.detail for each in fleet.examine() if "clock" in each.detail] == [
        f"the clock of {engines[0].tcp} is 3600 s behind this machine's"
    ]
    # The time passes on both.
    monkeypatch.setattr(time, "time", lambda: now() + 7200)
    assert len(store.leftovers()) == 1
    assert handle not in engines[0].docker("ps", "-aq", "--no-trunc")


def test_a_standby_is_beside_its_server_and_by_tls_as_that_is(site: Site, engines: Sequence[Engine]) -> None:
    with site.open(replicas=1) as run, run.lease(watch=True) as lease:
        replica = lease.replica
        assert replica is not None
        assert run.server.info.host in {engine.tcp for engine in engines}
        assert (replica.dsn.host, replica.dsn.options) == (lease.dsn.host, lease.dsn.options)
        assert replica.dsn.options["sslmode"] == "verify-full"
        with pytest.raises(psycopg.OperationalError, match="no encryption"):
            psycopg.connect(replica.url, sslmode="disable")
        with lease.connect() as connection:
            connection.execute("insert into users (name) values ('b')")
        with replica.connect(autocommit=True) as reading:
            lease.wait_for_replica()
            assert reading.execute("select name from users").fetchall() == [("a",), ("b",)]
            lease.reset()
            assert reading.execute("select name from users").fetchall() == [("a",)]


def test_by_ssh_there_is_no_standby(site: Site, engines: Sequence[Engine]) -> None:
    code, _, err = site.call("up", DOCKER_HOSTS=engines[0].ssh(), PGHARNESS_REPLICAS="1")
    assert code == 121, err
    assert "replicas = 1: the daemon at" in err
    assert "is reached by ssh, whose tunnel leads to one port of a server" in err
    assert servers(engines[0]) == []
