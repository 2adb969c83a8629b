"""``up``: a person's own databases."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from harness.cli.context import Context
from harness.cli.options import Count, Duration, flag, json_flag
from harness.errors import ConfigError
from harness.postgres import names

if TYPE_CHECKING:
    from harness.databases.template import Template
    from harness.runs.harness import Harness
    from harness.runs.places import Place
    from harness.servers.handle import Server
    from harness.servers.port import Backend

logger = logging.getLogger("pg_harness.cli")

DESCRIPTION = """\
Your own migrated databases, for development and for looking around. Prints one URL a line, worker 1 first.

Called again, it prints the same URLs at once. The server keeps its data on disk and survives a reboot and
`docker stop` (call `up` again); with --ttl it ends itself when nobody has used it for that long. Test runs
have another server: they never get these databases, and nothing resets or drops these unless you say so.
"""

EPILOG = """\
Where the migrations have changed since, the databases stay as they are and a line says so;
`up --fresh` replaces them, under the same URLs.
"""


PARAMETERS: list[click.Parameter] = [
    click.Option(
        ["-n", "workers"], type=Count(), metavar="N", help="how many; default: as many as there are, else 1"
    ),
    flag("--fresh", help="drop your databases and make new ones from today's migrations"),
    flag("--yes", help="do not ask (needed for --fresh where there is no terminal)"),
    flag("--rebuild", help="run the migrations again although nothing changed"),
    click.Option(
        ["--ttl"],
        type=Duration(),
        metavar="TIME",
        help="end the server after this long without use, for instance 2h",
    ),
    json_flag(),
]


def run(context: Context) -> int:
    """Print the URLs."""
    given = vars(context.arguments)
    if not given.keys() & {"fresh", "rebuild", "ttl"} and not context.json:
        from harness.sandbox.sandbox import urls

        found_urls = urls(context, given.get("workers"))
        if found_urls:
            for url in found_urls:
                context.console.answer(url)
            return 0
    return _at_length(context, given)


def _at_length(context: Context, given: Mapping[str, Any]) -> int:
    from harness.runs.harness import Harness
    from harness.servers import acquire

    ttl = given.get("ttl")
    found = acquire.ensure(
        context.settings,
        context.environ,
        purpose="up",
        ttl=ttl,
        base=partial(_base, context),
    )
    try:
        _say_about_ttl(context, found, ttl)
        harness = Harness.on(
            context.settings,
            found,
            run=names.PERSON,
            environ=context.environ,
            progress=context.console.progress,
        )
        with harness:
            _up(context, harness, given)
    except BaseException:
        found.close()
        raise
    return 0


def _base(context: Context, backend: Backend) -> str | None:
    # Where a server must be started; what runs already needs nothing of it.
    from harness.runs.bake import baked_base

    return baked_base(context.settings, context.environ, backend)


def _up(context: Context, harness: Harness, given: Mapping[str, Any]) -> None:
    mine = _mine(harness)
    workers = given.get("workers") or max(1, *(int(w) for w in mine if w.isdigit()), 1)
    wanted = [str(number) for number in range(1, workers + 1)]
    if given.get("fresh"):
        _fresh(context, harness, mine, wanted, yes=bool(given.get("yes")), rebuild=bool(given.get("rebuild")))
        mine = _mine(harness)
    elif given.get("rebuild") or not all(_whole(harness, mine.get(worker)) for worker in wanted):
        _complete(context, harness, wanted, rebuild=bool(given.get("rebuild")))
        mine = _mine(harness)
    stale = _stale(context, harness, [mine[worker] for worker in wanted])
    if stale:
        context.console.warn(
            f"the migrations changed since {_workers(stale)} {'was' if len(stale) == 1 else 'were'} made; left as "
            f"{'it is' if len(stale) == 1 else 'they are'}. `pg-harness up --fresh` makes new ones, under the same URLs"
        )
    if len(mine) > len(wanted):
        logger.info("%d of yours are there; %d asked for", len(mine), len(wanted))
    _answer(context, harness, [mine[worker] for worker in wanted], stale)


def _mine(harness: Harness) -> dict[str, Place]:
    from harness.runs.places import places_on

    return {place.worker: place for place in places_on(harness) if place.persons}


def _whole(harness: Harness, place: Place | None) -> bool:
    return place is not None and all(d.name in place.databases for d in harness.settings.databases)


def _complete(context: Context, harness: Harness, wanted: Sequence[str], *, rebuild: bool) -> None:
    """Make what is missing, and nothing else."""
    from harness.postgres import locks

    _say_about_migrations(context, harness)
    harness.prepare(rebuild=rebuild)
    session = harness.link.session
    # Two `up` at once: the second one finds the first one's databases, and must not make them again.
    with locks.exclusive(
        session, "person", harness.project, timeout=120, waiting_for="another `up` of this checkout"
    ):
        mine = _mine(harness)
        missing = [worker for worker in wanted if not _whole(harness, mine.get(worker))]
        if len(missing) > 1:
            for template in harness.templates.values():
                harness.clones.fill(template, len(missing), parallel=2)
        for worker in missing:
            harness.complete(worker, before=_noting(context, harness))
    harness.sweep()


def _fresh(
    context: Context,
    harness: Harness,
    mine: Mapping[str, Place],
    wanted: Sequence[str],
    *,
    yes: bool,
    rebuild: bool,
) -> None:
    from harness.postgres import databases, locks
    from harness.sandbox import marks as saved_marks

    doomed = [place for place in mine.values() if place.databases]
    if doomed:
        _confirm(context, doomed, yes=yes)
    _say_about_migrations(context, harness)
    # The template first: a migration that fails must not cost the databases that work.
    harness.prepare(rebuild=rebuild)
    with locks.exclusive(
        harness.link.session,
        "person",
        harness.project,
        timeout=120,
        waiting_for="another `up` of this checkout",
    ):
        for place in doomed:
            for database in place.databases.values():
                # Marks of other migrations' databases would bring those back.
                saved_marks.drop_of(harness.link.session, harness.project, database.name)
                databases.drop(harness.link.session, database.name, harness.project)
        for worker in dict.fromkeys([*wanted, *mine]):
            harness.complete(worker, before=_noting(context, harness))
    harness.sweep()


def _noting(context: Context, harness: Harness) -> Callable[[Template, str, str], None]:
    """So that `reset` can put back what changes from here on: nobody knows the new databases yet."""
    from harness.sandbox import reset, watermarks

    return partial(reset.first_note, harness.clones, watermarks.Notes.of(context.settings, context.environ))


def _confirm(context: Context, doomed: Sequence[Place], *, yes: bool) -> None:
    from harness.sandbox import marks as saved_marks

    say: Callable[[str], None] = logger.info if yes else context.console.warn
    total = sum(len(place.databases) for place in doomed)
    say(
        f"--fresh drops {total} database{'s' if total != 1 else ''} with all that is in {'them' if total != 1 else 'it'}:"
    )
    for place in doomed:
        marks = saved_marks.stack(place.harness.link.session, place.harness.project, place.databases)
        if marks:
            say(f"  worker {place.worker}: its marks {', '.join(repr(mark.name) for mark in marks)}")
        for name, database in place.databases.items():
            created = (database.label.created or "")[:19].replace("T", " ")
            open_ = f", {database.sessions} open sessions" if database.sessions else ""
            say(f"  worker {place.worker} ({name}): {database.name}, made {created}{open_}")
    if yes:
        return
    if not context.console.can_ask:
        raise ConfigError(
            "up --fresh drops databases, and this is no terminal to ask on: add --yes", key="yes"
        )
    if not context.console.ask("drop and make new ones?"):
        raise ConfigError("nothing was dropped", key="yes")


def _stale(context: Context, harness: Harness, places: Sequence[Place]) -> list[Place]:
    """Those that were made from other migrations than today's."""
    wanted = harness.fingerprints()
    return [
        place
        for place in places
        if any(
            database.label.fingerprint != wanted.get(name)
            for name, database in place.databases.items()
            if name in wanted
        )
    ]


