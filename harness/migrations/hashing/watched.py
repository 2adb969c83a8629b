"""Which files decide the outcome of a program that we cannot look into: the user's globs, or a stated guess."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from harness.errors import MigrationError
from harness.migrations.hashing.files import relative

SKIPPED = frozenset(
    {
        "node_modules",
        "__pycache__",
        "site-packages",
        "venv",
        "target",
        "dist",
        "build",
        "vendor",
        "_build",
        "deps",
        "coverage",
        "htmlcov",
        "bower_components",
    }
)
"""Folders that hold no migrations of the project's own; those that begin with a dot are skipped too."""

FOLDERS = (
    "prisma",
    "migrations",
    "migration",
    "db",
    "database",
    "alembic",
    "drizzle",
    "sql",
    "schema",
    "seeds",
    "supabase/migrations",
    "priv/repo",
    "src/migrations",
    "src/main/resources/db",
)
"""Where the tools of many languages keep migrations."""

FILES = (
    "package.json",
    "package-lock.json",
    "npm-shrinkwrap.json",
    "pnpm-lock.yaml",
    "yarn.lock",
    "bun.lock",
    "bun.lockb",
    "deno.lock",
    "Gemfile.lock",
    "Cargo.lock",
    "go.sum",
    "composer.lock",
    "mix.lock",
    "poetry.lock",
    "uv.lock",
    "pdm.lock",
    "Pipfile.lock",
    "requirements.txt",
    "pom.xml",
    "build.gradle",
    "build.gradle.kts",
    "flyway.conf",
    "flyway.toml",
    "liquibase.properties",
    "atlas.hcl",
    "sqitch.conf",
    "sqitch.plan",
    "schema.prisma",
    "schema.sql",
    "knexfile.js",
    "knexfile.ts",
    "prisma.config.ts",
    "drizzle.config.ts",
    "drizzle.config.js",
    "ormconfig.json",
    "data-source.ts",
    "Makefile",
    "justfile",
    "Taskfile.yml",
)
"""Settings and lock files at the root that change what a migration tool does."""

LIMIT = 20_000
"""Files at most: a glob that takes in a whole disk is a mistake, not a wish."""


def matching(root: Path, globs: Iterable[str], *, source: str) -> list[Path]:
    """The files that any of the globs names, sorted; ``dir/**`` and ``dir`` mean all below.

    Raises:
        MigrationError: there are none (a typing error would otherwise never be noticed), or too many.
    """
    found: set[Path] = set()
    for glob in globs:
        pattern = glob.rstrip("/")
        base = root / pattern
        matched = (
            list(walk(base)) if base.is_dir() else [base] if base.is_file() else list(_glob(root, pattern))
        )
        if not matched:
            raise MigrationError(
                f"{source}: watch names {glob!r}, which matches no file below {root}; correct it, or take it out",
                source=source,
            )
        found.update(matched)
        _bound(len(found), source, root)
    return sorted(found)


def guessed(root: Path, command: str, *, source: str) -> list[Path]:
    """Files named in the command, known folders of migrations, and lock files, sorted.

    Raises:
        MigrationError: too many files.
    """
    found: set[Path] = {root / name for name in FILES if (root / name).is_file()}
    folders = [root / name for name in FOLDERS if (root / name).is_dir()]
    for word in _words(command):
        named = root / word
        if word.startswith("-") and "=" in word:
            named = root / word.split("=", 1)[1]
        if not _is_below(named, root):
            continue
        if named.is_file():
            found.add(named)
        elif named.is_dir() and named != root:
            folders.append(named)
    for folder in folders:
        found.update(walk(folder))
        _bound(len(found), source, root)
    return sorted(found)


def hash_files(paths: Iterable[Path], root: Path, *, source: str) -> list[str]:
    """Name and content's digest of each file, alternating; a file that vanishes meanwhile counts as absent."""
    parts: list[str] = []
    for path in paths:
        try:
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise MigrationError(
                f"{source}: {relative(path, root)} cannot be read: {error.strerror}", source=source
            ) from error
        parts += [_named(path, root), content]
    return parts


def _named(path: Path, root: Path) -> str:
    """The path from the root, above it too: checkouts in other folders, and of other users, have the same."""
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        pass
    try:
        return Path(os.path.relpath(os.path.realpath(path), os.path.realpath(root))).as_posix()
    except ValueError:
        # On another drive.
        return path.as_posix()


def walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, without caches, dependencies, or what begins with a dot; links to folders not followed."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and not name.endswith((".pyc", "~", ".swp")):
                yield Path(parent, name)


def _glob(root: Path, pattern: str) -> Iterator[Path]:
    # Path.glob("x/**") gives folders only before Python 3.13, and descends into node_modules.
    start = root.joinpath(*takewhile(lambda part: not set("*?[") & set(part), pattern.split("/")))
    # fnmatch's star takes slashes too; "**/" is any folders, or none, and a closing "**" everything below.
    pieces = (
        {"**/": "(?:.*/)?", "**": ".*"}.get(piece)
        or fnmatch.translate(piece).removeprefix("(?s:").rpartition(")")[0].replace(".*", "[^/]*")
        for piece in re.split(r"(\*\*/?)", pattern)
    )
    matches = re.compile("".join(pieces)).fullmatch
    for path in walk(start) if start.is_dir() else ():
        if matches(relative(path, root)):
            yield path


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def _is_below(path: Path, root: Path) -> bool:
    real, real_root = os.path.realpath(path), os.path.realpath(root)
    return real.startswith(real_root + os.sep)


def _bound(count: int, source: str, root: Path) -> None:
    if count > LIMIT:
        raise MigrationError(
            f"{source}: more than {LIMIT} files below {root} would be hashed; name the few that decide the "
            f'outcome with watch = ["…"]',
            source=source,
        )
