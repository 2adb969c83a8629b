"""A server that crashed, was restarted or ran out of disk between two resets: noticed, and cloned again."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_reset_case import Case
from fix_reset_servers import PATIENCE, Server, binaries, clone, dispose, running

from harness.errors import HarnessError, ServerLost, ServerRefused
from harness.reset.changes import RecloneNeeded

SCHEMA = """
create table plain (id serial primary key, v text);
create unlogged table fast (id serial primary key, v text);
insert into fast (v) select 'kept ' || i from generate_series(1, 10) i;
create table held (id serial primary key, v text);
insert into held (v) select repeat('h', 900) || i from generate_series(1, 200) i;
"""


@pytest.fixture(scope="module", params=[15, 18], ids=lambda v: f"pg{v}")
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that a test may hurt."""
    if binaries(request.param) is None:
        pytest.skip(f"the programs of PostgreSQL {request.param} are not here")
    with running(request.param) as server:
        yield server


def _alive(server: Server) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            server.session().close()
            return
        except (ServerLost, ServerRefused):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _crash(case: Case) -> None:
    """One backend is killed: PostgreSQL ends all others, recovers, and empties unlogged tables."""
    with case.bench.app() as session:
        pid = session.pid
        subprocess.run(["kill", "-9", str(pid)], check=True, timeout=10)
        deadline = time.monotonic() + PATIENCE
        while not case.bench.admin.closed and time.monotonic() < deadline:
            try:
                case.bench.admin.value("select 1")
            except (ServerLost, ServerRefused):
                break
    _alive(case.bench.server)
    case.bench.admin.close()
    case.bench.admin = case.bench.server.session()


def test_a_crash_between_two_resets_is_noticed(own_server: Server) -> None:
    case = Case(own_server, "crash", SCHEMA)
    try:
        with case.bench.app() as session:
            session.execute("insert into plain (v) values ('x')")
        case.reset()
        # Nothing was written since: only the crash is to be noticed, and it emptied a table.
        _crash(case)
        with case.bench.superuser() as session:
            assert session.value("select count(*) from fast") == 0
        with pytest.raises(RecloneNeeded, match="may have restarted"):
            case.reset()
        with pytest.raises(RecloneNeeded, match="not known"):
            case.reset()
        case.bench.reclone()
        # The baseline's unlogged tables were emptied by the crash as well: what was read before still serves.
        with case.bench.app() as session:
            session.execute("insert into plain (v) values ('y')")
        assert case.reset_or_clone() in ("restore", "nothing")
        with case.bench.superuser() as session:
            assert session.value("select count(*) from plain") == 0
    finally:
        _alive(own_server)
        dispose(case.bench)


def test_a_mark_does_not_survive_a_crash_as_something_else(own_server: Server) -> None:
    case = Case(own_server, "crashmark", SCHEMA)
    try:
        with case.bench.app() as session:
            session.execute("insert into plain (v) values ('marked')")
        case.bench.engine.mark()
        with case.bench.app() as session:
            session.execute("insert into plain (v) values ('later')")
        _crash(case)
        with pytest.raises(RecloneNeeded):
            case.reset()
        case.bench.reclone()
        with case.bench.superuser() as session:
            assert session.rows("select v from plain") == [("marked",)]
    finally:
        _alive(own_server)
        dispose(case.bench)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 4 MB, in memory."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a file system")
    folder = Path(tempfile.mkdtemp(prefix="pgh-small-"))
    folder.chmod(0o711)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)],
        capture_output=True,
        timeout=30,
        check=False,
    )
    if mounted.returncode:
        folder.rmdir()
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], timeout=30, check=True)
        folder.rmdir()


def test_a_disk_that_is_full_is_an_error_and_then_a_clone(own_server: Server, small_disk: Path) -> None:
    """The lease's table lies on a full disk: no restore, no clone either; once there is room, a clone."""
    space = small_disk / "space"
    space.mkdir()
    shutil.chown(space, "postgres", "postgres")
    with own_server.session() as session:
        session.execute(f"create tablespace small location '{space}'")
        session.execute("do $$ begin create role app login createdb; exception when others then null; end $$")
        session.execute("grant create on tablespace small to app")
    case = Case(
        own_server,
        "fulldisk",
        SCHEMA.replace("create table held (id serial primary key, v text)",
                       "create table held (id serial primary key, v text) tablespace small"),
    )  # fmt: skip
    filler = small_disk / "filler"
    try:
        with case.bench.app() as app:
            # A new file: rows that go back to their places need none to be longer.
            app.execute("truncate held")
            app.execute("insert into plain (v) values ('x')")
            _fill(filler)
            with pytest.raises(RecloneNeeded, match="cannot be put back"):
                case.reset()
            # What was half put back is never called pristine.
            assert app.value("select count(*) from held") == 0
        # A lease makes the new clone before it gives the old one up.
        with pytest.raises(HarnessError, match="No space left on device"):
            clone(case.bench.admin, "fulldisk_t", "fulldisk_n")
        with pytest.raises(RecloneNeeded, match="not known"):
            case.reset()
        filler.unlink()
        case.bench.reclone()
        case.assert_pristine()
        with case.bench.app() as app:
            app.execute("insert into plain (v) values ('y')")
        assert case.reset().strategy == "restore"
        case.assert_pristine()
    finally:
        filler.unlink(missing_ok=True)
        dispose(case.bench)
        with own_server.session() as session:
            session.execute("drop tablespace small")


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return


def test_a_restart_between_two_resets_is_noticed(own_server: Server) -> None:
    folder = binaries(own_server.version)
    assert folder is not None
    assert own_server.data is not None
    case = Case(own_server, "restart", SCHEMA)
    user = "postgres" if os.geteuid() == 0 else None
    command = [str(folder / "pg_ctl"), "-D", str(own_server.data), "-w", "-s"]
    with case.bench.app() as session:
        session.execute("insert into plain (v) values ('x')")
    case.reset()
    log = open(own_server.data / "restarted.log", "wb")  # noqa: SIM115 — the server writes to it
    try:
        subprocess.run([*command, "-m", "fast", "restart"], user=user, cwd="/", stdout=log, stderr=log, check=True,
                       timeout=60)  # fmt: skip
        case.bench.admin.close()
        case.bench.admin = own_server.session()
        with case.bench.app() as session:
            session.execute("insert into plain (v) values ('y')")
        with pytest.raises(RecloneNeeded, match="may have restarted"):
            case.reset()
        case.bench.reclone()
        case.assert_pristine()
        with case.bench.app() as session:
            session.execute("insert into plain (v) values ('z')")
        assert case.reset().strategy == "restore"
        case.assert_pristine()
        dispose(case.bench)
    finally:
        log.close()
        subprocess.run([*command, "-m", "immediate", "stop"], user=user, cwd="/", capture_output=True, check=False,
                       timeout=60)  # fmt: skip
