"""A disk that is full while pages are put back: an error that says so, nothing lost, and once there is room all goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fix_reset_servers import VERSIONS, binaries
from fix_rewind import RewindCase, module_on
from fix_rewind_hurt import Hurt, hurt, log_of

from harness.errors import ServerLost, ServerRefused
from harness.reset.changes import RecloneNeeded
from harness.reset.rewind.module import Prepared

MB = 1024**2
SCHEMA = """
create table large (id integer primary key, v text) with (fillfactor = 10);
insert into large select i, repeat('x', 700) from generate_series(1, 3000) i;
create table people (id serial primary key, v text);
insert into people (v) select 'row ' || i from generate_series(1, 30) i;
"""


class Disk:
    """A file system of its own, which can be filled up to the last bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def leave(self, free: int) -> None:
        """Fill it until so many bytes are free."""
        size = self.free - free
        assert size > 0
        with open(self._ballast, "ab") as file:
            os.posix_fallocate(file.fileno(), file.tell(), size)

    @property
    def free(self) -> int:
        """Bytes."""
        return shutil.disk_usage(self.folder).free

    def clear(self) -> None:
        self._ballast.unlink(missing_ok=True)


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Disk]:
    """Skips the test where nothing may be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=1777", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(params=VERSIONS, ids=lambda v: f"pg{v}")
def version(request: pytest.FixtureRequest) -> int:
    version: int = request.param
    if binaries(version) is None:
        pytest.skip("its server is in a container")
    return version


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that the server's user may enter."""

    path = Path(tempfile.mkdtemp(prefix="pgh-disk-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextmanager
def small_server(
    version: int, folder: Path, data: int, wal: int, max_wal_size: str = "64MB"
) -> Iterator[tuple[Hurt, Disk, Disk, RewindCase]]:
    """A server whose data and whose log lie on disks of their own, of so many megabytes."""
    with disk(folder / "data", data) as for_data, disk(folder / "wal", wal) as for_wal:
        settings = {"max_wal_size": max_wal_size, "min_wal_size": "2MB", "wal_keep_size": "16MB"}
        words = ["--wal-segsize=1", f"--waldir={for_wal.folder / 'log'}"]
        with hurt(version, settings, words, for_data.folder) as found:
            assert found.server.data is not None
            prepared = module_on(found.server)
            if not isinstance(prepared, Prepared):
                pytest.skip(prepared)
            case = RewindCase(found.server, "rewindfull", SCHEMA, module=prepared.schema)
            try:
                yield found, for_data, for_wal, case
            except BaseException:
                print(log_of(found.server)[-3000:])
                raise
            finally:
                case.bench.engine.close()
                case.bench.admin.close()


WAYS = {
    "truncate": "truncate large",
    "vacuum full": "vacuum full large",
    "drop": "drop table large",
    "alter": "alter table large alter column id type bigint",
}


NO_ROOM = "the server's disk has no room"


@pytest.mark.timeout(120)
def test_a_full_disk_is_an_error_and_later_all_goes_on(version: int, folder: Path) -> None:
    """What a test dropped is to be made again, and there is no room for it. Others on the server notice nothing."""
    with small_server(version, folder, 220, 200) as (found, data, _, case), found.server.session() as other:
        other.script("create table kept (v text); insert into kept values ('kept')")
        for way, statement in WAYS.items():
            with case.bench.app() as app:
                app.execute(statement)
            other.execute("checkpoint")
            data.leave(5 * MB)
            with pytest.raises(RecloneNeeded, match=NO_ROOM):
                case.reset()
            # Not a byte was written: a disk that is full to the last one would be the end of the next checkpoint.
            other.execute("checkpoint")
            assert data.free > 4 * MB
            if way in ("truncate", "drop"):
                # A clone is too large as well: its predecessor takes up nothing.
                with pytest.raises(ServerRefused, match="No space left on device"):
                    case.bench.reclone()
            # What is not known to be pristine never passes for it.
            with pytest.raises(RecloneNeeded):
                case.reset()
            data.clear()
            case.bench.reclone()
            case.assert_exact()
            with case.bench.app() as app:
                app.execute("insert into people (v) values ('x')")
                case.rewound("people")
            assert other.rows("select v from kept") == [("kept",)], way
        assert "PANIC" not in log_of(found.server)


@pytest.mark.timeout(120)
def test_where_the_log_has_no_room_it_is_a_clone(version: int, folder: Path) -> None:
    """Pages are put back through the log, a clone is copied without."""
    with small_server(version, folder, 220, 60) as (found, _, wal, case):
        for statement in WAYS.values():
            with case.bench.app() as app:
                app.execute(statement)
            wal.leave(5 * MB)
            with pytest.raises(RecloneNeeded, match=NO_ROOM):
                case.reset()
            case.bench.reclone()
            case.assert_exact()
            wal.clear()
        assert "PANIC" not in log_of(found.server)


@pytest.mark.timeout(120)
def test_a_log_that_cannot_be_written_is_the_end_of_postgresql_and_nothing_is_lost(
    version: int, folder: Path
) -> None:
    """A PANIC of PostgreSQL itself (XLogWrite), whoever writes. It comes back once there is room, and so does the lease."""
    with small_server(version, folder, 220, 40) as (found, _, wal, case):
        with found.server.session(settings={"synchronous_commit": "on"}) as other:
            other.script("create table kept (v text); insert into kept values ('kept')")
        with case.bench.app() as app:
            wal.leave(MB)
            with pytest.raises((ServerLost, ServerRefused)):
                app.execute("insert into people (v) select repeat('x', 1000) from generate_series(1, 20000)")
        with pytest.raises((RecloneNeeded, ServerLost)):
            case.reset()
        assert "PANIC" in log_of(found.server)
        wal.clear()
        found.come_back()
        with found.server.session() as other:
            assert other.rows("select v from kept") == [("kept",)]
        case.bench.admin.close()
        case.bench.admin = found.server.session()
        case.bench.reclone()
        case.assert_exact()
        with case.bench.app() as app:
            app.execute("insert into people (v) values ('x')")
            case.rewound("people")


@pytest.mark.timeout(120)
def test_more_than_the_log_of_a_small_disk_holds_is_a_clone(version: int, folder: Path) -> None:
    """All that a TRUNCATE took away would be written to the log within a moment: more than max_wal_size has room for."""
    with small_server(version, folder, 220, 200, max_wal_size="32MB") as (_, _, _, case):
        with case.bench.app() as app:
            app.execute("truncate large")
        with pytest.raises(RecloneNeeded):
            case.reset()
        assert case.rewinder.left.endswith("would have to be written to the log")
        case.bench.reclone()
        with case.bench.app() as app:
            app.execute("update large set v = 'x' where id % 3 = 0")
            case.rewound("large")
