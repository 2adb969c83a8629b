"""The command line: ``python -m harness`` and ``pg-harness``. One verb, one module.

A warm ``up`` must cost little more than ``import psycopg`` and a login: nothing is imported here that the
verb at hand does not need.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from harness.cli import garbage

BUG = 125
"""Exit code where the fault is ours."""

BROKEN_PIPE = 128 + 13
"""Exit code where whoever read our answer went away, as if SIGPIPE had ended us."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; default: ``sys.argv[1:]``, and then the process is taken for the
            command's own: garbage is looked for seldom in it, to its end.

    Returns:
        The exit code: 0, 120 to 125 (see ``--help``), 128 + n for signal n, or that of the command of ``run``.
    """
    if argv is None:
        garbage.seldom()
    try:
        # Here, so that Ctrl-C while it loads ends as elsewhere.
        from harness.cli.entry import run

        code = run(list(sys.argv[1:] if argv is None else argv))
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _forget_stdout()
        return BROKEN_PIPE
    return code


def _forget_stdout() -> None:
    # Python flushes stdout once more at exit, and would print a traceback of its own.
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):
        return
