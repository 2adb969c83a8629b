"""Find where a project keeps its migrations, for ``init`` and for projects that configured none.

Bounded, and without importing or running anything of the project.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.config.settings import SourceSpec
from harness.config.sources import parse_spec
from harness.errors import HarnessError
from harness.migrations.hashing.files import relative
from harness.migrations.hashing.watched import SKIPPED
from harness.migrations.sql import layouts
from harness.migrations.sql.source import SqlSource

MAX_DEPTH = 5
"""Folders below the root that are looked into: ``src/main/resources/db/migration`` is five deep."""
MAX_ENTRIES = 20_000
_HEAD = 64 * 1024
"""Bytes of a file that are read to recognise it."""

_LIKELY_FOLDERS = re.compile(r"migrations?|migrate|db_migrations|schema_migrations|drizzle")
_POSSIBLE_FOLDERS = re.compile(r"sql|schema|schemas|ddl|db|database|initdb|docker-entrypoint-initdb\.d")
_NOT_OURS = re.compile(
    r"tests?|fixtures?|testdata|examples?|samples?|spec|e2e|queries|snapshots?|benchmarks?"
)


@dataclass(frozen=True)
class Finding:
    """One place where a schema may come from.

    Attributes:
        tool: for people, for instance ``"Alembic"``.
        spec: what to put into ``migrations``.
        evidence: what was seen, for instance ``"alembic.ini (script_location = migrations)"``.
        confidence: 3 the tool's own marks were seen; 2 by name and content; 1 a guess that needs a person.
        remarks: what a person should know or decide, one line each.
    """

    tool: str
    spec: SourceSpec
    evidence: str
    confidence: int
    remarks: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """As written in the settings."""
        return self.spec.text


def detect(root: Path) -> list[Finding]:
    """All that was found, the best first; empty where nothing was."""
    entries = list(_walk(root))
    found: dict[str, Finding] = {}
    for look in (_alembic, _django, _sql_folders, _single_files):
        for finding in look(root, entries):
            found.setdefault(finding.text, finding)
    # A shallower place comes first: the project's own before one of its packages'.
    return sorted(found.values(), key=lambda finding: (-finding.confidence, finding.text.count("/")))


def looked_for() -> list[str]:
    """What :func:`detect` looks for, one line each, for the message when there is nothing."""
    return [
        "Alembic: alembic.ini, or [tool.alembic] in pyproject.toml",
        "Django: manage.py, or DJANGO_SETTINGS_MODULE in [tool.pytest] or [tool.django]",
        "Prisma: migrations/*/migration.sql",
        "Diesel: migrations/*/up.sql",
        "Flyway: V1__x.sql",
        "golang-migrate and sqlx: *.up.sql",
        "goose: -- +goose Up in *.sql",
        "dbmate: -- migrate:up in *.sql",
        "sql-migrate, tern, node-pg-migrate: their lines in *.sql",
        "sqlx: migrations/*.sql beside a Cargo.toml with sqlx",
        "Supabase: supabase/migrations/*.sql",
        "plain SQL: *.sql in a folder named migrations, migrate, drizzle, sql, schema or db",
        "a dump: db/structure.sql, schema.sql",
    ]


def propose(root: Path, *, table: str = "tool.pg-harness") -> str:
    """The settings to write, as TOML, with what was found as comments.

    Args:
        table: the table's name; empty for a ``pg-harness.toml``, whose top level it is.
    """
    found = detect(root)
    lines = [f"[{table}]"] if table else []
    if not found:
        lines += ["# No migrations were found. Looked for:"]
        lines += [f"#   {line}" for line in looked_for()]
        lines += ['# migrations = ["sql:db/migrations"]']
        return "\n".join(lines) + "\n"
    best, others = found[0], found[1:]
    lines += [f"# {best.tool}: {best.evidence}"]
    lines += [f"# {remark}" for remark in best.remarks]
    for other in others:
        lines += [
            f"# also found: {json.dumps(other.text, ensure_ascii=False)} ({other.tool}: {other.evidence})"
        ]
    # JSON's quoting is TOML's for basic strings.
    lines += [f"migrations = [{json.dumps(best.text, ensure_ascii=False)}]"]
    return "\n".join(lines) + "\n"


# --- what each tool leaves ---------------------------------------------------------------------------


def _alembic(root: Path, entries: list[Path]) -> Iterator[Finding]:
    for path in entries:
        if path.name == "alembic.ini" and re.search(r"^\s*script_location\s*=", _head(path), re.MULTILINE):
            at_root = path.parent == root
            yield Finding(
                "Alembic",
                _spec("alembic" if at_root else f"alembic:{relative(path, root)}"),
                relative(path, root),
                3,
            )
    pyproject = _toml(root / "pyproject.toml")
    if "script_location" in _table(pyproject, "tool", "alembic"):
        yield Finding("Alembic", _spec("alembic"), "[tool.alembic] in pyproject.toml", 3)


def _django(root: Path, entries: list[Path]) -> Iterator[Finding]:
    managers = [p for p in entries if p.name == "manage.py" and "DJANGO_SETTINGS_MODULE" in _head(p)]
    # Deeper ones belong to somebody else's project inside this one: `django` would not find them.
    managers = [p for p in managers if len(p.relative_to(root).parts) <= 3]
    managers.sort(key=lambda path: len(path.parts))
    if managers:
        first = managers[0]
        remarks = tuple(f"another Django project: {relative(p, root)}" for p in managers[1:])
        match = re.search(r"""DJANGO_SETTINGS_MODULE['"]\s*,\s*['"]([\w.]+)['"]""", _head(first))
        module = match.group(1) if match else ""
        # manage.py below the root: its folder goes on the path by itself, see migrations/django.py.
        yield Finding(
            "Django",
            _spec("django"),
            relative(first, root) + (f" (settings: {module})" if module else ""),
            3,
            remarks,
        )
        return
    pyproject = _toml(root / "pyproject.toml")
    for names in (("tool", "pytest", "ini_options"), ("tool", "pytest"), ("tool", "django")):
        module = _table(pyproject, *names).get("DJANGO_SETTINGS_MODULE")
        if isinstance(module, str):
            yield Finding(
                "Django", _spec(f"django:{module}"), f"[{'.'.join(names)}] names the settings {module}", 3
            )
            return


def _sql_folders(root: Path, entries: list[Path]) -> Iterator[Finding]:
    folders: dict[Path, list[Path]] = {}
    for path in entries:
        if path.suffix == ".sql":
            nested = path.name in (layouts.PRISMA.nested, layouts.DIESEL.nested)
            folders.setdefault(path.parent.parent if nested else path.parent, []).append(path)
    for folder, files in sorted(folders.items()):
        parts = relative(folder, root).split("/")
        if folder == root or any(_NOT_OURS.fullmatch(part) for part in parts):
            continue
        confidence = _confidence(folder, files)
        if not confidence or any(
            parent in folders and _is_flyway(folders[parent]) for parent in folder.parents
        ):
            continue  # Flyway reads the folders below its own too
        spec = _spec(f"sql:{relative(folder, root)}")
        source = SqlSource(spec, root)
        try:
            tool, count = source.layout, len(source.steps)
        except HarnessError as error:
            remark = f"it cannot be used as it is: {error.message.splitlines()[0]}"
            yield Finding("SQL files", spec, f"{len(files)} files in {relative(folder, root)}", 1, (remark,))
            continue
        remarks = _tool_remarks(tool)
        evidence = f"{count} migration{'s' if count != 1 else ''} in {relative(folder, root)}"
        yield Finding(tool, spec, evidence, confidence, remarks)


def _confidence(folder: Path, files: list[Path]) -> int:
    names = [path.name for path in files]
    nested = [path for path in files if path.parent != folder]
    if nested or _is_flyway(files) or any(name.endswith(".up.sql") for name in names):
        return 3
    heads = [_head(path) for path in files[:5]]
    if any((tool.up or tool.down or _NEVER).search(head) for tool in layouts.MARKED for head in heads):
        return 3
    if folder.parts[-2:] == ("supabase", "migrations"):
        return 3
    if _LIKELY_FOLDERS.fullmatch(folder.name):
        return 2
    return 1 if _POSSIBLE_FOLDERS.fullmatch(folder.name) else 0


def _single_files(root: Path, entries: list[Path]) -> Iterator[Finding]:
    for path in entries:
        name = relative(path, root)
        if name not in ("db/structure.sql", "structure.sql", "schema.sql", "db/schema.sql", "init.sql"):
            continue
        head = _head(path)
        if "PostgreSQL database dump" in head:
            yield Finding("a dump", _spec(f"dump:{name}"), f"{name}, written by pg_dump", 2)
        elif re.search(r"\bCREATE\s+(TABLE|SCHEMA|TYPE)\b", head, re.IGNORECASE):
            yield Finding("an SQL file", _spec(f"sql:{name}"), name, 1)


def _tool_remarks(tool: str) -> tuple[str, ...]:
    tables: dict[str, str] = {
        "Flyway": "flyway_schema_history",
        "Prisma": "_prisma_migrations",
        "sqlx": "_sqlx_migrations",
        "goose": "goose_db_version",
        "dbmate": "schema_migrations",
        "golang-migrate": "schema_migrations",
        "Diesel": "__diesel_schema_migrations",
    }
    table = tables.get(tool)
    if table is None:
        return ()
    remark = (
        f"sql: runs the files without {tool}, so {table} is not filled; where the application migrates "
        f'itself at start, use "command:…" with {tool}\'s own command.'
    )
    return (remark,)


# --- reading -----------------------------------------------------------------------------------------

_NEVER = re.compile(r"(?!)")


def _walk(root: Path) -> Iterator[Path]:
    seen = 0
    # Breadth first: where the bound is met, the folders near the root have been seen.
    level = [root]
    for _ in range(MAX_DEPTH + 2):
        below: list[Path] = []
        for folder in level:
            try:
                with os.scandir(folder) as scanned:
                    entries = sorted(scanned, key=lambda entry: entry.name)
            except OSError:
                continue
            # A virtual environment by any name.
            if folder != root and any(entry.name == "pyvenv.cfg" for entry in entries):
                continue
            for entry in entries:
                seen += 1
                if seen > MAX_ENTRIES:
                    return
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in SKIPPED:
                        below.append(Path(entry.path))
                elif entry.is_file():
                    yield Path(entry.path)
        level = below


def _is_flyway(files: list[Path]) -> bool:
    return any(layouts.FLYWAY_NAME.fullmatch(path.name) and path.name[0] in "VBR" for path in files)


def _spec(text: str) -> SourceSpec:
    return parse_spec(text, "detected")


def _head(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(_HEAD).decode("utf-8", "replace")
    except OSError:
        return ""


def _toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _table(value: object, *names: str) -> dict[str, object]:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}
