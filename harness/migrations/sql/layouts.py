"""How the migration tools lay out, order and run their SQL files.

Each fact is the tool's own behaviour, read in its sources or manual; ``docs/decisions/0020`` names them.
Pure functions over names and texts: the reading is done in :mod:`harness.migrations.sql.source`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum


class Mode(Enum):
    """How the statements of one file share transactions."""

    EACH = "each"
    """Every statement commits by itself, as with ``psql -f``."""
    WHOLE = "whole"
    """One transaction around the file, also where a statement refuses that (then the tool fails too)."""
    AUTO = "auto"
    """One transaction, unless the file is one statement or holds one that refuses a transaction."""


SortKey = Callable[[str], tuple[object, ...]]


@dataclass(frozen=True)
class Tool:
    """One tool's habits. Regular expressions are texts: a warm start compiles few of them all.

    Attributes:
        name: for people.
        key: sort key of a file's name (of the folder's name for ``nested`` tools).
        mode: how a file runs unless it says otherwise.
        between: statements that run before every file but the first, so that settings of one file
            reach the next exactly where they do with the tool.
        up, down: lines that begin the up part and what ends it; empty where a file is all up.
        opt_out: what a file says to run without a transaction.
        said_in: the file beside it that says so, where it is not itself; ``{}`` is its name.
        advice: what to write to run without a transaction, for messages.
        nested: name of the file in each folder, for tools with a folder per migration.
        history: the table that the tool itself notes its migrations in.
    """

    name: str
    key: SortKey
    mode: Mode = Mode.AUTO
    between: tuple[str, ...] = ()
    up: str = ""
    down: str = ""
    opt_out: str = ""
    said_in: str = ""
    advice: str = ""
    nested: str = ""
    history: str = ""
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Step:
    """One file, read.

    Attributes:
        shown: its path below the root. text: all of it. parts: the spans that run.
        mode: how its statements share transactions.
    """

    shown: str
    text: str
    parts: Sequence[tuple[int, int]]
    mode: Mode


def by_name(name: str) -> tuple[object, ...]:
    """Byte order of the UTF-8 name, as ``LC_ALL=C ls`` and most tools sort."""
    return (name.encode("utf-8", "surrogateescape"),)


def by_number(name: str) -> tuple[object, ...]:
    """By the number that the name begins with (2 before 10), then by name; names without one come last."""
    match = re.match(r"\d+", name)
    return (0, int(match.group()), *by_name(name)) if match else (1, 0, *by_name(name))


def by_number_if_all(names: Iterable[str]) -> SortKey:
    """Numeric order where every name begins with a number: nobody means 10 to come before 2."""
    return by_number if all(re.match(r"\d", name) for name in names) else by_name


def _diesel_version(name: str) -> tuple[object, ...]:
    # The version is what stands before the first "_", without dashes, compared as text.
    return (name.split("_", 1)[0].replace("-", ""), *by_name(name))


FLYWAY_NAME = re.compile(r"(?P<prefix>[VBURvbur])(?P<version>[0-9][0-9._]*)?__(?P<description>.*)\.sql")
"""Flyway's names; ``R__x.sql`` has no version. Prefixes are capital in Flyway."""


def flyway_version(text: str) -> tuple[int, ...]:
    """``1_10`` and ``1.10`` are (1, 10); trailing zero parts do not count (1.0 equals 1)."""
    parts = [int(part) for part in re.split(r"[._]", text) if part]
    while len(parts) > 1 and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def flyway_order(names: Iterable[str]) -> list[str]:
    """What ``flyway migrate`` runs on an empty database, in order.

    The highest baseline (``B``), the versions above it by number, then the repeatable ones by
    description; undo scripts (``U``) never.
    """
    baselines: list[tuple[tuple[int, ...], str]] = []
    versions: list[tuple[tuple[int, ...], str]] = []
    repeatables: list[tuple[str, str]] = []
    for name in names:
        match = FLYWAY_NAME.fullmatch(name.rsplit("/", 1)[-1])
        if match is None:
            continue
        prefix, version = match["prefix"].upper(), match["version"]
        if prefix == "R" and version is None:
            repeatables.append((match["description"].replace("_", " "), name))
        elif prefix in "VB" and version is not None:
            (baselines if prefix == "B" else versions).append((flyway_version(version), name))
    start = max(baselines, default=None)
    above = sorted(entry for entry in versions if start is None or entry[0] > start[0])
    return [name for _, name in ([start] if start else []) + above + sorted(repeatables)]


def is_repeatable(name: str) -> bool:
    """Whether Flyway runs a file again whenever it has changed."""
    match = FLYWAY_NAME.fullmatch(name.rpartition("/")[2])
    return match is not None and match["version"] is None and match["prefix"].upper() == "R"


