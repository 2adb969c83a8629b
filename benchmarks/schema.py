"""A project of 60 tables, the size at which test suites begin to hurt."""

from __future__ import annotations

from pathlib import Path

from harness.bench.project import schema_of


def write(folder: Path, tables: int = 60) -> Path:
    """Settings, and the migrations of ``bench reset`` as numbered files in ``folder/migrations``, ten tables to a file."""
    target = folder / "migrations"
    target.mkdir(parents=True, exist_ok=True)
    lines = schema_of(tables).splitlines(keepends=True)
    for number, start in enumerate(range(0, len(lines), 20), start=1):
        (target / f"{number:03}_part.sql").write_text("".join(lines[start : start + 20]))
    (folder / "pg-harness.toml").write_text('migrations = ["sql:migrations"]\n')
    return target
