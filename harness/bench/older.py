"""The names that measuring code imports, at checkouts that have them elsewhere: two checkouts are measured by one code."""

from __future__ import annotations

import importlib
import sys

NAMES = {
    "harness.config.load": "harness.config",
    "harness.postgres": "harness.catalog",
    "harness.postgres.session": "harness.catalog.session",
    "harness.postgres.databases": "harness.catalog.databases",
    "harness.runs.harness": "harness.core",
    "harness.servers.inventory": "harness.running",
}
"""Module → what it was called before the packages were cut by rooms."""


def answer_to_new_names() -> None:
    """Let imports of modules that this checkout has not yet find what they were called before."""
    for new, old in NAMES.items():
        try:
            importlib.import_module(new)
        except ModuleNotFoundError:
            sys.modules[new] = importlib.import_module(old)
