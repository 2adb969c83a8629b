"""Read the SQL that pg_dump wrote, piece by piece, with the rows of its COPY statements apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from harness.migrations.hashing.files import position
from harness.migrations.sql.split import ScriptError, Statement, split

_COPY = re.compile(rb"COPY .* FROM stdin;\s*$", re.IGNORECASE)
_META = re.compile(rb"\\([A-Za-z!?.]\S*)")
_IGNORED = (b"restrict", b"unrestrict")
_CHUNK = 1 << 20
"""Bytes of SQL after which a chunk is cut at the next complete statement, to bound memory."""
_BLOCK = 1 << 16


class DumpError(Exception):
    """The dump cannot be read.

    Attributes:
        reason: what is wrong. line: where, from 1.
    """

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


@dataclass(frozen=True)
class Sql:
    """One statement.

    Attributes:
        text: the chunk it stands in, decoded as Latin-1: bytes in, the same bytes out, whatever encoding
            the dump is in. first_line: the chunk's first line in the file, from 1.
    """

    statement: Statement
    text: str
    first_line: int


@dataclass(frozen=True)
class Rows(Sql):
    """One ``COPY … FROM stdin`` with its rows, which must be read before the next piece is asked for."""

    lines: Iterator[bytes]

    def blocks(self) -> Iterator[bytes]:
        """The rows, in blocks of a sensible size."""
        block = bytearray()
        for line in self.lines:
            block += line
            if len(block) >= _BLOCK:
                yield bytes(block)
                block.clear()
        if block:
            yield bytes(block)


def read(stream: Iterable[bytes]) -> Iterator[Sql]:
    """The pieces of a plain dump, in order.

    Raises:
        DumpError: a command of psql's that is not understood, an unfinished string, missing end of rows.
    """
    return _Reader(stream).pieces()


class _Reader:
    def __init__(self, stream: Iterable[bytes]) -> None:
        self.stream = iter(stream)
        self.number = 0
        self.chunk: list[bytes] = []
        self.size = 0
        self.first_line = 1
        self.check_at = _CHUNK

    def pieces(self) -> Iterator[Sql]:
        for line in self._lines():
            if line.startswith(b"\\") and self._complete():
                yield from self._flush()
                self._meta(line)
                self.first_line = self.number + 1
                continue
            if _COPY.match(line) and self._complete():
                yield from self._flush()
                yield from self._rows(line)
                self.first_line = self.number + 1
                continue
            self.chunk.append(line)
            self.size += len(line)
            if self.size >= self.check_at and line.rstrip().endswith(b";"):
                if self._complete():
                    yield from self._flush()
                    self.first_line = self.number + 1
                else:
                    # One huge literal: asking again after each of its lines would be quadratic.
                    self.check_at = 2 * self.size
        yield from self._flush()

    def _lines(self) -> Iterator[bytes]:
        for line in self.stream:
            self.number += 1
            yield line.removeprefix(b"\xef\xbb\xbf") if self.number == 1 else line

    def _rows(self, line: bytes) -> Iterator[Rows]:
        text = line.decode("latin-1")
        statement = split(text)[0]
        ended = False

        def rows() -> Iterator[bytes]:
            nonlocal ended
            for row in self._lines():
                if row.rstrip(b"\r\n") == b"\\.":
                    ended = True
                    return
                yield row

        lines = rows()
        begun = self.number
        yield Rows(statement, text, begun, lines)
        for _ in lines:
            pass
        if not ended:
            raise DumpError("the rows of this COPY have no end (\\.), so the dump is not complete", begun)

    def _meta(self, line: bytes) -> None:
        match = _META.match(line)
        name = match.group(1) if match else line[1:20].rstrip()
        if name in _IGNORED:
            return
        shown = "\\" + name.decode("latin-1")
        if name in (b"connect", b"c"):
            raise DumpError(
                f"{shown} leads to another database: the dump was made with --create, or by pg_dumpall. "
                f"Make one of a single database: pg_dump -f FILE DATABASE",
                self.number,
            )
        raise DumpError(f"{shown} is a command of psql, which pg_dump does not write", self.number)

    def _complete(self) -> bool:
        """Whether the chunk ends between two statements."""
        try:
            text = self._text()
            statements = split(text)
        except ScriptError:
            return False
        return not statements or statements[-1].text == "" or text[: statements[-1].tail].endswith(";")

    def _text(self) -> str:
        return b"".join(self.chunk).decode("latin-1")

    def _flush(self) -> Iterator[Sql]:
        if not self.chunk:
            return
        text, first_line = self._text(), self.first_line
        self.chunk, self.size, self.check_at = [], 0, _CHUNK
        try:
            statements = split(text)
        except ScriptError as error:
            line, _ = position(text, error.offset)
            raise DumpError(error.reason, first_line + line - 1) from None
        for statement in statements:
            if re.match(r"CREATE\s+DATABASE\b", statement.text, re.IGNORECASE):
                line, _ = position(text, statement.offset)
                raise DumpError(
                    "CREATE DATABASE: the dump was made with --create; make it without",
                    first_line + line - 1,
                )
            yield Sql(statement, text, first_line)
        self.first_line = self.number + 1
