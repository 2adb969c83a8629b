"""A run whose server has a standby, once for each file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_replicas import new_root
from fix_runs import environ_of_15, opened

from harness.databases.lease import Lease
from harness.runs.run import Run


@pytest.fixture(scope="module")
def run(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run whose server has a standby, for all of this file."""
    with opened(new_root(tmp_path_factory.mktemp("replicas") / "shop"), environ_of_15(folders)) as run:
        yield run


@pytest.fixture
def lease(run: Run) -> Iterator[Lease]:
    with run.lease(watch=True) as lease:
        yield lease
