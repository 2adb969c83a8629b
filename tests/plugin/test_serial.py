"""``serial_only`` runs alone in the whole run; what waits too long says for whom."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fix_plugin import Folder

from harness.errors import PoolTimeout
from harness.postgres.admin import Link
from harness.pytest_plugin.serial import Turns
from harness.runs.run import Run

LOGGING = """
    import os, time, pytest

    def note(what):
        # One write: appended atomically by all processes.
        with open(os.environ["LOG"], "a") as log: log.write(f"{time.time()} {what}\\n")

    @pytest.mark.serial_only
    @pytest.mark.parametrize("i", range(3))
    def test_serial(i):
        note(f"serial+ {i}"); time.sleep(0.05); note(f"serial- {i}")

    @pytest.mark.parametrize("i", range(24))
    def test_parallel(i):
        note(f"parallel+ {i}"); time.sleep(0.02); note(f"parallel- {i}")

    @pytest.mark.serial_only
    class TestClass:
        def test_serial_by_class(self): note("serial+ c"); time.sleep(0.05); note("serial- c")
        @pytest.mark.parallel_safe
        def test_safe(self): note("parallel+ c"); note("parallel- c")
"""


def overlaps(log: str) -> tuple[int, int]:
    """How many tests ran while a serial one did, and how many ran beside others."""
    running: set[str] = set()
    bad = beside = 0
    for line in sorted(log.splitlines(), key=lambda line: float(line.split()[0])):
        _, what, name = line.split()
        kind, sign = what[:-1], what[-1]
        if sign == "+":
            running.add(f"{kind} {name}")
            bad += len(running) > 1 and any(r.startswith("serial") for r in running)
            beside += len(running) > 1
        else:
            running.discard(f"{kind} {name}")
    return bad, beside


def test_serial_runs_alone_and_last(folder: Folder) -> None:
    folder.write(test_a=LOGGING)
    for dist in ("load", "worksteal", "loadfile"):
        log = folder.path / dist
        folder.pytest("-n", "3", "--dist", dist, "-q", env={"LOG": str(log)}).ok(29)
        bad, beside = overlaps(log.read_text())
        assert bad == 0, (dist, log.read_text())
        assert dist == "loadfile" or beside > 0
    log = folder.path / "one"
    result = folder.pytest("-v", env={"LOG": str(log)}).ok(29)
    lines = [line for line in result.text.splitlines() if "PASSED" in line]
    assert all("serial" in line for line in lines[-4:])
    assert folder.pytest("-m", "serial_only and not parallel_safe", env={"LOG": str(log)})["passed"] == 4
    assert folder.pytest("-m", "parallel_safe", env={"LOG": str(log)})["passed"] == 1


def test_who_waits_too_long_says_for_whom(folder: Folder) -> None:
    folder.write(
        test_a="""
        import os, time
        def test_holds():
            open("holding", "w").close()
            end = time.time() + 30
            while not os.path.exists("failed") and time.time() < end: time.sleep(0.05)
            assert os.path.exists("failed")
        """,
        test_b="""
        import pytest
        @pytest.mark.serial_only
        def test_waits(): pass
        """,
        conftest="""
        import os, pytest, time

        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_protocol(item):
            while "waits" in item.name and not os.path.exists("holding"): time.sleep(0.05)
            return (yield)

        @pytest.hookimpl(trylast=True)
        def pytest_runtest_logreport(report):
            if report.failed: open("failed", "w").close()
        """,
    )
    result = folder.pytest("-n", "2", env={"PGHARNESS_SERIAL_TIMEOUT": "2s"})
    assert (result.code, result["error"], result["passed"]) == (1, 1, 1), result.text
    assert "other tests of the run did not end within 2 s (setting serial_timeout)" in result.text
    assert "test_a.py::test_holds, for " in result.text


def turns(link: Link, worker: str) -> Turns:
    return Turns(cast(Run, SimpleNamespace(run="0123456789abcdef", link=link)), worker)


def waiting(link: Link) -> list[Any]:
    return link.session.rows(
        "select pid from pg_stat_activity where wait_event = 'advisory' and query like '%-- gw_: %'"
    )


def test_who_waits_is_served_in_order_and_a_lost_session_holds_nothing(link: Link) -> None:
    first, second, alone = (turns(link, worker) for worker in ("gw0", "gw1", "gw2"))
    first.take("test_a.py::test_ä[-- a\nline\0 %s '*/]", alone_within=None)
    with pytest.raises(
        PoolTimeout, match=r"\n  gw0: test_a\.py::test_\\xe4\[-- a\\nline\\x00 %s '\*/\], for 0 s$"
    ):
        alone.take("test_alone", alone_within=0.01)
    had: list[str] = []

    def take(taker: Turns, name: str, alone_within: float | None) -> None:
        taker.take(name, alone_within=alone_within)
        had.append(name)
        taker.leave()

    threads = []
    for number, arguments in enumerate([(alone, "alone", 60.0), (second, "beside", None)], 1):
        threads.append(threading.Thread(target=take, args=arguments))
        threads[-1].start()
        while len(waiting(link)) < number:
            pass
    # The second would be let in beside the first, if nobody had asked before it.
    assert had == []
    link.session.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where query like 'set local%-- gw0: %'"
    )
    for thread in threads:
        thread.join(timeout=60)
    assert had == ["alone", "beside"]
    first.leave()
    first.take("test_again", alone_within=1)
    for taker in (first, second, alone):
        taker.close()
