"""One reader per setting: a raw value from TOML, a variable or a flag becomes a typed one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.settings import MOST_REPLICAS, SourceSpec
from harness.config.sources import EXAMPLE, parse_spec
from harness.dsn import Dsn
from harness.errors import ConfigError


class WrongValue(Exception):
    """A value is not of the setting's form; the text completes "KEY …"."""


Read = Callable[[Any, bool], Any]
"""Takes the raw value, and whether it came as text (a variable, a flag) and must be parsed from it."""


@dataclass(frozen=True)
class Reader:
    """How the raw value of one setting becomes a typed one.

    Attributes:
        read: does it.
        kind: what form the value has, for people.
        example: a value, as TOML has it.
    """

    read: Read
    kind: str
    example: str

    def __call__(self, raw: Any, text: bool) -> Any:
        return self.read(raw, text)


_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|sec|m|min|h|d)?\s*")
_SECONDS = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, None: 1}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", re.IGNORECASE)
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


_FLAGS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off", ""), False),
}


def read_text(raw: Any, _text: bool = False) -> str:
    """A text that is not empty."""
    if isinstance(raw, bool) or not isinstance(raw, (str, int)) or not str(raw).strip():
        raise WrongValue("must be a text")
    return str(raw).strip()


def read_texts(raw: Any, _text: bool = False) -> tuple[str, ...]:
    """A list of texts; from a variable, separated by commas."""
    items = [part for part in raw.split(",") if part.strip()] if isinstance(raw, str) else raw
    if not isinstance(items, (list, tuple)):
        raise WrongValue("must be a list of texts")
    return tuple(read_text(item) for item in items)


def read_table_of_text(raw: Any, _text: bool = False) -> dict[str, str]:
    """A table whose values are text, numbers or booleans; from a variable, ``name=value`` separated by commas."""
    if isinstance(raw, str):
        pairs = [part.partition("=") for part in raw.split(",") if part.strip()]
        if any(not eq for _, eq, _ in pairs):
            raise WrongValue("must be NAME=VALUE, separated by commas")
        return {name.strip(): value.strip() for name, _, value in pairs}
    if not isinstance(raw, Mapping):
        raise WrongValue("must be a table")
    table: dict[str, str] = {}
    for name, value in raw.items():
        if isinstance(value, bool):
            table[name] = "on" if value else "off"
        elif isinstance(value, (str, int, float)):
            table[name] = str(value)
        else:
            raise WrongValue(f"must hold texts or numbers; {name} is neither")
    return table


def _variables(raw: Any, text: bool) -> dict[str, str]:
    table = read_table_of_text(raw, text)
    for name, value in table.items():
        # Else the command would be refused when it is started, after all has been made ready for it.
        if not name or "=" in name or "\0" in name + value:
            raise WrongValue(f"holds {name!r}: no variable can have that name, or that value")
    return table


def read_sources(raw: Any, key: str, origin: str) -> tuple[SourceSpec, ...]:
    """Migration sources in order: one text, or a list of texts and tables."""
    items = [raw] if isinstance(raw, (str, Mapping)) else raw
    if not isinstance(items, (list, tuple)):
        raise WrongValue(f'must be a list, for instance ["{EXAMPLE}"]')
    return tuple(
        item if isinstance(item, SourceSpec) else parse_spec(item, origin, key=key) for item in items
    )


def _duration(raw: Any, _text: bool) -> float:
    """Seconds of ``15``, ``"90s"``, ``"15m"``, ``"2h"``, ``"14d"``."""
    match = None if isinstance(raw, bool) else _DURATION.fullmatch(str(raw))
    if match is None:
        raise WrongValue('must be a duration, for instance "90s", "15m" or "2h"')
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds <= 0:
        raise WrongValue("must be longer than nothing")
    return seconds


def _size(raw: Any, _text: bool) -> int:
    match = None if isinstance(raw, bool) else _SIZE.fullmatch(str(raw))
    if match is None:
        raise WrongValue('must be a size, for instance "512MB" or "2GB"')
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _choice(*choices: str) -> Reader:
    """One of some words; the example is the last."""

    def read(raw: Any, _text: bool) -> str:
        if raw not in choices:
            raise WrongValue("must be one of " + ", ".join(repr(c) for c in choices))
        return str(raw)

    return Reader(read, " or ".join(f"`{choice}`" for choice in choices), f'"{choices[-1]}"')


def _whole(least: int) -> Read:
    def read(raw: Any, text: bool) -> int:
        if text and isinstance(raw, str) and raw.strip().lstrip("-").isdigit():
            raw = int(raw)
        if isinstance(raw, bool) or not isinstance(raw, int) or raw < least:
            raise WrongValue(f"must be a whole number, {least} at least")
        return raw

    return read


