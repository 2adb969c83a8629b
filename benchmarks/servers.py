"""A server for each worker, against the same done by hand and against testcontainers.

    python benchmarks/servers.py [--image pgharness-test:17] [--pairs 5]

Docker's part needs a daemon and an image with PostgreSQL's binaries; without one, only local servers are measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import schema
from measure import compare, head, timed

from harness.runs.per_worker import ServerPerWorker
from harness.runs.run import Run
from harness.servers.process.user import ServerUser

ENTRYPOINT = """\
#!/bin/sh
# As the official image does it: initialise, a temporary server, the database, stop, the real one.
set -eu
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
export PGDATA=/var/lib/postgresql/official
mkdir -p "$PGDATA" && chown postgres "$PGDATA"
as() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
echo "$POSTGRES_PASSWORD" >/tmp/password
as initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth-host=scram-sha-256 --auth-local=trust >/dev/null
echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
mkdir -p /var/run/postgresql && chown postgres /var/run/postgresql
as pg_ctl -w -o "-c listen_addresses=''" start >/dev/null
[ "$POSTGRES_DB" = postgres ] || as psql -U "$POSTGRES_USER" -d postgres -c "create database \\"$POSTGRES_DB\\""
as pg_ctl -w -m fast stop >/dev/null
echo "PostgreSQL init process complete; ready for start up."
exec setpriv --reuid=postgres --regid=postgres --clear-groups postgres -c 'listen_addresses=*'
"""


@contextmanager
def project(backend: str, image: str | None) -> Iterator[Callable[[], Run]]:
    """A project of 60 tables; opens runs of it."""
    with schema.project() as (folder, environ):
        yield lambda: Run.open(root=folder, environ=environ, isolation="server", backend=backend, image=image)


def until_ready(dsn: str) -> None:
    """As our own wait: short pauses at first."""
    pause = 0.005
    for _ in range(2000):
        try:
            with psycopg.connect(dsn, connect_timeout=2) as connection:
                connection.execute("select 1")
                return
        except psycopg.OperationalError:
            subprocess.run(["sleep", str(pause)], check=False)
            pause = min(pause * 1.5, 0.05)
    raise SystemExit(f"no answer at {dsn}")


def baked(fleet: Run) -> str:
    """What its servers start from."""
    assert isinstance(fleet.placement, ServerPerWorker)
    return fleet.placement.baked.snapshot.ref


def lease(fleet: Run, count: int = 1) -> float:
    """Seconds until ``count`` workers have a migrated database each; gives them back untimed."""

    def act() -> None:
        for given in fleet.leases(count):
            with given.connect() as connection:
                connection.execute("select 1")

    took = timed(act)
    fleet.placement.give_up(list(fleet.placement.members))
    return took


def docker_run(image: str) -> float:
    """Seconds of ``docker run`` by hand, data in memory as ours, until ``select 1`` answers."""
    name = f"bench-{uuid.uuid4().hex[:8]}"

    def act() -> None:
        subprocess.run(
            ["docker", "run", "-d", "--rm", "--init", "--name", name, "--tmpfs", "/pgharness/memory:mode=1777",
             "-e", "PGHARNESS_BASE=/pgharness/memory", "-e", "POSTGRES_PASSWORD=secret", "-p", "127.0.0.1::5432", image],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        port = subprocess.run(
            ["docker", "port", name, "5432/tcp"], check=True, capture_output=True, text=True
        )
        until_ready(f"postgresql://postgres:secret@{port.stdout.split()[0]}/postgres")

    took = timed(act)
    subprocess.run(["docker", "rm", "-f", name], check=True, stdout=subprocess.DEVNULL)
    return took


def testcontainers(image: str, files: list[Path]) -> float:
    """Seconds of ``PostgresContainer`` and the migrations."""
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    from testcontainers.community.postgres import PostgresContainer

    held: list[Any] = []

    def act() -> None:
        held.append(PostgresContainer(image, driver=None).start())
        with psycopg.connect(held[0].get_connection_url(), autocommit=True) as connection:
            for file in files:
                connection.execute(file.read_text().encode())

    took = timed(act)
    held[0].stop()
    return took


def copied(base: str, binaries: Path) -> float:
    """Seconds of copying the directory and ``pg_ctl start``, until ``select 1`` answers."""
    owner = ServerUser.find()
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    owner.give(folder)
    environ = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    control: list[str | Path] = [binaries / "pg_ctl", "-D", folder / "data", "-s"]
    port = 40000 + os.getpid() % 20000
    password = (Path(base) / "password").read_text().strip()

    def act() -> None:
        owner.run(
            ["cp", "-a", "--reflink=auto", Path(base) / "data", folder / "data"], timeout=60, env=environ
        )
        options = f"-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        owner.run([*control, "-w", "-l", folder / "log", "-o", options, "start"], timeout=60, env=environ)
        until_ready(f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres")

    took = timed(act)
    owner.run([*control, "-m", "immediate", "stop"], timeout=60, env=environ)
    shutil.rmtree(folder, ignore_errors=True)
    return took


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", default="pgharness-test:17")
    parser.add_argument("--pairs", type=int, default=5)
    given = parser.parse_args()
    pairs = given.pairs

    head("local servers")
    with project("process", None) as new, new() as fleet:
        base = baked(fleet)
        fleet.lease()
        binaries = Path(fleet.server.info.binaries or "")
        fleet.placement.give_up(["1"])
        compare(
            "a migrated server, leased / copy + pg_ctl",
            lambda: lease(fleet),
            lambda: copied(base, binaries),
            pairs=pairs,
            aim=1.3,
        )
        compare("four of them / one", lambda: lease(fleet, 4), lambda: lease(fleet), pairs=pairs, aim=2.0)

    if (
        subprocess.run(
            ["docker", "image", "inspect", given.image], capture_output=True, check=False
        ).returncode
        != 0
    ):
        print(f"\nno Docker daemon with {given.image}: containers are not measured")
        return
    head("containers")
    with tempfile.TemporaryDirectory() as folder, project("docker", given.image) as new, new() as fleet:
        base = baked(fleet)
        compare(
            "a migrated container, leased / docker run",
            lambda: lease(fleet),
            lambda: docker_run(base),
            pairs=pairs,
            aim=1.15,
        )
        compare("four of them / one", lambda: lease(fleet, 4), lambda: lease(fleet), pairs=pairs, aim=2.0)
        official = f"bench-official-{os.getpid()}"
        (Path(folder) / "entrypoint").write_text(ENTRYPOINT)
        (Path(folder) / "Dockerfile").write_text(
            f'FROM {given.image}\nCOPY entrypoint /entrypoint\nENTRYPOINT ["/bin/sh", "/entrypoint"]\n'
            "RUN ln -sf /usr/lib/postgresql/*/bin/psql /usr/local/bin/psql\n"
        )
        subprocess.run(["docker", "build", "-q", "-t", official, folder], check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "DOCKER_BUILDKIT": "0"})  # fmt: skip
        files = sorted(schema.write(Path(folder)).glob("*.sql"))
        try:
            compare(
                "the same / testcontainers + migrations",
                lambda: lease(fleet),
                lambda: testcontainers(official, files),
                pairs=max(3, pairs - 2),
                aim=0.25,
            )
        finally:
            subprocess.run(["docker", "rmi", "-f", official, base], check=False, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
