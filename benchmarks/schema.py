"""A project of 60 tables, the size at which test suites begin to hurt."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.bench.project import environ_of, schema_of


def write(folder: Path, tables: int = 60) -> Path:
    """Settings, and the migrations of ``bench reset`` as numbered files in ``folder/migrations``, ten tables to a file."""
    target = folder / "migrations"
    target.mkdir(parents=True, exist_ok=True)
    lines = schema_of(tables).splitlines(keepends=True)
    for number, start in enumerate(range(0, len(lines), 20), start=1):
        (target / f"{number:03}_part.sql").write_text("".join(lines[start : start + 20]))
    (folder / "pg-harness.toml").write_text('migrations = ["sql:migrations"]\n')
    return target


@contextmanager
def project(tables: int = 60) -> Iterator[tuple[Path, dict[str, str]]]:
    """Its folder, and an environment by which state and cache lie there; nothing is left of it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="pg-harness-bench-"))
    # The server's user reads its data there.
    folder.chmod(0o755)
    write(folder, tables)
    try:
        yield folder, environ_of(folder) | {"PGHARNESS_CACHE_DIR": str(folder / "cache")}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
