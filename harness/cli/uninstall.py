"""``uninstall``: remove all that pg-harness has put on this machine for this user."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from harness.cli.context import Context
from harness.cli.options import flag, json_flag
from harness.config import own_folder
from harness.errors import ConfigError, LeaseInUse
from harness.listing import counted
from harness.servers.inventory import Asked, Orphan
from harness.servers.port import Snapshot, SnapshotStore

logger = logging.getLogger("pg_harness.cli")

DESCRIPTION = """\
List what pg-harness has put on this machine for you, in all checkouts, and remove it after asking: servers with their data
(your own databases of `up` too), containers, baked directories and images, caches, and what is noted of checkouts.

Servers that are in use are left alone, with all that belongs to them, and named. Settings in your projects stay, and
so do databases on servers that others run (server_url): `pg-harness down --all` in a checkout drops those.
The program itself goes with `pip uninstall pg-harness`.
"""


PARAMETERS: list[click.Parameter] = [
    flag("--dry-run", help="only tell what would go"),
    flag("--yes", help="do not ask (needed where there is no terminal)"),
    json_flag(),
]


@dataclass
class Estate:
    """All of it.

    Attributes:
        servers: with what ends each.
        kept: baked directories and images, with the store that removes each.
        folders: of caches and state.
    """

    servers: list[Orphan] = field(default_factory=list)
    kept: list[tuple[Snapshot, SnapshotStore]] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    @classmethod
    def of(cls, context: Context) -> Estate:
        """Look at all backends, and at our folders."""
        found = cls()
        folders = [context.project.state, context.project.cache]
        for backend in context.asked.working:
            found.servers += [Orphan(info, backend) for info in backend.list(None)]
            if (store := backend.snapshots()) is not None:
                found.kept += [(snapshot, store) for snapshot in store.list()]
            folders += backend.folders()
        found.folders = sorted({path for path in folders if path.is_dir()})
        return found

    def lines(self) -> Iterator[str]:
        """One for each thing, for people."""
        for server in self.servers:
            info = server.info
            whose = (
                "your databases"
                if info.purpose == "up"
                else "a bake"
                if info.purpose.startswith("bake-")
                else "test runs"
            )
            yield f"server   {info.description} ({whose}{' of ' + info.root if info.root else ''})"
        for snapshot, store in self.kept:
            what = "image" if store.from_disk else "directory"
            yield f"baked    {what} {snapshot.name or snapshot.ref}, {snapshot.size >> 20} MB"
        for folder in self.folders:
            yield f"folder   {folder}, {own_folder.size(folder) >> 20} MB"


def run(context: Context) -> int:
    """Remove it; what went is the answer.

    Raises:
        ConfigError: there is nobody to ask, or the answer was no. LeaseInUse: some of it is in use.
        BackendUnavailable: what may hold more could not be asked.
    """
    given = vars(context.arguments)
    found = Estate.of(context)
    lines = list(found.lines())
    if given.get("dry_run"):
        _answer(context, lines, dry_run=True)
        context.asked.check("and what it holds is not listed")
        return 0
    if not lines:
        _answer(context, [], dry_run=False)
        context.asked.check("and what it holds was not removed")
        logger.info("there is nothing of pg-harness on this machine")
        return 0
    _confirm(context, lines, yes=bool(given.get("yes")))
    used = _end(found, context.asked, context.project.state)
    _answer(context, lines if not used else [], dry_run=False)
    if used:
        raise LeaseInUse(
            f"{counted(len(used), 'server')} could not be ended, and what belongs to all of them is still there: end those runs, "
            "then call it again",
            sessions=used,
        )
    context.asked.check("and what it holds was not removed")
    logger.info("removed. The program goes with: pip uninstall pg-harness")
    return 0


def _confirm(context: Context, lines: list[str], *, yes: bool) -> None:
    say = logger.info if yes else context.console.warn
    say("this is removed, of all checkouts:")
    for line in lines:
        say(f"  {line}")
    if yes:
        return
    if not context.console.can_ask:
        raise ConfigError("nothing was removed: this is no terminal to ask on. Add --yes", key="yes")
    if not context.console.ask("remove all of it?"):
        raise ConfigError("nothing was removed", key="yes")


def _end(found: Estate, asked: Asked, state: Path) -> list[str]:
    """Remove it; return what is in use, and then no folder is gone."""
    used = [f"{server.info.description}: {why}" for server in found.servers if (why := server.end())]
    # One that was started meanwhile has its data in these folders.
    used = used or [
        f"{info.description}: it was started meanwhile"
        for backend in asked.working
        for info in backend.list(None)
    ]
    if used:
        return used
    # Here: hardly anybody has one. Those in front of servers of ours have ended with them.
    from harness.servers.pooler import notes

    for told in notes.end_all(state, runs=True):
        logger.info("ended %s", told)
    for snapshot, store in found.kept:
        store.remove(snapshot)
    for folder in found.folders:
        if why := own_folder.distrust(folder, links=True):
            logger.warning("%s is left alone: %s", folder, why)
            continue
        shutil.rmtree(folder, ignore_errors=True)
    return []


def _answer(context: Context, lines: list[str], *, dry_run: bool) -> None:
    if context.json:
        context.console.json({"dry_run": dry_run, "removed": lines})
        return
    for line in lines:
        context.console.answer(line)
