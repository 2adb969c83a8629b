"""Which records are shown, as what line; and that a program that did not ask is shown none."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from harness.cli.console import verbosity_count
from harness.cli.parser import parse
from harness.config import logs
from harness.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "count", "level", "detailed", "stated"),
    [
        (None, 0, logging.INFO, False, False),
        (None, -1, logging.WARNING, False, False),
        (None, -2, logging.WARNING, False, False),
        (None, 1, logging.INFO, True, False),
        (None, 2, logging.DEBUG, True, False),
        (None, 3, logging.DEBUG, True, False),
        ("", 0, logging.INFO, False, False),
        (" ", -1, logging.WARNING, False, False),
        ("debug", -1, logging.DEBUG, True, True),
        ("INFO", 0, logging.INFO, False, True),
        (" Warning ", 2, logging.WARNING, True, True),
        ("error", 0, logging.ERROR, False, True),
    ],
)
def test_the_variable_wins_over_the_options(
    value: str | None, count: int, level: int, detailed: bool, stated: bool
) -> None:
    environ = {} if value is None else {"PGHARNESS_LOG": value}
    assert logs.Verbosity.of(environ, count) == logs.Verbosity(level, detailed, stated)


@pytest.mark.parametrize("value", ["loud", "10", "notset", "critical", "debug,info"])
def test_a_level_that_is_none_is_refused_by_name(value: str) -> None:
    with pytest.raises(ConfigError, match="debug, info, warning, error") as caught:
        logs.Verbosity.of({"PGHARNESS_LOG": value})
    assert caught.value.origin == "the variable PGHARNESS_LOG"
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("up", 0),
        ("-v up", 1),
        ("up -vv", 2),
        ("-v up -v", 2),
        ("up --verbose --verbose", 2),
        ("up -q", -1),
        ("up --quiet -v", 0),
        ("run -- pytest -vv -q", 0),
        ("run -v -- pytest -q", 1),
        ("-v up -qvn2", 1),
        ("url --database -v", 0),
    ],
)
def test_the_options_are_counted_before_the_command_of_run(words: str, count: int) -> None:
    assert verbosity_count(parse(words.split())[1]) == count


def record(text: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("pg_harness.servers.docker", logging.INFO, "", 0, text, arguments, None)


def test_a_line_is_its_text_and_in_detail_says_when_and_where() -> None:
    found = record("pulling %s: %d %%", "postgres:17", 7)
    assert logs.Verbosity().line(found) == "pulling postgres:17: 7 %"
    found.relativeCreated = 1234.5
    assert logs.Verbosity(detailed=True).line(found) == "  1.234 s  servers.docker: pulling postgres:17: 7 %"


def test_showing_is_undone() -> None:
    logger, handler = logging.getLogger("pg_harness"), logging.Handler()
    before = list(logger.handlers), logger.level
    undo = logs.show(handler, logging.INFO)
    assert handler in logger.handlers
    assert logging.getLogger("pg_harness.servers").isEnabledFor(logging.INFO)
    assert not logger.isEnabledFor(logging.DEBUG)
    undo()
    assert (logger.handlers, logger.level) == before


def test_caplog_has_our_records_once_its_level_is_set(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("pg_harness.databases")
    logger.info("before")
    caplog.set_level(logging.DEBUG, logger="pg_harness")
    logger.debug("a %s", "clone")
    assert caplog.messages == ["a clone"]


def test_a_program_that_configures_no_logging_sees_nothing() -> None:
    code = (
        "import harness, logging\n"
        "for level in (10, 20, 30, 40): logging.getLogger('pg_harness.servers').log(level, 'seen')\n"
        "logger = logging.getLogger('pg_harness')\n"
        "assert logger.level == logging.NOTSET and logger.propagate\n"
        "assert [type(h).__name__ for h in logger.handlers] == ['NullHandler']\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "logging.getLogger('pg_harness.runs').info('asked for')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("", "INFO:pg_harness.runs:asked for\n")
