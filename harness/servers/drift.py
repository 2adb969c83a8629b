"""What decides how a server is started: noted with the server, compared before it is used again."""

from __future__ import annotations

from collections.abc import Mapping

from harness.config.settings import DEFAULT_IMAGE, Settings
from harness.postgres import names
from harness.servers.port import ServerInfo

_POSTGRES = "postgres."


def of(settings: Settings, backend: str) -> dict[str, str]:
    """The settings that a server of this backend cannot change while it runs; name → value as text.

    Values of ``[tool.pg-harness.postgres]`` are hashed: a label can be read by whoever may ask the daemon,
    and a server setting may hold a password (``primary_conninfo``).
    """
    facts = {"max_connections": str(settings.max_connections), "storage": settings.storage}
    if backend == "docker":
        facts |= {"image": settings.image, "shm_size": str(settings.shm_size)}
        facts["memory_limit"] = str(settings.memory_limit or "auto")
    else:
        facts |= {"version": settings.version or "any", "binaries": str(settings.binaries or "any")}
        # `auto` takes local binaries only while nobody names an image.
        facts["image"] = settings.image if settings.image != DEFAULT_IMAGE else "any"
    return facts | {_POSTGRES + name: names.digest(text, 8) for name, text in settings.postgres.items()}


def mark(settings: Settings) -> str:
    """Six hex digits of all that decides a start, whatever the backend: names a second server beside another."""
    both = {**of(settings, "process"), **of(settings, "docker")}
    return names.digest(repr(sorted(both.items())), 6)


def changes(info: ServerInfo, settings: Settings) -> list[str]:
    """What the settings say now that the server was not started with, for people; empty: nothing."""
    return _changed(info.made_with, of(settings, info.backend), info.storage) if info.made_with else []


def fits(info: ServerInfo, settings: Settings, purpose: str) -> bool:
    """Whether the settings still mean this server. A person's is never replaced: its data would be out of sight."""
    if info.backend == "external" or purpose == "up":
        return info.backend != "external"
    return settings.backend in ("auto", info.backend) and not changes(info, settings)


def told(info: ServerInfo, settings: Settings) -> list[str]:
    """As :func:`changes`, with a change of backend: what a person should know of a server that stays."""
    changed = changes(info, settings)
    if settings.backend not in ("auto", info.backend):
        changed.append(f"backend {info.backend} → {settings.backend}")
    return changed


def _changed(before: Mapping[str, str], now: Mapping[str, str], storage: str) -> list[str]:
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        # `auto` takes what it gets, and a wish for memory that could not be met is not made again each time.
        if old == new or (key == "storage" and new in ("auto", storage)):
            continue
        if key.startswith(_POSTGRES):
            found.append(f"[tool.pg-harness.postgres] {key.removeprefix(_POSTGRES)}")
        else:
            found.append(f"{key} {old or 'unset'} → {new or 'unset'}")
    return found
