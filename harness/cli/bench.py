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
    parser.add_argument("--rounds", type=int, help="rounds of each row; default: 200")
    parser.add_argument("--workers", type=int, help="workers of the crowded rows; default: 8")
    parser.add_argument(
        "--folder",
        metavar="DIR",
        help="keep the servers' data below it; default: in memory where there is room",
    )
    parser.add_argument("--long", action="store_true", help="also 1,000 tables and 2,000 resets")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="without crowded workers, pytest suites and a table of a million rows",
    )
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE",
        help="all figures for programs, into a file; without one: to stdout, and the table to stderr",
    )  # fmt: skip


def run(context: Context) -> int:
    """Print the table."""
    from harness.bench import reset

    # What is measured starts servers all the time: what a command would say of them is no news here.
    context.console.hush()
    given = vars(context.arguments)
    words = [
        word
        for name in ("rounds", "workers", "folder", "json")
        if name in given
        for word in (f"--{name}", str(given[name]))
    ]
    words += [word for version in given.get("versions", ()) for word in ("--version", version)]
    words += [f"--{name}" for name in ("long", "quick") if given.get(name)]
    return reset.main(words)
