"""Waiting for a server by our own protocol: it answers, and it is the one that was started."""

from __future__ import annotations

import time
from collections.abc import Callable

from harness.dsn import Dsn
from harness.errors import ServerLost, ServerRefused, ServerStartError

_SOON = ("57P03", "28P01", "3D000")
"""Refusals that pass: starting up, the password is about to be set, ``postgres`` is about to exist."""


def wait(
    dsn: Dsn,
    server_id: str,
    *,
    timeout: float,
    died: Callable[[], str | None],
    tail: Callable[[], str],
    nap: Callable[[float], None] = time.sleep,
) -> None:
    """Return once the server at ``dsn`` answers with our ``harness.server_id``.

    Args:
        timeout: seconds.
        died: says why the server will never answer; None while it may.
        tail: the last lines of its log so far.
        nap: pauses for so many seconds, or until the server's log says that it is ready.

    Raises:
        ServerStartError: it died, another server answers there, or time is up.
    """
    from harness.postgres.session import Session

    deadline = time.monotonic() + timeout
    pause = 0.005
    last = "nobody answered"
    while True:
        reason = died()
        if reason is not None:
            raise ServerStartError(reason, log_tail=tail())
        try:
            with Session.connect(dsn, timeout=2) as session:
                found = session.value("SELECT current_setting('harness.server_id', true)")
        except ServerLost as error:
            last = str(error)
        except ServerRefused as error:
            last = str(error)
            if error.sqlstate not in _SOON:
                raise ServerStartError(
                    f"the server started and then refused us: {error}", log_tail=tail()
                ) from None
            # It says that it is starting up: it will not be long.
            pause = min(pause, 0.01)
        else:
            if found == server_id:
                return
            last = "another PostgreSQL server answers at this address"
        if time.monotonic() > deadline:
            raise ServerStartError(
                f"the server did not become ready within {timeout:.0f} s (start_timeout); last answer: {last}",
                log_tail=tail(),
            )
        nap(pause)
        pause = min(pause * 1.5, 0.05)
