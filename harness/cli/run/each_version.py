"""``run --each-version``: the command once for each version of PostgreSQL, one after another, and a table at the end."""

from __future__ import annotations

import logging
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.cli.context import Context
from harness.config import versions
from harness.config.project import Project
from harness.errors import HarnessError

logger = logging.getLogger("pg_harness.cli")

RunOne = Callable[[Context, Project, str, list[int]], int]
"""Runs the command in one project, at one version; a list is given the signals that came meanwhile."""


@dataclass(frozen=True)
class Outcome:
    """What came of one version.

    Attributes:
        what: for people: ``"passed"``, ``"exit code 1"``, ``"not run: no binaries of PostgreSQL 9 were found"``.
        seconds: from the search for its server to its release.
        code: what it means for ours; 0 where it passed.
    """

    version: str
    what: str
    seconds: float
    code: int


def run_each(context: Context, run_one: RunOne) -> int:
    """Run the command on each version; return the first exit code that is not 0.

    A version that is not to be had here, or whose migrations fail, has failed: the others go on.

    Raises:
        ConfigError: no versions are named, or a server that others run is.
    """
    wanted = versions.each(context.settings, "--each-version")
    done: list[Outcome] = []
    heard: list[int] = []
    try:
        for number, version in enumerate(wanted, 1):
            words = shlex.join(context.command or ())
            logger.info("---- PostgreSQL %s (%d of %d): %s", version, number, len(wanted), words)
            done.append(_outcome(context, run_one, version, heard))
            if _over(heard, done[-1]):
                break
    finally:
        # Ctrl-C while a server was started too: what is known by then is told.
        _tell(context, wanted, done)
    # Ended by a signal, and by a command that took it well: not all was run.
    ended = 128 + heard[0] if len(done) < len(wanted) else 0
    return next((outcome.code for outcome in done if outcome.code), ended)


def _outcome(context: Context, run_one: RunOne, version: str, heard: list[int]) -> Outcome:
    began = time.monotonic()
    try:
        code = run_one(context, versions.at(context.project, version), version, heard)
        what = f"exit code {code}" if code else "passed"
    except HarnessError as error:
        context.console.error(error.full_text)
        context.note(error)
        code, what = error.exit_code, f"not run: {error.message.splitlines()[0]}"
    return Outcome(version, what, time.monotonic() - began, code)


def _over(heard: Sequence[int], last: Outcome) -> bool:
    """Whether somebody wanted all of it to end. A Ctrl-C that the command took for its own, a prompt's, did not."""
    return any(signum != signal.SIGINT or last.code for signum in heard)


def _tell(context: Context, wanted: Sequence[str], done: Sequence[Outcome]) -> None:
    lines = [("version", "seconds", "outcome")]
    lines += [(each.version, f"{each.seconds:.1f}", each.what) for each in done]
    lines += [(version, "", "not run: it was ended before") for version in wanted[len(done) :]]
    wide = [max(len(line[column]) for line in lines) for column in (0, 1)]
    # What failed is told with -q, too.
    fine = len(done) == len(wanted) and not any(each.code for each in done)
    tell: Callable[[str], None] = logger.info if fine else context.console.warn
    for version, seconds, what in lines:
        tell(f"{version:<{wide[0]}}  {seconds:>{wide[1]}}  {what}")
