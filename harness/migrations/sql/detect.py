"""Find folders of SQL migrations, and single files of SQL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from harness.errors import HarnessError
from harness.listing import counted
from harness.migrations.detect import SINGLE_FILES, Finding, Tree
from harness.migrations.registry import read
from harness.migrations.sql import layouts
from harness.migrations.sql.source import SqlSource

_LIKELY_FOLDERS = re.compile(r"migrations?|migrate|db_migrations|schema_migrations|drizzle")
_POSSIBLE_FOLDERS = re.compile(r"sql|schema|schemas|ddl|db|database|initdb|docker-entrypoint-initdb\.d")
_NOT_OURS = re.compile(
    r"tests?|fixtures?|testdata|examples?|samples?|spec|e2e|queries|snapshots?|benchmarks?"
)


def detect(tree: Tree) -> Iterator[Finding]:
    """Folders by their names and what lies in them, and the files that often hold a schema."""
    yield from _folders(tree)
    yield from _single_files(tree)


def _folders(tree: Tree) -> Iterator[Finding]:
    folders: dict[Path, list[Path]] = {}
    for path in tree.files:
        if path.suffix == ".sql":
            nested = path.name in (layouts.PRISMA.nested, layouts.DIESEL.nested)
            folders.setdefault(path.parent.parent if nested else path.parent, []).append(path)
    for folder, files in sorted(folders.items()):
        parts = tree.shown(folder).split("/")
        if folder == tree.root or any(_NOT_OURS.fullmatch(part) for part in parts):
            continue
        confidence = _confidence(tree, folder, files)
        if not confidence or any(
            parent in folders and _is_flyway(folders[parent]) for parent in folder.parents
        ):
            continue  # Flyway reads the folders below its own too
        text = f"sql:{tree.shown(folder)}"
        source = SqlSource(read(text, "detected"), tree.root)
        try:
            tool, steps = source.plan
        except HarnessError as error:
            remark = f"it cannot be used as it is: {error.message.splitlines()[0]}"
            yield Finding(
                "SQL files", text, f"{counted(len(files), 'file')} in {tree.shown(folder)}", 1, (remark,)
            )
            continue
        remark = (
            f"sql: runs the files without {tool.name}, so {tool.history} is not filled; where the application "
            f'migrates itself at start, use "command:…" with {tool.name}\'s own command.'
        )
        evidence = f"{counted(len(steps), 'migration')} in {tree.shown(folder)}"
        yield Finding(tool.name, text, evidence, confidence, (remark,) if tool.history else ())


def _confidence(tree: Tree, folder: Path, files: list[Path]) -> int:
    names = [path.name for path in files]
    nested = [path for path in files if path.parent != folder]
    if nested or _is_flyway(files) or any(name.endswith(".up.sql") for name in names):
        return 3
    if any(layouts.has_mark(tree.head(path)) for path in files[:5]):
        return 3
    if folder.parts[-2:] == ("supabase", "migrations"):
        return 3
    if _LIKELY_FOLDERS.fullmatch(folder.name):
        return 2
    return 1 if _POSSIBLE_FOLDERS.fullmatch(folder.name) else 0


def _single_files(tree: Tree) -> Iterator[Finding]:
    for path in tree.files:
        name = tree.shown(path)
        if name not in SINGLE_FILES:
            continue
        head = tree.head(path)
        # What pg_dump wrote is a dump's.
        if "PostgreSQL database dump" not in head and re.search(
            r"\bCREATE\s+(TABLE|SCHEMA|TYPE)\b", head, re.IGNORECASE
        ):
            yield Finding("an SQL file", f"sql:{name}", name, 1)


def _is_flyway(files: list[Path]) -> bool:
    return any(layouts.FLYWAY_NAME.fullmatch(path.name) and path.name[0] in "VBR" for path in files)
