#!/usr/bin/env python3
"""A clone of a large template by copying and by sharing blocks, on ext4, XFS and btrfs side by side, in the same run.

python benchmarks/clones.py [MEGABYTES] [ROUNDS]

As root: each file system lies in a sparse file of its own, mounted through a loop device, on the same disk. One server of PostgreSQL 18 on each; both
ways take turns in it, by ``SET file_copy_method``. Told, as medians: the wall time of CREATE DATABASE, the processor time of all the server's
processes meanwhile, and by how much the file system is fuller afterwards. Below that the same of ``cp -a`` of the database's folder, as data directories are
copied. The kernel's write-back goes on beside it, which is not counted.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.postgres.session import Session
from harness.servers import sharing
from harness.servers.defaults import throwaway
from harness.servers.port import ServerRequest
from harness.servers.process.backend import ProcessBackend

MAKERS = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q"],
}

MB = 1024**2


@contextmanager
def mounted(kind: str, size: int) -> Iterator[Path]:
    """A new file system of that kind."""
    base = Path(tempfile.mkdtemp(prefix=f"pgh-{kind}-", dir="/var/tmp"))
    base.chmod(0o711)
    image, point = base / "image", base / "mounted"
    try:
        with image.open("wb") as file:
            file.truncate(size)
        point.mkdir()
        subprocess.run([*MAKERS[kind], str(image)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
        try:
            point.chmod(0o711)
            yield point
        finally:
            subprocess.run(["umount", "--lazy", str(point)], check=False)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def used(folder: Path) -> int:
    """Bytes that are taken on the file system, once what was removed is free: XFS and btrfs do that in the background."""
    last = -1
    while True:
        subprocess.run(["sync", "-f", folder], check=True)
        told = os.statvfs(folder)
        now = (told.f_blocks - told.f_bfree) * told.f_frsize
        if now == last:
            return now
        last = now
        time.sleep(0.5)


def processor(pids: list[int]) -> float:
    """Seconds that these processes have computed so far."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def children() -> float:
    """Seconds that commands which have ended computed."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Row:
    """One way on one file system."""

    def __init__(self, kind: str, way: str) -> None:
        self.kind, self.way = kind, way
        self.walls: list[float] = []
        self.processors: list[float] = []
        self.taken: list[int] = []

    def measure(self, act: Callable[[], object], computed: Callable[[], float], folder: Path) -> None:
        """One round."""
        before, began, since = used(folder), time.monotonic(), computed()
        act()
        self.walls.append(time.monotonic() - began)
        self.processors.append(computed() - since)
        self.taken.append(used(folder) - before)

    def __str__(self) -> str:
        wall, cpu = statistics.median(self.walls), statistics.median(self.processors)
        taken = statistics.median(self.taken) / MB
        return f"| {self.kind} | {self.way} | {1000 * wall:,.0f} | {1000 * cpu:,.0f} | {taken:,.1f} |"


def of(kind: str, megabytes: int, rounds: int) -> list[Row]:
    """All rows of one file system."""
    with mounted(kind, 6 * megabytes * MB + 2000 * MB) as folder:
        for name in ("state", "cache"):
            (folder / name).mkdir()
            (folder / name).chmod(0o711)
        backend = ProcessBackend(
            dict(os.environ), state=folder / "state", cache=folder / "cache", version="18"
        )
        info = backend.start(
            ServerRequest(
                project="0" * 10,
                purpose="run",
                server_id=str(uuid.uuid4()),
                root=folder,
                password=uuid.uuid4().hex,
                settings=throwaway(max_connections=20, user={}),
                storage="disk",
                ttl=7200,
            )
        )
        try:
            return measured(
                kind, folder, Session.connect(info.dsn, limited=False), megabytes, rounds, Path(info.handle)
            )
        finally:
            backend.stop(info)


def measured(kind: str, folder: Path, admin: Session, megabytes: int, rounds: int, data: Path) -> list[Row]:
    """Both ways in turn."""
    admin.execute("create database large")
    with Session.connect(admin.dsn.with_database("large"), limited=False) as inside:
        # 1,000 bytes that no file system compresses away.
        inside.execute(
            "create table filled as select n, string_agg(md5(n::text || k::text), '') from generate_series(1, %s) n, "
            "generate_series(1, 31) k group by n",
            (megabytes * 1000,),
        )
        inside.execute("vacuum (freeze) filled")
    admin.execute("checkpoint")
    pids = [int(pid) for pid in admin.column("select pid from pg_stat_activity")]
    ways = ["copy", "clone"] if sharing.can(folder) else ["copy"]
    rows = [Row(kind, f"CREATE DATABASE, {way}") for way in ways]
    copies = [Row(kind, f"cp -a, {'shared' if way == 'clone' else 'copied'}") for way in ways]
    base = data / "data" / "base" / str(admin.value("select oid from pg_database where datname = 'large'"))
    for _ in range(rounds):
        for way, row in zip(ways, rows, strict=True):
            admin.execute(f"set file_copy_method = {way}")
            row.measure(
                lambda: admin.execute("create database made template large strategy file_copy"),
                lambda: processor(pids),
                folder,
            )
            admin.execute("drop database made")
        for way, row in zip(ways, copies, strict=True):
            command = [
                "cp",
                "-a",
                f"--reflink={'always' if way == 'clone' else 'never'}",
                str(base),
                str(folder / "made"),
            ]
            row.measure(lambda command=command: subprocess.run(command, check=True), children, folder)  # type: ignore[misc]
            shutil.rmtree(folder / "made")
    admin.close()
    return [*rows, *copies]


def main() -> None:
    """Print the table."""
    megabytes, rounds = (
        (int(word) for word in (*sys.argv[1:3], "1000", "3")[:2])
        if len(sys.argv) != 2
        else (int(sys.argv[1]), 3)
    )
    print(f"a template of about {megabytes} MB, {rounds} rounds, medians; kernel {os.uname().release}\n")
    print("| file system | way | wall ms | processor ms | disk MB |\n|---|---|---|---|---|")
    for kind in MAKERS:
        for row in of(kind, megabytes, rounds):
            print(row, flush=True)


if __name__ == "__main__":
    main()
