"""Find where a project keeps its migrations, for ``init`` and for projects that configured none.

Every kind of source is asked; bounded, and without importing or running anything of the project.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.config.extensions import resolved
from harness.config.settings import SourceSpec
from harness.config.sources import EXAMPLE
from harness.migrations import registry
from harness.migrations.hashing.files import relative, toml_table
from harness.migrations.hashing.watched import SKIPPED

MAX_DEPTH = 5
"""Folders below the root that are looked into: ``src/main/resources/db/migration`` is five deep."""
MAX_ENTRIES = 20_000
_HEAD = 64 * 1024
"""Bytes of a file that are read to recognise it."""

SINGLE_FILES = frozenset({"db/structure.sql", "structure.sql", "schema.sql", "db/schema.sql", "init.sql"})
"""Files that often hold a whole schema, below the root."""


@dataclass(frozen=True)
class Finding:
    """One place where a schema may come from.

    Attributes:
        tool: for people, for instance ``"Alembic"``.
        text: what to put into ``migrations``.
        evidence: what was seen, for instance ``"alembic.ini (script_location = migrations)"``.
        confidence: 3 the tool's own marks were seen; 2 by name and content; 1 a guess that needs a person.
        remarks: what a person should know or decide, one line each.
    """

    tool: str
    text: str
    evidence: str
    confidence: int
    remarks: tuple[str, ...] = ()

    @property
    def spec(self) -> SourceSpec:
        """The entry, read."""
        return registry.read(self.text, "detected")


class Tree:
    """A project's files as far as they are looked at.

    Attributes:
        root: the project's root.
        files: those within the bounds, nearest to the root first; hidden ones, virtual environments and
            folders of installed packages are not among them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: Sequence[Path] = tuple(_walk(root))

    def shown(self, path: Path) -> str:
        """The path below the root, with slashes."""
        return relative(path, self.root)

    def head(self, path: Path) -> str:
        """The begin of a file, 64 KB at most; empty where it cannot be read."""
        try:
            with path.open("rb") as stream:
                return stream.read(_HEAD).decode("utf-8", "replace")
        except OSError:
            return ""

    def pyproject(self, *names: str) -> Mapping[str, object]:
        """A table of the root's ``pyproject.toml``; empty where there is none of these names."""
        return toml_table(self.root / "pyproject.toml", *names)


def detect(root: Path) -> list[Finding]:
    """All that was found, the best first; empty where nothing was."""
    tree = Tree(root)
    found: dict[str, Finding] = {}
    for kind in registry.kinds().values():
        if kind.detect is not None:
            for finding in resolved(kind.detect)(tree):
                found.setdefault(finding.text, finding)
    # A shallower place comes first: the project's own before one of its packages'.
    return sorted(found.values(), key=lambda finding: (-finding.confidence, finding.text.count("/")))


_SCRIPT_LOCATION = re.compile(r"^\s*script_location\s*=", re.MULTILINE)


def alembic(tree: Tree) -> Iterator[Finding]:
    """Alembic's ini files, and its table in pyproject.toml."""
    for path in tree.files:
        if path.name == "alembic.ini" and _SCRIPT_LOCATION.search(tree.head(path)):
            shown = tree.shown(path)
            yield Finding("Alembic", "alembic" if path.parent == tree.root else f"alembic:{shown}", shown, 3)
    if "script_location" in tree.pyproject("tool", "alembic"):
        yield Finding("Alembic", "alembic", "[tool.alembic] in pyproject.toml", 3)


def flask(tree: Tree) -> Iterator[Finding]:
    """Folders that Flask-Migrate has made: their alembic.ini names no script folder, and their env.py asks the application."""
    for path in tree.files:
        if path.name != "alembic.ini" or _SCRIPT_LOCATION.search(tree.head(path)):
            continue
        env = path.with_name("env.py")
        if env.is_file() and re.search(r"\bcurrent_app\b", tree.head(env)):
            folder = tree.shown(path.parent)
            text = "flask" if folder == "migrations" else f"flask:{folder}"
            yield Finding("Flask-Migrate", text, f"{tree.shown(env)}, with current_app", 3)


