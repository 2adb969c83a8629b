"""The foundation against the same done by hand: ratios, side by side in one run.

python benchmarks/foundation.py [--docker IMAGE] [--pairs 7]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import psycopg
import schema
from measure import compare, head, timed

from harness.bench.processes import ServerProcesses
from harness.config.load import load
from harness.config.project import Project
from harness.config.settings import Settings
from harness.postgres import databases, names
from harness.runs.run import Run
from harness.servers import inventory
from harness.servers.defaults import throwaway
from harness.servers.port import ServerRequest


@contextmanager
def project(tables: int, **overrides: object) -> Iterator[tuple[Settings, Mapping[str, str], Path]]:
    """A project with a schema, its own state folder, and no server left afterwards."""
    with schema.project(tables) as (folder, environ):
        environ["PGHARNESS_CACHE_DIR"] = str(CACHE)
        settings = load(environ, start=folder, overrides=overrides)
        try:
            yield settings, environ, folder
        finally:
            for purpose in ("run", "up"):
                inventory.stop(Project.of(settings, environ), purpose=purpose)


CACHE = Path(tempfile.gettempdir()) / "pg-harness-bench-cache"


def warm_up(pairs: int) -> None:
    """`up` again, the whole process, against the least that a Python program can do."""
    head("Warm: `up` again, the whole process")
    with project(60, backend="process", storage="memory") as (_, environ, folder):
        # Compiled for both sides, as installed packages are, also where this shell or folder forbids it.
        compiled = {k: v for k, v in environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        compiled["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
        command = [sys.executable, "-m", "harness", "--backend", "process", "up"]
        first = subprocess.run(command, cwd=folder, env=compiled, capture_output=True, text=True, check=True)
        url = first.stdout.strip()
        least = f"import psycopg; c = psycopg.connect({url!r}); c.execute('select 1'); c.close()"

        def ours() -> float:
            return timed(
                lambda: subprocess.run(
                    [*command, "-q"], cwd=folder, env=compiled, capture_output=True, check=True
                )
            )

        def theirs() -> float:
            return timed(
                lambda: subprocess.run(
                    [sys.executable, "-c", least], cwd=folder, env=compiled, capture_output=True, check=True
                )
            )

        compare("up, warm", ours, theirs, pairs=max(pairs, 15), aim=1.3)


def cold_process(pairs: int) -> None:
    """Server, migrations, freeze and one clone; imports done, binaries initialised once."""
    head("Cold, process: to the first lease (imports done)")
    with project(60, backend="process", storage="memory") as (settings, environ, folder):
        with Run.open_with(settings, environ) as harness:
            binaries = Path(str(harness.server.info.binaries))
        inventory.stop(Project.of(settings, environ))

        def ours() -> float:
            began = time.perf_counter()
            with Run.open_with(settings, environ) as harness, harness.lease(watch=False) as lease:
                with lease.connect() as connection:
                    connection.execute("select 1")
                took = time.perf_counter() - began
            inventory.stop(Project.of(settings, environ))
            return took

        by_hand = ProcessByHand(binaries, folder)
        compare("start, migrate, freeze, clone", ours, by_hand.run, pairs=pairs, aim=1.2)


class ProcessByHand:
    """Copy an initialised directory, pg_ctl start, migrations by psql, freeze, one clone."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries = binaries
        self.folder = folder
        self.as_user = (
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
        )
        memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
        self.base = Path(tempfile.mkdtemp(prefix="pg-harness-hand-", dir=memory))
        if self.as_user:
            os.chown(self.base, 65534, 65534)
        self.call(
            "initdb",
            "-D",
            str(self.base / "initialised"),
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        )

    def call(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*self.as_user, str(self.binaries / program), *arguments],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip

    def run(self) -> float:
        data, port = self.base / uuid.uuid4().hex[:8], "54329"
        began = time.perf_counter()
        subprocess.run([*self.as_user, "cp", "-a", str(self.base / "initialised"), str(data)], check=True)
        options = " ".join(
            f"-c {k}={v}" for k, v in throwaway(max_connections=500, user={}).items() if " " not in v
        )
        options += f" -c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        self.call("pg_ctl", "start", "-w", "-D", str(data), "-o", options, "-l", str(data / "log"))
        url = f"postgresql://postgres@127.0.0.1:{port}"
        self.sql(f"{url}/postgres", "create role app login createdb")
        self.sql(f"{url}/postgres", "create database made owner app")
        files = [arg for path in sorted((self.folder / "migrations").iterdir()) for arg in ("-f", str(path))]
        subprocess.run(
            [str(self.binaries / "psql"), "-q", "-v", "ON_ERROR_STOP=1", f"{url}/made", *files], check=True
        )
        self.sql(f"{url}/made", "vacuum (freeze, analyze)")
        self.sql(f"{url}/postgres", "create database clone template made strategy file_copy")
        self.sql(f"{url}/clone", "select 1")
        took = time.perf_counter() - began
        self.call("pg_ctl", "stop", "-m", "immediate", "-D", str(data))
        shutil.rmtree(data)
        return took

    def sql(self, url: str, statement: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement)


