"""The example that Jest runs: it fails on one shared database, and passes in parallel here, without any clean-up."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from fix_examples import Javascript
from fix_vitest import command, results

REPORT = ("--", "--json", "--outputFile=results.json")
TESTS = 68


@pytest.fixture(scope="module")
def orders(example: Callable[[str], Javascript]) -> Javascript:
    project = example("jest-nest-mikroorm")
    # Nest and MikroORM are loaded for each file anew: seconds, and on a busy machine many.
    project.patience = 170
    return project


def nothing_is_cleaned(project: Javascript) -> None:
    """Fails where a test file of the example cleans up, or sets something up that lasts."""
    paths = list((project.root / "test").glob("*.spec.ts"))
    assert len(paths) == 12
    for path in paths:
        assert not re.search("(before|after)(Each|All)|truncate|clean|schema", path.read_text(), re.I), path


@pytest.mark.timeout(180)
def test_orders_fail_on_one_database(orders: Javascript) -> None:
    words, variables = command(orders, 2)
    done = orders.run(*words, *REPORT, **variables)
    assert done.returncode == 1, done.stdout + done.stderr
    found = results(orders)
    failed = [name for name, status in found.items() if status == "failed"]
    assert len(found) == TESTS
    assert len(failed) > 17, done.stdout
    said = done.stdout + done.stderr
    # Rows of other workers are there already, or are gone.
    assert "duplicate key value violates unique constraint" in said
    assert "violates foreign key constraint" in said


@pytest.mark.timeout(180)
def test_orders_on_four_workers(orders: Javascript) -> None:
    nothing_is_cleaned(orders)
    words, variables = command(orders, 0)
    done = orders.run(*words, *REPORT, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(results(orders).values()) == ["passed"] * TESTS
    assert "not isolated" not in done.stderr


@pytest.mark.docker
@pytest.mark.timeout(180)
def test_orders_on_three_containers(orders: Javascript) -> None:
    words, variables = command(orders, 1)
    contained = {"PGHARNESS_BACKEND": "docker", "PGHARNESS_IMAGE": "pgharness-test:15", "TESTCONTAINERS_RYUK_DISABLED": "true"}  # fmt: skip
    done = orders.run(*words, *REPORT, **variables, **contained)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(results(orders).values()) == ["passed"] * TESTS