def _workers(places: Sequence[Place]) -> str:
    many = "s" if len(places) > 1 else ""
    return f"worker{many} {', '.join(place.worker for place in places)}"


def _answer(context: Context, harness: Harness, places: Sequence[Place], stale: Sequence[Place]) -> None:
    if not context.json:
        for place in places:
            context.console.answer(place.dsn().url)
        return
    info = harness.server.info
    context.console.json(
        {
            "server": {
                "backend": info.backend,
                "description": info.description,
                "storage": info.storage,
                "ttl": info.ttl,
                "started": harness.server.started,
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


def _say_about_migrations(context: Context, harness: Harness) -> None:
    """An empty database where somebody expects tables must not come as a surprise."""
    default = harness.settings.default
    if default.migrations is not None:
        return
    from harness.config.sources import EXAMPLE
    from harness.migrations.detect import detect, looked_for

    found = detect(harness.settings.root)
    if found:
        logger.info(
            "migrations: none are configured; found %s (%s: %s)",
            found[0].text,
            found[0].tool,
            found[0].evidence,
        )
        if len(found) > 1:
            logger.info(
                "migrations: also found %s; `pg-harness init` writes down which",
                ", ".join(f.text for f in found[1:]),
            )
        return
    warn = context.console.warn
    warn(f"no migrations were found in {harness.settings.root}: the database is empty. Looked for:")
    for line in looked_for():
        warn(f"  {line}")
    warn(f'`pg-harness init` writes the settings; name them there: migrations = ["{EXAMPLE}"]')


def _say_about_ttl(context: Context, found: Server, ttl: float | None) -> None:
    if ttl is not None and not found.started and found.info.ttl != ttl:
        now = f"{found.info.ttl:g} s" if found.info.ttl is not None else "none"
        context.console.warn(
            f"--ttl has no effect: the server runs already (its ttl: {now}); `pg-harness down` ends it with its data"
        )
