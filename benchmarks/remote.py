#!/usr/bin/env python3
"""Servers on a second Docker Engine, reached over a network, against the same done by hand.

    python benchmarks/remote.py [--pairs 5] [--delay 1.0]

The engine is a real dockerd in a network namespace (root, as the tests that have several machines: tests/fixtures/fix_engines.py).

- A server from a baked image that is there, until `SELECT 1` over TLS: ours against `docker -H … run` of the same image, with a key and a
  certificate that were made before and are mounted, and a log-in that is tried until it succeeds.
- A reset after a row was written, over TLS: straight to the server, and with that many milliseconds put between, there and back. What it
  costs more is told in round trips.
- Eight servers (`run -n 8 --isolation server`) over two engines against eight on one of them, until the command begins. Each engine has half a
  processor of this machine and no more, as machines of their own would; the rest is the client's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import schema
from measure import compare, head, timed

from harness.runs.run import Run
from harness.servers.docker import tls
from harness.servers.docker.backend import DockerBackend

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "fixtures"))


SERVERS = 8
WRITE = "insert into t000 (name) values ('dirt')"


@contextmanager
def engines(*shares: float | None) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Further engines, each with so much of a processor, or with all: their addresses, and the variables of their clients."""
    from fix_engines import Network  # type: ignore[import-not-found]  # of the tests

    network = Network(Path(tempfile.mkdtemp(prefix="pgh-bench-", dir="/tmp")))
    try:
        found = network.add(len(shares), shares=shares)
        yield [each.address for each in found], dict(network.with_certificates)
    finally:
        network.close()


def docker(environ: dict[str, str], *words: str) -> str:
    """The client's answer."""
    return subprocess.run(
        ["docker", *words], env=environ, capture_output=True, text=True, check=True
    ).stdout.strip()


def answers(dsn: str) -> None:
    """Log in until it succeeds, and ask."""
    last: Exception | None = None
    for _ in range(3000):
        try:
            with psycopg.connect(dsn, connect_timeout=2) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
                return
        except psycopg.OperationalError as error:
            last = error
            time.sleep(0.005)
    raise SystemExit(f"nobody answers: {last}")


def starts(folder: Path, address: str, environ: dict[str, str], pairs: int) -> None:
    """Servers from the baked image, in turn."""
    subprocess.run(
        [sys.executable, "-m", "harness", "bake"], cwd=folder, env=environ, check=True, capture_output=True
    )
    image = docker(environ, "images", "-q", "--filter", "label=dev.pg-harness.baked").split()[0]
    ref = docker(environ, "inspect", "-f", "{{.Id}}", image)
    made = tls.make([address])
    for name, text, mode in (("server.crt", made.certificate, 0o444), ("server.key", str(made.key), 0o400)):
        (folder / name).write_text(text)
        (folder / name).chmod(mode)
    backend = DockerBackend(environ, image=environ["PGHARNESS_IMAGE"])
    backend.available()

    def ours() -> float:
        from harness.servers import defaults
        from harness.servers.port import ServerRequest

        request = ServerRequest(
            "0123456789", f"run-{uuid.uuid4().hex[:8]}", str(uuid.uuid4()), folder, uuid.uuid4().hex,
            settings=defaults.throwaway(max_connections=50, user={}), storage="disk", ttl=300, snapshot=ref,
        )  # fmt: skip
        found = []

        def start() -> None:
            found.append(backend.start(request))
            answers(found[0].dsn.url)

        taken = timed(start)
        backend.stop(found[0])
        return taken

    def by_hand() -> float:
        container = []
        password = uuid.uuid4().hex

        def start() -> None:
            mounts = [
                word
                for name in ("server.crt", "server.key")
                for word in ("-v", f"{folder}/{name}:/pgharness/{name}:ro")
            ]
            container.append(
                docker(
                    environ, "run", "-d", "--rm", "--init", "-p", "5432", "-e", f"POSTGRES_PASSWORD={password}",
                    "-e", "PGHARNESS_TLS=yes", *mounts, ref,
                )
            )  # fmt: skip
            port = docker(environ, "port", container[0], "5432").split()[0].rpartition(":")[2]
            answers(
                f"postgresql://postgres:{password}@{address}:{port}/postgres?sslmode=verify-full&sslrootcert={folder}/server.crt"
            )

        taken = timed(start)
        docker(environ, "rm", "-f", container[0])
        return taken

    head("on a second engine, from a baked image that is there")
    compare("a server, until SELECT 1 over TLS", ours, by_hand, pairs=pairs, aim=1.2)


