"""``mcp``: databases for an agent, by the Model Context Protocol."""

from __future__ import annotations

import click

from harness.cli.context import Context
from harness.errors import ConfigError

USAGE = "[--allow WORD] [options]"

DESCRIPTION = """\
Serve the Model Context Protocol on stdin and stdout, for an agent's client to start: tools that create, list, describe, mark,
reset, fork and drop databases of the agent's own, tell what changed, run bounded SQL in them, and read their server's log.

They are on a server of their own, and are dropped when the session ends. Nothing of yours, of test runs or of other checkouts is
reached, unless --allow says so.
"""

EPILOG = """\
In a client's configuration:  {"mcpServers": {"pg-harness": {"command": "pg-harness", "args": ["mcp"]}}}
It needs the extra: pip install 'pg-harness[mcp]'
"""

PARAMETERS: list[click.Parameter] = [
    click.Option(
        ["--allow"],
        multiple=True,
        metavar="WORD",
        help="read: read your databases; change: change them too; external: use the server of server_url; superuser: run SQL as a superuser",
    ),
]


def run(context: Context) -> int:
    """Serve until the client goes away."""
    try:
        # What only this verb needs takes longer to import than most others take in all.
        from harness.mcp.serve import serve
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "harness":
            raise
        raise ConfigError(
            f"`pg-harness mcp` needs the Model Context Protocol's SDK, which is not here, or is too old ({error}): "
            "pip install 'pg-harness[mcp]'",
            key="mcp",
        ) from None
    from harness.mcp.allowed import parse

    serve(context.project, parse(getattr(context.arguments, "allow", ())))
    return 0
