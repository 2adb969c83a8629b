"""The command that ``run`` runs: how it is started, and what its end means."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence


def start(
    command: Sequence[str], environ: Mapping[str, str], *, piped: bool = False
) -> subprocess.Popen[bytes]:
    """Start the command in our own process group, so that a terminal's Ctrl-C and Ctrl-Z reach it as ever.

    Args:
        piped: take its output instead of letting it through.
    """
    pipe = subprocess.PIPE if piped else None
    return subprocess.Popen(
        list(command),
        env=dict(environ),
        stdin=subprocess.DEVNULL if piped else None,
        stdout=pipe,
        stderr=pipe,
    )


def exit_code(returned: int) -> int:
    """As shells have it: 128 + n for signal n."""
    return 128 - returned if returned < 0 else returned
