"""How the command line, the pytest plugin and a script on a terminal show the records of ``pg_harness.*``: which, and as what line.

Nothing here touches a program that configures ``logging`` itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from harness.errors import ConfigError

LOGGER = "pg_harness"
"""The parent of all our loggers, ``pg_harness.<room>``."""

VARIABLE = "PGHARNESS_LOG"

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


@dataclass(frozen=True)
class Verbosity:
    """What is shown.

    Attributes:
        level: the lowest level of a record that is.
        detailed: whether a line begins with the seconds since the start and the logger's name.
        stated: whether the variable asks for it, and thus for the records of the tests' own time too.
    """

    level: int = logging.INFO
    detailed: bool = False
    stated: bool = False

    @classmethod
    def of(cls, environ: Mapping[str, str], count: int = 0) -> Verbosity:
        """From the variable where it is set, else from the options.

        Args:
            count: how many ``-v``, less how many ``-q``.

        Raises:
            ConfigError: the variable names no level.
        """
        named = environ.get(VARIABLE, "")
        if not named.strip():
            level = logging.WARNING if count < 0 else logging.DEBUG if count > 1 else logging.INFO
            return cls(level, detailed=count > 0)
        level = LEVELS.get(named.strip().lower(), logging.NOTSET)
        if level == logging.NOTSET:
            raise ConfigError(
                f"the variable {VARIABLE} is {named!r}: it should be one of {', '.join(LEVELS)}",
                key="log",
                origin=f"the variable {VARIABLE}",
                value=named,
            )
        return cls(level, detailed=count > 0 or level == logging.DEBUG, stated=True)

    def line(self, record: logging.LogRecord) -> str:
        """A record as one line for people; its text alone, unless details are wanted."""
        text = record.getMessage()
        if not self.detailed:
            return text
        # From the import of logging on: the first thing that is done.
        return f"{record.relativeCreated / 1000:7.3f} s  {record.name.removeprefix(LOGGER + '.')}: {text}"


def show(handler: logging.Handler, level: int) -> Callable[[], None]:
    """Hand records from that level on to the handler; returns the undo."""
    logger = logging.getLogger(LOGGER)
    logger.addHandler(handler)
    restore = set_level(level)

    def undo() -> None:
        restore()
        logger.removeHandler(handler)

    return undo


def configured() -> bool:
    """Whether the program decides itself what becomes of our records."""
    ours = logging.getLogger(LOGGER)
    handlers = [*logging.getLogger().handlers, *ours.handlers]
    return ours.level != logging.NOTSET or any(not isinstance(h, logging.NullHandler) for h in handlers)


def set_level(level: int) -> Callable[[], None]:
    """Let records from that level on come to pass; returns the undo."""
    logger = logging.getLogger(LOGGER)
    before = logger.level
    logger.setLevel(level)
    return partial(logger.setLevel, before)
