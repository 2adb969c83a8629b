"""Servers of this machine: nothing that serves those of others is imported, whether one is started or found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from fix_cli import Project

CODE = (
    "import sys\nfrom harness.cli import main\n"
    "try: code = main(sys.argv[1:])\nexcept SystemExit as end: code = end.code\n"
    "print(*sorted(sys.modules), sep='\\n', file=sys.stderr)\nsys.exit(code)"
)
REMOTE = {
    "cryptography",
    "paramiko",
    *(f"harness.servers.docker.{name}" for name in ("tls", "tunnel", "over_ssh")),
}


@pytest.mark.parametrize("backend", ["process", pytest.param("docker", marks=pytest.mark.docker)])
def test_a_local_server_imports_none_of_it(backend: str, new_project: Callable[..., Project]) -> None:
    project = new_project(f"near {backend}")
    project.environ |= {"PGHARNESS_BACKEND": backend, "PGHARNESS_IMAGE": "pgharness-test:busybox"}
    for words in (["up"], ["up"], ["run", "--", "true"], ["status"], ["down", "--all", "--yes"]):
        done = subprocess.run(
            [sys.executable, "-c", CODE, *words], cwd=project.root, env=project.environ, text=True, timeout=120,
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "harness.cli" in done.stderr.split()
        assert REMOTE.isdisjoint(done.stderr.split()), words
