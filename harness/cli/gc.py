"""``gc``: drop what dead runs left."""

from __future__ import annotations

import logging
from typing import Any

import click

from harness.cli import lookup
from harness.cli.context import Context
from harness.cli.options import flag, json_flag
from harness.databases import sweep
from harness.runs import bake
from harness.servers import inventory

logger = logging.getLogger("pg_harness.cli")

DESCRIPTION = """\
Drop what dead test runs of this checkout left on its servers, half-built templates, templates beyond
keep_templates and template_age, and databases kept beyond keep_failed. Each run does the same as it begins.

Workers' own servers (isolation = "server") that were killed together with their switch, and baked servers
beyond keep_baked, baked_size and template_age, go as well.

So do whole servers of checkouts of this machine that are gone, with their data, unless somebody uses them.

For half a minute after a server's start or crash the runs that use it are not told from dead ones: what would go
then waits, unless --now says that there are none.

Your own databases, those of runs that are alive, and everything of other checkouts that are there stay.
"""


PARAMETERS: list[click.Parameter] = [
    flag("--dry-run", help="only tell what would go"),
    flag("--now", help="do not wait for runs to show a sign of life after their server's start"),
    json_flag(),
]


def run(context: Context) -> int:
    """Sweep each server; the names of what went are the answer.

    Raises:
        BackendUnavailable: what may hold more could not be asked.
    """
    dry_run = bool(getattr(context.arguments, "dry_run", False))
    at_once = bool(getattr(context.arguments, "now", False))
    gone: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []
    with lookup.servers(context) as found:
        for server in found:
            for doomed in server.sweep(dry_run=dry_run, graceful=not at_once):
                name = doomed.item.name
                gone.append(
                    {"database": name, "reason": doomed.reason, "server": server.server.info.description}
                )
                if not context.json:
                    context.console.answer(f"{name}  {doomed.reason}")
            if at_once:
                continue
            names, seconds = sweep.waiting(server.link.session, context.project.id)
            if names:
                waiting.append(
                    {
                        "databases": names,
                        "seconds": round(seconds, 1),
                        "server": server.server.info.description,
                    }
                )
    if not dry_run:
        inventory.forget_cut_off(context.project)
        _sweep_poolers(context)
    asked = context.asked
    for item in _bases(context, asked, dry_run) + _orphans(context, asked, dry_run):
        gone.append(item)
        if not context.json:
            context.console.answer(f"{item.get('base') or item['server']}  {item['reason']}")
    if context.json:
        context.console.json({"dry_run": dry_run, "dropped": gone, "waiting": waiting})
    elif gone:
        logger.info("%d %s dropped", len(gone), "would be" if dry_run else "were")
    if context.settings.server_url is None:
        asked.check()
    for wait in [] if context.json else waiting:
        many = len(wait["databases"])
        logger.info(
            "%d database%s on %s show%s no sign of life, which a run may take again within %.0f s after its server's start: "
            "`pg-harness gc` then, or `gc --now`",
            many, "" if many == 1 else "s", wait["server"], "s" if many == 1 else "", wait["seconds"],
        )  # fmt: skip
    if not gone and not waiting and not context.json:
        logger.info("nothing is left over")
    return 0


def _sweep_poolers(context: Context) -> None:
    # Here: most checkouts have none.
    from harness.servers.pooler import notes

    for folder in notes.sweep(context.project.state):
        logger.info("removed %s: its pooler has ended", folder)


def _bases(context: Context, asked: inventory.Asked, dry_run: bool) -> list[dict[str, Any]]:
    """What was baked and is beyond the limits, and what bakes and workers' servers have left."""
    settings = context.settings
    if settings.server_url is not None:
        return []
    gone: list[dict[str, Any]] = []
    for backend in asked.working:
        bakery = backend.snapshots()
        if bakery is None:
            continue
        for doomed in bake.evict(bakery, bake.retention(settings), dry_run=dry_run):
            gone.append(
                {
                    "base": doomed.item.ref,
                    "reason": doomed.reason,
                    "bytes": doomed.item.size,
                    "server": backend.name,
                }
            )
        if not dry_run:
            gone += [
                {"base": name, "reason": "its maker was cut off", "server": backend.name}
                for name in bakery.leftovers()
            ]
    if not dry_run:
        inventory.forget_gone(context.project, asked.silent)
    return gone


def _orphans(context: Context, asked: inventory.Asked, dry_run: bool) -> list[dict[str, Any]]:
    """Servers of checkouts that are gone, and what was noted of such checkouts."""
    ended: list[dict[str, Any]] = []
    for orphan in inventory.orphans(context.project, asked):
        info = orphan.info
        if not dry_run and (why := orphan.end()):
            context.console.warn(f"left alone: {info.description} of {info.root}, which is gone: {why}")
            continue
        reason = f"its checkout {info.root} is gone"
        ended.append({"server": info.description, "backend": info.backend, "reason": reason})
    if not dry_run and not asked.silent:
        # What was noted of a server that nobody could ask stays.
        inventory.forget_deleted(context.project, asked)
    return ended