def _count(least: int, example: int) -> Reader:
    return Reader(_whole(least), f"whole number, {least} at least", str(example))


def _flag(raw: Any, text: bool) -> bool:
    if text:
        raw = _FLAGS.get(str(raw).strip().lower(), raw)
    if not isinstance(raw, bool):
        raise WrongValue("must be true or false")
    return raw


def _url(raw: Any, _text: bool) -> str:
    text = read_text(raw)
    try:
        Dsn.parse(text, origin="server_url")
    except ConfigError as error:
        raise WrongValue(error.message.removeprefix("server_url ")) from None
    return text


def _path(raw: Any, _text: bool) -> Path:
    return Path(read_text(raw)).expanduser()


def _role(raw: Any, _text: bool) -> str:
    name = read_text(raw)
    if len(name.encode()) > 63:
        raise WrongValue("is longer than PostgreSQL's 63 bytes: it would be cut without an error")
    if name in ("postgres", "public", "none") or name.startswith("pg_"):
        raise WrongValue("is a name that PostgreSQL keeps for itself")
    return name


_FORBIDDEN = {
    "harness.server_id",
    "port",
    "listen_addresses",
    "data_directory",
    "unix_socket_directories",
    "hba_file",
}


def _postgres(raw: Any, text: bool) -> dict[str, str]:
    table = read_table_of_text(raw, text)
    for name in table:
        if name.lower() in _FORBIDDEN:
            raise WrongValue(f"may not set {name}: the harness decides it")
    return table


_LIBRARY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def _libraries(raw: Any, _text: bool) -> tuple[str, ...]:
    found = read_texts(raw)
    for item in found:
        # A path would be the server's, which is another one in a container; a comma would be two.
        if not _LIBRARY.fullmatch(item):
            raise WrongValue(
                f"holds {item!r}: a library is named as in shared_preload_libraries, without a folder"
            )
    return tuple(dict.fromkeys(found))


def _replicas(raw: Any, text: bool) -> int:
    number: int = _whole(0)(raw, text)
    if number > MOST_REPLICAS:
        raise WrongValue(f"must be {MOST_REPLICAS} at most: each is a whole copy of the server")
    return number


def _attributes(raw: Any, _text: bool) -> tuple[str, ...]:
    known = ("CREATEDB", "CREATEROLE", "REPLICATION", "BYPASSRLS", "SUPERUSER", "INHERIT", "NOINHERIT")
    found = tuple(item.upper() for item in read_texts(raw))
    for item in found:
        if item not in known:
            raise WrongValue(f"holds {item!r}; the attributes are {', '.join(known)}")
    return found


def _pg_version(raw: Any, _text: bool) -> tuple[str, ...]:
    items = raw.split(",") if isinstance(raw, str) else raw if isinstance(raw, (list, tuple)) else [raw]
    found: list[str] = []
    for item in items:
        # A float of TOML has lost digits: 17.10 would be 17.1.
        word = str(item).strip() if isinstance(item, (str, int)) else ""
        if not re.fullmatch(r"\d{1,2}(\.\d{1,2}|(beta|rc)\d+)?", word):
            which = f", and {item!r} is none" if len(items) > 1 else ""
            raise WrongValue(f'must be a version of PostgreSQL, as "17" or "17.2", or a list of them{which}')
        for other in found:
            if word == other:
                raise WrongValue(f"names {word} twice")
            if version_matches(word, other) or version_matches(other, word):
                raise WrongValue(f"names {other} and {word}, and one server is both: leave one of them out")
        found.append(word)
    if not found:
        raise WrongValue('names no version at all: give one, as "17", or leave it out')
    return tuple(found)


def version_matches(found: str, wanted: str) -> bool:
    """Whether ``"17.2"`` or ``"19beta1"`` is what ``"17"``, ``"17.2"`` or ``"19beta1"`` asks for."""
    return re.match(re.escape(wanted) + r"(?!\d)", found) is not None


# As the registries' own grammar has it (distribution/reference), with the host that Docker would else add.
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"(?:localhost|(?=[^/]*[.:])[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::\d{1,5})?"
_REPOSITORY = re.compile(rf"{_HOST}(?:/{_PART})+")


def _repository(raw: Any, _text: bool) -> str:
    name = read_text(raw)
    if len(name) > 200 or not _REPOSITORY.fullmatch(name):
        raise WrongValue(
            'must be a host and a name in small letters, without https://, password, tag or digest: "registry.example/pg-harness"'
        )
    return name


_HOSTS = re.compile(r"local|context:\S+|(ssh|tcp|unix)://\S+")


def _hosts(raw: Any, _text: bool) -> tuple[str, ...]:
    words = read_texts(raw)
    for word in words:
        if not _HOSTS.fullmatch(word):
            raise WrongValue(
                f'holds {word!r}: a host is "local", "context:NAME", "ssh://USER@HOST", "tcp://HOST:2376" or "unix:///SOCKET"'
            )
    return words


