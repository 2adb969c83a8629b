"""What decides how a server is started: noted with the server, compared before it is used again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from harness.config.settings import IMAGE_OF, Settings
from harness.postgres import names
from harness.servers import registry
from harness.servers.port import ServerInfo

_POSTGRES = "postgres."

_NOTED_AS = {"pg_version": "version"}
"""Setting → the word that is noted: the one that it had first, because :func:`mark` is part of the names of servers that run."""

_DEFAULTS = {each.name: each.default for each in fields(Settings)}


def of(settings: Settings, backend: str) -> dict[str, str]:
    """The settings that a server of this backend cannot change while it runs; name → value as text.

    Values of ``[tool.pg-harness.postgres]`` are hashed: a label can be read by whoever may ask the daemon,
    and a server setting may hold a password (``primary_conninfo``).
    """
    facts = {"max_connections": str(settings.max_connections), "storage": settings.storage}
    kind = registry.find_kind(backend)
    for key, word in (kind.decided_by if kind is not None else {}).items():
        value = getattr(settings, key)
        default = not value or value in (_DEFAULTS[key], IMAGE_OF.format(settings.pg_version))
        facts[_NOTED_AS.get(key, key)] = word if word and default else str(value)
    if settings.preload:
        facts["preload"] = ", ".join(settings.preload)
    if settings.replicas:
        facts["replicas"] = str(settings.replicas)
    return facts | {_POSTGRES + name: names.digest(text, 8) for name, text in settings.postgres.items()}


def mark(settings: Settings) -> str:
    """Six hex digits of all that decides a start, whatever the backend: names a second server beside another."""
    everything: dict[str, str] = {}
    # The first of them last: what two of them note under one key is noted as `auto` prefers it.
    for backend, kind in reversed(tuple(registry.BACKENDS.items())):
        if kind.elsewhere and settings.backend != backend:
            # Names of servers that run know nothing of it.
            continue
        everything |= of(settings, backend)
    if settings.hosts:
        everything["hosts"] = " ".join(settings.hosts)
    return names.digest(repr(sorted(everything.items())), 6)


def changes(info: ServerInfo, settings: Settings) -> list[str]:
    """What the settings say now that the server was not started with, for people; empty: nothing."""
    if registry.find_kind(info.backend) is None:
        return [f"the backend {info.backend} is not installed any more"]
    return _changed(info.made_with, of(settings, info.backend), info.storage) if info.made_with else []


def fits(info: ServerInfo, settings: Settings, purpose: str) -> bool:
    """Whether the settings still mean this server. A person's is never replaced: its data would be out of sight."""
    if not info.ours or purpose == "up":
        return info.ours
    return (
        on_named_host(info, settings)
        and settings.backend in (registry.AUTO, info.backend)
        and not changes(info, settings)
    )


def on_named_host(info: ServerInfo, settings: Settings) -> bool:
    """Whether it is on a host that the settings name: whoever takes one out of them means that no run goes there."""
    return info.backend != "docker" or info.host in (settings.hosts or ("",))


def told(info: ServerInfo, settings: Settings) -> list[str]:
    """As :func:`changes`, with a change of backend: what a person should know of a server that stays."""
    changed = changes(info, settings)
    if settings.backend not in (registry.AUTO, info.backend):
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
            word = next((word for word, noted in _NOTED_AS.items() if noted == key), key)
            found.append(f"{word} {old or 'unset'} → {new or 'unset'}")
    return found
