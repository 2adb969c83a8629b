"""The examples for pytest run as they are, copied."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from fix_backends import ROOT
from fix_plugin import USUAL, Folder, Place

from harness.config.load import load
from harness.config.project import Project
from harness.servers import inventory

EXAMPLES = {
    "sqlalchemy": (7, ("sqlalchemy", "asyncpg", "greenlet"), ()),
    "django": (5, ("django", "pytest_django"), ("pytest_django.plugin",)),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, place: Place) -> None:
    passed, needed, plugins = EXAMPLES[name]
    for module in needed:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    folder = Folder(place, Path(shutil.copytree(ROOT / "examples" / name, place.root / f"example {name}")))
    environ = {"PGHARNESS_BACKEND": "process"}
    settings = load({**place.environ, **environ}, start=folder.path)
    try:
        folder.pytest(plugins=(*USUAL, *plugins), env=environ).ok(passed)
        folder.pytest("-n", "2", plugins=(*USUAL, *plugins), env=environ).ok(passed)
    finally:
        inventory.stop(Project.of(settings, place.environ))
