"""Processor time of a server and memory of this process, as Linux tells them; nothing where it does not."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from pathlib import Path

from harness.postgres.session import Session

PROC = Path("/proc")


class ServerProcesses:
    """All processes of one server: its postmaster, and what that has started."""

    def __init__(self, session: Session) -> None:
        """
        Args:
            session: any session of that server; it is asked once.
        """
        self._others: set[str] = set()
        self._postmaster = _postmaster(session)
        self._ticks = os.sysconf("SC_CLK_TCK") if self._postmaster else 100

    def seconds(self) -> float | None:
        """Processor time of all of them so far, ended ones too; None where it cannot be seen."""
        if not self._postmaster:
            return None
        total = 0.0
        listed = {entry for entry in os.listdir(PROC) if entry.isdecimal()}
        # A number that went may come back as one of ours.
        self._others &= listed
        for pid in listed - self._others:
            fields = _stat(pid)
            if fields is None:
                continue
            if pid == self._postmaster:
                # And of those that ended: user and system time of children that were waited for.
                total += (int(fields[13]) + int(fields[14])) / self._ticks
            elif fields[1] != self._postmaster:
                self._others.add(pid)
                continue
            total += _spent(pid, fields, self._ticks)
        return total


def _postmaster(session: Session) -> str:
    """Its number here; empty where it is none of this machine's, or of a container's."""
    row = session.row("select pg_backend_pid(), coalesce(inet_client_port(), 0)")
    assert row is not None
    pid, port = row
    try:
        title = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return ""
    # In a container the same number is another process out here.
    if not title.startswith(b"postgres: ") or f"({port})".encode() not in title:
        return ""
    fields = _stat(str(pid))
    return fields[1] if fields else ""


def _stat(pid: str) -> list[str] | None:
    """The fields behind the program's name, which may hold blanks: state, parent, …"""
    try:
        return (PROC / pid / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _spent(pid: str, fields: list[str], ticks: int) -> float:
    try:
        # In nanoseconds: a reset is shorter than a tick.
        return int((PROC / pid / "schedstat").read_text().split()[0]) / 1e9
    except (OSError, IndexError, ValueError):
        return (int(fields[11]) + int(fields[12])) / ticks


class Peak:
    """How far this process's memory grows from here, at its highest: what is resident, so libpq's memory too."""

    def __init__(self) -> None:
        gc.collect()
        # What an earlier act left in malloc's hands would hide what this one needs.
        with contextlib.suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)
        try:
            (PROC / "self" / "clear_refs").write_text("5")
            self._before = _resident("VmRSS")
        except OSError:
            self._before = None

    def megabytes(self) -> float | None:
        """Since this object was made; None where the peak cannot be begun anew."""
        highest = _resident("VmHWM")
        if self._before is None or highest is None:
            return None
        return max(0.0, (highest - self._before) / 1e6)


def _resident(name: str) -> int | None:
    try:
        lines = (PROC / "self" / "status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
