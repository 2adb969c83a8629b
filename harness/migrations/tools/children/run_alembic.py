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

import __main__

guard = __main__.load("guard")


def run(parameters):
    if parameters["toml"]:
        # [tool.alembic] in pyproject.toml is read by Alembic 1.16 and later.
        config = Config(parameters["ini"], toml_file=parameters["toml"])
    else:
        config = Config(parameters["ini"])
    script = ScriptDirectory.from_config(config)
    guard.one_head(
        script,
        "Join them with: alembic merge heads. Or, if they are meant, use\n"
        '"command:alembic upgrade heads" in place of "alembic".',
    )

    url = with_driver(parameters, config.get_main_option("sqlalchemy.url") or "", env_text(script))
    # ConfigParser reads % as the begin of an interpolation.
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))

    connected = guard.watch(
        parameters, "env.py", "make env.py take its URL from the config or from DATABASE_URL"
    )
    command.upgrade(config, "head")
    if not connected:
        raise guard.Refused("env.py made no connection through SQLAlchemy, so nothing was migrated")


def with_driver(parameters, configured, env):
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
        raise guard.Refused("no PostgreSQL driver is installed for %s: install psycopg" % sys.executable)
    # asyncpg has another form for what an address says of TLS.
    return (
        parameters["asyncpg"]
        if driver == "asyncpg"
        else "postgresql+" + driver + parameters["url"][len("postgresql") :]
    )


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
