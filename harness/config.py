"""Reads settings: files, ``PGHARNESS_*`` variables and overrides become one :class:`Settings`."""

from __future__ import annotations

import os
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from harness.config_values import (
    READERS,
    RELATIVE_PATHS,
    WrongValue,
    read_sources,
    read_table_of_text,
    read_texts,
)
from harness.errors import ConfigError
from harness.settings import DEFAULT_DATABASE, DatabaseSettings, Settings

SECTION = "[tool.pg-harness]"
FILE = "pg-harness.toml"
PREFIX = "PGHARNESS_"

DATABASE_KEYS = ("migrations", "seeds", "extensions", "env")

# Variables that are ours but no settings: they carry state between our own processes, or say where it lies.
CONTROL_VARIABLES = frozenset(
    PREFIX + name
    for name in (
        "CONFIG", "STATE_DIR", "CACHE_DIR", "RUN_FILE", "RUN", "WORKER", "WORKERS", "COPY", "COPIES",
        "CONTROL_URL", "CONTROL_TOKEN", "REBUILD", "DEBUG",
    )
)  # fmt: skip

# Variables that only our own test suite reads: no warning for them, and no promise either.
_TEST_PREFIX = PREFIX + "TEST_"


class UnknownVariable(UserWarning):
    """A ``PGHARNESS_*`` variable that nearly matches one of ours, and does nothing."""


@dataclass(frozen=True)
class Location:
    """Where the settings are.

    Attributes:
        root: the project's root, a real path.
        file: the settings file; None where the project has none.
        table: what our section holds.
        origin: why this folder is the root, for people.
    """

    root: Path
    file: Path | None
    table: Mapping[str, Any]
    origin: str

    @property
    def configured(self) -> bool:
        """Whether the project has a section or file of ours."""
        return self.file is not None


def locate(
    start: Path, *, explicit: Path | None = None, start_origin: str = "the working directory"
) -> Location:
    """Find the nearest ancestor of ``start`` (itself included) that has our section or file.

    Where none has, the root is the nearest ancestor that holds ``.git``, else ``start``.

    Args:
        explicit: a settings file that was named (``--config``, ``PGHARNESS_CONFIG``); nothing is searched then.

    Raises:
        ConfigError: a file that is ours cannot be read or is no TOML, or both files configure us.
    """
    if explicit is not None:
        path = explicit.absolute()
        if path.is_dir():
            path = path / FILE if (path / FILE).exists() else path / "pyproject.toml"
        if not path.is_file():
            raise ConfigError(f"the settings file {path} does not exist", key="config", origin=str(path))
        return Location(_real(path.parent), path, _section(path), f"named: {path}")
    start = _real(start)
    for folder in (start, *start.parents):
        own, project = folder / FILE, folder / "pyproject.toml"
        in_project = _section_or_none(project) if project.is_file() else None
        if own.is_file():
            if in_project is not None:
                raise ConfigError(
                    f"both {own} and {project} {SECTION} hold settings: keep one of them", origin=str(own)
                )
            return Location(folder, own, _section(own), f"has {FILE}")
        if in_project is not None:
            return Location(folder, project, in_project, f"has {SECTION} in pyproject.toml")
    for folder in (start, *start.parents):
        if (folder / ".git").exists():
            return Location(
                folder, None, {}, "the checkout around " + start_origin + "; it has no settings of ours"
            )
    return Location(start, None, {}, start_origin + "; it has no settings of ours")


def load(
    environ: Mapping[str, str],
    *,
    start: Path,
    explicit: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    override_origin: str = "an argument",
    start_origin: str = "the working directory",
) -> Settings:
    """Read all settings that hold for ``start``.

    Args:
        environ: usually ``os.environ``.
        start: folder to begin the search at.
        explicit: a settings file that was named.
        overrides: key → value as in the file; None values are passed over.
        override_origin: what to call those in messages, for instance ``"--isolation"``; keys are appended.

    Raises:
        ConfigError: names file, key and the nearest right key.
    """
    if explicit is None and (named := environ.get(PREFIX + "CONFIG")):
        explicit = Path(named)
    return build(
        locate(start, explicit=explicit, start_origin=start_origin), environ, overrides, override_origin
    )


