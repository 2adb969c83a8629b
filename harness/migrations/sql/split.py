"""Cut a SQL script into its statements, as psql does (its rules: ``src/fe_utils/psqlscan.l``).

Why not one simple query per file: PostgreSQL runs that in one transaction, where
``CREATE INDEX CONCURRENTLY`` fails, and an error without a position names no statement.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# What can change the scanner's state; everything between two matches is plain text.
_TOKEN = re.compile(
    r"""
    (?P<comment>--[^\n\r]*)
  | (?P<block>/\*)
  | (?P<estring>[eE]')
  | (?P<string>')
  | (?P<quoted>")
  | (?P<dollar>\$(?:[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_\u0080-\U0010ffff]*)?\$)
  | (?P<word>[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_$\u0080-\U0010ffff]*)
  | (?P<number>[0-9][0-9A-Za-z_.]*)
  | (?P<open>[(\[])
  | (?P<close>[)\]])
  | (?P<semicolon>;)
  | (?P<backslash>\\[^\s]*)
    """,
    re.VERBOSE,
)
_BLOCK_EDGE = re.compile(r"/\*|\*/")
_ESTRING_END = re.compile(r"(?:[^'\\]|\\.|'')*'", re.DOTALL)
_CODE = re.compile(r"\S")

# Statements that PostgreSQL refuses inside a transaction block (PreventInTransactionBlock in its sources).
_OUTSIDE = re.compile(
    r"""(?:
      (?:CREATE\s+(?:UNIQUE\s+)?|DROP\s+)INDEX\s+CONCURRENTLY
    | REINDEX\s*(?:\([^)]*\)\s*)?(?:DATABASE|SYSTEM)
    | REINDEX\s*(?:\([^)]*\)\s*)?(?:INDEX|TABLE|SCHEMA)\s+CONCURRENTLY
    | REINDEX\s*\([^)]*CONCURRENTLY[^)]*\)\s*(?:INDEX|TABLE|SCHEMA|DATABASE|SYSTEM)
    | VACUUM
    | (?:CREATE|DROP)\s+(?:DATABASE|TABLESPACE)
    | ALTER\s+SYSTEM
    | ALTER\s+DATABASE\s+\S+\s+SET\s+TABLESPACE
    | ALTER\s+TABLE\s+.*\sDETACH\s+PARTITION\s+.*\sCONCURRENTLY
    | (?:CREATE|DROP|ALTER)\s+SUBSCRIPTION
    )\b""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class Statement:
    """One statement of a script.

    Attributes:
        text: from its first character that is no blank or comment, without the closing semicolon.
        offset: where ``text`` begins in the script, in characters from 0.
        tail: where the statement ends in the script: behind its semicolon.
    """

    text: str
    offset: int
    tail: int

    @property
    def needs_no_transaction(self) -> bool:
        """Whether PostgreSQL refuses it inside a transaction block."""
        return _OUTSIDE.match(self.text) is not None


class ScriptError(Exception):
    """The script cannot be cut into statements.

    Attributes:
        reason: what is wrong, without the place.
        offset: where, in characters from 0.
    """

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.offset = offset


def split(script: str, start: int = 0, end: int | None = None) -> list[Statement]:
    """The statements of ``script[start:end]``, in order, with offsets into the whole script.

    A semicolon ends a statement unless it stands in a string, an identifier, a comment, a dollar-quoted
    body, parentheses (``CREATE RULE``) or the ``BEGIN ATOMIC … END`` body of an SQL function.

    Raises:
        ScriptError: psql's ``\\`` commands, or a string or comment without an end.
    """
    return _Scanner(script, start, len(script) if end is None else end).run()


class _Scanner:
    def __init__(self, script: str, start: int, end: int) -> None:
        self.script = script
        self.at = start
        self.end = end
        self.found: list[Statement] = []
        self.first: int | None = None
        self._begin_statement()

    def _begin_statement(self) -> None:
        self.first = None
        self.parens = 0
        self.begin_depth = 0
        self.words: list[str] = []

    def run(self) -> list[Statement]:
        while self.at < self.end:
            match = _TOKEN.search(self.script, self.at, self.end)
            edge = match.start() if match else self.end
            if self.first is None:
                code = _CODE.search(self.script, self.at, edge)
                if code:
                    self.first = code.start()
            if match is None:
                break
            self._take(match)
        if self.first is not None:
            self._finish(self.end, self.end)
        return self.found

    def _take(self, match: re.Match[str]) -> None:
        kind, start, self.at = match.lastgroup, match.start(), match.end()
        if kind == "comment":
            return
        if kind == "block":
            self._skip_block_comment(start)
            return
        if kind == "semicolon":
            if self.parens == 0 and self.begin_depth == 0:
                if self.first is not None:
                    self._finish(start, self.at)
                self._begin_statement()
            return
        if self.first is None:
            self.first = start
        if kind == "backslash":
            raise ScriptError(
                f"{match.group()} is a command of psql, not SQL; the server does not know it", start
            )
        if kind == "string":
            self._skip_quoted("'", start, "string")
        elif kind == "estring":
            closing = _ESTRING_END.match(self.script, self.at, self.end)
            if closing is None:
                raise ScriptError("a string begins here and has no end", start)
            self.at = closing.end()
        elif kind == "quoted":
            self._skip_quoted('"', start, "quoted identifier")
        elif kind == "dollar":
            closing_at = self.script.find(match.group(), self.at, self.end)
            if closing_at < 0:
                raise ScriptError(f"a body quoted with {match.group()} begins here and has no end", start)
            self.at = closing_at + len(match.group())
        elif kind == "open":
            self.parens += 1
        elif kind == "close":
            self.parens = max(0, self.parens - 1)
        elif kind == "word":
            self._word(match.group().lower())

    def _skip_block_comment(self, start: int) -> None:
        depth = 1
        while depth:
            edge = _BLOCK_EDGE.search(self.script, self.at, self.end)
            if edge is None:
                raise ScriptError("a /* comment begins here and has no end", start)
            depth += 1 if edge.group() == "/*" else -1
            self.at = edge.end()

    def _skip_quoted(self, quote: str, start: int, what: str) -> None:
        # A doubled quote ends one string and begins the next at once, so it needs no care of its own.
        closing = self.script.find(quote, self.at, self.end)
        if closing < 0:
            raise ScriptError(f"a {what} begins here and has no end", start)
        self.at = closing + 1

    def _word(self, word: str) -> None:
        if len(self.words) < 4:
            self.words.append(word)
        if self.parens or not _defines_routine(self.words):
            return
        # CASE … END inside a body would otherwise end the body; outside of one, it has no part in this.
        if word == "begin" or (word == "case" and self.begin_depth):
            self.begin_depth += 1
        elif word == "end" and self.begin_depth:
            self.begin_depth -= 1

    def _finish(self, stop: int, tail: int) -> None:
        assert self.first is not None
        self.found.append(Statement(self.script[self.first : stop].rstrip(), self.first, tail))


def _defines_routine(words: list[str]) -> bool:
    if words[:1] != ["create"]:
        return False
    rest = words[3:] if words[1:3] == ["or", "replace"] else words[1:]
    return rest[:1] in (["function"], ["procedure"])
