"""The example of many tenants: it fails on one shared database, passes in parallel here without any clean-up, and says what a failed test left."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fix_examples import ROOT, Javascript
from fix_vitest import REPORT, command, results

ALONE, SHARED, SERIAL, ARTIFACTS = range(4)
"""The calls of the README, by their order."""

TESTS, COMPARED = 60, 54
"""All of them, and without those that are about the resets."""

FAILING = """
import { expect, test } from 'vitest';
import { book } from '../src/bookings';
import { db } from '../src/db';
import { ada, DAY, tenants } from './data';

test('"Ada" / books twice', async () => {
  await tenants();
  await book('acme', 'portrait', DAY, ada, ['frame']);
  expect(await db.booking.count()).toBe(2);
});

test('fails before it writes', () => expect.unreachable());
"""


@pytest.fixture(scope="module")
def tenants(example: Callable[[str], Javascript]) -> Javascript:
    project = example("tenants")
    done = project.call("prisma", "generate")
    assert done.returncode == 0, done.stdout + done.stderr
    # The word `pg-harness` within a test, as the package's installation has it.
    project.environ["PATH"] += os.pathsep + str(Path(sys.executable).parent)
    return project


@pytest.mark.timeout(180)
def test_tenants_fail_on_one_database(tenants: Javascript) -> None:
    words, variables = command(tenants, SHARED)
    done = tenants.run(*words, *REPORT, **variables)
    assert done.returncode == 1, done.stdout + done.stderr
    found = results(tenants)
    failed = [name for name, status in found.items() if status == "failed"]
    assert len(found) == COMPARED
    assert len(failed) > 20, done.stdout
    said = done.stdout + done.stderr
    assert "Unique constraint failed" in said
    assert re.search("Foreign key constraint violated|No record was found", said)
    # It was not for want of connections.
    assert "too many connections" not in said.lower()


@pytest.mark.timeout(180)
def test_tenants_pass_on_one_database_one_after_the_other(tenants: Javascript) -> None:
    words, variables = command(tenants, SERIAL)
    done = tenants.run(*words, *REPORT, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(results(tenants).values()) == ["passed"] * COMPARED


@pytest.mark.timeout(180)
def test_tenants_on_four_workers(tenants: Javascript) -> None:
    specs = list((tenants.root / "test").glob("*.spec.ts"))
    assert len(specs) == 10
    for path in specs:
        text = path.read_text()
        assert not re.search("afterEach|afterAll|TRUNCATE|cleanup|fileSlug", text, re.IGNORECASE), path
        assert re.search("acme|tenants", text), path
    words, variables = command(tenants, ALONE)
    done = tenants.run(*words, *REPORT, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(results(tenants).values()) == ["passed"] * TESTS
    assert "not isolated" not in done.stderr
    # The client that one test makes besides is refused in its own worker, which is named.
    assert re.search(r"connections were refused: worker \d: \d+\. A worker may have 4", done.stderr)
    assert not (tenants.root / "artifacts").exists()


@pytest.mark.timeout(180)
def test_what_a_failed_test_left_is_an_artifact(tenants: Javascript) -> None:
    tenants.write({"test/failing.spec.ts": FAILING})
    words, variables = command(tenants, ARTIFACTS)
    # Some of the files are enough beside it.
    done = tenants.run(*words, *REPORT, "failing", "booking", "customer", **variables)
    assert done.returncode == 1, done.stdout + done.stderr
    found = results(tenants)
    assert len(found) == 20
    failed = {name.partition("/test/")[2] for name, status in found.items() if status != "passed"}
    assert failed == {'failing.spec.ts "Ada" / books twice', "failing.spec.ts fails before it writes"}
    left = written(tenants.root / "artifacts")
    assert set(left) == {
        "test-failing.spec.ts-Ada-books-twice.json",
        "test-failing.spec.ts-fails-before-it-writes.json",
    }
    twice = left["test-failing.spec.ts-Ada-books-twice.json"]
    assert twice["test"] == 'test/failing.spec.ts > "Ada" / books twice'
    assert twice["errors"] == ["expected 1 to be 2 // Object.is equality"]
    assert {table: what for table, what in twice["changes"].items() if what != "sequence moved"} == {
        "AddOn": "4 inserted", "AuditLog": "3 inserted", "Booking": "1 inserted", "BookingAddOn": "1 inserted", "Customer": "1 inserted",
        "Member": "2 inserted", "Service": "2 inserted", "Slot": "4 inserted", "Tenant": "2 inserted",
    }  # fmt: skip
    assert [row["slug"] for row in twice["rows"]["Tenant"]] == ["acme", "globex"]
    assert twice["rows"]["Booking"] == [
        {"id": 1, "status": "PENDING", "tenantId": 1, "slotId": 1, "customerId": 1}
    ]
    # It came after the other one, and what that left is not its own.
    nothing = left["test-failing.spec.ts-fails-before-it-writes.json"]
    assert (nothing["changes"], nothing["rows"]) == ({}, {})


def written(folder: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in folder.iterdir()}


def test_the_workflow_uses_the_action_and_keeps_the_artifacts() -> None:
    folder = ROOT / "examples" / "tenants"
    (text,) = re.findall(r"```yaml\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    steps = yaml.safe_load(text)["jobs"]["tests"]["steps"]
    used = {step["uses"].partition("@")[0]: step for step in steps if "uses" in step}
    for name, step in used.items():
        assert name == "OWNER/pg-harness" or re.search("@[0-9a-f]{40}$", step["uses"]), name
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    assert set(used["OWNER/pg-harness"]["with"]) <= set(action["inputs"])
    (tests,) = (step for step in steps if step.get("run") == "npm test")
    assert tests["env"] == {"ARTIFACTS": 1}
    upload = used["actions/upload-artifact"]
    assert upload["if"] == "failure()"
    assert steps.index(upload) > steps.index(tests)
    # The folder that the set-up file writes to, and that git leaves alone.
    kept = upload["with"]["path"]
    assert f"`{kept}$" in (folder / "test" / "artifacts.ts").read_text()
    assert kept in (folder / ".gitignore").read_text().splitlines()
