"""The examples that Vitest runs: each fails on one shared database, and passes in parallel here, without any clean-up."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from fix_examples import Javascript
from fix_vitest import REPORT, command, results


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


# --- Nest ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forum(example: Callable[[str], Javascript]) -> Javascript:
    project = example("vitest-nest-prisma")
    done = project.call("prisma", "generate")
    assert done.returncode == 0, done.stdout + done.stderr
    return project


@pytest.mark.timeout(180)
def test_a_forum_fails_on_one_database(forum: Javascript) -> None:
    words, variables = command(forum, 2)
    done = forum.run(*words, *REPORT, **variables)
    assert done.returncode == 1, done.stdout + done.stderr
    found = results(forum)
    failed = [name for name, status in found.items() if status == "failed"]
    assert len(found) == 26
    assert len(failed) > 4, done.stdout
    assert re.search(
        "Unique constraint failed|Foreign key constraint violated|users_email_key", done.stdout + done.stderr
    )


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [0, 1], ids=["a database for each worker", "a schema in it"])
def test_a_forum_on_three_workers(forum: Javascript, number: int) -> None:
    for path in (forum.root / "test").glob("*.spec.ts"):
        assert not re.search("afterEach|beforeAll|TRUNCATE|cleanup", path.read_text()), path
    words, variables = command(forum, number)
    done = forum.run(*words, *REPORT, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(results(forum).values()) == ["passed"] * 26
    assert "not isolated" not in done.stderr
