"""``help``: of all commands, of one, or of the options that every command takes."""

from __future__ import annotations

import click

from harness.cli.context import Context
from harness.cli.options import Word

OPTIONS = "options"
"""The topic that is no verb."""

USAGE = "[COMMAND | options]"

DESCRIPTION = """\
What `pg-harness --help` and `pg-harness COMMAND --help` print; `pg-harness help options` lists the options that
every command takes.
"""


def _topics(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from harness.cli.parser import VERBS

    return [word for word in (*VERBS, OPTIONS) if word.startswith(incomplete)]


PARAMETERS: list[click.Parameter] = [
    Word("topic", metavar="COMMAND", help="or the word options", shell_complete=_topics),
]


def run(context: Context) -> int:
    """Print it.

    Raises:
        Usage: there is no such command.
    """
    from harness.cli import parser

    context.console.answer(parser.help_of(getattr(context.arguments, "topic", "")).rstrip("\n"))
    return 0
