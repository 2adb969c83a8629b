"""Clones of large templates take no copy where the file system can share blocks: found out by trying, on real ones."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from fix_cli import Project
from fix_loops import NoLoop, mounted
from fix_servers import binaries_of

from harness.servers import sharing

pytestmark = pytest.mark.server

SIZE = 60 * 1024**2
"""Bytes of the table whose database is copied."""

CAN = {"ext4": False, "xfs": True, "btrfs": True}


@pytest.fixture(scope="module", params=CAN)
def place(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """Kind, and a folder on it."""
    try:
        with mounted(request.param, 1200 * 1024**2) as folder:
            yield request.param, folder
    except NoLoop as why:
        if os.environ.get("PGHARNESS_TEST_REQUIRE_DOCKER"):
            raise
        pytest.skip(f"no {request.param} in a loop file here: {why}")


def used(folder: Path) -> int:
    subprocess.run(["sync", "-f", folder], check=True)
    told = os.statvfs(folder)
    return (told.f_blocks - told.f_bfree) * told.f_frsize


def test_the_probe_says_what_the_file_system_does_and_leaves_nothing(place: tuple[str, Path]) -> None:
    kind, folder = place
    assert sharing.can(folder) is CAN[kind]
    assert sharing.can(folder / "nothing") is False
    assert [path.name for path in folder.iterdir() if path.name != "lost+found"] == []
    # Another program's word for it.
    source = folder / "one"
    source.write_bytes(b"x" * 8192)
    done = subprocess.run(
        ["cp", "--reflink=always", source, folder / "two"], capture_output=True, check=False
    )
    assert (done.returncode == 0) is CAN[kind]
    for path in (source, folder / "two"):
        path.unlink(missing_ok=True)


def test_a_copy_of_a_database_takes_no_room(place: tuple[str, Path], tmp_path: Path) -> None:
    if binaries_of("18") is None:
        pytest.skip("PostgreSQL 18 is not installed on this machine")
    kind, folder = place
    for name in ("state", "cache"):
        # The servers' user enters it: else root's servers lie elsewhere.
        (folder / name).mkdir()
        (folder / name).chmod(0o711)
    project = Project(tmp_path, folder / "state", folder / "cache")
    project.environ |= {"PGHARNESS_PG_VERSION": "18"}
    project.migrate("1.sql", "create table big (id int, text text);")
    done = project.run("up")
    try:
        assert done.returncode == 0, done.stderr
        assert ("clones share blocks" in done.stderr) is CAN[kind]
        with psycopg.connect(done.stdout.strip(), autocommit=True) as connection:
            connection.execute(
                "insert into big select n, repeat('x', 1000) from generate_series(1, %s) n", (SIZE // 1000,)
            )
        with psycopg.connect(project.admin().url, autocommit=True) as admin:
            admin.execute("checkpoint")
            shown = admin.execute("show file_copy_method").fetchone()
        assert shown == ("clone" if CAN[kind] else "copy",)
        before = used(folder)
        fork = project.ok("fork", "second").strip()
        taken = used(folder) - before
        if CAN[kind]:
            assert taken < SIZE / 3
        else:
            assert taken > SIZE
        with psycopg.connect(fork) as connection:
            connection.execute("update big set id = -id where id < 10")
            assert connection.execute("select count(*), min(id) from big").fetchone() == (SIZE // 1000, -9)
        with psycopg.connect(done.stdout.strip()) as connection:
            assert connection.execute("select min(id) from big").fetchone() == (1,)
        # What somebody has set himself stays, and nothing is told that is not so.
        project.ok("stop")
        project.root.joinpath("pg-harness.toml").write_text(
            'migrations = ["sql:db/migrations"]\n[postgres]\nfile_copy_method = "copy"\n'
        )
        again = project.run("up", "--json")
        assert again.returncode == 0, again.stderr
        assert "share blocks" not in again.stderr
    finally:
        project.run("down", "--yes")
