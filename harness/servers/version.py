"""The version of PostgreSQL that a user asks for, and the one that is there."""

from __future__ import annotations

from harness.config.settings import Settings
from harness.config.values import version_matches as matches
from harness.errors import ConfigError
from harness.postgres.session import Session
from harness.servers.port import ServerInfo


def version_of(session: Session) -> str:
    """The server's own word for its version: ``"17.2"``, ``"19beta1"``."""
    # With the distribution's own words behind it.
    return (session.connection.info.parameter_status("server_version") or "").partition(" ")[0]


def is_another(settings: Settings, session: Session) -> bool:
    """Whether the settings ask for a version, and the server has another one."""
    return settings.pg_version is not None and not matches(version_of(session), settings.pg_version)


def other_version(settings: Settings, info: ServerInfo, session: Session) -> ConfigError | None:
    """What is wrong where a server has another version than ``pg_version`` asks for; None: nothing."""
    wanted = settings.pg_version
    found = version_of(session)
    if wanted is None or matches(found, wanted):
        return None
    origin = settings.origin("pg_version")
    named = next(
        (key for key in ("server_url", "image", "binaries") if settings.origin(key) != "default"), ""
    )
    remedy = "leave pg_version out"
    if named:
        remedy += f", or let {named} ({settings.origin(named)}) name one of that version"
        if named != "server_url" and named not in settings.by_version:
            remedy += ", with {pg_version} in its place"
    return ConfigError(
        f"{origin}: pg_version = {wanted}, but {info.description} has version {found}: {remedy}",
        key="pg_version",
        origin=origin,
        value=wanted,
    )
