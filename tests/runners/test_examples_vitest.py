"""The examples that Vitest runs: each fails on one shared database, and passes in parallel here, without any clean-up."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable

import pytest
from fix_examples import Javascript


def command(project: Javascript, number: int) -> tuple[tuple[str, ...], dict[str, str]]:
    """The words of the README's ``number``-th call of pg-harness, and the variables before it."""
    lines = re.findall(
        r"^\$ ((?:\w+=\S+ )*)pg-harness (.+)$", (project.root / "README.md").read_text(), re.MULTILINE
    )
    before, words = lines[number]
    return tuple(shlex.split(words, comments=True)), dict(word.split("=", 1) for word in before.split())


def results(project: Javascript) -> dict[str, str]:
    """Full name of each test → passed, failed …, as Vitest's own report has it."""
    told = json.loads((project.root / "results.json").read_text())
    found = {}
    for file in told["testResults"]:
        for test in file["assertionResults"]:
            found[f"{file['name']} {test['fullName']}"] = test["status"]
    assert len(found) == told["numTotalTests"]
    return found


REPORT = ("--", "--reporter=default", "--reporter=json", "--outputFile=results.json")


@pytest.fixture(scope="module")
def bookings(example: Callable[[str], Javascript]) -> Javascript:
    project = example("vitest-prisma")
    done = project.call("prisma", "generate")
    assert done.returncode == 0, done.stdout + done.stderr
    return project


@pytest.mark.timeout(180)
def test_bookings_fail_on_one_database(bookings: Javascript) -> None:
    words, variables = command(bookings, 1)
    done = bookings.run(*words, *REPORT, **variables)
    assert done.returncode == 1, done.stdout + done.stderr
    found = results(bookings)
    failed = [name for name, status in found.items() if status == "failed"]
    assert len(found) == 96
    assert len(failed) > 24, done.stdout
    said = done.stdout + done.stderr
    # Both of the reasons: no connection is left, and rows of others are there or are gone.
    assert "too many connections" in said
    assert re.search("Unique constraint failed|Foreign key constraint violated|No record was found", said)


@pytest.mark.timeout(180)
def test_bookings_on_eight_workers(bookings: Javascript) -> None:
    for path in (bookings.root / "test").glob("*.spec.ts"):
        assert not re.search("afterEach|beforeAll|TRUNCATE|cleanup", path.read_text()), path
    words, variables = command(bookings, 0)
    done = bookings.run(*words, *REPORT, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(results(bookings).values()) == ["passed"] * 96
    assert "not isolated" not in done.stderr
