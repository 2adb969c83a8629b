"""Packages of Node for the tests of JavaScript runners.

PGHARNESS_TEST_NODE_MODULES names a folder ``node_modules`` that has them; with PGHARNESS_TEST_LONG=1 npm installs
them. Without both the tests are skipped, with the reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_cli import Project

PACKAGES = (
    "jest@30", "@mikro-orm/core@6.4.16", "@mikro-orm/knex@6.4.16", "@mikro-orm/postgresql@6.4.16", "vitest@4", "pg@8",
    "prisma@7", "@prisma/client@7", "@prisma/adapter-pg@7",
)  # fmt: skip


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages."""
    if shutil.which("node") is None:
        pytest.skip("no node on this machine")
    if given := os.environ.get("PGHARNESS_TEST_NODE_MODULES"):
        names = [package[: package.rindex("@")] for package in PACKAGES]
        if missing := [name for name in names if not (Path(given) / name).is_dir()]:
            pytest.skip(f"{given} lacks {', '.join(missing)}")
        return Path(given)
    if not os.environ.get("PGHARNESS_TEST_LONG") or shutil.which("npm") is None:
        pytest.skip(
            "PGHARNESS_TEST_NODE_MODULES names no folder, and npm installs only with PGHARNESS_TEST_LONG=1"
        )
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true}')
    # Prisma's own install script downloads an engine that is not needed here.
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"npm cannot install {', '.join(PACKAGES)}: {done.stderr.strip()[-300:]}")
    return folder / "node_modules"


@pytest.fixture(scope="session")
def new_javascript(new_project: Callable[..., Project], node_modules: Path) -> Callable[[str], Project]:
    """Makes projects that find those packages."""

    def make(name: str) -> Project:
        project = new_project(name, migrations=False)
        (project.root / "node_modules").symlink_to(node_modules)
        (project.root / "package.json").write_text('{"private": true}')
        return project

    return make
