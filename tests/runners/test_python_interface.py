"""What a program of a user's sees: the names of a Harness, and on a terminal what is being done."""

from __future__ import annotations

import inspect
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_cli import Project
from fix_fleets import Estate
from fix_snippets import files, shown

import harness
from harness.control.current import CurrentLease, CurrentMark

SCRIPT = """
from harness import Harness

with Harness.open() as harness, harness.lease() as lease:
    with lease.connect() as connection:
        connection.execute("insert into users (name) values ('Ada')")
    assert lease.changes()
    print(lease.reset().strategy)
"""


def on_a_terminal(project: Project, code: str, **environ: str) -> tuple[str, str]:
    """Standard output, and what a person sees on stderr."""
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], cwd=project.root, env={**project.environ, **environ}, text=True,
            timeout=120, stdout=subprocess.PIPE, stderr=theirs, check=False,
        )  # fmt: skip
    finally:
        os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 65536):
            seen += part
    except OSError:
        # The end of a terminal, on Linux.
        pass
    finally:
        os.close(ours)
    assert done.returncode == 0, seen.decode()
    return done.stdout, seen.decode()


def names(of: type) -> set[str]:
    return {name for name in dir(of) if not name.startswith("_")}


def test_a_harness_shows_what_a_user_calls() -> None:
    assert names(harness.Harness) == {
        "close", "description", "lease", "leases", "open", "settings", "variables",
    }  # fmt: skip


def test_settings_are_all_that_opening_takes_besides(tmp_path: Path) -> None:
    with pytest.raises(harness.ConfigError, match="unknown key 'purpose'"):
        harness.Harness.open(root=tmp_path, purpose="up")


def test_the_lease_of_this_process_is_called_as_any_other() -> None:
    """What both have takes the same arguments, in the same order; none of what is asked of the databases is missing."""
    both = names(harness.Lease) & names(CurrentLease)
    assert both >= {
        "aconnect", "asyncpg_url", "changes", "connect", "databases", "dsn", "dsns", "jdbc_url", "mark", "marks", "reset",
        "sqlalchemy_url", "url",
    }  # fmt: skip
    for name in both - {"reset"}:
        one, other = (inspect.getattr_static(of, name) for of in (harness.Lease, CurrentLease))
        assert isinstance(one, property) == isinstance(other, property), name
        if not isinstance(one, property):
            assert list(inspect.signature(one).parameters) == list(inspect.signature(other).parameters), name
    assert "to" in inspect.signature(harness.Lease.reset).parameters
    assert "to" in inspect.signature(CurrentLease.reset).parameters
    assert names(CurrentMark) <= names(harness.LeaseMark)


def test_a_terminal_shows_what_is_done(new_project: Callable[..., Project]) -> None:
    """A script's first start looked like a hang: nothing was said."""
    project = new_project("a_terminal_shows")
    project.migrate("001_of_scripts.sql", "create table of_scripts (id int);\n")
    out, seen = on_a_terminal(project, SCRIPT)
    assert out in ("restore\n", "rewind\n")
    assert "pg-harness: migrating default" in seen
    project.migrate("002_more.sql", "create table more_of_scripts (id int);\n")
    configured = "import logging; logging.basicConfig(level=logging.ERROR)\n" + SCRIPT
    assert on_a_terminal(project, configured)[1] == ""
    project.migrate("003_more.sql", "create table still_more_of_scripts (id int);\n")
    assert on_a_terminal(project, SCRIPT, PGHARNESS_LOG="warning")[1] == ""
    project.migrate("004_more.sql", "create table at_last_of_scripts (id int);\n")
    own = "import sys\n" + SCRIPT.replace(
        "open()", "open(progress=lambda done, total, what: print(done, what, file=sys.stderr))"
    )
    assert "004_more.sql" in on_a_terminal(project, own)[1]


def test_the_page(new_project: Callable[..., Project]) -> None:
    """Each example of docs/python.md prints what the page says."""
    project = new_project("python_page")
    for name, text in files("python.md").items():
        (project.root / name).write_text(text)
    commands = shown("python.md")
    assert {words[-1] for words, _ in commands} == set(files("python.md"))
    for (program, *rest), expected in commands:
        words = [sys.executable if word == "python" else word for word in rest]
        start = [sys.executable, *(["-m", "harness"] if program == "pg-harness" else ["-P"])]
        done = subprocess.run(
            [*start, *words],
            cwd=project.root,
            env=project.environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, expected), done.stderr
        assert done.stderr == ""


def test_a_server_for_each_worker_by_the_setting_alone(new_estate: Callable[..., Estate]) -> None:
    estate = new_estate(backend="process")
    with harness.Harness.open(
        root=estate.root, environ=estate.environ, isolation="server", backend="process", ttl="30s"
    ) as opened:
        first, second = opened.leases(2)
        assert first.dsn.port != second.dsn.port
        assert opened.variables(second)["DATABASE_URL"] == second.url
        assert repr(opened).startswith("<Harness ")
        assert "a server for each worker" in opened.description
    assert estate.purposes() == []
