"""``down``: end this checkout's servers. Never another checkout's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import click

from harness.cli import lookup
from harness.cli.context import Context
from harness.cli.options import flag, json_flag
from harness.databases import sweep
from harness.errors import ConfigError, HarnessError
from harness.postgres import databases, roles
from harness.postgres.names import PREFIX, Kind
from harness.postgres.session import greet
from harness.runs.places import Place, places_on
from harness.sandbox import guests
from harness.sandbox.sandbox import Sandbox
from harness.sandbox.watermarks import WatermarkStore
from harness.servers import handshake, inventory
from harness.servers.acquire import alone
from harness.servers.port import ServerInfo, of_agents

logger = logging.getLogger("pg_harness.cli")

_NAMED = 8
"""Databases that a line of the log names; --dry-run names all."""

DESCRIPTION = """\
End the server that `up` started in this checkout, and remove its data: your databases are gone. Where they were
changed since they were made, it asks first (`stop` keeps the data).

--all ends the servers of this checkout's test runs and agents as well (tests that run just now lose theirs), with their
templates and the databases that failed tests kept.

Other checkouts are never touched. A server that someone else runs (--server-url) goes on; there, `down` drops
your databases, and `down --all` all of this checkout's: templates, spares and kept ones too.
"""


PARAMETERS: list[click.Parameter] = [
    flag("--all", help="the servers of test runs and agents too, with templates and kept databases"),
    flag("--dry-run", help="only tell what would go"),
    flag("--yes", help="do not ask (needed where your databases were changed, and there is no terminal)"),
    json_flag(),
]


def run(context: Context) -> int:
    """End them; nothing to end is success.

    Raises:
        BackendUnavailable: what may hold more of them could not be asked.
    """
    everything = bool(getattr(context.arguments, "all", False))
    dry_run = bool(getattr(context.arguments, "dry_run", False))
    asked: inventory.Asked | None = None
    with alone(context.project):
        if not dry_run:
            _confirm(context, yes=bool(getattr(context.arguments, "yes", False)))
        if context.settings.server_url:
            ended = _drop_external(context, everything, dry_run)
        else:
            asked = context.asked
            ended = _end(context, everything, asked, dry_run)
    if context.json:
        context.console.json({"dry_run": dry_run, "ended": ended})
    if asked is not None:
        asked.check()
    if not ended and not context.json:
        logger.info("there was nothing to end here")
    return 0


def _confirm(context: Context, *, yes: bool) -> None:
    """Ask a person whose databases would go with what is in them.

    Raises:
        ConfigError: there is nobody to ask, or the answer was no.
    """
    lines = [] if yes else _changed(context)
    if not lines:
        return
    context.console.warn("your databases were changed since they were made, and `down` removes them:")
    for line in lines:
        context.console.warn(f"  {line}")
    if not context.console.can_ask:
        raise ConfigError(
            "nothing was ended: this is no terminal to ask on. Add --yes, or keep the data: `pg-harness stop`",
            key="yes",
        )
    if not context.console.ask("remove them?"):
        raise ConfigError("nothing was ended", key="yes")


def _changed(context: Context) -> list[str]:
    """What a person may miss, one line for each worker; none where all is as the migrations made it."""
    found = lookup.open_one(context, "up", guard=False)
    if found is None:
        stopped = (
            inventory.servers(context.project, asked=context.asked) if not context.settings.server_url else ()
        )
        return [
            f"{info.description}: it does not answer, so what is in it cannot be told"
            for info in stopped
            if info.purpose == "up"
        ]
    with found:
        sandbox = Sandbox(found)
        return [line for place in sandbox.everything().values() if (line := _changed_in(sandbox, place))]


def _changed_in(sandbox: Sandbox, place: Place) -> str:
    if place.fork:
        return f"{place.what}: all that is in it"
    if saved := sandbox.marks(place):
        return f"worker {place.worker}: its marks {', '.join(repr(mark.name) for mark in saved)}"
    try:
        changes = sandbox.changes(place).databases
    except HarnessError as error:
        return f"worker {place.worker}: what was changed cannot be told ({error.message.splitlines()[0]})"
    told = []
    for name, what in changes.items():
        title = "" if name == "default" else f"{name}: "
        if isinstance(what, HarnessError):
            told.append(f"{title}what was changed cannot be told ({what.message.splitlines()[0]})")
        elif what:
            told.append(f"{title}{', '.join(what.table_names[:_NAMED]) or 'its schema'}")
    return f"worker {place.worker}: {'; '.join(told)}" if told else ""


def _end(context: Context, everything: bool, asked: inventory.Asked, dry_run: bool) -> list[dict[str, Any]]:
    ended: list[dict[str, Any]] = []
    ids = []
    for info in inventory.servers(context.project, asked=asked):
        if info.purpose == "up" or everything:
            ids.append(info.server_id)
            names = _databases(context, info)
            ended.append(
                {
                    "purpose": info.purpose,
                    "backend": info.backend,
                    "description": info.description,
                    "databases": names,
                }
            )
            _tell(context, f"{info.purpose}: {info.description}", names, dry_run)
        elif of_agents(info.purpose):
            # A person who wants all gone does not know that an agent's client has started one.
            logger.info(
                "left: the agents' server of `pg-harness mcp`, %s. It ends itself after %g s without use; `pg-harness down --all` ends it now, "
                "with what agents have in it",
                info.description,
                info.ttl or 0,
            )
    if dry_run:
        return ended
    noted = inventory.noted_purposes(context.project) if everything else ()
    for purpose in dict.fromkeys(["up", *(str(entry["purpose"]) for entry in ended), *noted]):
        inventory.stop(context.project, purpose=purpose, asked=asked)
    WatermarkStore.of(context.project).forget_all()
    guests.forget(context.project, ids)
    inventory.forget_cut_off(context.project)
    return ended


def _databases(context: Context, info: ServerInfo) -> list[str]:
    """What somebody may miss: leased, marked and kept databases. None of a server that does not answer soon."""
    if not handshake.listens(info):
        return []
    try:
        session = greet(info.dsn, info.server_id, timeout=2)
    except HarnessError:
        return []
    if session is None:
        return []
    with session:
        found = databases.list_ours(session, context.project.id)
    return [database.name for database in found if database.kind in (Kind.LEASE, Kind.MARK, Kind.KEPT)]


def _tell(context: Context, what: str, names: Sequence[str], dry_run: bool) -> None:
    if not dry_run:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        logger.info("ending %s%s", what, f", with {', '.join(names[:_NAMED])}{more}" if names else "")
    elif not context.json:
        context.console.answer(what)
        for name in names:
            context.console.answer(f"  {name}")


def _end_poolers(context: Context, everything: bool) -> None:
    """Those in front of a server of ours end with it."""
    # Here: most checkouts have none.
    from harness.servers.pooler import notes

    for told in notes.end_all(context.project.folder, runs=everything):
        logger.info("ended %s", told)


def _drop_external(context: Context, everything: bool, dry_run: bool) -> list[dict[str, Any]]:
    dropped: list[dict[str, Any]] = []
    with lookup.servers(context) as found:
        for server in found:
            session = server.link.session
            mine = [
                database.name
                for place in places_on(server)
                if place.sandbox
                for database in place.databases.values()
            ]
            observed = databases.list_ours(session, server.project.id)
            runs = {d.owner for d in observed if d.kind is Kind.LEASE}
            alive = sweep.alive_runs(session, sorted(runs))
            for database in observed:
                if not (database.name in mine or database.marked_lease in mine or everything):
                    continue
                if database.owner in alive and database.kind is Kind.LEASE:
                    context.console.warn(
                        f"left alone: {database.name}, the test run {database.owner[:8]} is alive"
                    )
                    continue
                if dry_run:
                    dropped.append({"database": database.name})
                    if not context.json:
                        context.console.answer(database.name)
                    continue
                if database.kind is Kind.TEMPLATE:
                    sweep.drop_template(session, server.project.id, database)
                elif not databases.drop(session, database.name, server.project.id):
                    continue
                logger.info("dropped %s", database.name)
                dropped.append({"database": database.name})
            if not dry_run:
                _end_poolers(context, everything)
                sweep.drop_logins(session, server.project.id, sandbox=True)
            if everything and not dry_run and not databases.list_ours(session, server.project.id):
                # Named after this checkout, so nobody else's. One that owns something elsewhere stays.
                roles.drop_ours(session, f"{PREFIX}_{server.project.id}")
    return dropped
