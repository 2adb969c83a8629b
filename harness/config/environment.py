"""A lease's addresses as environment variables, and the undo of setting them."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

from harness.config.settings import MOST_REPLICAS
from harness.dsn import FORMS, TLS, Dsn
from harness.errors import ConfigError

BENDING = frozenset(
    {
        "PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE", "PGOPTIONS", "PGPASSFILE", "PGREQUIRESSL", "PGSSLMODE",
        "PGSSLNEGOTIATION", "PGSSLCOMPRESSION", "PGSSLCERT", "PGSSLKEY", "PGSSLCERTMODE", "PGSSLROOTCERT",
        "PGSSLCRL", "PGSSLCRLDIR", "PGSSLSNI", "PGREQUIREPEER", "PGREQUIREAUTH", "PGMINPROTOCOLVERSION",
        "PGMAXPROTOCOLVERSION", "PGSSLMINPROTOCOLVERSION", "PGSSLMAXPROTOCOLVERSION", "PGGSSENCMODE",
        "PGKRBSRVNAME", "PGGSSLIB", "PGGSSDELEGATION", "PGCHANNELBINDING", "PGTARGETSESSIONATTRS",
        "PGLOADBALANCEHOSTS", "PGREALM", "PGCLIENTENCODING", "PGDATESTYLE", "PGTZ", "PGGEQO",
        "PGSYSCONFDIR", "PGLOCALEDIR",
    }
)  # fmt: skip
"""Variables of libpq (PostgreSQL docs, 34.15) that bend a URL: PGHOSTADDR sent a session to another server
than its URL named, PGOPTIONS changes what every session does. PGPORT and its like are set, not removed."""

PARTS = ("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE")
"""The variables of libpq that are set, see :meth:`harness.dsn.Dsn.libpq`: for clients that connect without an address. Those of TLS come
with them where the address says something of it."""

DIRECT = "direct"
"""What addresses at the server itself are called where a pooler is in front, as in ``{direct.url}``."""

DIRECT_URL = "DATABASE_DIRECT_URL"
"""The variable that says it."""

REPLICA = "replica"
"""What addresses on the first of the server's standbys are called, as in ``{replica.url}``; on the second ``{replica2.url}``."""

_ON_REPLICA = re.compile(rf"(?:(?P<name>.+)\.)?{REPLICA}(?P<number>[2-9]?)")

DEFAULT = "default"

PLACEHOLDERS = (*FORMS, "host", "port", "user", "password", "database", "worker", "workers", "connections")
"""Those that are URLs take parameters: ``{url:connection_limit=5}``."""

_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")

# Parts that stand inside a URL in the user's template must be escaped there, and only there.
_ESCAPED_IN_URL = frozenset({"user", "password", "database"})


@dataclass(frozen=True)
class Slot:
    """What the templates may speak of besides the addresses.

    Attributes:
        worker: the worker's name, for instance ``"1"`` or ``"gw0"``.
        workers: how many workers the run has.
        connections: how many connections each worker may open.
    """

    worker: str = "1"
    workers: int = 1
    connections: int = 20


def variables(
    dsns: Mapping[str, Dsn], templates: Mapping[str, Mapping[str, str]], slot: Slot
) -> dict[str, str]:
    """All variables of one lease.

    Args:
        dsns: database name → address; ``default`` first.
        templates: database name → its ``env`` table (variable → template).

    Raises:
        ConfigError: a template names something that is not there.
    """
    default = dsns["default"]
    result = {"DATABASE_URL": default.url, **default.libpq()}
    if DIRECT in dsns:
        result[DIRECT_URL] = dsns[DIRECT].url
    for variable, word in _replica_urls().items():
        if word in dsns:
            result[variable] = dsns[word].url
    for name, table in templates.items():
        for variable, template in table.items():
            result[variable] = render(template, name, dsns, slot, variable)
    return result


def names(tables: Iterable[Mapping[str, str]]) -> list[str]:
    """The variables that say where a worker's databases are: ours, and those of the ``env`` tables of all databases."""
    own = ["DATABASE_URL", DIRECT_URL, *_replica_urls(), *PARTS]
    return [*own, *(variable for table in tables for variable in table)]


def replica_word(number: int) -> str:
    """What addresses on a standby are called: of the first without its number."""
    return REPLICA if number == 1 else f"{REPLICA}{number}"


def _replica_urls() -> dict[str, str]:
    """Variable → what its address is called, of all standbys that there can be."""
    words = [replica_word(number) for number in range(1, MOST_REPLICAS + 1)]
    return {f"DATABASE_{word.upper()}_URL": word for word in words}


