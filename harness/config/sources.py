"""What may stand in ``migrations = [...]``: text and tables to :class:`SourceSpec`, without reading any file."""

from __future__ import annotations

from collections.abc import Mapping

from harness.config.settings import SourceSpec
from harness.errors import ConfigError

FORMS: Mapping[str, str] = {
    "sql": "sql:db/migrations",
    "alembic": "alembic or alembic:alembic.ini",
    "django": "django or django:config.settings",
    "command": "command:npx prisma migrate deploy",
    "dump": "dump:schema.sql",
    "python": "python:app.db:migrate",
}
"""Kind → how it is written, for messages."""

_ARGUMENT_OPTIONAL = frozenset({"alembic", "django"})
_WATCHABLE = frozenset({"command", "python", "alembic", "django"})
_TABLE_KEYS = ("source", "watch")


def parse_spec(value: object, origin: str, *, key: str = "migrations") -> SourceSpec:
    """One entry of ``migrations``.

    Args:
        value: text (``"sql:db/migrations"``) or a table (``{source = "command:…", watch = ["prisma/**"]}``).
        origin: where it was read, for messages.
        key: the setting that holds it, for messages.

    Raises:
        ConfigError: it is neither, or names a kind that does not exist; with the nearest right one.
    """
    if isinstance(value, str):
        return _parse_text(value, None, origin, key)
    if not isinstance(value, Mapping):
        raise ConfigError(
            f'{origin}: an entry of {key} must be text such as "{FORMS["sql"]}", '
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
            f'{origin}: an entry of {key} needs source = "…", for instance '
            f'{{ source = "{FORMS["command"]}", watch = ["prisma/**"] }}',
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
    kind, colon, argument = text.strip().partition(":")
    kind, argument = kind.strip(), argument.strip()
    if kind not in FORMS:
        raise ConfigError(
            f"{origin}: {key} holds {text!r}, which begins with no known kind of source. {_nearest(text, kind)}"
            f"Known: {'; '.join(FORMS.values())}.",
            key=key,
            origin=origin,
            value=text,
        )
    if not argument and (colon or kind not in _ARGUMENT_OPTIONAL):
        raise ConfigError(
            f"{origin}: {key} holds {text!r}, which lacks what follows the colon; it is written {FORMS[kind]}",
            key=key,
            origin=origin,
            value=text,
        )
    if kind == "python":
        _check_callable(argument, text, origin, key)
    if watch is not None and kind not in _WATCHABLE:
        raise ConfigError(
            f"{origin}: {key} gives watch to {text!r}; {kind}: hashes its own files and takes no watch",
            key=key,
            origin=origin,
            value=text,
        )
    return SourceSpec(kind=kind, argument=argument, watch=watch, text=text.strip())


def _check_callable(argument: str, text: str, origin: str, key: str) -> None:
    module, colon, function = argument.partition(":")
    names = [*module.split("."), *function.split(".")]
    if not colon or not all(name.isidentifier() for name in names):
        raise ConfigError(
            f"{origin}: {key} holds {text!r}; a callable is written {FORMS['python']} "
            f"(module, colon, function)",
            key=key,
            origin=origin,
            value=text,
        )


def _nearest(text: str, kind: str) -> str:
    import difflib

    near = difflib.get_close_matches(kind.lower(), FORMS, n=1, cutoff=0.6)
    if near:
        return f"The nearest is {near[0]!r}: {FORMS[near[0]]}. "
    bare = text.strip()
    if bare.endswith((".dump", ".backup")):
        return f'For a dump write "dump:{bare}". '
    if "/" in bare or bare.endswith(".sql"):
        return f'For SQL files write "sql:{bare}". '
    if " " in bare:
        return f'For a command write "command:{bare}". '
    return ""
