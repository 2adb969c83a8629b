"""Run SQL files statement by statement, in the transactions that their tool gives them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.migrations.hashing.files import position
from harness.migrations.port import MigrationContext
from harness.migrations.sql.explain import explain
from harness.migrations.sql.layouts import Mode, Step
from harness.migrations.sql.split import ScriptError, Statement, split
from harness.postgres import sqlstate
from harness.postgres.script import StatementFailed, StatementTimeout, open_script

if TYPE_CHECKING:
    from harness.migrations.sql.source import SqlSource

_COPY_STDIN = re.compile(r"COPY\b.*\bFROM\s+STDIN\b", re.IGNORECASE | re.DOTALL)


def run(source: SqlSource, context: MigrationContext, only: Sequence[str] | None = None) -> None:
    """Run all files in order.

    Args:
        only: run these of them.

    Raises:
        MigrationError: a file cannot be cut into statements (then none has run), or one of them failed.
    """
    tool, steps = source.plan
    chosen = [step for step in steps if only is None or step.shown in only]
    scripts = [(step, _statements(source, step)) for step in chosen]
    notices: list[str] = []
    with open_script(context.dsn, timeout=context.timeout, notice=notices.append) as runner:
        for number, (step, statements) in enumerate(scripts):
            context.progress(number, len(scripts), step.shown)
            notices.clear()
            current: Statement | None = None
            together = _in_one_transaction(step.mode, statements)
            try:
                for statement in tool.between if number else ():
                    runner.run(statement)
                if together:
                    runner.run("BEGIN")
                for current in statements:
                    runner.run(current.text)
                if together:
                    runner.run("COMMIT")
                elif runner.end_transaction():
                    raise source.failure(
                        f"{step.shown} begins a transaction and does not end it (BEGIN without COMMIT): "
                        f"what follows its BEGIN would be lost",
                        step.shown,
                    )
            except (StatementFailed, StatementTimeout) as error:
                refused = getattr(error, "sqlstate", "") == sqlstate.ACTIVE_SQL_TRANSACTION
                advice = f"{tool.name} runs this file without a transaction if it says: {tool.advice}"
                text = explain(
                    step.shown,
                    step.text,
                    current,
                    error,
                    notices=notices,
                    advice=advice if refused and tool.advice else "",
                )
                raise source.failure(text, step.shown) from error
        context.progress(len(scripts), len(scripts), "")


def _statements(source: SqlSource, step: Step) -> list[Statement]:
    try:
        found = [one for start, end in step.parts for one in split(step.text, start, end)]
    except ScriptError as error:
        line, column = position(step.text, error.offset)
        advice = " For a file that pg_dump wrote, use dump:FILE." if "psql" in error.reason else ""
        raise source.failure(
            f"{step.shown}, line {line}, column {column}: {error.reason}.{advice}", step.shown
        ) from None
    for statement in found:
        if _COPY_STDIN.match(statement.text):
            line, _ = position(step.text, statement.offset)
            raise source.failure(
                f"{step.shown}, line {line}: COPY … FROM stdin needs a client that sends the rows. "
                f'If pg_dump wrote this file, use "dump:{step.shown}"; else write INSERT.',
                step.shown,
            )
    return found


def _in_one_transaction(mode: Mode, statements: Sequence[Statement]) -> bool:
    if mode is not Mode.AUTO:
        return mode is Mode.WHOLE
    return len(statements) > 1 and not any(statement.needs_no_transaction for statement in statements)
