"""``doctor``: everything checked, one line each, with remedies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import click

from harness.cli import doctor_checks as checks
from harness.cli.context import Context
from harness.cli.options import json_flag
from harness.errors import HarnessError
from harness.servers import registry

DESCRIPTION = """\
Check what pg-harness needs and what it finds here, one line each; below a line, what to do about it.
Starts nothing and changes nothing. Exit code 0, or that of the first check that failed.
"""


@dataclass(frozen=True)
class Line:
    """One check's result.

    Attributes:
        check: its name.
        state: ``ok``, ``note`` (worth knowing), ``fail``.
        detail: what was found.
        remedies: what to do, one line each.
        exit_code: of a failure; 0 otherwise.
    """

    check: str
    state: str
    detail: str
    remedies: tuple[str, ...] = ()
    exit_code: int = 0


PARAMETERS: list[click.Parameter] = [
    json_flag(),
]


def run(context: Context) -> int:
    """Print one line for each check."""
    code = 0
    told: list[Line] = []
    for line in lines(context):
        told.append(line)
        code = code or line.exit_code
        if not context.json:
            context.console.answer(f"{line.state:<4}  {line.check:<11} {line.detail}")
            for remedy in line.remedies:
                context.console.answer(f"      {'':<11} → {remedy}")
    if context.json:
        context.console.json([asdict(line) for line in told])
    return code


def lines(context: Context) -> Iterator[Line]:
    """All checks, one after the other."""
    for name, check in checks.WITHOUT_SETTINGS:
        yield from _lines(name, check, context)
    settings = list(_lines("settings", checks.settings, context))
    yield from settings
    if any(line.state == "fail" for line in settings):
        # Nothing else can be said before they can be read.
        return
    for name, check in checks.WITH_SETTINGS:
        yield from _lines(name, check, context)
    yield from _backends(context)
    for name, check in checks.AT_THE_END:
        yield from _lines(name, check, context)


def _backends(context: Context) -> Iterator[Line]:
    """With ``auto``, one that works is enough."""
    wanted = registry.wanted(context.settings)
    kinds = registry.kinds()
    # A server that others look after is the only one that counts.
    asked = [wanted] if not registry.starts(context.settings) else registry.starting()
    asked = [word for word in asked if word == wanted or not kinds[word].elsewhere]
    found = {word: list(_lines(kinds[word].title or word, checks.backend(word), context)) for word in asked}
    fine = {word for word, lines in found.items() if not any(line.state == "fail" for line in lines)}
    automatic = {word for word in found if kinds[word].auto}
    for word, lines in found.items():
        needed = wanted == word or (wanted == registry.AUTO and word in automatic and not fine & automatic)
        for line in lines:
            if line.state == "fail" and not needed:
                remedies = line.remedies if wanted == registry.AUTO else ()
                yield Line(line.check, "note", line.detail, remedies)
            else:
                yield line


def _lines(
    name: str, check: Callable[[Context], Iterator[checks.Result]], context: Context
) -> Iterator[Line]:
    try:
        for state, detail, remedies in check(context):
            yield Line(name, state, _one(detail), tuple(remedies), 121 if state == "fail" else 0)
    except HarnessError as error:
        what_to_do: Sequence[str] = getattr(error, "remedies", ())
        places = [f"looked at: {place}" for place in getattr(error, "checked", ())]
        yield Line(name, "fail", _one(error.message), (*places, *what_to_do), error.exit_code)


def _one(text: str) -> str:
    return text.splitlines()[0] if text else ""
