"""The session: serves the tools over stdio until the client goes away or a signal comes, then ends what is the session's."""

from __future__ import annotations

import logging
import os
import signal
from functools import partial

import anyio
import anyio.to_thread

from harness.config.logs import LOGGER
from harness.config.project import Project
from harness.mcp.databases import AgentDatabases
from harness.mcp.tools import Tools
from harness.migrations.tools import child

logger = logging.getLogger("pg_harness.mcp")

PATIENCE = 5.0
"""Seconds for which the end waits for a call that goes on: who sent the signal waits for us."""


def serve(project: Project, allow: frozenset[str]) -> None:
    """Serve one client, over this process's stdin and stdout.

    Raises:
        ConfigError: the settings name a server that is not allowed.
    """
    # The SDK gives the root logger a handler: what ours has written would come once more.
    logging.getLogger(LOGGER).propagate = False
    databases = AgentDatabases(project, allow)
    tools = Tools(project, databases)
    # Nothing is started yet: a client that only asks which tools there are costs no server.
    logger.info("serving the Model Context Protocol on stdin and stdout; session %s", databases.session)
    try:
        anyio.run(_serve, databases, tools)
    finally:
        tools.cancel()
        dropped = databases.close()
    logger.info("the session is over; dropped: %s", ", ".join(dropped) or "nothing")


async def _serve(databases: AgentDatabases, tools: Tools) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(_end_by_signal, databases, tools)
        await tools.server().run_stdio_async()
        group.cancel_scope.cancel()


async def _end_by_signal(databases: AgentDatabases, tools: Tools) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for signum in signals:
            tools.cancel()
            # Migrations that a call has started: it fails by that, and lets us drop what it was making.
            await anyio.to_thread.run_sync(child.end_all)
            await anyio.to_thread.run_sync(partial(databases.close, PATIENCE))
            await anyio.to_thread.run_sync(child.end_all)
            # Another thread reads stdin, which only the client can end: no orderly way out would come to its end before.
            os._exit(128 + signum)
