"""``stop``: end a person's server and keep its data."""

from __future__ import annotations

import logging

import click

from harness.cli.context import Context
from harness.cli.options import json_flag
from harness.errors import ConfigError
from harness.servers import inventory
from harness.servers.acquire import alone

logger = logging.getLogger("pg_harness.cli")

DESCRIPTION = """\
End the server that `up` started in this checkout, and keep its data: `up` starts it again, with your databases as they
were, under the same URLs.

`down` removes the data too. Servers of test runs are not stopped: nothing on them is worth keeping.
"""

PARAMETERS: list[click.Parameter] = [json_flag()]


def run(context: Context) -> int:
    """Stop it; nothing to stop is success.

    Raises:
        ConfigError: the server is somebody else's.
        BackendUnavailable: what may run one could not be asked. BackendError: it cannot be stopped with its data.
    """
    if context.settings.server_url:
        raise ConfigError(
            f"{context.settings.origin('server_url')}: that server is not ours to stop; `down` drops your databases on it",
            key="server_url",
            origin=context.settings.origin("server_url"),
        )
    with alone(context.project):
        stopped = inventory.halt(context.project, asked=context.asked)
    if context.json:
        context.console.json({"stopped": [info.description for info in stopped]})
    context.asked.check()
    if not stopped and not context.json:
        logger.info("no server of yours runs here")
    return 0
