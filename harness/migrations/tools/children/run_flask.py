# mypy: ignore-errors
# It runs in the interpreter of the project, which may be older than the one that mypy checks for.
# ruff: noqa: UP031 -- % runs on any Python 3
"""Task of a child: ``flask db upgrade``; see migrations/tools/flask.py."""

import os

import click
import flask_migrate  # noqa: F401 -- it is the tool: where it is missing, that is the reason
from alembic.config import Config
from alembic.script import ScriptDirectory
from flask.cli import FlaskGroup

import __main__

guard = __main__.load("guard")


def run(parameters):
    directory = parameters["directory"]
    config = Config(os.path.join(directory, "alembic.ini"))
    config.set_main_option("script_location", directory.replace("%", "%%"))
    guard.one_head(
        ScriptDirectory.from_config(config),
        'Join them with: flask db merge heads. Or, if they are meant, use\n"command:flask db upgrade heads" in place of "flask".',
    )
    remedy = (
        "make its SQLALCHEMY_DATABASE_URI come from DATABASE_URL, or name the variable that it comes from in "
        "[tool.pg-harness.env]"
    )
    connected = guard.watch(parameters, "the application", remedy)
    try:
        FlaskGroup(name="flask").main(args=["db", "upgrade", "--directory", directory], standalone_mode=False)
    except click.ClickException as error:
        raise guard.Refused(
            "%s\nFlask looks for it in %s, or by FLASK_APP, which may stand in .flaskenv there"
            % (error.format_message(), os.getcwd())
        ) from None
    if not connected:
        raise guard.Refused("the application made no connection through SQLAlchemy, so nothing was migrated")