PSQL = Tool("plain SQL files", by_name, Mode.EACH, between=("DISCARD ALL",))
FLYWAY = Tool(
    "Flyway",
    by_name,
    # Flyway looks for statements that refuse a transaction, and then runs the whole file without one.
    between=("RESET ROLE", "RESET search_path"),
    opt_out=r"(?m)^\s*executeInTransaction\s*=\s*false",
    said_in="{}.conf",
    history="flyway_schema_history",
    refused=((r"\$\{[A-Za-z][\w.:-]*\}", "a Flyway placeholder; only Flyway knows its value"),),
)
GOOSE = Tool(
    "goose",
    by_number,
    Mode.WHOLE,
    up=r"(?m)^--[ \t]*\+goose Up[ \t]*\r?$",
    down=r"(?m)^--[ \t]*\+goose Down[ \t]*\r?$",
    opt_out=r"(?m)^--[ \t]*\+goose NO TRANSACTION[ \t]*\r?$",
    advice="-- +goose NO TRANSACTION",
    history="goose_db_version",
    refused=((r"(?m)^--[ \t]*\+goose ENVSUB(?:ST)? ON", "goose's variable substitution"),),
)
DBMATE = Tool(
    "dbmate",
    by_name,
    Mode.WHOLE,
    up=r"(?m)^--\s*migrate:up\b.*$",
    down=r"(?m)^--\s*migrate:down\b.*$",
    opt_out=r"(?m)^--\s*migrate:up\b.*\btransaction:false\b",
    advice="-- migrate:up transaction:false",
    history="schema_migrations",
)
SQL_MIGRATE = Tool(
    "sql-migrate",
    by_number,
    Mode.WHOLE,
    up=r"(?m)^--[ \t]*\+migrate Up\b.*$",
    down=r"(?m)^--[ \t]*\+migrate Down\b.*$",
    opt_out=r"(?m)^--[ \t]*\+migrate Up\b.*\bnotransaction\b",
    advice="-- +migrate Up notransaction",
)
GOLANG_MIGRATE = Tool("golang-migrate", by_number, history="schema_migrations")
SQLX = Tool(
    "sqlx",
    by_number,
    Mode.WHOLE,
    opt_out=r"\A-- no-transaction",
    advice="-- no-transaction (as the first line)",
    history="_sqlx_migrations",
)
DIESEL = Tool(
    "Diesel",
    _diesel_version,
    Mode.WHOLE,
    opt_out=r"(?m)^\s*run_in_transaction\s*=\s*false",
    said_in="metadata.toml",
    advice="run_in_transaction = false in the migration's metadata.toml",
    nested="up.sql",
    history="__diesel_schema_migrations",
)
PRISMA = Tool("Prisma", by_name, nested="migration.sql", history="_prisma_migrations")
SUPABASE = Tool("Supabase", by_name, between=("RESET ALL",))

MARKED = (GOOSE, DBMATE, SQL_MIGRATE)
"""Tools that are known by a line in their files, in the order of trying."""

LEFT_TO_THE_TOOL = (
    (
        r"(?m)^---- create above / drop below ----",
        "is a migration of tern",
        "tern migrate --migrations {folder}",
    ),
    (
        r"(?im)^\s*--[\s-]*up\s+migration",
        "is a migration of node-pg-migrate",
        "npx node-pg-migrate up --migrations-dir {folder}",
    ),
)
"""Lines of tools that run their files themselves: the line, what such a file is, the command to name instead."""

FLYWAY_COMMAND = (
    "flyway -url=jdbc:postgresql://$PGHOST:$PGPORT/$PGDATABASE -user=$PGUSER -password=$PGPASSWORD"
    " -locations=filesystem:{folder} migrate"
)
FLYWAY_CALLBACK = re.compile(r"(?:before|after)[A-Z]\w*?(?:__.*)?\.sql")
FLYWAY_MIGRATE_CALLBACK = re.compile(
    r"(?:(?:before|after)(?:Each)?(?:Migrate|Versioned|Repeatables)(?:Statement|Applied)?|beforeConnect)(?:__.*)?\.sql"
)
"""Those of Flyway's callbacks that a migration of an empty database runs."""


def has_mark(text: str) -> bool:
    """Whether a file holds a line that only one tool's migrations have."""
    patterns = (*(tool.up for tool in MARKED), *(pattern for pattern, _, _ in LEFT_TO_THE_TOOL))
    return any(pattern and re.search(pattern, text) for pattern in patterns)


_REVERSE = re.compile(r"(?P<stem>.*)[._-](?:down|undo|rollback|revert)\.sql", re.IGNORECASE)


def is_reverse(name: str, names: frozenset[str]) -> bool:
    """Whether a file of a plain folder takes another one back (``x.down.sql`` beside ``x.up.sql`` or ``x.sql``)."""
    if ".undo." in name and name.replace(".undo.", ".do.") in names:
        return True
    match = _REVERSE.fullmatch(name)
    if match is None:
        return False
    stem = match["stem"]
    if name.endswith((".down.sql", ".undo.sql")):
        return True
    return any(f"{stem}{end}.sql" in names for end in ("", ".up", "-up", "_up", ".do"))


def up_parts(tool: Tool, text: str) -> list[tuple[int, int]] | None:
    """The spans of a file that the tool runs on the way up; None where the tool's line is missing."""
    if not tool.up:
        return [(0, len(text))]
    begins = list(re.finditer(tool.up, text))
    edges = sorted([match.start() for match in (*begins, *re.finditer(tool.down, text))] + [len(text)])
    starts = [match.end() for match in begins]
    return [(start, next(edge for edge in edges if edge >= start)) for start in starts] or None
