"""``status --watch``: who has which connections, live."""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from fix_cli import Project


def look(project: Project) -> dict[str, Any]:
    """One look, of what is one's own: worker → line."""
    child = project.start("status", "--watch=50ms", "--json")
    assert child.stdout is not None
    seen = json.loads(child.stdout.readline())
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 0, err
    assert err == ""
    return {line["worker"]: line for line in seen["workers"] if line["run"] is None}


def test_every_state_is_seen(project: Project) -> None:
    url, _ = project.ok("up").splitlines()
    with ExitStack() as stack:
        idle, idle2, open_, holder, waiter = (
            stack.enter_context(psycopg.connect(url, autocommit=n < 2)) for n in range(5)
        )
        for one in (idle, idle2, open_):
            one.execute("select 1")
        holder.execute("lock table users")
        waiting = stack.enter_context(ThreadPoolExecutor()).submit(waiter.execute, "lock table users")
        for _ in range(100):
            line = look(project)["1"]
            if line["states"]["waiting"] == 1:
                break
        assert line["states"] == {"active": 0, "waiting": 1, "idle in transaction": 2, "idle": 2}
        assert line["total"] == 5
        assert line["limit"] == 53
        assert line["longest_transaction"] > 0
        holder.rollback()
        waiting.result(30)


def test_a_run_that_begins_meanwhile_is_seen(project: Project) -> None:
    child = project.start("status", "--watch=100ms", "--json")
    assert child.stdout is not None
    json.loads(child.stdout.readline())
    run = project.start(
        "run", "-n", "2", "--", "sh", "-c", "exec psql $DATABASE_URL_2 -c 'select pg_sleep(30)'"
    )
    for _ in range(200):
        seen = json.loads(child.stdout.readline())
        theirs = {line["worker"]: line for line in seen["workers"] if line["run"]}
        if theirs and theirs.get("2", {}).get("states", {}).get("active") == 1:
            break
    assert sorted(theirs) == ["1", "2"]
    assert seen["connections"] >= 1
    assert seen["max_connections"] >= 100
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=30)


@pytest.mark.parametrize("word", ["--watch=soon", "--watch=-1s"])
def test_a_time_that_is_none_is_refused(project: Project, word: str) -> None:
    project.fails(120, "status", word)


def test_people_read_a_table(project: Project) -> None:
    child = project.start("status", "--watch")
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range(4)]
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=30)
    assert "connections" in lines[0]
    assert lines[1].split() == [
        "worker",
        "active",
        "waiting",
        "idle",
        "in",
        "transaction",
        "idle",
        "total",
        "limit",
        "oldest",
        "transaction",
    ]
    assert lines[2].split()[:2] == ["1", "(yours)"]
