"""Reading migration files: once, whole, as UTF-8, and never a file that changes meanwhile."""

from __future__ import annotations

import codecs
import hashlib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.errors import MigrationError

_ATTEMPTS = 3
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_bytes(path: Path, *, source: str, shown: str) -> bytes:
    """All bytes of a file, as they were at one moment.

    Args:
        path: the file. source: the migration source, for messages. shown: the file's name for messages.

    Raises:
        MigrationError: it cannot be read, or is being written all the time.
    """
    for _ in range(_ATTEMPTS):
        try:
            before = state(path)
            data = path.read_bytes()
            after = state(path)
        except OSError as error:
            raise _wrong(source, shown, f" cannot be read: {error.strerror or error}") from error
        # Half of an editor's save would be hashed and applied, and cached as if it were the file.
        if before == after and len(data) == after[0]:
            return data
    raise _wrong(
        source,
        shown,
        f" changed each of the {_ATTEMPTS} times that it was read; run again once nothing writes to it",
    )


def decode(data: bytes, *, source: str, shown: str) -> str:
    """UTF-8 text, without its byte-order mark.

    Raises:
        MigrationError: the bytes are not UTF-8; with the line, and the encoding where it shows.
    """
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            advice = f"save it as UTF-8 (for instance: iconv -f {encoding} -t UTF-8)"
            raise _wrong(source, shown, f" is encoded in {encoding}; {advice}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _wrong(
            source,
            shown,
            f", line {line}: the byte 0x{data[error.start]:02x} is not UTF-8 (perhaps Latin-1 or Windows-1252); "
            f"save the file as UTF-8 (for instance: iconv -f WINDOWS-1252 -t UTF-8)",
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise _wrong(
            source,
            shown,
            f", line {line}: holds a zero byte, so it is not SQL text "
            f"(UTF-16 without a byte-order mark? a custom-format dump? that is dump:FILE)",
        )
    return text


def _wrong(source: str, shown: str, what: str) -> MigrationError:
    return MigrationError(f"{source}: {shown}{what}", source=source, step=shown)


def position(script: str, offset: int) -> tuple[int, int]:
    """Line and column, both from 1, of a character (LF, CRLF and lone CR end a line)."""
    before = script[:offset]
    lines = before.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return len(lines), len(lines[-1]) + 1


def digest(parts: Iterable[str | bytes]) -> str:
    """SHA-256, in hex, of parts whose borders count (``ab`` + ``c`` is not ``a`` + ``bc``)."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big"))
        total.update(data)
    return total.hexdigest()


def relative(path: Path, root: Path) -> str:
    """The path for people: below the root where it is, with forward slashes."""
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.as_posix()


def toml_table(path: Path, *names: str) -> Mapping[str, Any]:
    """A table of a TOML file, by the names that lead to it; empty where there is none."""
    try:
        table: Any = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    for name in names:
        table = table.get(name) if isinstance(table, dict) else None
    return table if isinstance(table, dict) else {}


def missing(path: Path, root: Path, *, source: str, what: str) -> MigrationError:
    """That a folder or file is not there, with what lies beside it."""
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    near = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in _entries(parent))[:12]
    beside = f" In {relative(parent, root) or '.'} there is: {', '.join(near)}." if near else ""
    return MigrationError(
        f"{source}: {what} {relative(path, root)} does not exist (the project's root is {root}).{beside}",
        source=source,
    )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return []


def state(path: Path) -> tuple[int, int, int]:
    """Size, time of the last change in ns, and inode: they tell that somebody writes the file.

    Raises:
        OSError: there is no such file.
    """
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino
