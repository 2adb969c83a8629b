"""The text of a failed statement: file, line, a caret under the place, and all that the server said."""

from __future__ import annotations

from collections.abc import Sequence

from harness.migrations.hashing.files import position
from harness.migrations.sql.split import Statement
from harness.postgres.script import StatementFailed, StatementTimeout

_WIDTH = 110
_NOTICES = 5


def explain(
    shown: str,
    text: str,
    statement: Statement | None,
    error: StatementFailed | StatementTimeout,
    *,
    notices: Sequence[str] = (),
    advice: str = "",
    first_line: int = 1,
) -> str:
    """One screen about a failure.

    Args:
        shown: the file. text: all of it. statement: the one that ran; None if it was none of the file's.
        first_line: the line of the file that ``text`` begins with.
        notices: what the server said before. advice: one more line on what to do.
    """
    offset = statement.offset if statement else 0
    pointed = isinstance(error, StatementFailed) and error.position is not None and statement is not None
    if isinstance(error, StatementFailed) and error.position is not None and statement is not None:
        offset += error.position - 1
    line, column = position(text, min(offset, len(text)))
    lines = [f"{shown}, line {line + first_line - 1}:", f"  {_headline(error)}"]
    lines += _picture(text, line, column if pointed else None, first_line)
    if isinstance(error, StatementFailed):
        lines += _inner(error)
        for title, value in (("DETAIL", error.detail), ("HINT", error.hint), ("CONTEXT", error.context)):
            if value:
                lines.append(f"  {title}: {_short(value, 6)}")
    lines += [f"  before it: {_short(notice, 1)}" for notice in notices[-_NOTICES:]]
    if advice:
        lines.append(f"  {advice}")
    return "\n".join(lines)


def _headline(error: StatementFailed | StatementTimeout) -> str:
    if isinstance(error, StatementTimeout):
        return f"{error} (migration_timeout)"
    return f"ERROR: {error.primary} [{error.sqlstate}]" if error.sqlstate else f"ERROR: {error.primary}"


def _picture(text: str, line: int, column: int | None, first_line: int = 1) -> list[str]:
    source = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[line - 1].expandtabs(1)
    start = max(0, column - _WIDTH // 2) if column and column > _WIDTH else 0
    shown = source[start : start + _WIDTH]
    head = f"  {line + first_line - 1} | "
    picture = [f"{head}{shown}"]
    if column is not None:
        picture.append(" " * (len(head) - 2) + "| " + " " * (column - 1 - start) + "^")
    return picture


def _inner(error: StatementFailed) -> list[str]:
    if not error.inner_query or error.inner_position is None:
        return []
    line, column = position(error.inner_query, error.inner_position - 1)
    return ["  inside, in this statement:", *_picture(error.inner_query, line, column)]


def _short(text: str, lines: int) -> str:
    kept = text.strip().splitlines()
    more = len(kept) - lines
    kept = [part if len(part) <= 2 * _WIDTH else part[: 2 * _WIDTH] + "…" for part in kept[:lines]]
    return "\n    ".join(kept) + (f"\n    … and {more} more lines" if more > 0 else "")
