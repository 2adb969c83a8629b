"""Which Python files of the project a file leads to, without importing any of them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

_IMPORT = re.compile(
    rb"^[ \t]*(?:from[ \t]+(?P<base>\.*[\w.]*)[ \t]+import[ \t]*(?P<names>\([^)]*\)|[^\n#]*)|import[ \t]+(?P<plain>[^\n#]+))",
    re.MULTILINE,
)
_LIMIT = 5_000


def closure(files: Iterable[Path], search: Iterable[Path]) -> set[Path]:
    """The files, and all that they import, directly or not, from below the ``search`` folders.

    Dynamic imports are not seen; installed packages are not followed: their versions count instead.
    """
    roots = [Path(os.path.realpath(folder)) for folder in search]
    waiting = [Path(os.path.realpath(file)) for file in files]
    found: set[Path] = set()
    while waiting and len(found) < _LIMIT:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        try:
            text = file.read_bytes()
        except OSError:
            continue
        for match in _IMPORT.finditer(text):
            waiting.extend(path for path in _targets(match, file, roots) if path not in found)
    return found


def files_of(module: str, roots: Iterable[Path]) -> list[Path]:
    """The files that importing ``a.b.c`` runs: a/__init__.py, a/b/__init__.py, a/b/c.py, below each root."""
    parts = module.split(".")
    lengths = range(1, len(parts) + 1)
    return [path for root in roots for length in lengths for path in _module(root.joinpath(*parts[:length]))]


def installed_versions(only: Iterable[str] = ()) -> list[str]:
    """``name-version`` of the distributions on this interpreter's path, sorted.

    Read from the names of ``*.dist-info`` folders: importlib.metadata would open each of them.

    Args:
        only: names to keep, in any spelling; all of them where it is empty.
    """
    wanted = {_normal(name) for name in only}
    found = []
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        for name in names:
            if name.endswith(".dist-info"):
                stem = name.removesuffix(".dist-info")
                if not wanted or _normal(stem.rpartition("-")[0]) in wanted:
                    found.append(stem)
    return sorted(set(found))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _targets(match: re.Match[bytes], file: Path, roots: list[Path]) -> list[Path]:
    if match["plain"] is not None:
        modules = [
            part.split(b" as ")[0].strip().decode("utf-8", "replace") for part in match["plain"].split(b",")
        ]
        return [path for module in modules for path in files_of(module, roots)]
    base = match["base"].decode("utf-8", "replace")
    words = re.findall(rb"(\w+)(?:\s+as\s+\w+)?", match["names"])
    names = [word.decode("utf-8", "replace") for word in words]
    dots = len(base) - len(base.lstrip("."))
    if dots:
        folder = file.parent
        for _ in range(dots - 1):
            folder = folder.parent
        if not any(folder.is_relative_to(root) for root in roots):
            return []
        start = folder.joinpath(*filter(None, base[dots:].split(".")))
        return _with_names(start, names)
    named = (_with_names(root.joinpath(*base.split(".")), names) for root in roots)
    return [*files_of(base, roots), *(path for found in named for path in found)]


def _with_names(start: Path, names: list[str]) -> list[Path]:
    return [*_module(start), *(path for name in names for path in _module(start / name))]


def _module(place: Path) -> list[Path]:
    candidates = (place.with_name(place.name + ".py"), place / "__init__.py") if place.name else ()
    return [path for path in candidates if path.is_file()]
