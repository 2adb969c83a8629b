"""Whether a command was led to another database than the run's, or to none: nobody was in it, and why that may be."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.cli.run.watch import LATE, used
from harness.config import dotenv
from harness.config.drivers import setting
from harness.config.files import locate
from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.runs.run import Run

CANNOT_RUN = 126
"""From this exit code on, a shell says that nothing was run, or which signal ended it."""

_DJANGO_TEST = re.compile(r"\b(?:manage\.py|django-admin|-m django)\s+(?:-\S+\s+)*test\b")


def led_elsewhere(
    harness: Run,
    names: Sequence[str],
    variables: Sequence[str],
    command: Sequence[str],
    code: int,
    *,
    workers: int = 1,
) -> list[str]:
    """Lines for the end of the run, where nobody was in any of its databases; else none.

    With several workers only where a file tells why: such a command may have had less to do.

    Args:
        names: the run's databases.
        variables: what the run sets.
        command: what was run. code: how it ended.
        workers: how many have databases.
    """
    if harness.shared is None:
        return []
    found = dotenv.settings(harness.settings.root, variables)
    if not found and (workers > 1 or code >= CANNOT_RUN):
        return []
    try:
        session = harness.shared.link.session
        entered = used(session, names)
        if not entered and session.server_version < 150000:
            time.sleep(LATE)
            entered = used(session, names)
    except HarnessError:
        # The server went away: the command itself will have said so.
        return []
    if entered:
        return []
    if found:
        line = (
            f"none of this run's databases was used, and {found[0]}: a loader that overrides what is set (`source .env`, dotenv's "
            "`override`) leads the command to another database. Leave it out where tests run, or load it without override"
        )
        return [line]
    return [f"nobody entered this run's database: {_why(harness, command, code)}"]


def _why(harness: Run, command: Sequence[str], code: int) -> str:
    root = harness.settings.root
    text = " ".join(command)
    if _DJANGO_TEST.search(text):
        return (
            "Django's test runner makes and migrates one of its own, on the server that the settings name. "
            'TEST_RUNNER = "harness.django.Runner" in the settings gives it clones of the template (docs/recipes.md)'
        )
    if re.search(r"\b(pytest|py\.test)\b", text) and locate(root, harness.environ).configured:
        return "pytest's plugin takes databases by itself, so `pg-harness run` may be left away"
    if code and (told := _form(harness)):
        return told
    return "the command takes its address from somewhere else than DATABASE_URL and PG*, or needs no database"


def _form(harness: Run) -> str:
    """The form of the URL that the project's files have, where it is another than the run's."""
    # Here: a run whose database was entered, as nearly all are, imports none of it.
    from harness.migrations.detect import Tree
    from harness.migrations.url_forms import wanted

    have = harness.settings.default.env
    for each in wanted(Tree(harness.settings.root)):
        if have.get(each.variable) != each.template:
            line = setting(each.template, harness.settings, each.variable)
            return f"{each.evidence}, which this run's {each.variable} is not: {line}"
    return ""
