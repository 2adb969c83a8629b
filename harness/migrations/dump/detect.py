"""Find what pg_dump wrote."""

from __future__ import annotations

from collections.abc import Iterator

from harness.migrations.detect import SINGLE_FILES, Finding, Tree


def detect(tree: Tree) -> Iterator[Finding]:
    """Plain dumps, under the names that they usually have."""
    for path in tree.files:
        name = tree.shown(path)
        if name in SINGLE_FILES and "PostgreSQL database dump" in tree.head(path):
            yield Finding("a dump", f"dump:{name}", f"{name}, written by pg_dump", 2)
