"""Reads settings: files, ``PGHARNESS_*`` variables and overrides become one :class:`Settings`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from harness.config import environment, versions
from harness.config.files import locate
from harness.config.settings import DEFAULT_DATABASE, IMAGE_OF, DatabaseSettings, Settings
from harness.config.values import (
    READERS,
    RELATIVE_PATHS,
    RENAMED,
    SOURCES,
    WrongValue,
    read_sources,
)
from harness.dsn import Dsn
from harness.errors import ConfigError, closest

PREFIX = "PGHARNESS_"

DATABASE_KEYS = ("migrations", "seeds", "extensions", "env")
KEYS = (*READERS, *SOURCES)

# Variables that are ours but no settings: they carry state between our own processes, or say where it lies.
CONTROL_VARIABLES = frozenset(
    PREFIX + name
    for name in (
        "CONFIG", "STATE_DIR", "CACHE_DIR", "RUN_FILE", "RUN", "WORKERS", "COPY", "COPIES", "SHARD", "SHARDS", "LEASE", "CONTROL_URL",
        "CONTROL_TOKEN", "DEBUG", "LOG",
    )
)  # fmt: skip

HOSTS = "DOCKER_HOSTS"
"""The setting ``hosts`` as a variable beside Docker's own ``DOCKER_HOST``."""

# Variables that only our own test suite reads: no warning for them, and no promise either.
_TEST_PREFIX = PREFIX + "TEST_"


class SettingWarning(UserWarning):
    """A setting that does not do what its writer may think."""


class UnknownVariable(SettingWarning):
    """A ``PGHARNESS_*`` variable that nearly matches one of ours, and does nothing."""


class RenamedSetting(SettingWarning):
    """A setting under the name that it had before; it is read."""


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
    location = locate(start, environ, explicit=explicit, start_origin=start_origin)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    tables: dict[str, dict[str, Any]] = {DEFAULT_DATABASE: {}}

    def take(key: str, raw: Any, origin: str, *, text: bool) -> None:
        if key in RENAMED:
            warnings.warn(f"{origin}: {key} is called {RENAMED[key]} now", RenamedSetting, stacklevel=3)
            key = RENAMED[key]
        kept = tables[DEFAULT_DATABASE] if key in DATABASE_KEYS else values
        kept[key] = _read(key, raw, origin, text=text)
        origins[key] = origin

    file_origin = location.text_origin
    for key, raw in _old_first(location.table):
        if key == "databases":
            tables.update(_read_databases(raw, file_origin))
            continue
        _check_key(key, file_origin)
        take(key, raw, file_origin, text=False)
    if environ.get(HOSTS) and PREFIX + "HOSTS" not in environ:
        take("hosts", environ[HOSTS], f"the variable {HOSTS}", text=True)
    for variable, raw in _old_first(environ):
        key = variable.removeprefix(PREFIX).lower()
        if (
            not variable.startswith(PREFIX)
            or variable in CONTROL_VARIABLES
            or variable.startswith(_TEST_PREFIX)
        ):
            continue
        if key in KEYS or key in RENAMED:
            take(key, raw, f"the variable {variable}", text=True)
        else:
            _warn_if_near(variable)
    for key, raw in _old_first(overrides or {}):
        if raw is None:
            continue
        _check_key(key, override_origin)
        take(key, raw, f"{override_origin} ({key})", text=isinstance(raw, str))

    for key in RELATIVE_PATHS & values.keys():
        if values[key] is not None:
            values[key] = location.root / values[key]
    _take_versions(values, origins)
    _check_together(values, origins)
    databases = tuple(_database(name, table) for name, table in tables.items())
    _check_env(databases, origins.get("env", file_origin))
    return Settings(
        root=location.root,
        file=location.file,
        root_origin=location.origin,
        databases=databases,
        origins=origins,
        **values,
    )


def _take_versions(values: dict[str, Any], origins: Mapping[str, str]) -> None:
    """The first of the versions, and what is named for each of them, at it."""
    named: tuple[str, ...] = values.pop("pg_version", ())
    texts = {key: str(values[key]) for key in versions.KEYS if versions.PLACE in str(values.get(key))}
    for key in texts if not named else ():
        raise ConfigError(
            f'{origins[key]}: {key} holds {versions.PLACE}, and no pg_version is set: pg_version = ["15", "17"], or "17"',
            key=key,
            origin=origins[key],
            value=texts[key],
        )
    if not named:
        return
    if "image" not in values:
        texts["image"] = IMAGE_OF.format(versions.PLACE)
    values |= {"pg_version": named[0], "pg_versions": named, "by_version": texts}
    values |= versions.filled(texts, named[0])


def _old_first(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Keys and values; the old word of a setting before the new one, which decides where both are there."""
    return sorted(table.items(), key=lambda item: item[0].removeprefix(PREFIX).lower() not in RENAMED)


def _check_key(key: str, origin: str) -> None:
    known = (*KEYS, "databases")
    if key == "watch":
        raise ConfigError(
            f"{origin}: watch belongs to an entry of migrations: "
            'migrations = [{ source = "command:…", watch = ["db/**"] }]',
            key=key,
            origin=origin,
        )
    if key not in known and key not in RENAMED:
        raise ConfigError(f"{origin}: unknown key {key!r}{nearest(key, known)}", key=key, origin=origin)


def nearest(word: str, known: Sequence[str]) -> str:
    """``"; did you mean 'x'?"``, or the whole list where nothing is near."""
    close = closest(word.replace("-", "_"), known)
    return f"; did you mean {close!r}?" if close else f"; the keys are: {', '.join(sorted(known))}"


def _warn_if_near(variable: str) -> None:
    close = closest(
        variable, [*(PREFIX + key.upper() for key in KEYS), *sorted(CONTROL_VARIABLES)], cutoff=0.85
    )
    if close:
        warnings.warn(
            f"the variable {variable} does nothing; did you mean {close}?", UnknownVariable, stacklevel=3
        )


def _read(key: str, raw: Any, origin: str, *, text: bool = False) -> Any:
    try:
        return READERS[key](raw, text) if key in READERS else read_sources(raw, key, origin)
    except WrongValue as error:
        # The value of server_url holds a password, that of baked_repository may: they are never repeated.
        shown = "" if key in ("server_url", "baked_repository") else f" (it is {raw!r})"
        raise ConfigError(
            f"{origin}: {key} {error}{shown}", key=key, origin=origin, value="" if not shown else str(raw)
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
        found[name] = {key: _read(key, value, where) for key, value in table.items()}
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


def _check_env(databases: Sequence[DatabaseSettings], origin: str) -> None:
    """Fill in every template once: a wrong placeholder is told before any server is started."""
    nowhere = {database.name: Dsn("127.0.0.1", 5432, "app", "", "app") for database in databases}
    try:
        environment.variables(
            nowhere, {database.name: database.env for database in databases}, environment.Slot()
        )
    except ConfigError as error:
        raise ConfigError(
            f"{origin}: {error.message}", key=error.key, origin=origin, value=error.value
        ) from None


def _check_together(values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    defaults = {f.name: f.default for f in fields(Settings)}
    budget = values.get("connections_per_worker", 1)
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
