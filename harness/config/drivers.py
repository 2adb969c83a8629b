"""Drivers of SQLAlchemy and the form of a URL that each takes: which template of ``env`` gives it, and what errors say that another is wanted."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator

from harness.config.settings import Settings

SCHEME = r"(?:postgres(?:ql)?)(?:\+(\w+))?://"
"""Of a URL in somebody's file; its group is the driver, where one is named."""

_PARTS = "postgresql+{driver}://{{user}}:{{password}}@{{host}}:{{port}}/{{database}}"

_MISSING = re.compile(r"No module named '(psycopg2|asyncpg|pg8000)'")
_NOT_ASYNC = re.compile(r"asyncio extension requires an async driver")
_NOT_PLAIN = re.compile(
    # asyncpg's own, and psycopg's for what begins with no scheme that it knows.
    r"""expected to be either "postgresql" or "postgres", got ['"]postgresql\+|"""
    r"""missing "=" after "postgresql\+|invalid dsn: missing "=" after"""
)


def template(driver: str) -> str:
    """Of ``[tool.pg-harness.env]``, for a URL with this driver; for none, and for SQLAlchemy's usual one, the plain URL.

    Args:
        driver: as SQLAlchemy names it: ``"asyncpg"``, ``"psycopg"``; empty: none is named.
    """
    known = {"": "{url}", "psycopg2": "{url}", "psycopg": "{sqlalchemy}", "asyncpg": "{asyncpg}"}
    return known.get(driver) or _PARTS.format(driver=driver)


def remedy(told: str, settings: Settings | None, *, asynchronous: bool = False) -> str:
    """Which setting gives the form of the URL that is wanted, where an error says that the form is wrong; else empty.

    Args:
        told: the error, or the end of a program's output.
        settings: the project's, by which the line knows its place; None: any project's.
        asynchronous: whether an asynchronous engine is known to have raised it.
    """
    if _NOT_ASYNC.search(told):
        cause = "SQLAlchemy took the plain URL for psycopg2, which is not asynchronous"
        wanted = _first("asyncpg", "psycopg")
    elif missing := _MISSING.search(told):
        if missing[1] == "psycopg2":
            cause = "SQLAlchemy takes a plain postgresql:// for psycopg2, which is not installed"
        else:
            cause = f"{missing[1]} is not installed"
        several = ("asyncpg", "psycopg") if asynchronous else ("psycopg", "pg8000", "asyncpg")
        wanted = _first(*(driver for driver in several if driver != missing[1]))
    elif _NOT_PLAIN.search(told):
        cause = "a driver was given a URL of SQLAlchemy's, postgresql+driver://, and takes postgresql:// only"
        wanted = ""
    else:
        return ""
    if wanted is None:
        return f"{cause}: install a driver, for instance psycopg"
    return f"{cause}. What gives the right form: {setting(template(wanted), settings)}"


def setting(text: str, settings: Settings | None, *names: str) -> str:
    """The line for the settings file that gives variables this template, and where it belongs.

    Args:
        names: of the variables; without any, those that the application has.
    """
    if settings is None:
        return f'DATABASE_URL = "{text}" in [tool.pg-harness.env]'
    lines = " and ".join(f'{name} = "{text}"' for name in names or variables(settings))
    own = settings.file is not None and settings.file.name != "pyproject.toml"
    where = settings.file.name if settings.file is not None else "pyproject.toml"
    return f"{lines} in {'[env]' if own else '[tool.pg-harness.env]'} of {where}"


def variables(settings: Settings) -> list[str]:
    """Those that lead an application to the default database by a URL: the user's own, else ``DATABASE_URL``."""
    own = settings.default.env
    found = [
        name
        for name, text in own.items()
        if re.match(r"\{(url|sqlalchemy|asyncpg)[:}]|postgres[\w+]*://", text)
    ]
    return found or ["DATABASE_URL"]


def remedy_of(error: BaseException, settings: Settings) -> str:
    """:func:`remedy` of an exception, with its causes; empty where it is about something else.

    A driver that the project imports by itself has nothing to do with a URL.
    """
    told = "\n".join(str(each) for each in _chain(error))
    modules = {name for each in _chain(error) for name in _modules(each)}
    if _MISSING.search(told) and not any(name.startswith("sqlalchemy.") for name in modules):
        return ""
    return remedy(
        told, settings, asynchronous=any(name.startswith("sqlalchemy.ext.asyncio") for name in modules)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _modules(error: BaseException) -> Iterable[str]:
    traceback = error.__traceback__
    while traceback is not None:
        yield str(traceback.tb_frame.f_globals.get("__name__", ""))
        traceback = traceback.tb_next


def _first(*drivers: str) -> str | None:
    return next((driver for driver in drivers if importlib.util.find_spec(driver) is not None), None)
