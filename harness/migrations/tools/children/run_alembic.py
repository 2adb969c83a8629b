# mypy: ignore-errors
# It runs in the interpreter of the project, which may be older than the one that mypy checks for.
# ruff: noqa: UP031 -- % runs on any Python 3
"""Task of a child: ``alembic upgrade head``; see migrations/tools/alembic.py."""

import importlib.util
import re
import sys

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.engine import Engine


class Refused(Exception):
    """A reason to refuse; see main.py."""

    needs_no_traceback = True


def run(parameters):
    if parameters["toml"]:
        # [tool.alembic] in pyproject.toml is read by Alembic 1.16 and later.
        config = Config(parameters["ini"], toml_file=parameters["toml"])
    else:
        config = Config(parameters["ini"])
    script = ScriptDirectory.from_config(config)
    heads = script.get_heads()
    if not heads:
        raise Refused("there are no revisions in %s" % script.dir)
    if len(heads) > 1:
        lines = ["there are %d heads, so 'upgrade head' has no meaning:" % len(heads)]
        for head in sorted(heads):
            revision = script.get_revision(head)
            lines.append("  %s  %s  (%s)" % (head, revision.doc, revision.path))
        lines.append("Join them with: alembic merge heads. Or, if they are meant, use")
        lines.append('"command:alembic upgrade heads" in place of "alembic".')
        raise Refused("\n".join(lines))

    url = with_driver(parameters["url"], config.get_main_option("sqlalchemy.url") or "", env_text(script))
    # ConfigParser reads % as the begin of an interpolation.
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))

    connected = []

    def guard(dialect, record, arguments, keywords):
        connected.append(1)
        if dialect.name != "postgresql":
            raise Refused(
                "env.py connects with %s, not with PostgreSQL: make it read DATABASE_URL" % dialect.name
            )
        database = keywords.get("dbname") or keywords.get("database")
        host = keywords.get("host")
        port = keywords.get("port")
        wrong = (
            (database is not None and database != parameters["database"])
            or (host is not None and str(host) != parameters["host"])
            or (port is not None and str(port) != parameters["port"])
        )
        if wrong:
            # Without this, a hard-coded URL would have its real database migrated.
            raise Refused(
                "env.py connects to the database %r on %s:%s, which is not the one to be migrated; "
                "nothing was done there. Make env.py take its URL from the config or from DATABASE_URL"
                % (database, host, port)
            )

    event.listen(Engine, "do_connect", guard)
    command.upgrade(config, "head")
    if not connected:
        raise Refused("env.py made no connection through SQLAlchemy, so nothing was migrated")


def with_driver(url, configured, env):
    """The URL with the driver that the project uses, or one that is installed."""
    match = re.match(r"postgres(?:ql)?\+(\w+)://", configured)
    if match and installed(match.group(1)):
        driver = match.group(1)
    elif re.search(r"async_engine_from_config|create_async_engine", env):
        driver = first("asyncpg", "psycopg")
    else:
        # A plain postgresql:// is psycopg2 for SQLAlchemy 2.0 and psycopg for 2.1: name what is there.
        driver = first("psycopg2", "psycopg", "pg8000", "asyncpg")
    if driver is None:
        raise Refused("no PostgreSQL driver is installed for %s: install psycopg" % sys.executable)
    return "postgresql+" + driver + url[len("postgresql") :]


def first(*drivers):
    for driver in drivers:
        if installed(driver):
            return driver
    return None


def installed(driver):
    return importlib.util.find_spec(driver) is not None


def env_text(script):
    try:
        with open(script.env_py_location, encoding="utf-8") as stream:
            return stream.read()
    except (OSError, UnicodeDecodeError):
        return ""
