"""``migrate``: pending migrations, applied to a person's databases as they are."""

from __future__ import annotations

import logging
from typing import Any

import click

from harness.cli import lookup
from harness.cli.context import Context
from harness.cli.options import Word, completing, flag, json_flag
from harness.errors import LeaseError
from harness.runs.places import Place
from harness.sandbox.sandbox import Sandbox
from harness.sandbox.upgrade import Pending
from harness.servers.acquire import alone

logger = logging.getLogger("pg_harness.cli")

USAGE = "[WORKER] [--dry-run] [options]"

DESCRIPTION = """\
Apply the migrations that your databases lack, and keep all that is in them.

  pg-harness migrate                  all of yours, but for forks
  pg-harness migrate experiment       a fork
  pg-harness migrate --dry-run        only tell what is pending

Migration tools (alembic, django, command: …) run as they do on an empty database: what is applied they know. Of `sql:` the
files run that the database does not have; extensions that the settings name are created. Seeds are not applied again.
"""

EPILOG = """\
The migrations are tried on an empty database first, then they run on a copy that takes the database's place, so where one fails
nothing was changed. Nobody can enter the database meanwhile: open transactions are waited for (reset_timeout), then all sessions in
it are ended and named. A file of `sql:` that was changed or removed since is refused, and one that comes before applied ones too.
`reset` comes back to the new migrations' state from then on; marks stay what they are.
"""


PARAMETERS: list[click.Parameter] = [
    Word(
        "worker",
        metavar="WORKER",
        help="2 (yours), or a fork's name; default: all of yours, but for forks",
        shell_complete=completing("places", mine=True),
    ),
    flag("--out-of-order", help="apply files too that come before applied ones"),
    flag("--dry-run", help="only tell what is pending"),
    json_flag(),
]


def run(context: Context) -> int:
    """Apply what is pending; nothing pending is success."""
    given = vars(context.arguments)
    out_of_order, dry_run = bool(given.get("out_of_order")), bool(given.get("dry_run"))
    told: list[dict[str, Any]] = []
    # As `up`, which may make a template too.
    with alone(context.project), lookup.servers(context, purposes=["up"]) as servers:
        if not servers:
            raise lookup.nothing(context)
        sandbox = Sandbox(servers[0])
        places = _chosen(context, sandbox, given.get("worker"))
        # All are looked at before anything is changed: what is refused of one of them is so of most.
        plans = [(place, sandbox.pending(place, out_of_order=out_of_order)) for place in places]
        if not dry_run and any(plan for _, plan in plans):
            sandbox.prepare()
        for place, plan in plans:
            done, ended = plan, list[str]()
            if plan and not dry_run:
                done, ended = sandbox.migrate(place, out_of_order=out_of_order)
            for session in ended:
                context.console.warn(f"ended: {session}")
            told.append(_say(context, place, done, ended, dry_run=dry_run))
    if context.json:
        context.console.json(told)
    return 0


def _chosen(context: Context, sandbox: Sandbox, worker: str | None) -> list[Place]:
    everything = sandbox.everything()
    if worker is None:
        mine = list(sandbox.workers().values())
        if not mine:
            raise lookup.nothing(context)
        return mine
    if worker not in everything:
        known = ", ".join(everything) or "none"
        raise (
            LeaseError(f"you have no database {worker!r}; there are {known}")
            if everything
            else lookup.nothing(context)
        )
    return [everything[worker]]


def _say(
    context: Context, place: Place, plan: dict[str, Pending], ended: list[str], *, dry_run: bool
) -> dict[str, Any]:
    steps = {name: list(what.steps) for name, what in plan.items() if what.steps}
    if not steps:
        logger.info("%s: nothing is pending", place.what)
    for name, lines in steps.items():
        title = place.what if name == "default" else f"{place.what}, {name}"
        if not dry_run:
            logger.info("%s: applied %s", title, ", ".join(lines))
        elif not context.json:
            for line in lines:
                several = len(place.databases) > 1
                context.console.answer(f"{place.worker}{f' {name}' if several else ''}  {line}")
    if steps and any(what.seeds for what in plan.values()):
        logger.info("%s: the seeds are not applied again: the data is yours", place.what)
    return {"worker": place.worker, "what": place.what, "dry_run": dry_run, "steps": steps, "ended": ended}
