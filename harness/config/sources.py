"""What may stand in ``migrations = [...]``: text and tables to :class:`SourceSpec`, without reading any file.

Only the grammar, ``WORD`` or ``WORD:REST``, is known here. Which words there are, and what may follow each,
is said by :mod:`harness.migrations.registry`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.config.settings import SourceSpec
from harness.errors import ConfigError, closest

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

    def wrong(what: str, given: str) -> ConfigError:
        return ConfigError(f"{origin}: {what}", key=key, origin=origin, value=given[:80])

    table: Mapping[Any, Any] = {"source": value} if isinstance(value, str) else value  # type: ignore[assignment]
    if not isinstance(table, Mapping):
        raise wrong(
            f'an entry of {key} must be text such as "{EXAMPLE}", '
            f"or a table with a source; this is {type(value).__name__}",
            repr(value),
        )
    for name in table.keys() - set(_TABLE_KEYS):
        near = closest(str(name), _TABLE_KEYS)
        hint = f"; did you mean {near!r}?" if near else ""
        raise wrong(
            f"an entry of {key} has the unknown key {name!r} (known: {', '.join(_TABLE_KEYS)}){hint}",
            str(name),
        )
    text, watch = table.get("source"), table.get("watch")
    if not isinstance(text, str):
        raise wrong(f'an entry of {key} needs source = "…", for instance {_TABLE_EXAMPLE}', "")
    globs = [watch] if isinstance(watch, str) else [] if watch is None else watch
    if not isinstance(globs, (list, tuple)) or not all(isinstance(v, str) and v.strip() for v in globs):
        raise wrong(
            f'watch in {key} must be a list of globs, for instance watch = ["prisma/**"]', repr(watch)
        )
    for glob in globs:
        if glob.startswith(("/", "~")) or ".." in glob.replace("\\", "/").split("/"):
            raise wrong(
                f"watch in {key} holds {glob!r}; globs are relative to the project's root and stay inside it",
                glob,
            )
    kind, _, argument = (part.strip() for part in text.strip().partition(":"))
    return SourceSpec(kind, argument, None if watch is None else tuple(globs), text.strip(), origin, key)
