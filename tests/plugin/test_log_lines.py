"""What the plugin tells of its work, and what of it is in the reports of tests."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fix_plugin import Folder

from harness.dsn import Dsn
from harness.postgres.roles import derived_password

FAILS = """
    import logging
    def test_fails(pg):
        with pg.connect() as connection:
            connection.execute("insert into users (name) values ('x')")
        pg.reset()
        logging.getLogger("theirs").warning("of the test's own")
        assert False
"""


def told(text: str) -> list[str]:
    """The lines before pytest's own first one."""
    return text.partition("= test session starts =")[0].splitlines()[:-1]


@pytest.mark.parametrize("options", [[], ["-v"], ["-vv"], ["-n", "1"]], ids=["", "v", "vv", "n1"])
def test_a_failed_tests_report_has_none_of_our_records(folder: Folder, options: list[str]) -> None:
    folder.write(test_a=FAILS)
    text = folder.pytest(*options, "--pg-harness-rebuild").text
    assert "of the test's own" in text
    assert "1 failed" in text
    assert "pg_harness." not in text


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "worker"])
@pytest.mark.parametrize("how", ["variable", "option"])
def test_it_has_them_where_they_were_asked_for(folder: Folder, workers: list[str], how: str) -> None:
    folder.write(test_a=FAILS)
    if how == "variable":
        text = folder.pytest(*workers, env={"PGHARNESS_LOG": "debug"}).text
    else:
        text = folder.pytest(*workers, "--log-level=debug").text
    assert "1 failed" in text
    report = text.partition("Captured log call")[2]
    assert re.search(r"DEBUG +pg_harness\.databases:lease\.py:\d+ worker \w+: reset: ", report)


def test_caplog_sees_them_with_a_level_of_its_own(folder: Folder) -> None:
    folder.write(
        test_a="""
        import logging
        def test_it(pg, caplog):
            pg.reset()
            assert caplog.records == []
            with caplog.at_level("DEBUG", logger="pg_harness"):
                pg.reset()
            assert [record.name for record in caplog.records] == ["pg_harness.databases"]
            pg.reset()
            assert len(caplog.records) == 1
            assert logging.getLogger("pg_harness").level == logging.NOTSET
        """
    )
    folder.pytest().ok(1)


def test_how_much_is_told(folder: Folder) -> None:
    folder.write(test_a="def test_it(pg): pass\n")
    rebuild = "--pg-harness-rebuild"
    usual = told(folder.pytest(rebuild).ok(1).text)
    assert any(re.fullmatch(r"pg-harness: migrating default: sql:.*migrations", line) for line in usual)
    detailed = told(folder.pytest(rebuild, "-v").ok(1).text)
    assert any(
        re.match(r"pg-harness: +\d+\.\d{3} s  databases: migrating default", line) for line in detailed
    )
    assert not any("cloned from" in line or "taken from" in line for line in detailed)
    everything = told(folder.pytest("-vv").ok(1).text)
    assert any("_main_0: " in line for line in everything)
    assert "pg-harness: migrating" not in folder.pytest(rebuild, "-q").text
    # The variable decides alone.
    assert any("server: using" in line for line in told(folder.pytest(env={"PGHARNESS_LOG": "debug"}).text))
    assert not told(folder.pytest(rebuild, "-vv", env={"PGHARNESS_LOG": "warning"}).text)


def test_a_level_that_is_none(folder: Folder) -> None:
    folder.write(test_a="def test_it(): pass\n")
    result = folder.pytest(env={"PGHARNESS_LOG": "loud"})
    assert result.code == 4
    assert "the variable PGHARNESS_LOG is 'loud'" in result.text
    assert "Traceback" not in result.text


def test_no_password_is_told(folder: Folder) -> None:
    folder.write(test_a=FAILS)
    text = ""
    for options in (["-n", "2"], ["--pg-harness-rebuild"], ["--pg-harness-fresh", "clone"]):
        text += folder.pytest(*options, "--show-capture=all", env={"PGHARNESS_LOG": "debug"}).text
    state = Path(folder.place.environ["PGHARNESS_STATE_DIR"])
    passwords = {Dsn(**json.loads(path.read_text())["dsn"]).password for path in state.glob("*/run.json")}
    assert passwords
    assert "pg_harness.databases" in text
    for password in passwords:
        assert password not in text
        assert derived_password(password, "app") not in text
