"""``url``: one database's address."""

from __future__ import annotations

import click

from harness.cli import inside, lookup
from harness.cli.context import Context
from harness.cli.options import json_flag, lease_words, replica_flag
from harness.dsn import FORMS, Dsn

USAGE = "[WORKER] [options]"

DESCRIPTION = """\
Print the URL of one database: yours (1, 2, …), one of a test run's (gw2), or a kept one (by its name).
"""

PARAMETERS: list[click.Parameter] = [
    *lease_words(),
    click.Option(["--form"], type=click.Choice(FORMS), default="url", help="how it is written; default: url"),
    replica_flag(),
    json_flag(),
]


def run(context: Context) -> int:
    """Print it."""
    database: str = context.arguments.database
    word: str | None = getattr(context.arguments, "worker", None)
    replica = bool(getattr(context.arguments, "replica", False))
    if (client := inside.client_of(context)) is not None:
        with client:
            number = inside.number(client, word)
            dsn = inside.dsn(client, number, database, replica=replica)
            return _answer(context, dsn, str(number), inside.what(client, number))
    with lookup.resolved(context, word) as place:
        lookup.refuse_template(place, "name")
        dsn = place.on_standby(database) if replica else place.dsn(database)
        return _answer(context, dsn, place.worker, place.what)


def _answer(context: Context, dsn: Dsn, worker: str, what: str) -> int:
    if context.json:
        context.console.json(
            {
                "worker": worker,
                "database": dsn.database,
                "what": what,
                **{form: getattr(dsn, form) for form in FORMS},
                "host": dsn.host,
                "port": dsn.port,
                "user": dsn.user,
                "password": dsn.password,
            }
        )
    else:
        context.console.answer(getattr(dsn, context.arguments.form))
    return 0
