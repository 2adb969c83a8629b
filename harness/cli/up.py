"""``up``: a person's own databases."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from harness.cli.context import Context
from harness.cli.options import NUMBER, flag, json_flag, seconds
from harness.errors import ConfigError
from harness.sandbox.current import urls

if TYPE_CHECKING:
    from harness.runs.places import Place
    from harness.sandbox.sandbox import Sandbox
    from harness.servers.handle import Server

logger = logging.getLogger("pg_harness.cli")

DESCRIPTION = """\
Your own migrated databases, for development and for looking around. Prints one URL a line, worker 1 first.

Called again, it prints the same URLs at once. The server keeps its data on disk and survives a reboot and
`docker stop` (call `up` again); with --ttl it ends itself when nobody has used it for that long. Test runs
have another server: they never get these databases, and nothing resets or drops these unless you say so.
"""

EPILOG = """\
Where the migrations have changed since, the databases stay as they are and a line says so: `migrate` applies
what is pending and keeps the data; `up --fresh` replaces them, under the same URLs. Forks are left alone.
"""


PARAMETERS: list[click.Parameter] = [
    click.Option(
        ["-n", "workers"], type=NUMBER, metavar="N", help="how many; default: as many as there are, else 1"
    ),
    flag("--fresh", help="drop your databases and make new ones from today's migrations"),
    flag("--dry-run", help="with --fresh: only tell what would be dropped"),
    flag("--yes", help="do not ask (needed for --fresh where there is no terminal)"),
    flag("--rebuild", help="run the migrations again although nothing changed"),
    click.Option(
        ["--ttl"],
        type=seconds,
        metavar="TIME",
        help="end the server after this long without use, for instance 2h",
    ),
    json_flag(),
]


def run(context: Context) -> int:
    """Print the URLs."""
    given = vars(context.arguments)
    if given.get("dry_run"):
        return _tell_fresh(context, given)
    if not given.keys() & {"fresh", "rebuild", "ttl"} and not context.json:
        found_urls = urls(context.project, given.get("workers"))
        if found_urls:
            for url in found_urls:
                context.console.answer(url)
            return 0
    return _at_length(context, given)


def _tell_fresh(context: Context, given: Mapping[str, Any]) -> int:
    from harness.cli import lookup
    from harness.sandbox.sandbox import Sandbox

    if not given.get("fresh"):
        raise ConfigError("--dry-run goes with --fresh: `up` alone drops nothing", key="dry_run")
    told: list[str] = []
    with lookup.servers(context, purposes=["up"]) as found:
        for server in found:
            sandbox = Sandbox(server)
            told += _doomed(sandbox, list(sandbox.workers().values()))
    if context.json:
        context.console.json({"dry_run": True, "dropped": told})
        return 0
    for line in told:
        context.console.answer(line)
    if not told:
        logger.info("there is nothing to drop")
    return 0


def _at_length(context: Context, given: Mapping[str, Any]) -> int:
    # Load what could start a server and migrate: longer than a warm `up` takes in all.
    from harness.sandbox.sandbox import Sandbox
    from harness.servers.acquire import alone

    ttl = given.get("ttl")
    with (
        alone(context.project),
        Sandbox.open(context.project, ttl=ttl, progress=context.console.progress) as sandbox,
    ):
        _say_about_ttl(context, sandbox.server, ttl)
        _up(context, sandbox, given)
    return 0


def _up(context: Context, sandbox: Sandbox, given: Mapping[str, Any]) -> None:
    mine = sandbox.workers()
    workers = given.get("workers") or max(1, *(int(w) for w in mine if w.isdigit()), 1)
    wanted = [str(number) for number in range(1, workers + 1)]
    rebuild = bool(given.get("rebuild"))
    if given.get("fresh"):
        if mine:
            _confirm(context, sandbox, list(mine.values()), yes=bool(given.get("yes")))
        _say_about_migrations(context)
        sandbox.fresh(wanted, doomed=list(mine.values()), rebuild=rebuild)
        mine = sandbox.workers()
    elif rebuild or sandbox.missing(wanted, mine) or sandbox.shut():
        _say_about_migrations(context)
        sandbox.ensure(wanted, rebuild=rebuild)
        mine = sandbox.workers()
    stale = sandbox.stale([mine[worker] for worker in wanted])
    if stale:
        context.console.warn(
            f"the migrations changed since {_workers(stale)} {'was' if len(stale) == 1 else 'were'} made; left as "
            f"{'it is' if len(stale) == 1 else 'they are'}. `pg-harness migrate` applies what is pending and keeps the data; "
            "`pg-harness up --fresh` makes new ones, under the same URLs"
        )
    if len(mine) > len(wanted):
        logger.info("%d of yours are there; %d asked for", len(mine), len(wanted))
    # Here: a warm `up` that only prints URLs does without.
    from harness.runs.rewinding import told

    # Likewise.
    from harness.servers import sharing

    logger.info(
        "reset: %s%s", told(sandbox.rewinding), sharing.told(sandbox.server.session, sandbox.server.info)
    )
    if sandbox.server.started:
        logger.info(
            'next: `eval "$(pg-harness env)"` sets DATABASE_URL in this shell, `pg-harness psql` opens the database'
        )
    _answer(context, sandbox, [mine[worker] for worker in wanted], stale)


def _confirm(context: Context, sandbox: Sandbox, doomed: Sequence[Place], *, yes: bool) -> None:
    say: Callable[[str], None] = logger.info if yes else context.console.warn
    total = sum(len(place.databases) for place in doomed)
    say(
        f"--fresh drops {total} database{'s' if total != 1 else ''} with all that is in {'them' if total != 1 else 'it'}:"
    )
    for line in _doomed(sandbox, doomed):
        say(f"  {line}")
    if yes:
        return
    if not context.console.can_ask:
        raise ConfigError(
            "up --fresh drops databases, and this is no terminal to ask on: add --yes", key="yes"
        )
    if not context.console.ask("drop and make new ones?"):
        raise ConfigError("nothing was dropped", key="yes")


def _doomed(sandbox: Sandbox, places: Sequence[Place]) -> list[str]:
    """What goes with a worker's databases, one line each."""
    lines = []
    for place in places:
        marks = sandbox.marks(place)
        if marks:
            lines.append(f"worker {place.worker}: its marks {', '.join(repr(mark.name) for mark in marks)}")
        for name, database in place.databases.items():
            created = (database.label.created or "")[:19].replace("T", " ")
            open_ = f", {database.sessions} open sessions" if database.sessions else ""
            lines.append(f"worker {place.worker} ({name}): {database.name}, made {created}{open_}")
    return lines


