"""Whether a command that was given several databases used more than the first: the server counts who enters which.

A parallel runner that ignores the numbered URLs must not look isolated: its processes would all share worker 1's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from harness.cli.run import runners
from harness.errors import HarnessError
from harness.postgres.session import APPLICATION_NAME, Session

LATE = 1.0
"""Seconds by which PostgreSQL 14 may tell too little: its statistics pass through a file."""


MOST = 2
"""Runners that are named: a project may have more of them than anybody wants to read of."""


def not_isolated(session: Session, names: Sequence[str], command: Sequence[str], root: Path) -> list[str]:
    """Lines for the end of the run, where somebody was in the first database and nobody in any other; else none.

    Args:
        session: of the maintenance database.
        names: the databases, worker 1's first.
        command: what was run. root: of the project. By both the runner is known, and what to do.
    """
    first, many = {names[0]}, len(names)
    try:
        entered = used(session, names)
        if entered == first and session.server_version < 150000:
            # Sessions that have just ended: a runner that does as it should must not be blamed.
            time.sleep(LATE)
            entered = used(session, names)
    except HarnessError:
        # The server went away: the command itself will have said so.
        return []
    if entered != first:
        # Only worker 3's unused: the runner had less to do than workers.
        return []
    return [
        f"not isolated: only worker 1's database was used, of {many}: DATABASE_URL_2 … were ignored",
        *_remedies(command, root, many),
    ]


def _remedies(command: Sequence[str], root: Path, many: int) -> list[str]:
    known = [runner.told(many) for runner in runners.found(command, root)[:MOST]]
    copies = f"let `pg-harness run --copies {many} -- …` start it several times"
    return known or [
        f"each worker of the runner must take its own of DATABASE_URL_1 … DATABASE_URL_{many}, by the runner's number for it; or {copies}"
    ]


def used(session: Session, names: Sequence[str]) -> set[str]:
    """Those in which a client has been, or is."""
    rows = session.rows(
        "select datname from pg_stat_database where datname = any(%s) and sessions > 0"
        # One that is still open may not have been counted yet.
        " union select datname from pg_stat_activity where datname = any(%s)"
        " and backend_type = 'client backend' and application_name <> %s",
        (list(names), list(names), APPLICATION_NAME),
    )
    return {name for (name,) in rows}