def cold_docker(image: str, pairs: int) -> None:
    """Container by hand: the same image and entrypoint, until SELECT 1 answers, then the same SQL."""
    head(f"Cold, docker ({image}): to the first lease (imports done)")
    from harness.servers import registry

    with project(60, backend="docker", image=image) as (settings, environ, folder):

        def ours() -> float:
            began = time.perf_counter()
            with Run.open_with(settings, environ) as harness, harness.lease(watch=False) as lease:
                with lease.connect() as connection:
                    connection.execute("select 1")
                took = time.perf_counter() - began
            inventory.stop(Project.of(settings, environ))
            return took

        def theirs() -> float:
            backend = registry.named("docker", Project.of(settings, environ))
            request = ServerRequest(
                project=names.digest(uuid.uuid4().hex, 10),
                purpose="run",
                server_id=str(uuid.uuid4()),
                root=settings.root,
                password=uuid.uuid4().hex,
                settings=throwaway(max_connections=500, user={}),
                ttl=600,
            )
            began = time.perf_counter()
            info = backend.start(request)
            with psycopg.connect(info.dsn.url, autocommit=True) as admin:
                admin.execute("create role app login createdb")
                admin.execute("create database made owner app")
                with psycopg.connect(info.dsn.with_database("made").url, autocommit=True) as inside:
                    for path in sorted((folder / "migrations").iterdir()):
                        inside.execute(path.read_bytes())
                    inside.execute("vacuum (freeze, analyze)")
                admin.execute("create database clone template made strategy file_copy")
                with psycopg.connect(info.dsn.with_database("clone").url) as clone:
                    clone.execute("select 1")
            took = time.perf_counter() - began
            backend.stop(info)
            return took

        compare("start, migrate, freeze, clone", ours, theirs, pairs=pairs, aim=1.15)


def clones(pairs: int) -> None:
    """N clones side by side against one after the other; what one clone costs is said by ``bench reset``."""
    head("Clones of a 60-table template (process, memory)")
    with (
        project(60, backend="process", storage="memory") as (settings, environ, _),
        Run.open_with(settings, environ) as harness,
    ):
        made, session = harness.templates["default"], harness.link.session

        def fill(parallel: int) -> float:
            took = timed(lambda: harness.clones.fill(made, 4, parallel=parallel))
            for spare in harness.clones.spares(made):
                databases.drop(session, spare, harness.project)
            return took

        compare(
            "4 clones side by side, against in turn", lambda: fill(2), lambda: fill(1), pairs=pairs, aim=1.0
        )


def at_rest() -> None:
    """USS (private memory) of the postmaster's tree, and its CPU time over five seconds."""
    with project(60, backend="process", storage="memory", max_connections=500) as (settings, environ, _):
        with Run.open_with(settings, environ) as harness:
            harness.lease().release()
            pid = int(harness.link.session.value("select pg_read_file('postmaster.pid', 0, 20)").split()[0])
            processes = ServerProcesses(harness.link.session)
        before = processes.seconds() or 0.0
        time.sleep(5)
        after = processes.seconds() or 0.0
        print(
            f"\nAt rest: {private_memory(pid) / 1024**2:.1f} MB private (aim 60), {after - before:.2f} s CPU in 5 s"
        )


def tree(pid: int) -> list[int]:
    """The process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for item in found:
        found.extend(children.get(item, []))
    return found


def private_memory(pid: int) -> int:
    """Bytes of USS over the tree (smaps_rollup, proc(5))."""
    total = 0
    for item in tree(pid):
        for line in (Path("/proc") / str(item) / "smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean", "Private_Dirty")):
                total += 1024 * int(line.split()[1])
    return total


def main() -> None:
    """Run all, or what is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docker", metavar="IMAGE", help="also in containers of this image")
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    began = time.monotonic()
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, psycopg {psycopg.__version__}")
    warm_up(options.pairs)
    cold_process(options.pairs)
    clones(options.pairs)
    if options.docker:
        cold_docker(options.docker, options.pairs)
    at_rest()
    print(f"in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