def numbered(tables: Iterable[Mapping[str, str]], each: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What a parallel runner's workers take their own from: variables with the worker behind them, and how many workers.

    Args:
        tables: the ``env`` tables of all databases.
        each: worker → its variables.
    """
    own = [*names(tables), *TLS.values()]
    values = {"PGHARNESS_WORKERS": str(len(each))}
    for worker, theirs in each.items():
        values |= {f"{variable}_{worker}": theirs[variable] for variable in own if variable in theirs}
    return values


def render(template: str, own: str, dsns: Mapping[str, Dsn], slot: Slot, variable: str) -> str:
    """One of the user's templates, filled in. ``{url}`` is the table's own database, ``{analytics.url}`` another,
    ``{url:connection_limit=5&pool_timeout=20}`` its URL with further parameters.

    Raises:
        ConfigError: a placeholder is none, or its parameters are; or parameters follow a URL as plain text.
    """
    is_url = "://" in template.split("{", 1)[0]
    parts: list[str] = []
    url = ""
    try:
        for text, placeholder, spec, conversion in string.Formatter().parse(template):
            if url and text[:1] in ("?", "&"):
                raise ValueError(_joined_by_hand(url, text, placeholder))
            parts.append(text)
            url = "" if text else url
            if placeholder is None:
                continue
            if conversion:
                raise ValueError(f"{placeholder!r} takes no conversion")
            parts.append(_value(placeholder, spec or "", own, dsns, slot, is_url))
            is_address = placeholder.rpartition(".")[2] in FORMS
            url = f"{placeholder}:{spec}" if is_address and spec else placeholder if is_address else ""
    except ValueError as error:
        known = ", ".join("{" + p + "}" for p in PLACEHOLDERS)
        others = ", ".join("{" + name + ".url}" for name in dsns)
        raise ConfigError(
            f"env.{variable} = {template!r}: {error}. There are {known}, and {others}; parameters of a URL stand in "
            "its placeholder, as in {url:connection_limit=5}; write {{ for a brace",
            key=f"env.{variable}",
            value=template,
        ) from None
    return "".join(parts)


def _value(placeholder: str, spec: str, own: str, dsns: Mapping[str, Dsn], slot: Slot, is_url: bool) -> str:
    database, dot, key = placeholder.rpartition(".")
    if database == DIRECT and own != DEFAULT:
        database = f"{own}.{DIRECT}"
    if dot and database.rpartition(".")[2] == DIRECT and database not in dsns:
        # No pooler in front: the same settings hold for runs with one and without.
        database = database.removesuffix(DIRECT).rstrip(".") or DEFAULT
    if dot and (found := _ON_REPLICA.fullmatch(database)):
        if not found["name"] and own != DEFAULT:
            database = f"{own}.{database}"
        if database not in dsns:
            # No standby: as with one, but that what is read there was written there.
            database = found["name"] or own
    if dot and database not in dsns:
        raise ValueError(f"there is no database {database!r}")
    if key not in PLACEHOLDERS:
        raise ValueError(f"there is no placeholder {key!r}")
    if spec and key not in FORMS:
        raise ValueError(f"{key!r} takes no parameters, and no format")
    if key in ("worker", "workers", "connections"):
        return str(getattr(slot, key))
    dsn = dsns[database if dot else own]
    if spec:
        dsn = dsn.with_options(_parameters(spec, own, dsns, slot))
    value = str(getattr(dsn, key))
    return quote(value, safe="") if is_url and key in _ESCAPED_IN_URL else value


def _parameters(spec: str, own: str, dsns: Mapping[str, Dsn], slot: Slot) -> dict[str, str]:
    """What stands behind the colon: ``name=value&name=value``, escaped as in a URL or not at all."""
    found: dict[str, str] = {}
    # Taken apart before anything is filled in: a password may hold any character.
    for pair in spec.split("&"):
        name, equals, value = pair.partition("=")
        if not equals or not _PARAMETER.fullmatch(name):
            raise ValueError(f"{pair!r} is no parameter: write name=value, and & between two")
        if name in found:
            raise ValueError(f"the parameter {name!r} is given twice")
        parts: list[str] = []
        for text, placeholder, inner, conversion in string.Formatter().parse(value):
            parts.append(_unescaped(text))
            if placeholder is not None:
                if conversion:
                    raise ValueError(f"{placeholder!r} takes no conversion")
                parts.append(_value(placeholder, inner or "", own, dsns, slot, False))
        found[name] = "".join(parts)
    return found


def _unescaped(text: str) -> str:
    try:
        if _LONE_PERCENT.search(text):
            raise UnicodeError
        return unquote(text, errors="strict")
    except UnicodeError:
        raise ValueError(f"{text!r} has a % that is none of a URL: write %25") from None


def _joined_by_hand(url: str, text: str, following: str | None) -> str:
    """Why parameters behind a URL are refused, even where it has none yet: by a socket, or with sslmode, it has."""
    name, colon, before = url.partition(":")
    wanted = text[1:] or "name=value"
    if following is not None and text.endswith("="):
        wanted += "{" + following + "}"
    joined = f"{before}&{wanted}" if colon else wanted
    return f"the URL may have parameters already, before {text!r}: write {{{name}:{joined}}}"


def patch(environ: MutableMapping[str, str], values: Mapping[str, str]) -> Callable[[], None]:
    """Set the variables, remove those that would bend them; return the undo.

    The undo puts back exactly what was there, and leaves alone what somebody else has changed since.
    """
    doomed = [name for name in BENDING if name in environ and name not in values]
    before = {name: environ.get(name) for name in (*values, *doomed)}
    for name in doomed:
        del environ[name]
    environ.update(values)

    def undo() -> None:
        for name, old in before.items():
            if environ.get(name) != values.get(name):
                continue
            if old is None:
                environ.pop(name, None)
            else:
                environ[name] = old

    return undo


def child_environment(
    environ: Mapping[str, str], values: Mapping[str, str], *, drop: Sequence[str] = ()
) -> dict[str, str]:
    """A copy of the environment for a child process, patched as by :func:`patch`."""
    copy = {name: value for name, value in environ.items() if name not in drop}
    patch(copy, values)
    return copy
