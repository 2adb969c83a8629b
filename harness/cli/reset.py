"""``reset``: databases back to a mark, or to the state that their migrations left."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from harness.cli import inside, lookup
from harness.cli.context import Context
from harness.cli.options import Word, completing, flag, json_flag
from harness.cli.parser import Usage
from harness.config import decisions
from harness.config.run_variables import URL
from harness.errors import LeaseError
from harness.listing import counted
from harness.postgres.names import Kind
from harness.reset.report import STRATEGIES, ResetReport
from harness.runs.places import Place, places_on
from harness.sandbox.marks import TEMPLATE, SavedMark
from harness.sandbox.reset import renew
from harness.sandbox.sandbox import Sandbox

logger = logging.getLogger("pg_harness.cli")

USAGE = "[WORKER | --all] [--to NAME] [--dry-run] [options]"

DESCRIPTION = """\
Bring a worker's databases back, under the same URLs, and tell what was put back.

They come back to the last mark (`pg-harness mark`), else to the migrations that they were made from;
`up --fresh` takes today's. A test run's worker can be named too, while it runs.
"""

EPILOG = """\
Only what changed is put back, and open sessions go on; one that is in a transaction is waited for (reset_timeout),
then ended and named. Where the schema was changed, the server was restarted, or too much was written, it is a fresh
clone, which ends all sessions; a line says why. A test run's worker gets a clone each time.
"""

NAMED = 6
"""Tables that one line names."""


PARAMETERS: list[click.Parameter] = [
    Word(
        "worker",
        metavar="WORKER",
        help="2 (yours), gw2 (a test run's); default: 1",
        shell_complete=completing("places"),
    ),
    flag("--all", help="all of yours, but for forks"),
    click.Option(
        ["--to"],
        metavar="NAME",
        help="a mark, releasing those above it; `template`: the migrations' state, releasing all",
        shell_complete=completing("marks"),
    ),
    flag("--dry-run", help="only tell what changed since then"),
    json_flag(),
]


def run(context: Context) -> int:
    """Reset them; tell each one."""
    given = vars(context.arguments)
    if given.get("all") and given.get("worker"):
        raise Usage("name a worker or give --all, not both")
    if (client := inside.client_of(context)) is not None:
        with client:
            return inside.reset(
                context,
                client,
                given.get("worker"),
                given.get("to"),
                everything=bool(given.get("all")),
                dry_run=bool(given.get("dry_run")),
            )
    if given.get("all") and inside.run_of(context):
        raise Usage(
            f"inside a run, --all means the databases of that run; {URL}, which leads to them, is not set here"
        )
    act = _tell if given.get("dry_run") else _reset
    reports: list[dict[str, Any]] = []
    if given.get("all"):
        with lookup.servers(context, purposes=["up"]) as found:
            everything = [place for server in found for place in places_on(server)]
            mine = [place for place in everything if place.sandbox and not place.fork]
            if not mine:
                raise lookup.nothing(context)
            reports += [act(context, place, given.get("to")) for place in mine]
    else:
        with lookup.resolved(context, given.get("worker")) as place:
            reports.append(act(context, place, given.get("to")))
    if context.json:
        context.console.json(reports)
    return 0


def _reset(context: Context, place: Place, to: str | None) -> dict[str, Any]:
    _refuse(place)
    began = time.monotonic()
    if place.sandbox:
        sandbox = Sandbox(place.session)
        there = sandbox.marks(place)
        back = sandbox.reset(place, to)
        state, reports = _named(back.mark), back.reports
        if above := _above(there, back.mark):
            logger.info("%s: released %s", place.what, above)
    elif to not in (None, TEMPLATE):
        raise LeaseError(f"{place.words[0]} is not yours ({place.what}): it has no marks of a person's")
    else:
        state, reports = _named(None), renew(place)
    milliseconds = round(1000 * (time.monotonic() - began), 1)
    together = _together(place, state, reports, milliseconds)
    _say(context, together)
    return together


def _refuse(place: Place) -> None:
    lookup.refuse_template(place, "reset")
    if place.kind is Kind.KEPT:
        raise LeaseError(
            f"{place.words[0]} is kept for inspection ({place.what}): it is not reset; a worker's is"
        )


def _together(
    place: Place, state: str, reports: Mapping[str, ResetReport], milliseconds: float
) -> dict[str, Any]:
    several = len(reports) > 1
    return {
        "worker": place.worker,
        "what": place.what,
        "strategy": max((r.strategy for r in reports.values()), key=STRATEGIES.index),
        "state": state,
        "databases": {name: database.name for name, database in place.databases.items()},
        "tables": [f"{n}: {t}" if several else t for n, r in reports.items() for t in r.tables],
        "rows": sum(report.rows for report in reports.values()),
        "reason": "; ".join(dict.fromkeys(r.reason for r in reports.values() if r.reason)),
        "ended": [session for report in reports.values() for session in report.ended],
        "milliseconds": milliseconds,
        "reports": {name: asdict(report) for name, report in reports.items()},
    }


def _say(context: Context, report: dict[str, Any]) -> None:
    for session in report["ended"]:
        context.console.warn(f"ended: {session}")
    if report["strategy"] == "nothing":
        did = "nothing had changed"
    elif report["strategy"] == "rewind":
        did = f"pages of {_listed(report['tables']) or 'catalogs'} put back, sessions kept"
    elif report["strategy"] == "restore" and not report["tables"]:
        did = "no rows had changed, sessions kept"
    elif report["strategy"] == "restore":
        did = f"{_listed(report['tables'])} put back ({counted(report['rows'], 'row')}), sessions kept"
    else:
        clones = sum(one["strategy"] == "clone" for one in report["reports"].values())
        why = f" ({report['reason']})" if report["reason"] else ""
        did = f"{counted(clones, 'fresh clone')}{why}"
    logger.info("%s: %s, %s in %.0f ms", report["what"], report["state"], did, report["milliseconds"])
    decisions.note(context.project, "reset", f"{report['what']}: {report['state']}, {did}")


def _listed(tables: Sequence[str]) -> str:
    more = f" and {len(tables) - NAMED} more" if len(tables) > NAMED else ""
    return ", ".join(tables[:NAMED]) + more


def _above(there: Sequence[SavedMark], mark: SavedMark | None) -> str:
    """The marks that a reset to this one releases, for people; empty where there is none."""
    return ", ".join(repr(one.name) for one in there if mark is None or one.number > mark.number)


def _named(mark: SavedMark | None) -> str:
    return f"mark {mark.name!r}" if mark else "the migrations' state"


def _tell(context: Context, place: Place, to: str | None) -> dict[str, Any]:
    """What changed since the state that a reset would go to; nothing is reset."""
    _refuse(place)
    if not place.sandbox:
        raise LeaseError(
            f"{place.words[0]} is not yours ({place.what}): what changed there only its own process knows, "
            "as lease.changes()"
        )
    sandbox = Sandbox(place.session)
    found = sandbox.changes(place, to)
    state = _named(found.mark)
    if above := _above(sandbox.marks(place), found.mark):
        logger.info("%s: a reset releases %s", place.what, above)
    told: dict[str, dict[str, Any]] = {}
    for name, changes in found.databases.items():
        unknown = str(changes) if isinstance(changes, LeaseError) else ""
        lines = [] if unknown or not changes else str(changes).splitlines()
        told[name] = {"changes": lines, "unknown": unknown}
    several = len(told) > 1 or bool(getattr(context.arguments, "all", False))
    for name, one in told.items():
        where, what = (f"{place.worker} {name}: ", f"{place.what}, {name}") if several else ("", place.what)
        if one["unknown"]:
            logger.info(
                "%s: what changed cannot be told, a reset is a fresh clone (%s)", what, one["unknown"]
            )
        elif not one["changes"]:
            logger.info("%s: nothing changed since %s", what, state)
        if not context.json:
            for line in one["changes"]:
                context.console.answer(f"{where}{line}")
    return {"worker": place.worker, "what": place.what, "state": state, "databases": told}
