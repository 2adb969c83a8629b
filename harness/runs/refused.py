"""Connections that the server refused, because a worker had as many as it may have: known at a run's end, from the server's own counters.

Their cost for a run in which none was: one statement for each server.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from harness.config.settings import Settings
from harness.errors import HarnessError
from harness.runs.session import ServerSession

_TOO_MANY = re.compile(
    r"@(\S+) .*FATAL:  (too many connections for |sorry, too many clients|remaining connection slots)"
)
"""A line of the log (``log_line_prefix`` in :mod:`harness.servers.defaults`); our servers speak English (``lc_messages``)."""


@dataclass(frozen=True)
class Refused:
    """What one worker's database has refused.

    Attributes:
        worker: whose it is.
        database: its name in the settings.
        times: how many connections.
        sure: whether that is what the server's log says. Else they may have been ended for other reasons: the log of somebody
            else's server is not ours to read.
    """

    worker: str
    database: str
    times: int
    sure: bool


def refused(server: ServerSession) -> list[Refused]:
    """What was refused to the workers that are on a server, as long as their databases are there.

    Raises:
        ServerLost: it has gone.
    """
    leased = {
        dsn.database: (lease.worker, name) for lease in server.leases for name, dsn in lease.dsns.items()
    }
    # PostgreSQL counts a session that was refused as one that an error has ended; idle_in_transaction_session_timeout is another.
    rows = server.link.session.rows(
        "select datname, sessions_fatal from pg_stat_database where datname = any(%s) and sessions_fatal > 0",
        (list(leased),),
    )
    if not rows:
        return []
    logged = _logged(server)
    found = [
        Refused(*leased[name], times if logged is None else logged[name], logged is not None)
        for name, times in rows
        if logged is None or logged[name]
    ]
    return sorted(found, key=lambda its: (len(its.worker), its.worker, its.database))


def _logged(server: ServerSession) -> Counter[str] | None:
    """Database → how many times the log says so; None where it cannot be read."""
    if not server.server.info.ours:
        return None
    try:
        return Counter(match[1] for line in server.server.logs() if (match := _TOO_MANY.search(line)))
    except HarnessError:
        return None


def told(found: Iterable[Refused], settings: Settings, *, noun: str = "worker") -> list[str]:
    """Lines for the end of a run; none where nothing was refused.

    Args:
        noun: what people call a worker here.
    """
    parts = [
        f"{noun} {its.worker}{'' if its.database == 'default' else f' ({its.database})'}: {its.times}"
        for its in found
    ]
    if not parts:
        return []
    what = (
        "were refused"
        if all(its.sure for its in found)
        else "were refused, or ended by an error of the server"
    )
    origin = settings.origin("connections_per_worker")
    whose = "nobody has set it, and so many fit" if origin == "default" else origin
    several = " to each of its databases" if len(settings.databases) > 1 else ""
    each = settings.connections_per_worker
    remedy = "set connections_per_worker higher (and max_connections, where they do not fit)"
    return [
        f"connections {what}: {', '.join(parts)}. A {noun} may have {each} at once{several} (connections_per_worker: {whose})",
        f"make the pools of a {noun} smaller, all its processes together, or {remedy}",
    ]
