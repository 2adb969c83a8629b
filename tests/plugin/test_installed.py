"""What is tested is what users get: in CI the wheel, elsewhere this checkout."""

from __future__ import annotations

import os

from fix_backends import INSTALLED, ROOT
from fix_plugin import Folder

import harness


def test_the_projects_run_the_harness_that_is_installed(folder: Folder) -> None:
    folder.write(
        test_a="""
        import harness, pg_harness_pytest
        def test_it():
            print("found", harness.__file__, pg_harness_pytest.__file__)
        """
    )
    text = folder.pytest("-s").ok(1).text
    assert f"found {harness.__file__} {INSTALLED / 'pg_harness_pytest.py'}" in text
    assert (INSTALLED == ROOT) == (os.environ.get("PGHARNESS_TEST_WHEEL") != "1")
