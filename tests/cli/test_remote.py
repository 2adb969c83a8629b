"""Servers on another machine: TLS with a certificate of their own, or a tunnel of ssh; nothing else answers there."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_backends import until
from fix_cli import MIGRATION, Project
from fix_counting_proxy import counting_proxy
from fix_engines import SMALL, Engine, Network

from harness.dsn import Dsn
from harness.runs.run import Run

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

New = Callable[[str], Project]


@pytest.fixture(scope="module")
def new_project(tmp_path_factory: pytest.TempPathFactory, folders: tuple[Path, Path]) -> New:
    """Makes projects whose servers are ended by the tests: at the session's end these machines are gone."""

    def make(name: str) -> Project:
        root = tmp_path_factory.mktemp("remote") / name
        root.mkdir()
        (root / "pg-harness.toml").write_text('migrations = ["sql:db/migrations"]\n')
        project = Project(root, tmp_path_factory.mktemp("a state"), folders[1])
        project.migrate("001_users.sql", MIGRATION)
        project.environ |= {"PGHARNESS_BACKEND": "docker", "PGHARNESS_IMAGE": SMALL}
        return project

    return make


@pytest.fixture(scope="module")
def engine(network: Network) -> Engine:
    """One machine with a daemon, and ssh."""
    return network.add(1)[0]


@contextmanager
def project_of(new_project: New, name: str, state: Path, **environ: str) -> Iterator[Project]:
    """A project with a state folder of its own, in which nothing of other machines may be left."""
    project = new_project(name)
    project.environ |= {
        "PGHARNESS_BACKEND": "docker",
        "PGHARNESS_IMAGE": SMALL,
        "PGHARNESS_STATE_DIR": str(state),
        **environ,
    }
    yield project
    project.ok("down", "--all", "--yes")
    assert list((state / "remote").glob("*")) == []


