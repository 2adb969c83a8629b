"""``mark``: the present state of a person's databases becomes the one that ``reset`` comes back to."""

from __future__ import annotations

import logging
from typing import Any

import click

from harness.cli import inside, lookup
from harness.cli.context import Context
from harness.cli.options import Word, completing, flag, json_flag
from harness.cli.parser import Usage
from harness.errors import LeaseError
from harness.runs.places import Place, places_on
from harness.sandbox.marks import TEMPLATE, SavedMark
from harness.sandbox.sandbox import Sandbox

logger = logging.getLogger("pg_harness.cli")

USAGE = "[WORKER] [--name NAME | --list | --release[=NAME] | --release-all] [options]"

DESCRIPTION = """\
Make the present state of your databases one to come back to: rows, schema and all.

  pg-harness mark                 from now on, `reset` comes back to here
  pg-harness mark --name loaded   the same, with a name for `reset --to loaded`
  pg-harness mark --list          what is marked
  pg-harness mark --release       forget the top mark: `reset` goes to the one below, or to the migrations

Marks are a stack and stay until they are released: over restarts of the server too, where its data is on disk.
"""

EPILOG = """\
A mark is a copy of each database, made by the server. PostgreSQL copies no database that somebody is in: open
transactions are waited for (reset_timeout), then all sessions in it are ended and named. psql comes back by itself.
Coming back to a mark keeps sessions, as a rule (`pg-harness reset --help`).
"""


PARAMETERS: list[click.Parameter] = [
    Word(
        "worker",
        metavar="WORKER",
        help="2 (yours); default: 1, with --list all of yours",
        shell_complete=completing("places", mine=True),
    ),
    click.Option(["--name"], metavar="NAME", help="for `reset --to`; default: 1, 2, …"),
    click.Option(["--list", "listed"], is_flag=True, help="only tell what is marked"),
    click.Option(
        ["--release"],
        is_flag=False,
        flag_value="",
        metavar="[NAME]",
        help="forget this mark (default: the top one) and those above it",
        shell_complete=completing("marks"),
    ),
    flag("--release-all", help="forget all of them"),
    flag("--dry-run", help="with --release and --release-all: only tell what would be forgotten"),
    json_flag(),
]


def run(context: Context) -> int:
    """Set, list or release."""
    given = vars(context.arguments)
    chosen = given.keys() & {"name", "listed", "release", "release_all"}
    if len(chosen) > 1:
        raise Usage("--name, --list, --release and --release-all do not go together")
    dry_run = bool(given.get("dry_run"))
    if dry_run and not chosen & {"release", "release_all"}:
        raise Usage("--dry-run goes with --release and --release-all: a new mark replaces nothing")
    name = given.get("name")
    if name is not None and (not name.strip() or name == TEMPLATE):
        raise Usage(
            f"{name!r} cannot be a mark's name" + (": it is the migrations' state" if name.strip() else "")
        )
    if (client := inside.client_of(context)) is not None:
        with client:
            return inside.mark(context, client, given)
    if chosen == {"listed"}:
        return _list(context, given.get("worker"))
    with lookup.resolved(context, given.get("worker")) as place:
        lookup.refuse_template(place, "mark")
        report: object
        if chosen & {"release", "release_all"}:
            report = _release(
                place, given.get("release"), everything="release_all" in chosen, dry_run=dry_run
            )
        else:
            report = _set(context, place, name)
    if context.json:
        context.console.json(report)
    return 0


def _set(context: Context, place: Place, name: str | None) -> dict[str, Any]:
    made, ended = Sandbox(place.session).mark(place, name)
    for session in ended:
        context.console.warn(f"ended: {session}")
    logger.info("%s: marked as %r; `pg-harness reset` comes back to here", place.what, made.name)
    return {**told(place, made), "ended": ended}


def _release(place: Place, name: str | None, *, everything: bool, dry_run: bool) -> list[dict[str, Any]]:
    gone, left = Sandbox(place.session).release(place, name, everything=everything, dry_run=dry_run)
    where = f"mark {left[-1].name!r}" if left else "their migrations' state"
    names = ", ".join(repr(mark.name) for mark in gone) or "nothing"
    did, goes = ("would release", "would go") if dry_run else ("released", "goes")
    logger.info("%s: %s %s; `pg-harness reset` %s to %s", place.what, did, names, goes, where)
    return [told(place, mark) for mark in gone]


def _list(context: Context, worker: str | None) -> int:
    found: list[dict[str, Any]] = []
    with lookup.servers(context, purposes=["up"]) as servers:
        mine = [place for server in servers for place in places_on(server) if place.sandbox]
        for place in mine:
            if worker is None or worker in place.words:
                found += [told(place, mark) for mark in Sandbox(place.session).marks(place)]
    if worker is not None and not any(worker in place.words for place in mine):
        raise LeaseError(f"you have no worker {worker!r}") if mine else lookup.nothing(context)
    if context.json:
        context.console.json(found)
        return 0
    for mark in found:
        context.console.answer(f"{mark['worker']}  {mark['name']}  {mark['created']}")
    if not found:
        logger.info("nothing is marked")
    return 0


def told(place: Place, mark: SavedMark) -> dict[str, Any]:
    """One mark for people and programs."""
    return {
        "worker": place.worker,
        "name": mark.name,
        "number": mark.number,
        "created": mark.created[:19].replace("T", " "),
        "databases": {name: database.name for name, database in mark.databases.items()},
    }