def spread(folder: Path, hosts: list[str], environ: dict[str, str], pairs: int) -> None:
    """Eight servers over all hosts, and on the first of them, in turn."""

    def until_the_command(hosts: list[str]) -> float:
        began = time.time()
        done = subprocess.run(
            [sys.executable, "-m", "harness", "run", "-n", str(SERVERS), "--isolation", "server", "--", "date", "+%s.%N"],
            cwd=folder,
            env={**environ, "DOCKER_HOSTS": ",".join(hosts)},
            check=True,
            capture_output=True,
            text=True,
        )  # fmt: skip
        if "left out" in done.stderr:
            raise SystemExit(done.stderr)
        return float(done.stdout) - began

    # The migrated image, on each of them: once, before anything is measured.
    until_the_command(hosts)
    head(
        f"{SERVERS} servers over {len(hosts)} engines of half a processor each, against {SERVERS} on one of them"
    )
    compare(
        "until the command begins",
        lambda: until_the_command(hosts),
        lambda: until_the_command(hosts[:1]),
        pairs=pairs,
        aim=0.6,
    )


def resets(folder: Path, environ: dict[str, str], milliseconds: float) -> None:
    """What a delay adds to a reset, in round trips."""
    import json

    from fix_counting_proxy import counting_proxy  # type: ignore[import-not-found]  # of the tests

    print(f"\nresets over TLS, with {milliseconds:g} ms put between, there and back", flush=True)
    for way in ("auto", "rows"):
        names = {**environ, "PGHARNESS_ENGINE": way}
        with Run.open(root=folder, environ=names) as run:
            own = run.server.info.dsn
            with counting_proxy(own.host, own.port) as proxy:
                (hint,) = Path(environ["PGHARNESS_STATE_DIR"]).glob("*/run.json")
                noted = hint.read_text()
                through = json.loads(noted)
                through["dsn"] |= {"host": "127.0.0.1", "port": proxy.port}
                hint.write_text(json.dumps(through))
                try:
                    with Run.open(root=folder, environ=names) as counted, counted.lease(watch=True) as lease:
                        told: dict[float, list[tuple[float, int]]] = {0.0: [], milliseconds: []}
                        for _ in range(25):
                            for delay, seen in told.items():
                                # Not through the proxy: in TLS its good-bye looks like a question.
                                direct = replace(lease.dsn, host=own.host, port=own.port)
                                with psycopg.connect(direct.url) as connection:
                                    connection.execute(WRITE)
                                proxy.delay = delay / 2000
                                before = proxy.all_trips()
                                seconds = timed(lease.reset)
                                proxy.delay = 0
                                seen.append((seconds, proxy.all_trips() - before))
                finally:
                    hint.write_text(noted)
        plain, slow = (statistics.median(s for s, _ in told[d][1:]) for d in (0.0, milliseconds))
        trips = statistics.median(n for _, n in told[milliseconds][1:])
        more = 1000 * (slow - plain) / milliseconds
        print(
            f"  {way:6} {1000 * plain:7.2f} ms without, {1000 * slow:7.2f} ms with: {more:.1f} delays more, {trips:g} round trips counted   "
            f"aim 2   {'ok' if trips <= 2 else 'ABOVE THE AIM'}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--only", choices=["starts", "spread"], help="only this; resets are measured with starts"
    )
    parser.add_argument("--delay", type=float, default=1.0, help="milliseconds, there and back")
    given = parser.parse_args()
    with schema.project() as (folder, own):
        environ = {
            **os.environ, **own, "PGHARNESS_BACKEND": "docker", "PGHARNESS_IMAGE": "pgharness-test:busybox",
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        }  # fmt: skip
        if given.only != "spread":
            with engines(None) as ((address,), certificates):
                one = {**environ, **certificates, "DOCKER_HOST": f"tcp://{address}:2376"}
                try:
                    starts(folder, address, one, given.pairs)
                    resets(folder, one, given.delay)
                finally:
                    down(folder, one)
        if given.only != "starts":
            with engines(0.5, 0.5) as (addresses, certificates):
                hosts = [f"tcp://{address}:2376" for address in addresses]
                two = {**environ, **certificates}
                try:
                    spread(folder, hosts, two, given.pairs)
                finally:
                    down(folder, {**two, "DOCKER_HOSTS": ",".join(hosts)})


def down(folder: Path, environ: dict[str, str]) -> None:
    """End all that was started."""
    subprocess.run(
        [sys.executable, "-m", "harness", "down", "--all", "--yes"],
        cwd=folder,
        env=environ,
        check=True,
        capture_output=True,
    )


if __name__ == "__main__":
    main()
