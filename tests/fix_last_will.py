"""A suite that is killed leaves nothing: beside each test process runs one that ends what it has started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_beside: subprocess.Popen[str] | None = None


def leave(kind: str, *what: str | int) -> None:
    """Note what is to be ended when this process is no more, see ``last_will``."""
    global _beside
    if _beside is None:
        # A session of its own: Ctrl-C on the terminal, or a kill of the process group, is not meant for it.
        _beside = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("last_will.py"))],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip
    assert _beside.stdin is not None
    _beside.stdin.write(json.dumps([kind, *what]) + "\n")
    _beside.stdin.flush()


def execute() -> None:
    """End all of it now, and wait until that is done."""
    global _beside
    if _beside is not None:
        _beside.communicate(timeout=60)
        _beside = None


@pytest.fixture(scope="session", autouse=True)
def last_will(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever projects the tests make in pytest's folders."""
    leave("below", str(tmp_path_factory.getbasetemp()))


def pytest_unconfigure() -> None:
    execute()
