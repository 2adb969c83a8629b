"""``mark``: the present state of a person's databases becomes the one that ``reset`` comes back to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import click

from harness.cli import lookup
from harness.cli.context import Context
from harness.cli.options import Word, flag, json_flag, mark_name, own_word
from harness.cli.parser import Usage
from harness.databases import template
from harness.errors import LeaseError
from harness.postgres import locks
from harness.runs.harness import Harness
from harness.runs.places import Place, places_on
from harness.sandbox import marks as saved_marks
from harness.sandbox import reset
from harness.sandbox.marks import Saved
from harness.sandbox.watermarks import Life, Notes

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
        shell_complete=own_word,
    ),
    click.Option(["--name"], metavar="NAME", help="for `reset --to`; default: 1, 2, …"),
    click.Option(["--list", "listed"], is_flag=True, help="only tell what is marked"),
    click.Option(
        ["--release"],
        is_flag=False,
        flag_value="",
        metavar="[NAME]",
        help="forget this mark (default: the top one) and those above it",
        shell_complete=mark_name,
    ),
    flag("--release-all", help="forget all of them"),
    json_flag(),
]


def run(context: Context) -> int:
    """Set, list or release."""
    given = vars(context.arguments)
    chosen = given.keys() & {"name", "listed", "release", "release_all"}
    if len(chosen) > 1:
        raise Usage("--name, --list, --release and --release-all do not go together")
    if chosen == {"listed"}:
        return _list(context, given.get("worker"))
    name = given.get("name")
    if name is not None and (not name.strip() or name == TEMPLATE):
        raise Usage(
            f"{name!r} cannot be a mark's name" + (": it is the migrations' state" if name.strip() else "")
        )
    with lookup.resolved(context, given.get("worker") or "1") as place, changing(place):
        report: object
        if chosen & {"release", "release_all"}:
            report = _release(context, place, given.get("release"), everything="release_all" in chosen)
        else:
            report = _set(context, place, name)
    if context.json:
        context.console.json(report)
    return 0


TEMPLATE = "template"
"""What ``reset --to`` calls the migrations' state."""


def changing(place: Place) -> AbstractContextManager[None]:
    """Only one of `up`, `mark` and `reset` at a time changes a person's databases.

    Raises:
        LeaseError: the place is none of a person's.
    """
    if not place.persons:
        lookup.refuse_template(place, "mark")
        raise LeaseError(
            f"{place.words[0]} is not yours ({place.what}): marks are for databases of `pg-harness up`; "
            "a test takes lease.mark()"
        )
    harness = place.harness
    return locks.exclusive(
        harness.link.session,
        "person",
        harness.project,
        timeout=120,
        waiting_for="another `up`, `mark` or `reset` of this checkout",
    )


def strategy_of(harness: Harness, place: Place) -> str | None:
    """How the place's template is cloned; None where it is gone: the server's own choice."""
    for name, database in place.databases.items():
        fingerprint = database.label.fingerprint or ""
        if found := template.look(harness.link.session, harness.project, fingerprint, name):
            return found.strategy
    return None


def _set(context: Context, place: Place, name: str | None) -> dict[str, Any]:
    harness = place.harness
    notes = Notes.of(context.settings, context.environ)
    life = Life.of(harness.link.session, harness.link.server_id, "")
    made, ended, noted = saved_marks.save(
        harness.link.session,
        harness.project,
        place.databases,
        name,
        role=harness.clones.owner.name,
        strategy=strategy_of(harness, place),
        reset_timeout=context.settings.reset_timeout,
    )
    reset.note_marks(harness.clones, notes, life, noted)
    for session in ended:
        context.console.warn(f"ended: {session}")
    logger.info("%s: marked as %r; `pg-harness reset` comes back to here", place.what, made.name)
    return {**told(place, made), "ended": ended}


def _release(context: Context, place: Place, name: str | None, *, everything: bool) -> list[dict[str, Any]]:
    harness = place.harness
    marks = saved_marks.stack(harness.link.session, harness.project, place.databases)
    if not marks and not everything:
        raise LeaseError(f"{place.what}: nothing is marked")
    lowest = None if everything else saved_marks.choose(marks, name) if name else marks[-1]
    gone = release(context, place, marks, lowest)
    left = marks[: len(marks) - len(gone)]
    where = f"mark {left[-1].name!r}" if left else "their migrations' state"
    names = ", ".join(repr(mark.name) for mark in gone) or "nothing"
    logger.info("%s: released %s; `pg-harness reset` goes to %s", place.what, names, where)
    return [told(place, mark) for mark in gone]


def release(context: Context, place: Place, marks: Sequence[Saved], lowest: Saved | None) -> list[Saved]:
    """As :func:`harness.sandbox.marks.release`, with what was noted of them."""
    notes = Notes.of(context.settings, context.environ)
    gone = saved_marks.release(place.harness.link.session, place.harness.project, marks, lowest)
    for mark in gone:
        for copy in mark.databases.values():
            notes.forget(copy.name)
    return gone


def _list(context: Context, worker: str | None) -> int:
    found: list[dict[str, Any]] = []
    with lookup.harnesses(context, purposes=["up"]) as harnesses:
        mine = [place for harness in harnesses for place in places_on(harness) if place.persons]
        for place in mine:
            if worker is None or worker in place.words:
                marks = saved_marks.stack(place.harness.link.session, place.harness.project, place.databases)
                found += [told(place, mark) for mark in marks]
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


def told(place: Place, mark: Saved) -> dict[str, Any]:
    """One mark for people and programs."""
    return {
        "worker": place.worker,
        "name": mark.name,
        "number": mark.number,
        "created": mark.created[:19].replace("T", " "),
        "databases": {name: database.name for name, database in mark.databases.items()},
    }
