"""``gc``: drop what dead runs left."""

from __future__ import annotations

import argparse
from typing import Any

from harness.cli import seen
from harness.cli.context import Context
from harness.cli.parser import add_json

DESCRIPTION = """\
Drop what dead test runs of this checkout left on its servers, half-built templates, templates beyond
keep_templates and template_age, and databases kept beyond keep_failed. Each run does the same at its end.

Your own databases, those of runs that are alive, and everything of other checkouts stay.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own options."""
    parser.add_argument("--dry-run", dest="dry_run", action="store_true", help="only tell what would go")
    add_json(parser)


def run(context: Context) -> int:
    """Sweep each server; the names of what went are the answer."""
    dry_run = bool(getattr(context.arguments, "dry_run", False))
    gone: list[dict[str, Any]] = []
    with seen.harnesses(context) as found:
        for harness in found:
            for doomed in harness.sweep(dry_run=dry_run):
                name = doomed.database.name
                gone.append(
                    {"database": name, "reason": doomed.reason, "server": harness.server.info.description}
                )
                if not context.json:
                    context.console.answer(f"{name}  {doomed.reason}")
    if context.json:
        context.console.json({"dry_run": dry_run, "dropped": gone})
    elif not gone:
        context.console.story("nothing is left over")
    else:
        context.console.story(f"{len(gone)} {'would be' if dry_run else 'were'} dropped")
    return 0
