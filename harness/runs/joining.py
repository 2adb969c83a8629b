"""A worker that joins a run whose workers share a server on each of several Docker hosts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from harness.config.project import Project
from harness.errors import HarnessError, ServerLost
from harness.runs.placement import SharedServer
from harness.runs.runfile import RunFile
from harness.runs.session import ServerSession
from harness.servers.handle import join

if TYPE_CHECKING:
    from harness.runs.run import Run

Had = TypeVar("Had")

logger = logging.getLogger("pg_harness.runs")


def on_a_host(run: RunFile, project: Project, worker: str) -> SharedServer:
    """The server of the worker's host; where that is gone, or the worker took another one's place, the least used that answers.

    Raises:
        ServerLost: none of them answers.
    """
    used = Counter(run.places.values())
    planned = run.places.get(worker, "")
    order = sorted(run.hosts, key=lambda word: (word != planned, used[word]))
    failed: dict[str, HarnessError] = {}
    for word in order:
        joined = run.hosts[word]
        try:
            server = join(project, joined.server)
        except ServerLost as error:
            failed[word] = error
            continue
        if failed:
            logger.warning("worker %s goes to %s: the server on %s is gone", worker, word, ", ".join(failed))
        session = ServerSession(
            project, server, run=run.run, workers=run.workers, owner=joined.owner, templates=joined.templates
        )
        return SharedServer(session, guest=True)
    lines = "; ".join(f"{word}: {error.message.splitlines()[0]}" for word, error in failed.items())
    raise ServerLost(f"none of the run's servers answers, on none of its Docker hosts: {lines}")


def surely(begin: Callable[[], Run], lease: Callable[[Run], Had], hosts: int) -> Had:
    """What a worker leases, elsewhere where its host dies between the log-in, or its server's start, and that.

    Args:
        begin: joins the run.
        lease: closes the run where it fails.
        hosts: how many there are.

    Raises:
        ServerLost: no host has lasted that long.
    """
    for _ in range(max(1, hosts - 1)):
        run = begin()
        try:
            return lease(run)
        except ServerLost as error:
            logger.warning(
                "a server was lost before anything was leased there: %s", error.message.splitlines()[0]
            )
    return lease(begin())
