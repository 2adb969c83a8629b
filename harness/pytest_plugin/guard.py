"""Is what we exported still there? Else tests would write into one database while we reset another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

import pytest

from harness.dsn import Dsn
from harness.errors import ConfigError
from harness.pytest_plugin.state import Role, State

_REMOVED = "(removed)"


def stop_if_changed(state: State, when: str) -> None:
    """Compare the environment with what was exported.

    Args:
        when: what has just happened, for the message.

    Raises:
        pytest.UsageError: something differs, and ``allow_url_change`` is not set.
    """
    if state.settings.allow_url_change:
        return
    if differing := differences(state.exported, os.environ):
        listed = "\n".join(
            f"  {name}\n    exported: {ours}\n    now:      {theirs}" for name, ours, theirs in differing
        )
        raise pytest.UsageError(
            f"pg-harness: somebody has changed what was exported, {when} (pytest-env, dotenv, a conftest?):\n"
            f"{listed}\n"
            f"The tests would use one database, and another one would be reset. Remove the assignment, or make it "
            f"a default (os.environ.setdefault; `D:` in pytest-env). If it is meant: allow_url_change = true."
        )


def stop_if_not_ours(config: pytest.Config, state: State) -> None:
    """A worker that still has its controller's database must not run a single test.

    Raises:
        pytest.UsageError: this is an xdist worker, and its early hook did not lease.
    """
    if hasattr(config, "workerinput") and state.role is not Role.WORKER:
        raise pytest.UsageError(
            "pg-harness: this xdist worker did not lease a database of its own: it is not one that the harness "
            "knows (a local popen worker of xdist)"
        )


def differences(exported: Mapping[str, str], environ: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Name, our value and the present one, masked, of every variable that leads elsewhere now."""
    return [
        (name, _masked(name, ours), _masked(name, environ.get(name)))
        for name, ours in exported.items()
        if environ.get(name) != ours and not _same_place(ours, environ.get(name))
    ]


def _same_place(ours: str, theirs: str | None) -> bool:
    """Another driver in front (``postgresql+asyncpg://``) leads to the same database."""
    a, b = _parsed(ours), _parsed(theirs or "")
    return a is not None and b is not None and (a.host, a.port, a.database) == (b.host, b.port, b.database)


def _parsed(text: str) -> Dsn | None:
    if "://" not in text:
        return None
    try:
        return Dsn.parse(text)
    except ConfigError:
        return None


def _masked(name: str, value: str | None) -> str:
    if value is None:
        return _REMOVED
    if (dsn := _parsed(value)) is not None:
        return dsn.masked
    if "://" in value:
        try:
            parts = urlsplit(value)
            return f"{parts.scheme}://{'***@' if parts.password else ''}{parts.hostname or ''}{parts.path}"
        except ValueError:
            return "(no valid URL)"
    if any(word in name.upper() for word in ("PASS", "SECRET", "TOKEN", "KEY", "URL", "DSN")):
        return "***"
    return value


class Guard:
    """Stops a run that would use another database than the leased one."""

    def __init__(self, state: State) -> None:
        self._state = state

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Once more: pytest_configure of a conftest may have loaded a .env file."""
        stop_if_not_ours(session.config, self._state)
        stop_if_changed(self._state, "before the session started")
