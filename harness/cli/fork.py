"""``fork``: a second copy of a person's databases, beside the first."""

from __future__ import annotations

import logging
from typing import Any

import click

from harness.cli import lookup
from harness.cli.context import Context
from harness.cli.options import Word, completing, flag, json_flag
from harness.cli.parser import Usage
from harness.errors import ConfigError, LeaseError
from harness.runs.places import Place
from harness.sandbox.sandbox import Sandbox

logger = logging.getLogger("pg_harness.cli")

USAGE = "[NAME [--of WORKER] [--from MARK] | --drop NAME] [options]"

DESCRIPTION = """\
Copy your databases, with all that is in them, to new ones beside them: for a branch, an experiment, an agent. Prints the URL.

  pg-harness fork experiment              a copy of yours as it is
  pg-harness url experiment               its URL; env, psql, mark, reset and migrate take its name too
  pg-harness fork                         which there are
  pg-harness fork --drop experiment       drop it, after asking

Forks stay over `stop` and `up`, and are left alone by `up --fresh`. `down` ends them with the server.
"""

EPILOG = """\
PostgreSQL copies no database that somebody is in: open transactions are waited for (reset_timeout), then all sessions in yours are
ended and named. psql comes back by itself. With --from a mark is copied, and nobody's session ends.
"""


PARAMETERS: list[click.Parameter] = [
    Word(
        "name",
        metavar="NAME",
        help="a letter, then letters, digits and . _ - /",
        shell_complete=completing("forks"),
    ),
    click.Option(
        ["--of", "of"],
        metavar="WORKER",
        help="which of yours, or which fork; default: 1",
        shell_complete=completing("places", mine=True),
    ),
    click.Option(["--from", "mark"], metavar="MARK", help="what this mark holds; default: what is there now"),
    flag("--drop", help="drop the fork, with its marks"),
    flag("--dry-run", help="with --drop: only tell what would be dropped"),
    flag("--yes", help="do not ask (needed for --drop where there is no terminal)"),
    json_flag(),
]


def run(context: Context) -> int:
    """Make, list or drop."""
    given = vars(context.arguments)
    name, drop = given.get("name"), bool(given.get("drop"))
    if drop and name is None:
        raise Usage("which one? `pg-harness fork --drop NAME`")
    if name is None and given.keys() & {"of", "mark"}:
        raise Usage("--of and --from go with the name of a new fork")
    if drop and given.keys() & {"of", "mark"}:
        raise Usage("--of and --from do not go with --drop")
    if given.get("dry_run") and not drop:
        raise Usage("--dry-run goes with --drop: a new fork replaces nothing")
    found = lookup.open_one(context, "up")
    if found is None:
        if name is not None:
            raise lookup.nothing(context)
        return _list(context, [])
    with found:
        sandbox = Sandbox(found)
        if name is None:
            return _list(context, list(sandbox.forks().values()))
        if drop:
            return _drop(context, sandbox, name)
        return _make(context, sandbox, name, given.get("of") or "1", given.get("mark"))


def _make(context: Context, sandbox: Sandbox, name: str, of: str, mark: str | None) -> int:
    everything = sandbox.everything()
    if of not in everything:
        if not everything:
            raise lookup.nothing(context)
        raise LeaseError(f"you have no database {of!r} to copy; there are {', '.join(everything)}")
    made, ended = sandbox.fork(everything[of], name, mark)
    for session in ended:
        context.console.warn(f"ended: {session}")
    state = f"mark {mark!r} of {everything[of].what}" if mark is not None else everything[of].what
    logger.info("%s: a copy of %s", made.what, state)
    if context.json:
        context.console.json({**_told(made), "ended": ended})
    else:
        context.console.answer(made.dsn().url)
    return 0


def _list(context: Context, forks: list[Place]) -> int:
    if context.json:
        context.console.json([_told(fork) for fork in forks])
        return 0
    for fork in forks:
        told = _told(fork)
        context.console.answer(f"{told['name']}  {told['created']}  {', '.join(told['databases'].values())}")
    if not forks:
        logger.info("there are no forks")
    return 0


def _drop(context: Context, sandbox: Sandbox, name: str) -> int:
    given = vars(context.arguments)
    forks = sandbox.forks()
    if name not in forks:
        known = ", ".join(forks) or "none"
        why = " (it is no fork)" if name in sandbox.workers() else ""
        raise LeaseError(f"there is no fork {name!r}{why}; there are {known}")
    fork = forks[name]
    if not given.get("dry_run"):
        _confirm(context, sandbox, fork, yes=bool(given.get("yes")))
        sandbox.drop_fork(fork)
        logger.info("%s: dropped", fork.what)
    elif not context.json:
        for database in fork.databases.values():
            context.console.answer(database.name)
    if context.json:
        context.console.json({"dry_run": bool(given.get("dry_run")), "dropped": _told(fork)})
    return 0


def _confirm(context: Context, sandbox: Sandbox, fork: Place, *, yes: bool) -> None:
    if yes:
        return
    saved = ", ".join(repr(mark.name) for mark in sandbox.marks(fork))
    context.console.warn(
        f"{fork.what} goes with all that is in it: {', '.join(d.name for d in fork.databases.values())}"
        + (f"; and its marks {saved}" if saved else "")
    )
    if not context.console.can_ask:
        raise ConfigError("nothing was dropped: this is no terminal to ask on. Add --yes", key="yes")
    if not context.console.ask("drop it?"):
        raise ConfigError("nothing was dropped", key="yes")


def _told(fork: Place) -> dict[str, Any]:
    """One fork for people and programs."""
    created = min((database.label.created or "" for database in fork.databases.values()), default="")
    return {
        "name": fork.worker,
        "url": fork.dsn().url,
        "created": created[:19].replace("T", " "),
        "databases": {name: database.name for name, database in fork.databases.items()},
    }
