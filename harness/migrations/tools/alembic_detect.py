"""Find Alembic environments in a project."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.migrations.detect import Finding, Tree


def detect(tree: Tree) -> Iterator[Finding]:
    """Its ini files, and the table in pyproject.toml."""
    for path in tree.files:
        if path.name == "alembic.ini" and re.search(
            r"^\s*script_location\s*=", tree.head(path), re.MULTILINE
        ):
            at_root = path.parent == tree.root
            yield Finding(
                "Alembic",
                "alembic" if at_root else f"alembic:{tree.shown(path)}",
                tree.shown(path),
                3,
            )
    if "script_location" in tree.pyproject("tool", "alembic"):
        yield Finding("Alembic", "alembic", "[tool.alembic] in pyproject.toml", 3)
