"""Few file descriptors: they suffice, or it is said that they do not."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable

import psycopg
import pytest
from fix_cli import PATIENCE, Project

from harness.errors import BackendError, out_of_files
from harness.postgres.session import translated


def run(project: Project, files: int, *words: str) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    return subprocess.run(
        project.command(*words), cwd=project.root, env=project.environ, text=True, timeout=PATIENCE,
        stdin=subprocess.DEVNULL, capture_output=True, check=False, preexec_fn=limit,
    )  # fmt: skip


def test_few_files(new_project: Callable[..., Project]) -> None:
    project = new_project("files")
    done = run(project, 64, "run", "-n", "8", "--", "true")
    assert done.returncode == 0, done.stderr
    # How few are too few depends on Python and its packages: from some number on it is said, and nothing is broken.
    for files in (10, 12):
        done = run(project, files, "run", "-n", "8", "--", "true")
        assert done.returncode == 0 or "no further file or connection" in done.stderr, (files, done.stderr)
        assert "a bug in pg-harness" not in done.stderr
    project.ok("run", "--", "true")


def test_a_connection_that_has_no_descriptor_is_no_server_that_is_gone() -> None:
    """Else a second server would be started in its place."""
    words = "connection failed: could not create socket: Too many open files"
    expected = pytest.raises(BackendError, match=r"no further file or connection \(its limit is \d+\)")
    with expected as caught, translated("connect to a server"):
        raise psycopg.OperationalError(words)
    assert type(caught.value) is BackendError
    assert out_of_files(psycopg.OperationalError("server closed the connection unexpectedly")) is None
