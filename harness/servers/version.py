"""The version of PostgreSQL that a user asks for, and the one that is there."""

from __future__ import annotations

import re

from harness.config.settings import Settings
from harness.errors import ConfigError
from harness.postgres.session import Session
from harness.servers.port import ServerInfo


def matches(found: str, wanted: str) -> bool:
    """Whether ``"17.2"`` or ``"19beta1"`` is what ``"17"``, ``"17.2"`` or ``"19beta1"`` asks for."""
    return re.match(re.escape(wanted) + r"(?!\d)", found) is not None


def other_version(settings: Settings, info: ServerInfo, session: Session) -> ConfigError | None:
    """What is wrong where a server has another version than ``pg_version`` asks for; None: nothing."""
    wanted = settings.pg_version
    # With the distribution's own words behind it.
    found = (session.connection.info.parameter_status("server_version") or "").partition(" ")[0]
    if wanted is None or matches(found, wanted):
        return None
    origin = settings.origin("pg_version")
    named = next(
        (key for key in ("server_url", "image", "binaries") if settings.origin(key) != "default"), ""
    )
    remedy = "leave pg_version out"
    if named:
        remedy += f", or let {named} ({settings.origin(named)}) name one of that version"
    return ConfigError(
        f"{origin}: pg_version = {wanted}, but {info.description} has version {found}: {remedy}",
        key="pg_version",
        origin=origin,
        value=wanted,
    )
