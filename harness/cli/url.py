"""``url``: one database's address."""

from __future__ import annotations

import click

from harness.cli import lookup
from harness.cli.context import Context
from harness.cli.options import json_flag, lease_words

USAGE = "[WORKER] [options]"

DESCRIPTION = """\
Print the URL of one database: yours (1, 2, …), one of a test run's (gw2), or a kept one (by its name).
"""

FORMS = ("url", "sqlalchemy", "asyncpg", "jdbc")


PARAMETERS: list[click.Parameter] = [
    *lease_words(),
    click.Option(["--form"], type=click.Choice(FORMS), default="url", help="how it is written; default: url"),
    json_flag(),
]


def run(context: Context) -> int:
    """Print it."""
    given = context.arguments
    with lookup.resolved(context, given.worker) as place:
        lookup.refuse_template(place, "name")
        dsn = place.dsn(given.database)
        if context.json:
            context.console.json(
                {
                    "worker": place.worker,
                    "database": dsn.database,
                    "what": place.what,
                    **{form: getattr(dsn, form) for form in FORMS},
                    "host": dsn.host,
                    "port": dsn.port,
                    "user": dsn.user,
                    "password": dsn.password,
                }
            )
        else:
            context.console.answer(getattr(dsn, given.form))
    return 0
