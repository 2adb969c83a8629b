"""``url``: one database's address."""

from __future__ import annotations

import argparse

from harness.cli import lookup
from harness.cli.context import Context
from harness.cli.parser import add_json, add_word

USAGE = "[WORKER] [options]"

DESCRIPTION = """\
Print the URL of one database: yours (1, 2, …), one of a test run's (gw2), or a kept one (by its name).
"""

FORMS = ("url", "sqlalchemy", "asyncpg", "jdbc")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own options."""
    add_word(parser)
    parser.add_argument("--form", choices=FORMS, default="url", help="how it is written; default: url")
    add_json(parser)


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
