"""What may stand in ``migrations = [...]``: text and tables to :class:`SourceSpec`, without reading any file.

Only the grammar, ``WORD`` or ``WORD:REST``, is known here. Which words there are, and what may follow each,
is said by :mod:`harness.migrations.registry`.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.config.settings import SourceSpec
from harness.errors import ConfigError

EXAMPLE = "sql:db/migrations"
"""An entry of ``migrations``, for messages that show one."""

_TABLE_EXAMPLE = '{ source = "command:npx prisma migrate deploy", watch = ["prisma/**"] }'
_TABLE_KEYS = ("source", "watch")


def parse_spec(value: object, origin: str, *, key: str = "migrations") -> SourceSpec:
    """One entry of ``migrations``.

    Args:
        value: text (``"sql:db/migrations"``) or a table (``{source = "command:…", watch = ["prisma/**"]}``).
        origin: where it was read, for messages.
        key: the setting that holds it, for messages.

    Raises:
        ConfigError: it is neither, or its table is not of that form.
    """
    if isinstance(value, str):
        return _parse_text(value, None, origin, key)
    if not isinstance(value, Mapping):
        raise ConfigError(
            f'{origin}: an entry of {key} must be text such as "{EXAMPLE}", '
            f"or a table with a source; this is {type(value).__name__}",
            key=key,
            origin=origin,
            value=repr(value)[:80],
        )
    for name in value:
        if name not in _TABLE_KEYS:
            import difflib

            near = difflib.get_close_matches(str(name), _TABLE_KEYS, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"{origin}: an entry of {key} has the unknown key {name!r} "
                f"(known: {', '.join(_TABLE_KEYS)}){hint}",
                key=key,
                origin=origin,
                value=str(name),
            )
    source = value.get("source")
    if not isinstance(source, str):
        raise ConfigError(
            f'{origin}: an entry of {key} needs source = "…", for instance {_TABLE_EXAMPLE}',
            key=key,
            origin=origin,
        )
    return _parse_text(source, _parse_watch(value.get("watch"), origin, key), origin, key)


def _parse_watch(value: object, origin: str, key: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) and v.strip() for v in value):
        raise ConfigError(
            f'{origin}: watch in {key} must be a list of globs, for instance watch = ["prisma/**"]',
            key=key,
            origin=origin,
            value=repr(value)[:80],
        )
    for glob in value:
        if glob.startswith(("/", "~")) or ".." in glob.replace("\\", "/").split("/"):
            raise ConfigError(
                f"{origin}: watch in {key} holds {glob!r}; globs are relative to the project's root "
                f"and stay inside it",
                key=key,
                origin=origin,
                value=glob,
            )
    return tuple(value)


def _parse_text(text: str, watch: tuple[str, ...] | None, origin: str, key: str) -> SourceSpec:
    kind, _, argument = text.strip().partition(":")
    return SourceSpec(kind.strip(), argument.strip(), watch, text.strip(), origin, key)
