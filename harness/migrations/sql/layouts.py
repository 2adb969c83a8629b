"""How the migration tools lay out, order and run their SQL files.

Each fact is the tool's own behaviour, read in its sources or manual; ``docs/decisions/0020`` names them.
Pure functions over names and texts: the reading is done in :mod:`harness.migrations.sql.source`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
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


@dataclass(frozen=True)
class Pattern:
    """A regular expression that is compiled when it is used: a warm start uses few of them all."""

    text: str
    flags: re.RegexFlag = re.NOFLAG

    def search(self, text: str) -> re.Match[str] | None:
        """As :func:`re.search`, which keeps what it compiled."""
        return re.search(self.text, text, self.flags)

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        """As :func:`re.finditer`."""
        return re.finditer(self.text, text, self.flags)


SortKey = Callable[[str], tuple[object, ...]]


@dataclass(frozen=True)
class Tool:
    """One tool's habits.

    Attributes:
        name: for people.
        key: sort key of a file's name (of the folder's name for ``nested`` tools).
        mode: how a file runs unless it says otherwise.
        between: statements that run before every file but the first, so that settings of one file
            reach the next exactly where they do with the tool.
        up, down: lines that begin the up part and what ends it; None where a file is all up.
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
    up: Pattern | None = None
    down: Pattern | None = None
    opt_out: Pattern | None = None
    said_in: str = ""
    advice: str = ""
    nested: str = ""
    history: str = ""
    refused: tuple[tuple[Pattern, str], ...] = ()


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


PSQL = Tool("plain SQL files", by_name, Mode.EACH, between=("DISCARD ALL",))
FLYWAY = Tool(
    "Flyway",
    by_name,
    # Flyway looks for statements that refuse a transaction, and then runs the whole file without one.
    between=("RESET ROLE", "RESET search_path"),
    opt_out=Pattern(r"^\s*executeInTransaction\s*=\s*false", re.MULTILINE),
    said_in="{}.conf",
    history="flyway_schema_history",
    refused=((Pattern(r"\$\{[A-Za-z][\w.:-]*\}"), "a Flyway placeholder; only Flyway knows its value"),),
)
GOOSE = Tool(
    "goose",
    by_number,
    Mode.WHOLE,
    up=Pattern(r"^--[ \t]*\+goose Up[ \t]*\r?$", re.MULTILINE),
    down=Pattern(r"^--[ \t]*\+goose Down[ \t]*\r?$", re.MULTILINE),
    opt_out=Pattern(r"^--[ \t]*\+goose NO TRANSACTION[ \t]*\r?$", re.MULTILINE),
    advice="-- +goose NO TRANSACTION",
    history="goose_db_version",
    refused=((Pattern(r"^--[ \t]*\+goose ENVSUB(?:ST)? ON", re.MULTILINE), "goose's variable substitution"),),
)
DBMATE = Tool(
    "dbmate",
    by_name,
    Mode.WHOLE,
    up=Pattern(r"^--\s*migrate:up\b.*$", re.MULTILINE),
    down=Pattern(r"^--\s*migrate:down\b.*$", re.MULTILINE),
    opt_out=Pattern(r"^--\s*migrate:up\b.*\btransaction:false\b", re.MULTILINE),
    advice="-- migrate:up transaction:false",
    history="schema_migrations",
)
SQL_MIGRATE = Tool(
    "sql-migrate",
    by_number,
    Mode.WHOLE,
    up=Pattern(r"^--[ \t]*\+migrate Up\b.*$", re.MULTILINE),
    down=Pattern(r"^--[ \t]*\+migrate Down\b.*$", re.MULTILINE),
    opt_out=Pattern(r"^--[ \t]*\+migrate Up\b.*\bnotransaction\b", re.MULTILINE),
    advice="-- +migrate Up notransaction",
)
GOLANG_MIGRATE = Tool("golang-migrate", by_number, history="schema_migrations")
SQLX = Tool(
    "sqlx",
    by_number,
    Mode.WHOLE,
    opt_out=Pattern(r"\A-- no-transaction"),
    advice="-- no-transaction (as the first line)",
    history="_sqlx_migrations",
)
DIESEL = Tool(
    "Diesel",
    _diesel_version,
    Mode.WHOLE,
    opt_out=Pattern(r"^\s*run_in_transaction\s*=\s*false", re.MULTILINE),
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
        Pattern(r"^---- create above / drop below ----", re.MULTILINE),
        "is a migration of tern",
        "tern migrate --migrations {folder}",
    ),
    (
        Pattern(r"^\s*--[\s-]*up\s+migration", re.MULTILINE | re.IGNORECASE),
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
    return any(pattern is not None and pattern.search(text) for pattern in patterns)


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
    if tool.up is None or tool.down is None:
        return [(0, len(text))]
    begins = list(tool.up.finditer(text))
    edges = sorted([match.start() for match in (*begins, *tool.down.finditer(text))] + [len(text)])
    starts = [match.end() for match in begins]
    return [(start, next(edge for edge in edges if edge >= start)) for start in starts] or None
