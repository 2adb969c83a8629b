"""Settings of which one value holds for each version of PostgreSQL: the same project, at another version.

``pg_version`` names one version or several. The first of them is used, unless somebody asks for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.settings import Settings
from harness.errors import ConfigError

if TYPE_CHECKING:
    from harness.config.project import Project

PLACE = "{pg_version}"
"""What stands for the version, in :data:`KEYS`."""

KEYS = ("image", "binaries")
"""The settings that may name something of each version."""

VARIABLE = "PGHARNESS_PG_VERSION"
"""What tells a command that we start which version it was started for."""


def filled(by_version: Mapping[str, str], version: str) -> dict[str, Any]:
    """Setting → its value at that version."""
    texts = {key: text.replace(PLACE, version) for key, text in by_version.items()}
    return {key: Path(text) if key == "binaries" else text for key, text in texts.items()}


def at(project: Project, version: str) -> Project:
    """The same project, with one of its versions, or any other."""
    return replace(project, settings=settings_at(project.settings, version))


def settings_at(settings: Settings, version: str) -> Settings:
    """The same settings, with one of their versions, or any other."""
    return replace(settings, pg_version=version, **filled(settings.by_version, version))


def each(settings: Settings, asked_by: str) -> tuple[str, ...]:
    """All versions, where somebody asks for each of them.

    Args:
        asked_by: the option, for messages.

    Raises:
        ConfigError: none are named; or the server is one that others run, which has a single one.
    """
    if not settings.pg_versions:
        raise ConfigError(
            f'{asked_by} needs to know which: pg_version = ["15", "17"] in the settings, or {VARIABLE}=15,17',
            key="pg_version",
            origin=settings.origin("pg_version"),
        )
    if settings.server_url is not None:
        raise ConfigError(
            f"{asked_by}: {settings.origin('server_url')} names one server, which has one version. Leave server_url out, so that a "
            "server is started for each version, or run once for each server, with PGHARNESS_SERVER_URL",
            key="server_url",
            origin=settings.origin("server_url"),
        )
    return settings.pg_versions


def told(settings: Settings) -> str:
    """Which version is used where several are named, for people; empty where it is one, or any."""
    if len(settings.pg_versions) < 2:
        return ""
    return f"PostgreSQL {settings.pg_version} of {', '.join(settings.pg_versions)} ({settings.origin('pg_version')})"