def build(
    location: Location,
    environ: Mapping[str, str],
    overrides: Mapping[str, Any] | None = None,
    override_origin: str = "an argument",
) -> Settings:
    """Settings from a location that was found already; see :func:`load`."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    tables: dict[str, dict[str, Any]] = {DEFAULT_DATABASE: {}}

    def take(key: str, raw: Any, origin: str, *, text: bool) -> None:
        if key in DATABASE_KEYS:
            tables[DEFAULT_DATABASE][key] = _read_database_key(key, raw, origin)
        else:
            values[key] = _read(key, raw, origin, text=text)
        origins[key] = origin

    file_origin = _file_origin(location)
    for key, raw in location.table.items():
        if key == "databases":
            tables.update(_read_databases(raw, file_origin))
            continue
        _check_key(key, file_origin)
        take(key, raw, file_origin, text=False)
    for variable, raw in environ.items():
        if (
            not variable.startswith(PREFIX)
            or variable in CONTROL_VARIABLES
            or variable.startswith(_TEST_PREFIX)
        ):
            continue
        key = variable.removeprefix(PREFIX).lower()
        if key in READERS or key in DATABASE_KEYS:
            take(key, raw, f"the variable {variable}", text=True)
        else:
            _warn_if_near(variable)
    for key, raw in (overrides or {}).items():
        if raw is None:
            continue
        _check_key(key, override_origin)
        take(key, raw, f"{override_origin} ({key})", text=isinstance(raw, str))

    for key in RELATIVE_PATHS & values.keys():
        if values[key] is not None:
            values[key] = location.root / values[key]
    _check_together(values, origins)
    return Settings(
        root=location.root,
        file=location.file,
        root_origin=location.origin,
        databases=tuple(_database(name, table) for name, table in tables.items()),
        origins=origins,
        **values,
    )


def _file_origin(location: Location) -> str:
    if location.file is None:
        return "settings"
    return str(location.file) if location.file.name != "pyproject.toml" else f"{location.file} {SECTION}"


def _section_or_none(path: Path) -> Mapping[str, Any] | None:
    text = _text(path)
    # A pyproject.toml of somebody else's that is no valid TOML is not our business unless it names us.
    if "pg-harness" not in text:
        return None
    tool = _toml(path, text).get("tool", {})
    table = tool.get("pg-harness") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise ConfigError(f"{path}: tool.pg-harness is no table", origin=str(path))
    return table


def _section(path: Path) -> Mapping[str, Any]:
    if path.name == "pyproject.toml":
        table = _section_or_none(path)
        if table is None:
            raise ConfigError(f"{path} has no section {SECTION}", origin=str(path))
        return table
    table = _toml(path, _text(path))
    # People copy the section from pyproject.toml with its header: take it as meant.
    nested = table.get("tool")
    if isinstance(nested, dict) and isinstance(nested.get("pg-harness"), dict) and len(table) == 1:
        inner: Mapping[str, Any] = nested["pg-harness"]
        return inner
    return table


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", origin=str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8, which TOML demands", origin=str(path)) from error


def _toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", origin=str(path)) from error


def _check_key(key: str, origin: str) -> None:
    known = [*READERS, *DATABASE_KEYS, "databases"]
    if key in known:
        return
    raise ConfigError(f"{origin}: unknown key {key!r}{nearest(key, known)}", key=key, origin=origin)


def nearest(word: str, known: Sequence[str]) -> str:
    """``"; did you mean 'x'?"``, or the whole list where nothing is near."""
    import difflib

    close = difflib.get_close_matches(word.replace("-", "_"), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; the keys are: {', '.join(sorted(known))}"


def _warn_if_near(variable: str) -> None:
    known = [PREFIX + key.upper() for key in [*READERS, "MIGRATIONS", "EXTENSIONS"]] + sorted(
        CONTROL_VARIABLES
    )
    import difflib

    close = difflib.get_close_matches(variable, known, n=1, cutoff=0.85)
    if close:
        warnings.warn(
            f"the variable {variable} does nothing; did you mean {close[0]}?", UnknownVariable, stacklevel=4
        )


def _read(key: str, raw: Any, origin: str, *, text: bool) -> Any:
    try:
        return READERS[key](raw, text)
    except WrongValue as error:
        # The value of server_url holds a password: it is never repeated.
        shown = "" if key == "server_url" else f" (it is {raw!r})"
        raise ConfigError(
            f"{origin}: {key} {error}{shown}", key=key, origin=origin, value="" if not shown else str(raw)
        ) from None


def _read_database_key(key: str, raw: Any, origin: str) -> Any:
    try:
        if key in ("migrations", "seeds"):
            return read_sources(raw, key, origin)
        if key == "extensions":
            return read_texts(raw)
        return read_table_of_text(raw)
    except WrongValue as error:
        raise ConfigError(
            f"{origin}: {key} {error} (it is {raw!r})", key=key, origin=origin, value=str(raw)
        ) from None


def _read_databases(raw: Any, origin: str) -> dict[str, dict[str, Any]]:
    if not isinstance(raw, dict):
        raise ConfigError(f"{origin}: databases is no table of tables", key="databases", origin=origin)
    found: dict[str, dict[str, Any]] = {}
    for name, table in raw.items():
        where = f"{origin} databases.{name}"
        if name == DEFAULT_DATABASE:
            raise ConfigError(
                f"{where}: the database 'default' is the top level itself; write its keys there",
                key="databases",
                origin=origin,
            )
        if not name.isidentifier():
            raise ConfigError(
                f"{where}: a database's name is used in {{{name}.url}} and variables: letters, digits and _ only",
                key="databases",
                origin=origin,
            )
        if not isinstance(table, dict):
            raise ConfigError(f"{where} is no table", key=f"databases.{name}", origin=origin)
        for key in table:
            if key not in DATABASE_KEYS:
                raise ConfigError(
                    f"{where}: unknown key {key!r}{nearest(key, DATABASE_KEYS)}", key=key, origin=where
                )
        found[name] = {key: _read_database_key(key, value, where) for key, value in table.items()}
    return found


def _database(name: str, table: Mapping[str, Any]) -> DatabaseSettings:
    migrations = table.get("migrations")
    seeds = table.get("seeds", ())
    return DatabaseSettings(
        name=name,
        # Without migrations of its own, a further database is empty: detection is for the top level only.
        migrations=(*(migrations or ()), *seeds)
        if migrations is not None or name != DEFAULT_DATABASE
        else None,
        seeds=tuple(seeds),
        extensions=table.get("extensions", ()),
        env=table.get("env", {}),
    )


def _check_together(values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    defaults = {f.name: f.default for f in fields(Settings)}
    budget = values.get("connections_per_worker", defaults["connections_per_worker"])
    most = values.get("max_connections", defaults["max_connections"])
    if budget + 10 > most:
        origin = origins.get("connections_per_worker") or origins.get("max_connections", "default")
        raise ConfigError(
            f"{origin}: connections_per_worker = {budget} does not fit max_connections = {most}: "
            f"10 are kept for the harness itself",
            key="connections_per_worker",
            origin=origin,
            value=str(budget),
        )
    if values.get("backend") == "external" and not values.get("server_url"):
        raise ConfigError(
            f'{origins["backend"]}: backend = "external" needs server_url (or the variable {PREFIX}SERVER_URL); '
            "DATABASE_URL is never taken: it may be production",
            key="server_url",
            origin=origins["backend"],
        )


def with_overrides(settings: Settings, **changes: Any) -> Settings:
    """The same settings with some fields replaced (already typed values)."""
    return replace(settings, **changes)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