def _port(raw: Any, text: bool) -> int:
    port: int = _whole(1)(raw, text)
    if not 1023 < port < 65536:
        raise WrongValue("must be a port from 1024 to 65535")
    return port


_CONSTRAINT = re.compile(
    r"(node\.(id|hostname|role|platform\.(os|arch)|ip|labels\.[\w.-]+)|engine\.labels\.[\w.-]+)\s*(==|!=)\s*\S.*"
)


def _constraints(raw: Any, _text: bool) -> tuple[str, ...]:
    found = read_texts(raw)
    for item in found:
        if not _CONSTRAINT.fullmatch(item):
            raise WrongValue(
                f"holds {item!r}; a constraint of a Swarm is node.labels.NAME, node.hostname, node.role, node.id, node.ip, "
                "node.platform.os, node.platform.arch or engine.labels.NAME, then == or !=, and a value"
            )
    return found


def _labels(raw: Any, text: bool) -> dict[str, str]:
    table = read_table_of_text(raw, text)
    for name in table:
        if not re.fullmatch(r"[\w./-]+", name) or name.startswith("dev.pg-harness"):
            raise WrongValue(f"holds {name!r}: no label of yours can have that name")
    return table


RENAMED = {"version": "pg_version"}
"""Old word → the word since. The old one is read with a warning."""


def _time(example: str) -> Reader:
    return Reader(_duration, "duration", f'"{example}"')


def _bytes(example: str) -> Reader:
    return Reader(_size, "size", f'"{example}"')


READERS: Mapping[str, Reader] = {
    "backend": Reader(read_text, "word", '"process"'),
    "image": Reader(read_text, "text", '"pgvector/pgvector:pg17"'),
    "pg_version": Reader(_pg_version, "version, or list of versions", '["15", "17", "18"]'),
    "hosts": Reader(_hosts, "list of texts", '["context:ci-1", "ssh://build@db2"]'),
    "binaries": Reader(_path, "path", '"/usr/lib/postgresql/17/bin"'),
    "server_url": Reader(_url, "URL", '"postgresql://postgres@127.0.0.1:5432/postgres"'),
    "role": Reader(_role, "text", '"shop"'),
    "role_attributes": Reader(_attributes, "list of texts", '["CREATEDB", "CREATEROLE"]'),
    "scram_iterations": _count(1, 4096),
    "superuser": Reader(_flag, "true or false", "true"),
    "migrate_as": _choice("role", "admin"),
    "isolation": _choice("database", "server"),
    "fresh": Reader(read_text, "word", '"clone"'),
    "engine": _choice("auto", "rewind", "rows"),
    "storage": _choice("auto", "memory", "disk"),
    "memory_limit": _bytes("2GB"),
    "shm_size": _bytes("1GB"),
    "connections_per_worker": _count(1, 20),
    "max_connections": _count(20, 1000),
    "port": Reader(_port, "port, 1024 to 65535", "5433"),
    "keep_failed": _count(0, 10),
    "ttl": _time("2h"),
    "keep_templates": _count(1, 20),
    "template_age": _time("30d"),
    "keep_baked": _count(1, 4),
    "baked_size": _bytes("10GB"),
    "baked_repository": Reader(_repository, "repository", '"registry.example/pg-harness"'),
    "start_timeout": _time("3m"),
    "migration_timeout": _time("20m"),
    "reset_timeout": _time("30s"),
    "serial_timeout": _time("10m"),
    "lease_timeout": _time("10m"),
    "swarm_constraints": Reader(_constraints, "list of texts", '["node.labels.db == yes"]'),
    "swarm_labels": Reader(_labels, "table of texts", '{ team = "shop" }'),
    "allow_url_change": Reader(_flag, "true or false", "true"),
    "allow_foreign": Reader(_flag, "true or false", "true"),
    "extensions": Reader(read_texts, "list of texts", '["pg_trgm"]'),
    "env": Reader(_variables, "table of texts", '{ SQLALCHEMY_DATABASE_URI = "{sqlalchemy}" }'),
    "postgres": Reader(_postgres, "table of texts", '{ work_mem = "64MB" }'),
    "pooler": _choice("none", "pgbouncer"),
    "preload": Reader(_libraries, "list of texts", '["pg_cron"]'),
    "replicas": Reader(_replicas, "whole number, 0 to 3", "1"),
}

SOURCES: Mapping[str, str] = {"migrations": '["alembic"]', "seeds": '["sql:db/seeds"]'}
"""The settings that :func:`read_sources` reads, and an example of each."""

RELATIVE_PATHS = frozenset({"binaries"})
"""Settings that are paths and start at the root where they are relative."""
