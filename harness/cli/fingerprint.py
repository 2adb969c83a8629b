"""``fingerprint``: what decides the migrated state, as one word: a key for CI's caches."""

from __future__ import annotations

import click

from harness.cli.context import Context
from harness.cli.options import json_flag
from harness.runs.bake import Baker
from harness.servers import registry

DESCRIPTION = """\
Print 24 hex digits of all that decides what a migrated server holds: migrations, settings, PostgreSQL's build. The same
digits mean that what `pg-harness bake` has kept fits. Starts no server and builds nothing.

  key: pg-harness-${{ runner.os }}-$(pg-harness fingerprint)
"""

PARAMETERS: list[click.Parameter] = [json_flag()]


def run(context: Context) -> int:
    """Print it."""
    project = context.project
    baker = Baker(project, registry.choose(project))
    key, databases = baker.key()
    if not context.json:
        context.console.answer(key)
        return 0
    found = baker.store.find(key)
    context.console.json(
        {
            "key": key,
            "databases": databases,
            "cache": str(project.cache),
            "baked": found.name or found.ref if found is not None else None,
        }
    )
    return 0
