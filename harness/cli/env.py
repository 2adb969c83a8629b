"""``env``: one database's variables, in the form that the reader takes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence

import click

from harness.cli import inside, lookup
from harness.cli.context import Context
from harness.cli.options import flag, lease_words
from harness.config import environment
from harness.runs.places import Place, places_on

USAGE = "[WORKER] [options]"

DESCRIPTION = """\
Print DATABASE_URL, PGHOST … PGPASSWORD and your own variables of [tool.pg-harness.env] for one database. Without
WORKER, where `up -n N` made several: those of the first, and all of them numbered, as `run -n N` has them.

  eval "$(pg-harness env)"                                  this shell (--format shell, the default)
  pg-harness env --format dotenv > .env.test                a file for dotenv
  pg-harness env --format github >> "$GITHUB_ENV"           the following steps of a GitHub job
  pg-harness env --format json                              programs
"""

FORMATS = ("dotenv", "shell", "json", "github")

_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,=~^-]*")


PARAMETERS: list[click.Parameter] = [
    *lease_words(),
    click.Option(["--format"], type=click.Choice(FORMATS), default="shell", help="default: shell"),
    flag("--json", help="the same as --format json"),
]


def run(context: Context) -> int:
    """Print them."""
    given = context.arguments
    form = "json" if context.json else given.format
    worker: str | None = getattr(given, "worker", None)
    if (client := inside.client_of(context)) is not None:
        with client:
            return _answer(context, inside.variables(client, worker), form)
    with lookup.resolved(context, worker) as place:
        lookup.refuse_template(place, "name")
        mine = [place]
        if worker is None and place.sandbox and not place.fork:
            mine = [other for other in places_on(place.session) if other.sandbox and not other.fork]
        values = _of_one(context, place, len(mine))
        if len(mine) > 1:
            each = {other.worker: _of_one(context, other, len(mine)) for other in mine}
            values |= environment.numbered((d.env for d in context.settings.databases), each)
    return _answer(context, values, form)


def _answer(context: Context, values: Mapping[str, str], form: str) -> int:
    # What would bend these addresses goes away with them, where the format can say so.
    bending = sorted(name for name in environment.BENDING if name in context.environ and name not in values)
    if bending and form != "shell":
        context.console.warn(f"{', '.join(bending)} is set here and would bend the address: unset it")
    context.console.answer(render(values, form, unset=bending))
    return 0


def _of_one(context: Context, place: Place, workers: int) -> dict[str, str]:
    dsns = {"default": place.dsn(context.arguments.database), **place.addresses()}
    dsns["default"] = place.dsn(context.arguments.database)
    tables = {d.name: d.env for d in context.settings.databases if d.name in dsns}
    slot = environment.Slot(place.worker or "1", workers, context.settings.connections_per_worker)
    return environment.variables(dsns, tables, slot)


def render(values: Mapping[str, str], form: str, *, unset: Sequence[str] = ()) -> str:
    """The variables as text, without the last line end."""
    if form == "json":
        return json.dumps(dict(values), indent=2, ensure_ascii=False)
    if form == "shell":
        lines = [f"unset {name}" for name in unset]
        return "\n".join([*lines, *(f"export {name}={shlex.quote(value)}" for name, value in values.items())])
    line = _github if form == "github" else _dotenv
    return "\n".join(line(name, value) for name, value in values.items())


def _github(name: str, value: str) -> str:
    if "\n" not in value:
        return f"{name}={value}"
    # GitHub's documentation, "Multiline strings": the delimiter must not be a line of the value.
    mark = "PGHARNESS_END"
    while mark in value:
        mark += "_"
    return f"{name}<<{mark}\n{value}\n{mark}"


def _dotenv(name: str, value: str) -> str:
    if _PLAIN.fullmatch(value):
        return f"{name}={value}"
    # Single quotes are literal in every dotenv; double ones expand $ in some.
    if "'" not in value and "\n" not in value:
        return f"{name}='{value}'"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("$", "\\$")
    return f'{name}="{escaped}"'