def _workers(places: Sequence[Place]) -> str:
    many = "s" if len(places) > 1 else ""
    return f"worker{many} {', '.join(place.worker for place in places)}"


def _answer(context: Context, sandbox: Sandbox, places: Sequence[Place], stale: Sequence[Place]) -> None:
    if not context.json:
        for place in places:
            context.console.answer(place.dsn().url)
        return
    info = sandbox.server.info
    context.console.json(
        {
            "server": {
                "backend": info.backend,
                "description": info.description,
                "storage": info.storage,
                "ttl": info.ttl,
                "started": sandbox.server.started,
            },
            "workers": [
                {
                    "worker": place.worker,
                    "url": place.dsn().url,
                    "databases": {name: dsn.url for name, dsn in place.dsns().items()},
                    "stale": place in stale,
                }
                for place in places
            ],
        }
    )


def _say_about_migrations(context: Context) -> None:
    if context.settings.default.migrations is None:
        # Reads all kinds of projects: a warm `up` asks for nothing of it.
        from harness.cli.init import say_what_was_found

        say_what_was_found(context)


def _say_about_ttl(context: Context, found: Server, ttl: float | None) -> None:
    if ttl is not None and not found.started and found.info.ttl != ttl:
        now = f"{found.info.ttl:g} s" if found.info.ttl is not None else "none"
        context.console.warn(
            f"--ttl has no effect: the server runs already (its ttl: {now}); `pg-harness down` ends it with its data"
        )