DJANGO_TABLES = (("tool", "pytest", "ini_options"), ("tool", "pytest"), ("tool", "django"))
"""Where a pyproject.toml may say DJANGO_SETTINGS_MODULE."""


def django_settings(manager: str) -> str:
    """The settings module that the text of a manage.py names; empty where it names none."""
    match = re.search(r"""DJANGO_SETTINGS_MODULE['"]\s*[,\]]\s*=?\s*['"]([\w.]+)['"]""", manager)
    return match[1] if match else ""


def django(tree: Tree) -> Iterator[Finding]:
    """The project whose manage.py is nearest to the root, or the settings that pyproject.toml names."""
    # Deeper ones belong to somebody else's project inside this one: `django` would not find them.
    near = [p for p in tree.files if p.name == "manage.py" and len(p.relative_to(tree.root).parts) <= 3]
    modules = {path: module for path in near if (module := django_settings(tree.head(path)))}
    if modules:
        (first, module), *others = modules.items()
        remarks = tuple(f"another Django project: {tree.shown(path)}" for path, _ in others)
        yield Finding("Django", "django", f"{tree.shown(first)} (settings: {module})", 3, remarks)
        return
    for names in DJANGO_TABLES:
        named = tree.pyproject(*names).get("DJANGO_SETTINGS_MODULE")
        if isinstance(named, str):
            yield Finding("Django", f"django:{named}", f"[{'.'.join(names)}] names the settings {named}", 3)
            return


def dump(tree: Tree) -> Iterator[Finding]:
    """Plain dumps, under the names that they usually have."""
    for path in tree.files:
        name = tree.shown(path)
        if name in SINGLE_FILES and "PostgreSQL database dump" in tree.head(path):
            yield Finding("a dump", f"dump:{name}", f"{name}, written by pg_dump", 2)


def looked_for() -> list[str]:
    """What :func:`detect` looks for, one line each, for the message when there is nothing."""
    return [line for kind in registry.kinds().values() for line in kind.looks_for]


def propose(
    root: Path,
    *,
    table: str = "tool.pg-harness",
    further: Sequence[str] = (),
    env: Mapping[str, tuple[str, str]] | None = None,
) -> str:
    """The settings to write, as TOML, with what was found as comments.

    Args:
        table: the table's name; empty for a ``pg-harness.toml``, whose top level it is.
        further: databases beside the default one, which the same entry migrates.
        env: variable → its template, and why, for people.
    """
    found = detect(root)
    lines = [f"[{table}]"] if table else []
    if not found:
        lines += ["# No migrations were found. Looked for:"]
        lines += [f"#   {line}" for line in looked_for()]
        lines += [f'# migrations = ["{EXAMPLE}"]', *_env_table(table, env or {})]
        return "\n".join(lines) + "\n"
    best, others = found[0], found[1:]
    lines += [f"# {best.tool}: {best.evidence}"]
    lines += [f"# {remark}" for remark in best.remarks]
    for other in others:
        lines += [
            f"# also found: {json.dumps(other.text, ensure_ascii=False)} ({other.tool}: {other.evidence})"
        ]
    # JSON's quoting is TOML's for basic strings.
    migrations = f"migrations = [{json.dumps(best.text, ensure_ascii=False)}]"
    lines.append(migrations)
    for name in further:
        lines += ["", f"[{table}.databases.{name}]" if table else f"[databases.{name}]", migrations]
    lines += _env_table(table, env or {})
    return "\n".join(lines) + "\n"


def _env_table(table: str, env: Mapping[str, tuple[str, str]]) -> list[str]:
    if not env:
        return []
    lines = ["", f"[{table}.env]" if table else "[env]"]
    for variable, (template, why) in env.items():
        lines += [f"# {why}", f"{variable} = {json.dumps(template, ensure_ascii=False)}"]
    return lines


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
                # What a link leads to may be closed to us (/proc/1/cwd).
                try:
                    is_folder, is_file = entry.is_dir(follow_symlinks=False), entry.is_file()
                except OSError:
                    continue
                if is_folder:
                    if entry.name not in SKIPPED:
                        below.append(Path(entry.path))
                elif is_file:
                    yield Path(entry.path)
        level = below
