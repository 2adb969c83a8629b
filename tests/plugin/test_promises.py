"""Promises of the plugin that no other module happens to prove: each is short."""

from __future__ import annotations

import re

from fix_plugin import Folder, Place
from test_other_plugins import need


def test_a_controller_has_a_lease_of_its_own(folder: Folder, place: Place) -> None:
    """Conftests are imported there, too, and may ask the database."""
    folder.write(
        conftest="""
        import os, psycopg
        with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
            NAME, KINDS = conn.execute("select current_database(), count(*) from kinds").fetchone()
        assert KINDS == 2
        with open("imported", "a") as file: file.write(NAME + "\\n")
        """,
        test_a="""
        import pytest
        from conftest import NAME
        @pytest.mark.parametrize("i", range(4))
        def test_it(i, pg): assert NAME == pg.dsn.database
        """,
    )
    folder.pytest("-n", "2").ok(4)
    found = (folder.path / "imported").read_text().split()
    assert len(found) == len(set(found)) == 3
    assert [name for name in found if "_main_" in name] == found[:1]
    assert place.leases() == []


def test_a_worker_that_is_taken_for_something_else_runs_no_test(folder: Folder, place: Place) -> None:
    folder.write(
        hides="""
        import os
        # Before our hook looks: it leases as if nobody had started it.
        os.environ.pop("PYTEST_XDIST_WORKER", None)
        """,
        test_a="def test_it(): open('ran', 'w')",
    )
    result = folder.pytest("-n", "1", plugins=("hides", "pg_harness_pytest", "xdist"))
    assert result.code != 0, result.text
    assert "this xdist worker did not lease a database of its own" in result.text, result.text
    assert not (folder.path / "ran").exists()
    assert place.leases() == []


def test_a_url_that_changes_in_workers_only_stops_the_run(folder: Folder) -> None:
    folder.write(
        conftest="""
        import os
        if "PYTEST_XDIST_WORKER" in os.environ: os.environ["DATABASE_URL"] = "postgresql://dev:geheim@db.example/dev"
        """,
        test_a="def test_it(): open('ran', 'w')",
    )
    result = folder.pytest("-n", "2")
    assert result.code == 4, result.text
    assert result.text.count("somebody has changed what was exported") == 1, result.text
    assert "geheim" not in result.text
    assert "Traceback" not in result.text
    assert not (folder.path / "ran").exists()


def test_as_many_workers_as_processors_must_fit_too(folder: Folder) -> None:
    folder.write(test_a="def test_it(): open('ran', 'w')")
    result = folder.pytest("-n", "auto", env={"PYTEST_XDIST_AUTO_NUM_WORKERS": "64"})
    assert result.code == 4, result.text
    assert "64 workers and their controller need" in result.text
    assert not (folder.path / "ran").exists()


def test_waiting_for_a_turn_is_no_test_time(folder: Folder) -> None:
    plugins = need("pytest_timeout")
    folder.write(
        test_a="""
        import time
        def test_long():
            open("began", "w").close()
            time.sleep(2)
        """,
        test_b="""
        import pytest, time
        @pytest.mark.serial_only
        @pytest.mark.timeout(1)
        def test_waits(): pass
        """,
        conftest="""
        import os, pytest, time
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_protocol(item):
            end = time.monotonic() + 30
            while "waits" in item.name and not os.path.exists("began") and time.monotonic() < end: time.sleep(0.02)
            return (yield)
        """,
    )
    result = folder.pytest("-n", "2", "--dist", "loadfile", "--durations=0", "-vv", plugins=plugins).ok(2)
    waited = re.findall(r"([\d.]+)s (?:call|setup) +test_b.py::test_waits", result.text)
    assert waited
    assert all(float(seconds) < 1 for seconds in waited), result.text


def test_serial_tests_keep_their_order_at_the_end(folder: Folder) -> None:
    folder.write(
        test_a="""
        import pytest
        alone = pytest.mark.serial_only
        def test_1(): pass
        @alone
        def test_2(): pass
        @alone
        @pytest.mark.parametrize("i", "ab")
        def test_3(i): pass
        """,
        test_b="""
        import pytest
        def test_4(): pass
        @pytest.mark.serial_only
        def test_5(): pass
        def test_6(): pass
        """,
    )
    result = folder.pytest("-v").ok(7)
    names = re.findall(r"::test_(\S+) PASSED", result.text)
    assert names == ["1", "4", "6", "2", "3[a]", "3[b]", "5"]
