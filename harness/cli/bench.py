"""``bench``: measure on this machine, side by side."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import click

from harness.bench import engines, reset
from harness.cli import garbage
from harness.cli.context import Context
from harness.cli.options import Word, flag

USAGE = "reset [options]"

DESCRIPTION = """\
Measure on this machine: what a reset costs by either engine, beside TRUNCATE, DELETE, clones and rollback, in one run.
The servers are the benchmark's own, and gone afterwards. Figures of a busy or small machine are for direction; ratios hold.
"""


PARAMETERS: list[click.Parameter] = [
    Word("what", metavar="WHAT", required=True, type=click.Choice(["reset"]), help="what to measure: reset"),
    click.Option(
        ["--version", "versions"], multiple=True, metavar="N", help="major version; may be repeated"
    ),
    click.Option(
        ["--engine"],
        type=click.Choice(engines.CHOICES),
        metavar="ENGINE",
        help="of the resets: rows, rewind, or both in turn; default: both",
    ),
    click.Option(["--rounds"], type=int, metavar="N", help="rounds of each row; default: 200"),
    click.Option(["--workers"], type=int, metavar="N", help="workers of the crowded rows; default: 8"),
    click.Option(
        ["--folder"],
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        metavar="DIR",
        help="keep the servers' data below it; default: in memory where there is room",
    ),
    flag("--long", help="also 1,000 tables and 2,000 resets"),
    flag("--quick", help="without crowded workers, pytest suites and a table of a million rows"),
    click.Option(
        ["--json"],
        is_flag=False,
        flag_value="-",
        metavar="[FILE]",
        help="all figures for programs, into a file; without one: to stdout, and the table to stderr",
    ),
]


def run(context: Context) -> int:
    """Print the table."""
    # What is measured starts servers all the time: what a command would say of them is no news here.
    context.console.hush()
    given = vars(context.arguments)
    options = {field.name: given[field.name] for field in fields(reset.Options) if field.name in given}
    # What is measured is what a test run would see.
    with garbage.as_usual():
        return reset.measure(reset.Options(**options))
