"""``logs``: what the server has to say."""

from __future__ import annotations

import logging
import sys

import click

from harness.cli.context import Context
from harness.cli.options import Word, completing
from harness.errors import ConfigError, LeaseError
from harness.servers import inventory, registry
from harness.servers.port import ServerInfo

logger = logging.getLogger("pg_harness.cli")

USAGE = "[SERVER] [options]"

DESCRIPTION = """\
Print the log of a server of this checkout: up (yours) or run (the test runs'); yours where there is one.
"""


PARAMETERS: list[click.Parameter] = [
    Word(
        "server",
        metavar="SERVER",
        help="up, run, run-1 …; default: up, else run",
        shell_complete=completing("servers"),
    ),
    click.Option(["-f", "--follow"], is_flag=True, help="go on as the log grows, until Ctrl-C"),
]


def run(context: Context) -> int:
    """Print it, line by line."""
    wanted = getattr(context.arguments, "server", None)
    known = _known(context)
    if not known:
        context.check_asked()
        raise LeaseError("there is no server of this checkout: `pg-harness up` starts one")
    if wanted is not None and wanted not in known:
        lines = "\n".join(f"  {purpose:<6} {info.description}" for purpose, info in sorted(known.items()))
        raise ConfigError(
            f"there is no server {wanted!r} here. There are:\n{lines}", key="server", value=wanted
        )
    info = known[wanted] if wanted else known.get("up") or known[sorted(known)[0]]
    logger.info("log of %s", info.description)
    backend = registry.named(info.backend, context.project)
    follow = bool(getattr(context.arguments, "follow", False))
    for line in backend.logs(info, follow):
        context.console.answer(line)
        if follow and sys.stdout is not None:
            sys.stdout.flush()
    return 0


def _known(context: Context) -> dict[str, ServerInfo]:
    """Purpose → server.

    Raises:
        BackendUnavailable: somebody else's, that the settings name, does not answer.
    """
    if context.settings.server_url is not None:
        found = registry.chosen(context.project)[0].find(context.project.id, "up")
        return {"up": found} if found is not None else {}
    # A server that has died is just the one whose log is wanted: all of them, running or not.
    return {info.purpose: info for info in inventory.servers(context.project, asked=context.asked)}
