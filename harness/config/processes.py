"""Whether another process of this machine is still there."""

from __future__ import annotations

import os


def alive(pid: int) -> bool:
    """Whether a process has this number; it may be another user's."""
    if pid <= 0:
        return False
    if os.name != "posix":
        return True  # os.kill(pid, 0) ends a process on Windows
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
