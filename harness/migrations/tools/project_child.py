"""Run one of our child programs in the project's interpreter."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness.migrations.port import Configured, MigrationContext
from harness.migrations.tools import child

PLACEHOLDER = "not_migrated_yet"
"""A database that does not exist: what settings see while only their list of apps is wanted."""

NOWHERE: Mapping[str, str] = {
    "DATABASE_URL": f"postgresql://pg_harness@127.0.0.1:1/{PLACEHOLDER}",
    "PGHOST": "127.0.0.1",
    "PGPORT": "1",
    "PGDATABASE": PLACEHOLDER,
    "PGUSER": "pg_harness",
    "PGPASSWORD": "",
}
"""For children that only look: nothing listens there, so a mistake reaches no database."""


def run(
    name: str,
    parameters: Mapping[str, object],
    context: MigrationContext,
    *,
    source: Configured,
    step: str,
    cwd: Path,
) -> None:
    """Run the task ``children/NAME.py`` to its end; parameters (the URL with its password) go through stdin.

    Raises:
        MigrationError: it failed, or took longer than the context allows; with its last lines.
    """
    script = Path(__file__).with_name("children") / "main.py"
    child.migrate(
        source,
        [sys.executable, str(script), name],
        replace(context, environment={**context.environment, "PYTHONUNBUFFERED": "1"}),
        step=step,
        cwd=cwd,
        interpreted=True,
        stdin=json.dumps(parameters, default=str).encode(),
    )


def source_roots(root: Path, *before: Path) -> Sequence[Path]:
    """Where the project's own modules begin, each once: those before, the root, and ``src`` where there is one."""
    source = root / "src"
    return list(dict.fromkeys([*before, root, *([source] if source.is_dir() else [])]))
