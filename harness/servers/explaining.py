"""What the state of a server adds to an error: a full disk, or programs that were replaced under it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import HarnessError
from harness.servers import memory
from harness.servers.handle import Server

_OTHER_LIBRARY = re.compile(
    r"could not load library|undefined symbol|incompatible library|could not find function .+ in file"
    r"|could not access file \"\$libdir"
)
"""What a server says of a library that is not of its own build (dfmgr.c); ours speak English."""


def explain(error: HarnessError, server: Server) -> None:
    """Add to an error what the server's state tells of it, and what to do."""
    memory.explain(error, server)
    if _OTHER_LIBRARY.search(error.full_text) and (why := upgraded(server)):
        error.add_note(why)


@contextmanager
def explaining(server: Server) -> Iterator[None]:
    """Does so for the errors of a block."""
    try:
        yield
    except HarnessError as error:
        explain(error, server)
        raise


def upgraded(server: Server) -> str:
    """That PostgreSQL was upgraded under a server, which loads its libraries when they are first needed; empty where it was not.

    A distribution replaces the files of a major version in their place, and a person's server stays for weeks.
    """
    info = server.info
    if info.backend != "process" or info.binaries is None:
        return ""
    # Here: whom nothing goes wrong for runs no program.
    from harness.servers.process.binaries import version_of

    runs = (server.session.connection.info.parameter_status("server_version") or "").partition(" ")[0]
    there = version_of(Path(info.binaries) / "postgres")
    if there == runs:
        return ""
    now = f"{there} is there now" if there else "it is no longer there"
    remedy = "`pg-harness stop && pg-harness up` starts it again, with its data"
    if there is None or there.partition(".")[0] != runs.partition(".")[0]:
        remedy = "`pg-harness down && pg-harness up` starts a new one, and its data is gone"
    elif info.purpose != "up":
        remedy = "`pg-harness down --all` ends it, and the next run starts another"
    return (
        f"PostgreSQL was upgraded under the server, which runs as {runs}: in {info.binaries} {now}. {remedy}"
    )
