"""Whether a command may have been led to another database than the run's: by a file for dotenv that overrides what is set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.cli.run.watch import used
from harness.config import dotenv
from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.runs.run import Run


def led_elsewhere(harness: Run, names: Sequence[str], variables: Sequence[str]) -> list[str]:
    """Lines for the end of the run, where nobody was in any of its databases and such a file is there; else none.

    Args:
        names: the run's databases.
        variables: what the run sets.
    """
    found = dotenv.settings(harness.settings.root, variables)
    if not found or harness.shared is None:
        return []
    try:
        if used(harness.shared.link.session, names):
            return []
    except HarnessError:
        # The server went away: the command itself will have said so.
        return []
    line = (
        f"none of this run's databases was used, and {found[0]}: a loader that overrides what is set (`source .env`, dotenv's "
        "`override`) leads the command to another database. Leave it out where tests run, or load it without override"
    )
    return [line]