@pytest.fixture(scope="module")
def far(
    network: Network, engine: Engine, new_project: New, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """A project whose server of `up` is there, by TLS."""
    state = tmp_path_factory.mktemp("a state")
    with project_of(
        new_project, "far", state, DOCKER_HOST=engine.tcp, **network.with_certificates
    ) as project:
        project.ok("up", "-n", "2")
        yield project


@pytest.fixture(scope="module")
def by_ssh(
    network: Network, engine: Engine, new_project: New, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """A project whose server of `up` is there, by ssh."""
    state = tmp_path_factory.mktemp("ssh-state")
    with project_of(new_project, "by ssh", state, DOCKER_HOST=engine.ssh(), PATH=network.path) as project:
        project.ok("up")
        yield project


# --- who scans ---------------------------------------------------------------------------------------------

SCAN = """
import json, selectors, socket, sys

def open_ports(address):
    found, todo, waiting = [], list(range(1, 65536)), selectors.DefaultSelector()
    while todo or waiting.get_map():
        while todo and len(waiting.get_map()) < 400:
            caller = socket.socket()
            caller.setblocking(False)
            port = todo.pop()
            caller.connect_ex((address, port))
            waiting.register(caller, selectors.EVENT_WRITE, port)
        for key, _ in waiting.select(5):
            if not key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                found.append(key.data)
            waiting.unregister(key.fileobj)
            key.fileobj.close()
    return sorted(found)

def said(address, port, message):
    with socket.create_connection((address, port), 5) as caller:
        caller.settimeout(2)
        try:
            caller.sendall(message)
            return caller.recv(2000).decode("latin-1")
        except OSError:
            return ""

def packet(code, text):
    body = code.to_bytes(4, "big") + text
    return (len(body) + 4).to_bytes(4, "big") + body

address, near, *ports = sys.argv[1:]
asks_tls = packet(80877103, b"")
log_in = packet(196608, b"user\\0postgres\\0database\\0postgres\\0\\0")
reachable = {}
for port in open_ports(address):
    reachable[port] = [said(address, port, asks_tls), said(address, port, log_in)]
reached = []
for port in map(int, ports):
    with socket.socket() as caller:
        caller.settimeout(5)
        reached += [port] * (caller.connect_ex((near, port)) == 0)
print(json.dumps({"open": reachable, "reached": reached}))
"""


def test_who_scans_finds_nothing_that_answers_without_tls(
    network: Network, engine: Engine, far: Project, by_ssh: Project, new_project: New
) -> None:
    local = [new_project("near"), new_project("near container")]
    local[0].environ["PGHARNESS_BACKEND"] = "process"
    ports = [Dsn.parse(project.ok("up").strip()).port for project in local]
    try:
        done = network.machine().run(
            sys.executable, "-c", SCAN, engine.address, f"{network.prefix}.1", *map(str, ports), timeout=100
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        # Nothing of a local run is reached from another machine.
        assert told["reached"] == []
    finally:
        for project in local:
            project.ok("down", "--yes")
    databases = {int(port): answers for port, answers in told["open"].items() if answers[0] in ("S", "N")}
    others = {int(port) for port in told["open"]} - set(databases)
    # The daemon itself, with certificates on both sides, and ssh.
    assert others <= {22, 2376}
    port = Dsn.parse(far.ok("url").strip()).port
    assert set(databases) == {port}
    tls, plain = databases[port]
    assert tls == "S"
    assert plain.startswith("E")
    assert "no pg_hba.conf entry" in plain
    assert "no encryption" in plain


def test_the_right_password_alone_does_not_let_in(far: Project) -> None:
    for dsn in (Dsn.parse(far.ok("url").strip()), far.admin()):
        url = dsn.url.partition("?")[0]
        with pytest.raises(psycopg.OperationalError, match="no encryption"):
            psycopg.connect(f"{url}?sslmode=disable").close()
        with psycopg.connect(dsn.url) as connection:
            ssl, version = connection.execute(
                "select ssl, version from pg_stat_ssl where pid = pg_backend_pid()"
            ).fetchone() or (None, None)
            assert ssl
            assert version in ("TLSv1.2", "TLSv1.3")
    with psycopg.connect(far.admin().url) as connection:
        rules = connection.execute("select distinct type, auth_method from pg_hba_file_rules").fetchall()
        assert sorted(rules) == [("hostssl", "scram-sha-256"), ("local", "trust")]
        verifiers = "select count(*) from pg_authid where rolpassword is not null and rolpassword not like 'SCRAM-SHA-256$%'"
        assert connection.execute(verifiers).fetchone() == (0,)


def test_the_key_is_seen_by_nobody(far: Project, engine: Engine) -> None:
    info = json.loads(next(Path(far.environ["PGHARNESS_STATE_DIR"]).glob("*/up.json")).read_text())
    handle = info["handle"]
    key = engine.docker("exec", handle, "cat", "/pgharness/data/server.key")
    line = key.splitlines()[1]
    assert len(line) > 50
    for seen in (engine.docker("inspect", handle), engine.docker("logs", handle)):
        assert line not in seen
        assert "PRIVATE KEY" not in seen
    root = Path(info["dsn"]["options"]["sslrootcert"])
    assert "PRIVATE KEY" not in root.read_text()
    assert root.stat().st_mode & 0o077 == 0
    assert far.ok("env").count("PRIVATE KEY") == 0


def test_all_commands_work_from_afar(far: Project, tmp_path: Path) -> None:
    insert = "insert into users (name) values (1); select ssl from pg_stat_ssl where pid = pg_backend_pid()"
    # psql here has its address by the variables of libpq.
    assert far.ok("psql", "--", "-Atqc", insert).strip() == "t"
    assert far.ok("psql", "2", "--", "-Atqc", "select count(*) from users").strip() == "0"
    # Where there is no psql, the container's own, by its socket.
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("docker", "sh"):
        (folder / name).symlink_to(next(p for p in (f"/usr/bin/{name}", f"/bin/{name}") if os.path.exists(p)))
    assert far.ok("psql", "--", "-Atqc", "select 1", PATH=str(folder)).strip() == "1"
    far.ok("reset")
    assert far.ok("psql", "--", "-Atqc", "select count(*) from users").strip() == "0"
    # A stop keeps the data, the certificate and the address.
    before = far.ok("url").strip()
    far.ok("stop")
    assert far.ok("up").split()[0] == before
    with psycopg.connect(before) as connection:
        connection.execute("select 1")


def test_a_run_and_all_its_children_log_in_by_tls(far: Project) -> None:
    script = (
        'psql -Atqc "select ssl from pg_stat_ssl where pid = pg_backend_pid()" && '
        'PGSSLMODE=$PGSSLMODE_2 PGSSLROOTCERT=$PGSSLROOTCERT_2 psql -Atqc "select 2" -d "$DATABASE_URL_2" && '
        'psql "$DATABASE_URL" -qc "insert into users (name) values (1)" && '
        f'{sys.executable} -m harness reset && psql -Atqc "select count(*) from users" && echo $PGSSLMODE'
    )
    # What the user's shell says of another server does not get in between.
    out = far.ok(
        "run", "-n", "2", "--", "sh", "-c", script, PGSSLROOTCERT="/nowhere.crt", PGSSLMODE="verify-ca"
    )
    assert out.split() == ["t", "2", "0", "verify-full"]


SUITE = """
import os, psycopg, pytest

@pytest.mark.parametrize("i", range(6))
def test_it(i):
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection, psycopg.connect("") as by_libpq:
        assert connection.execute("select count(*) from users").fetchone() == (0,)
        connection.execute("insert into users (name) values ('dirt')")
        for each in (connection, by_libpq):
            assert each.execute("select ssl from pg_stat_ssl where pid = pg_backend_pid()").fetchone() == (%s,)
"""


@pytest.mark.parametrize("how", ["tls", "ssh"])
def test_workers_of_pytest(how: str, far: Project, by_ssh: Project) -> None:
    project = far if how == "tls" else by_ssh
    (project.root / "pytest.ini").write_text("[pytest]\n")
    (project.root / "test_suite.py").write_text(SUITE % (how == "tls"))
    words = [
        "-q",
        "-n",
        "2",
        "-p",
        "no:cacheprovider",
        "-p",
        "xdist",
        "-p",
        "pg_harness_pytest",
        "--pg-harness-fresh=reset",
    ]
    environ = {**project.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=project.root, env=environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "6 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(("way", "strategy", "most"), [("auto", "rewind", 1), ("rows", "restore", 2)])
def test_a_reset_costs_its_round_trips(way: str, strategy: str, most: int, far: Project) -> None:
    """Over TLS as over loopback: a network adds its delay so often, and nothing else."""
    environ = {**far.environ, "PGHARNESS_ENGINE": way}
    with Run.open(root=far.root, environ=environ) as run:
        own = run.server.info.dsn
        with counting_proxy(own.host, own.port) as proxy:
            (hint,) = Path(environ["PGHARNESS_STATE_DIR"]).glob("*/run.json")
            noted = hint.read_text()
            through = json.loads(noted)
            # 127.0.0.1 is a name of its certificate, too: who is between only counts.
            through["dsn"] |= {"host": "127.0.0.1", "port": proxy.port}
            hint.write_text(json.dumps(through))
            try:
                with Run.open(root=far.root, environ=environ) as counted, counted.lease(watch=True) as lease:
                    trips = []
                    for _ in range(6):
                        # Not through the proxy: in TLS its good-bye looks like a question.
                        direct = replace(lease.dsn, host=own.host, port=own.port)
                        with psycopg.connect(direct.url) as connection:
                            connection.execute("insert into users (name) values ('dirt')")
                        before = proxy.all_trips()
                        assert lease.reset().strategy == strategy
                        trips.append(proxy.all_trips() - before)
            finally:
                hint.write_text(noted)
    # The first reset gets ready what it needs.
    assert 1 <= sorted(trips[1:])[len(trips) // 2] <= most, trips


def test_another_certificate_is_refused(far: Project, tmp_path: Path) -> None:
    """Whoever is between shows another one: no client says its password there."""
    from harness.servers.docker import tls

    dsn = Dsn.parse(far.ok("url").strip())
    other = tmp_path / "other.crt"
    other.write_text(tls.make([dsn.host]).certificate)
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        psycopg.connect(dsn.with_options({"sslrootcert": str(other)}).url).close()


def test_a_baked_image_holds_no_key(
    network: Network, engine: Engine, new_project: New, tmp_path: Path
) -> None:
    with project_of(
        new_project, "baked", tmp_path / "state", DOCKER_HOST=engine.tcp, **network.with_certificates
    ) as project:
        project.ok("bake")
        image = engine.docker("images", "-q", "--filter", "label=dev.pg-harness.baked").split()[0]
        container = engine.docker("create", image).strip()
        content = subprocess.run(
            ["docker", "cp", f"{container}:/pgharness", "-"],
            env=engine.environ,
            capture_output=True,
            check=True,
        ).stdout
        engine.docker("rm", container)
        assert b"PG_VERSION" in content
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            names = {Path(name).name for name in tar.getnames()}
        assert {"server.key", "server.crt", "password", ".pwfile"}.isdisjoint(names)
        for secret in (b"PRIVATE KEY", b"BEGIN CERTIFICATE"):
            assert secret not in content
        assert "BEGIN CERTIFICATE" not in engine.docker("inspect", "-f", "{{json .Config}}", image)
        # A server that starts from it has a key of its own, though the image's rules of log-in know `host`.
        ask = 'psql -Atqc "select ssl from pg_stat_ssl where pid = pg_backend_pid()"; psql "sslmode=disable" -c "select 1"'
        done = project.run("run", "--", "sh", "-c", ask, PGHARNESS_ISOLATION="server")
        assert done.stdout.split() == ["t"], done.stderr
        assert "no encryption" in done.stderr


# --- ssh ---------------------------------------------------------------------------------------------------


def tunnel_of(project: Project, url: str) -> dict[str, Any]:
    """What is noted of the tunnel that an address leads through."""
    folder = Path(project.environ["PGHARNESS_STATE_DIR"], "remote")
    noted = [json.loads(path.read_text()) for path in folder.glob("*.tunnel")]
    (tunnel,) = [each for each in noted if each["port"] == Dsn.parse(url).port]
    return dict(tunnel)


def test_by_ssh_nothing_is_open_on_either_machine(by_ssh: Project, engine: Engine) -> None:
    dsn = Dsn.parse(by_ssh.ok("url").strip())
    assert dsn.host == "127.0.0.1"
    tunnel = tunnel_of(by_ssh, dsn.url)
    there = engine.run("ss", "-Hltn", f"sport = :{tunnel['there']}").stdout
    here = subprocess.run(
        ["ss", "-Hltn", f"sport = :{dsn.port}"], capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[3] for line in there.splitlines()] == [f"127.0.0.1:{tunnel['there']}"]
    assert [line.split()[3] for line in here.splitlines()] == [f"127.0.0.1:{dsn.port}"]
    assert by_ssh.ok("psql", "--", "-Atqc", "select 1").strip() == "1"


def test_a_tunnel_that_died_is_opened_again_on_its_port(by_ssh: Project) -> None:
    url = by_ssh.ok("url").strip()
    before = tunnel_of(by_ssh, url)
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: not answers(Dsn.parse(url).port), seconds=10, what="its port is closed")
    assert by_ssh.ok("psql", "--", "-Atqc", "select 1").strip() == "1"
    after = tunnel_of(by_ssh, url)
    assert after["there"] == before["there"]
    assert after["pid"] != before["pid"]
    assert by_ssh.ok("url").strip() == url


def test_a_tunnel_that_dies_in_the_middle_is_named(by_ssh: Project) -> None:
    """By whoever used it; what comes next opens it again."""
    script = (
        "import glob, json, os, signal, subprocess, sys\n"
        "for path in glob.glob(os.environ['PGHARNESS_STATE_DIR'] + '/remote/*.tunnel'):\n"
        "    os.kill(json.load(open(path))['pid'], signal.SIGKILL)\n"
        "sys.exit(subprocess.call([sys.executable, '-m', 'harness', 'reset']))\n"
    )
    done = by_ssh.run("run", "--", sys.executable, "-c", script)
    assert done.returncode != 0
    assert "ssh tunnel" in done.stderr
    assert by_ssh.ok("run", "--", "psql", "-Atqc", "select 1").strip() == "1"


def answers(port: int) -> bool:
    with closing(socket.socket()) as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def test_nothing_of_ssh_is_left_after_down(
    network: Network, engine: Engine, new_project: New, tmp_path: Path
) -> None:
    with project_of(
        new_project, "left", tmp_path / "state", DOCKER_HOST=engine.ssh(), PATH=network.path
    ) as project:
        url = project.ok("run", "--", "sh", "-c", 'psql -qc "select 1" >&2 && echo "$DATABASE_URL"').strip()
        tunnel = tunnel_of(project, url)
        container = tunnel["container"]

        def programs() -> list[str]:
            told = subprocess.run(
                ["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True
            ).stdout
            return [line for line in told.splitlines() if container in line]

        # Of this machine, and of that one: they share the table of processes here.
        assert len(programs()) >= 2
        project.ok("down", "--all", "--yes")
        until(lambda: programs() == [], seconds=10, what="ssh and what it ran over there have ended")
        assert not answers(tunnel["port"])


def test_a_port_that_is_named_is_this_machines(
    network: Network, engine: Engine, new_project: New, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    with project_of(new_project, "named", state, DOCKER_HOST=engine.ssh(), PATH=network.path) as project:
        with closing(socket.create_server(("127.0.0.1", 0))) as taken:
            port = taken.getsockname()[1]
            told = project.fails(122, "up", PGHARNESS_PORT=str(port))
            assert f"port {port} (setting port) is in use" in told
        assert f"@127.0.0.1:{port}/" in project.ok("up", PGHARNESS_PORT=str(port))


@pytest.fixture
def stranger(engine: Engine, new_project: New, tmp_path: Path) -> Callable[[str], Project]:
    """Makes a project whose `ssh` is called with an own configuration, as root of this machine would not have it."""

    def make(lines: str, destination: str = "") -> Project:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (tmp_path / "config").write_text(lines)
        script = folder / "ssh"
        script.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {tmp_path}/config "$@"\n')
        script.chmod(0o755)
        project = new_project("stranger")
        project.environ |= {
            "PGHARNESS_BACKEND": "docker", "PGHARNESS_IMAGE": SMALL, "PGHARNESS_STATE_DIR": str(tmp_path / "state"),
            "DOCKER_HOST": engine.ssh(), "PATH": f"{folder}:{os.environ['PATH']}",
        }  # fmt: skip
        project.patience = 40
        return project

    return make


def test_a_host_that_is_not_known_and_a_key_that_is_not(
    network: Network, stranger: Callable[[str], Project], tmp_path: Path
) -> None:
    keys = network.ssh_folder
    nobody = f"UserKnownHostsFile {tmp_path}/none\nGlobalKnownHostsFile none\nIdentityFile {keys}/user\n"
    told = stranger(nobody).fails(121, "up")
    assert "Host key verification failed" in told
    assert "its host key is not known here" in told
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "wrong"], check=True)
    wrong = f"UserKnownHostsFile {keys}/known\nGlobalKnownHostsFile none\nIdentityFile {tmp_path}/wrong\nIdentitiesOnly yes\n"
    told = stranger(wrong).fails(121, "up")
    assert "Permission denied" in told
    assert "ssh-agent" in told


def test_no_docker_over_there_and_nobody_over_there(
    network: Network, engine: Engine, stranger: Callable[[str], Project], tmp_path: Path
) -> None:
    keys = network.ssh_folder
    config = f"UserKnownHostsFile {keys}/known\nGlobalKnownHostsFile none\nIdentityFile {keys}/user\n"
    project = stranger(config)
    script = tmp_path / "bin" / "ssh"
    # What the shell over there says where Docker's client is not installed.
    script.write_text(
        f'#!/bin/sh\nfor last; do :; done\nexec /usr/bin/ssh -F {tmp_path}/config -l root {engine.address} "PATH=/nowhere; $last"\n'
    )
    told = project.fails(121, "up")
    assert "docker" in told
    assert "install Docker's client over there" in told
    project = stranger(config)
    silent = f"ssh://root@{network.prefix}.200"
    told = project.fails(121, "up", DOCKER_HOST=silent)
    assert silent in told
    assert "no address of a daemon" in project.fails(121, "up", DOCKER_HOST="ssh://root:secret@there")
    assert "secret" not in project.fails(121, "up", DOCKER_HOST="ssh://root:secret@there")


# --- the daemon's own door ---------------------------------------------------------------------------------


@contextmanager
def forwarder(engine: Engine) -> Iterator[str]:
    """A daemon that takes commands without TLS, on this machine's address in the network; yields ``HOST:PORT``."""
    listener = socket.create_server((f"{engine.network.prefix}.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def serve(client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(engine.socket.removeprefix("unix://"))
            back = threading.Thread(target=pump, args=(server, client), daemon=True)
            back.start()
            pump(client, server)
            back.join()

    threads: list[threading.Thread] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threads.append(threading.Thread(target=serve, args=(client,), daemon=True))
                threads[-1].start()

    taking = threading.Thread(target=accept, daemon=True)
    taking.start()
    with listener:
        host, port = listener.getsockname()
        yield f"{host}:{port}"
        listener.shutdown(socket.SHUT_RDWR)
        taking.join(10)
        for thread in threads:
            thread.join(10)


def test_a_daemon_without_tls_is_used_and_told_once(engine: Engine, new_project: New, tmp_path: Path) -> None:
    project = new_project("open door")
    project.environ |= {"PGHARNESS_BACKEND": "docker", "PGHARNESS_STATE_DIR": str(tmp_path / "state")}
    with forwarder(engine) as address:
        done = project.run("doctor", DOCKER_HOST=f"tcp://{address}")
        assert f"a daemon answers at tcp://{address}" in done.stdout + done.stderr
        assert (done.stdout + done.stderr).count("takes commands without TLS") == 1


def test_wrong_certificates_of_the_daemons(
    network: Network, engine: Engine, new_project: New, tmp_path: Path
) -> None:
    import trustme

    other = trustme.CA()
    other.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    leaf = other.issue_cert("somebody@example.invalid")
    leaf.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    leaf.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    project = new_project("wrong")
    project.environ |= {"PGHARNESS_BACKEND": "docker", "PGHARNESS_STATE_DIR": str(tmp_path / "state")}
    told = project.fails(
        121, "up", DOCKER_HOST=engine.tcp, DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH=str(tmp_path)
    )
    assert "certificate verify failed" in told
    assert "DOCKER_CERT_PATH" in told
    # The daemon's own is right, ours is not.
    (tmp_path / "ca.pem").write_bytes((network.certificates / "ca.pem").read_bytes())
    told = project.fails(
        121, "up", DOCKER_HOST=engine.tcp, DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH=str(tmp_path)
    )
    assert "certificate" in told
