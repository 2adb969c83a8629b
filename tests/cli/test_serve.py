"""``serve``: a run's databases and control interface without a command."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from fix_cli import Project


@pytest.fixture(autouse=True)
def nothing_is_served_afterwards(project: Project) -> Iterator[None]:
    yield
    project.ok("serve", "--stop")


def detached(project: Project, *words: str) -> dict[str, str]:
    """The variables of what is served in the background. Not by a warm process: it forks."""
    done = subprocess.run(
        project.command("serve", "--detach", "--format", "json", *words),
        cwd=project.root, env=project.environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def lives(run: dict[str, str], project: Project) -> bool:
    return project.run("url", **run).returncode == 0


def test_detached_it_goes_on_until_it_is_told_to_stop(project: Project) -> None:
    mine = project.ok("url")
    run = detached(project, "-n", "2")
    assert run["PGHARNESS_WORKERS"] == "2"
    assert run["DATABASE_URL"] == run["DATABASE_URL_1"] != run["DATABASE_URL_2"]
    with psycopg.connect(run["DATABASE_URL_2"]) as connection:
        connection.execute("insert into users (name) values ('test')")
    assert "put back" in project.run("reset", "2", **run).stderr
    assert project.ok("url", "2", **run).strip() == run["DATABASE_URL_2"]
    project.ok("serve", "--stop")
    assert not lives(run, project)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(run["DATABASE_URL_2"])
    # A developer's own were never meant.
    assert project.ok("url") == mine


def test_all_that_a_checkout_serves_is_stopped(project: Project) -> None:
    runs = [detached(project), detached(project)]
    assert all(lives(run, project) for run in runs)
    err = project.run("serve", "--stop").stderr
    assert err.count("ended: the run") == 2
    assert not any(lives(run, project) for run in runs)
    assert "nothing is served" in project.run("serve", "--stop").stderr


def test_the_answer_ends_where_it_goes_on_in_the_foreground(project: Project) -> None:
    """`pg-harness serve > env &`, and whoever reads its pipe, need not wait for the end."""
    child = project.start("serve", "--format", "json")
    assert child.stdout is not None
    run = json.loads(child.stdout.read())
    assert child.poll() is None
    assert lives(run, project)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGTERM, err
    assert "Traceback" not in err
    assert not lives(run, project)


def test_it_ends_by_itself(project: Project) -> None:
    child = project.start("serve", "--ttl", "1s", "--format", "json")
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert not lives(json.loads(out), project)


def test_a_killed_one_is_no_hindrance(project: Project) -> None:
    child = project.start("serve", "--format", "json")
    assert child.stdout is not None
    run = json.loads(child.stdout.read())
    child.kill()
    child.communicate(timeout=60)
    assert "nothing is served" in project.run("serve", "--stop").stderr
    assert "is over or was killed" in project.fails(124, "reset", **run)


def test_a_port_a_token_and_files_of_ones_own(project: Project, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    token, env = tmp_path / "a token", tmp_path / ".env test"
    run = detached(project, "--port", port, "--token-file", str(token), "--env-file", str(env))
    assert run["PGHARNESS_CONTROL_URL"] == f"http://127.0.0.1:{port}"
    assert run["PGHARNESS_CONTROL_TOKEN"] == token.read_text().strip()
    assert stat.S_IMODE(env.stat().st_mode) == stat.S_IMODE(token.stat().st_mode) == 0o600
    assert f"DATABASE_URL={run['DATABASE_URL']}\n" in env.read_text()
    assert "cannot listen on 127.0.0.1" in project.fails(120, "serve", "--port", port)
    project.ok("serve", "--stop")
    again = detached(project, "--port", port, "--token-file", str(token))
    assert again["PGHARNESS_CONTROL_TOKEN"] == run["PGHARNESS_CONTROL_TOKEN"]


def test_a_socket_that_only_its_owner_may_use(project: Project, tmp_path: Path) -> None:
    path = tmp_path / "it's a socket"
    run = detached(project, "--socket", str(path))
    assert run["PGHARNESS_CONTROL_URL"].startswith("unix://")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert lives(run, project)
    assert "there is one already" in project.fails(120, "serve", "--socket", str(path))
    assert lives(run, project)
    project.ok("serve", "--stop")
    assert not path.exists()
    # What a killed one has left is replaced; a file is not.
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    assert lives(detached(project, "--socket", str(path)), project)
    project.ok("serve", "--stop")
    path.write_text("mine")
    project.fails(120, "serve", "--socket", str(path))
    assert path.read_text() == "mine"


@pytest.mark.parametrize("text", ["short", "two words that are long enough", "ünicode is no token at all"])
def test_a_token_that_is_none_is_refused(project: Project, tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    err = project.fails(120, "serve", "--token-file", str(file))
    assert "at least 16 ASCII characters" in err
    assert text not in err


def test_a_failing_start_is_told_by_the_one_that_was_called(project: Project, tmp_path: Path) -> None:
    words = project.command("serve", "--detach", "--env-file", str(tmp_path / "no" / "folder"))
    done = subprocess.run(
        words, cwd=project.root, env=project.environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 120, done.stderr
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr


def test_in_the_background_it_holds_nothing_of_its_callers_open(project: Project) -> None:
    """A CI job waits for whoever holds its output, and make for its pipes."""
    reading, writing = os.pipe()
    run = subprocess.run(
        project.command("serve", "--detach", "--format", "json"),
        cwd=project.root, env=project.environ, capture_output=True, timeout=60, check=True, pass_fds=[writing],
    )  # fmt: skip
    os.close(writing)
    os.set_blocking(reading, False)
    # The end of the file, and not "nothing yet".
    assert os.read(reading, 1) == b""
    os.close(reading)
    assert lives(json.loads(run.stdout), project)


def test_the_databases_outlive_whoever_called(project: Project) -> None:
    script = f'eval "$({" ".join(project.command("serve", "--detach"))})"; env'
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=project.root,
        env=project.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    run = dict(
        line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("PGHARNESS_CONTROL")
    )
    assert lives(run, project)
