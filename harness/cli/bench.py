"""``bench``: measure on this machine, side by side."""

from __future__ import annotations

import argparse

from harness.cli.context import Context

USAGE = "reset [options]"

DESCRIPTION = """\
Measure on this machine: what a reset costs, beside TRUNCATE, DELETE, clones and rollback, in one run. The servers
are the benchmark's own, and gone afterwards. Figures of a busy or small machine are for direction; ratios hold.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own options."""
    parser.add_argument("what", choices=["reset"], help="what to measure")
    parser.add_argument(
        "--version", action="append", dest="versions", metavar="N", help="major version; may be repeated"
    )
    parser.add_argument("--rounds", type=int, default=200, help="rounds of each row; default: 200")
    parser.add_argument("--workers", type=int, default=8, help="workers of the crowded rows; default: 8")
    parser.add_argument("--long", action="store_true", help="also 1,000 tables and 2,000 resets")


def run(context: Context) -> int:
    """Print the table."""
    from harness.bench import reset

    given = context.arguments
    words = [
        "--rounds",
        str(given.rounds),
        "--workers",
        str(given.workers),
        *(["--long"] if given.long else []),
    ]
    for version in given.versions or []:
        words += ["--version", version]
    return reset.main(words)
