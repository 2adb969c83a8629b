"""``reset``: databases back to a mark, or to the state that their migrations left."""

from __future__ import annotations

import argparse
import time
from typing import Any

from harness import saved, template
from harness.catalog import databases
from harness.cli import seen
from harness.cli.context import Context
from harness.cli.mark import TEMPLATE, changing, strategy_of
from harness.cli.parser import Usage, add_json
from harness.clones import Claim
from harness.errors import LeaseError, LeaseLost
from harness.names import Kind

USAGE = "[WORKER | --all] [--to NAME] [options]"

DESCRIPTION = """\
Replace a worker's databases by fresh clones, under the same URLs. Sessions in them are ended.

They come back to the last mark (`pg-harness mark`), else to the migrations that they were made from;
`up --fresh` takes today's. A test run's worker can be named too, while it runs.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own options."""
    parser.add_argument(
        "worker", nargs="?", metavar="WORKER", help="2 (yours), gw2 (a test run's); default: 1"
    )
    parser.add_argument("--all", action="store_true", help="all of yours")
    parser.add_argument(
        "--to",
        metavar="NAME",
        help="a mark, releasing those above it; `template`: the migrations' state, releasing all",
    )
    add_json(parser)


def run(context: Context) -> int:
    """Reset them; tell each one."""
    given = vars(context.arguments)
    if given.get("all") and given.get("worker"):
        raise Usage("name a worker or give --all, not both")
    reports: list[dict[str, Any]] = []
    if given.get("all"):
        with seen.harnesses(context, purposes=["up"]) as found:
            mine = [place for harness in found for place in seen.places(harness) if place.persons]
            if not mine:
                raise LeaseError(seen.NOTHING)
            reports += [_reset(place, given.get("to")) for place in mine]
    else:
        with seen.resolved(context, given.get("worker") or "1") as place:
            reports.append(_reset(place, given.get("to")))
    if context.json:
        context.console.json(reports)
    for report in reports:
        context.console.story(
            f"{report['what']}: {report['state']}, {len(report['databases'])} fresh clone(s) "
            f"in {report['milliseconds']:.0f} ms"
        )
    return 0


def _reset(place: seen.Place, to: str | None) -> dict[str, Any]:
    seen.refuse_template(place, "reset")
    if place.kind is Kind.KEPT:
        raise LeaseError(
            f"{place.words[0]} is kept for inspection ({place.what}): it is not reset; a worker's is"
        )
    began = time.monotonic()
    if place.persons:
        with changing(place):
            state = _reset_mine(place, to)
    elif to not in (None, TEMPLATE):
        raise LeaseError(f"{place.words[0]} is not yours ({place.what}): it has no marks of a person's")
    else:
        state = _reset_to_template(place)
    return {
        "worker": place.worker,
        "what": place.what,
        "strategy": "clone",
        "state": state,
        "databases": {name: database.name for name, database in place.databases.items()},
        "milliseconds": round(1000 * (time.monotonic() - began), 1),
    }


def _reset_mine(place: seen.Place, to: str | None) -> str:
    """Go to a mark, or to the template; marks above it are released once it worked. Tells where it went."""
    harness = place.harness
    session = harness.link.session
    marks = saved.stack(session, harness.project, place.databases)
    if to == TEMPLATE or (to is None and not marks):
        state = _reset_to_template(place)
        saved.release(session, harness.project, marks, None)
        return state
    mark = saved.choose(marks, to) if to is not None else marks[-1]
    saved.restore(harness.clones, mark, place.databases, strategy=strategy_of(harness, place))
    above = [other for other in marks if other.number > mark.number]
    if above:
        saved.release(session, harness.project, above, None)
    return f"mark {mark.name!r}"


def _reset_to_template(place: seen.Place) -> str:
    harness = place.harness
    session = harness.link.session
    for name, database in place.databases.items():
        fingerprint = str((database.mark or {}).get("fingerprint", ""))
        found = template.look(session, harness.project, fingerprint, name)
        if found is None:
            raise LeaseLost(
                f"the template that {place.what} was made from is gone; `pg-harness up --fresh` makes it from today's "
                "migrations"
            )
        index = int(database.parsed.tail.rpartition("_")[2]) if database.parsed else 0
        claim = Claim(place.run, place.worker, index, {"root": str(harness.settings.root)})
        retired = harness.clones.replace(found, claim)
        if retired:
            databases.drop_retired(session, retired)
    return "the migrations' state"
