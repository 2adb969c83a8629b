"""Playwright: an application for each worker, on a database for each worker, pristine before each test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest
from fix_examples import Javascript
from fix_snippets import files, runs
from fix_vitest import command


def results(project: Javascript) -> dict[str, tuple[bool, int]]:
    """Title of each test → whether it passed, and its worker, by Playwright's own report."""
    found: dict[str, tuple[bool, int]] = {}

    def walk(suite: dict[str, object]) -> None:
        for spec in suite.get("specs", ()):  # type: ignore[attr-defined]
            last = spec["tests"][0]["results"][-1]
            found[f"{suite['file']} {spec['title']}"] = (spec["ok"], last["parallelIndex"])
        for inner in suite.get("suites", ()):  # type: ignore[attr-defined]
            walk(inner)

    path = project.root / "results.json"
    for suite in json.loads(path.read_text())["suites"]:
        walk(suite)
    path.unlink()
    return found


@pytest.fixture(scope="module")
def guestbook(example: Callable[[str], Javascript]) -> Javascript:
    return example("playwright")


@pytest.mark.timeout(180)
def test_a_guest_book_on_four_workers(guestbook: Javascript) -> None:
    words, _ = command(guestbook, 0)
    done = guestbook.run(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(guestbook)
    assert [passed for passed, _ in found.values()] == [True] * 14
    assert len({worker for _, worker in found.values()}) == 4
    assert "not isolated" not in done.stderr


@pytest.mark.timeout(180)
def test_it_fails_on_one_database(guestbook: Javascript) -> None:
    words, variables = command(guestbook, 2)
    done = guestbook.run(*words, **variables)
    assert done.returncode == 1, done.stdout + done.stderr
    found = results(guestbook)
    assert len(found) == 14
    assert sum(not passed for passed, _ in found.values()) >= 5, done.stdout


@pytest.mark.timeout(180)
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_in_a_browser(guestbook: Javascript) -> None:
    words, _ = command(guestbook, 1)
    done = guestbook.run(*words, CHROMIUM=str(shutil.which("chromium")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [passed for passed, _ in results(guestbook).values()] == [True] * 17


def test_outside_of_a_run_nothing_is_tested(guestbook: Javascript) -> None:
    precious = "postgresql://developer@localhost/precious"
    done = guestbook.call("playwright", "test", "--project=api", DATABASE_URL=precious)
    assert done.returncode == 1
    assert "outside of pg-harness. Run `pg-harness run -n 4 -- npx playwright test`" in done.stdout
    assert not any(passed for passed, _ in results(guestbook).values())


RETRIED = """
import { expect, test } from './fixtures.js';

test('a retry begins pristine', async ({ request }, { retry }) => {
  const response = await request.post('/entries', { data: { name: 'Ada', email: 'ada@example.org', text: 'x' } });
  expect(await response.json()).toEqual({ id: 2 });
  expect(retry).toBe(2);
});
"""


def test_a_worker_that_is_started_again_keeps_its_database(guestbook: Javascript) -> None:
    guestbook.write({"tests/retried.spec.js": RETRIED})
    done = guestbook.run("run", "--", "playwright", "test", "retried", "--retries=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(guestbook) == {"retried.spec.js a retry begins pristine": (True, 0)}
    # Without pristine retries each would find the guest of the one before.
    done = guestbook.run("run", "--", "playwright", "test", "retried", "--retries=2", SHARED="1")
    assert done.returncode == 1
    (guestbook.root / "tests/retried.spec.js").unlink()


def test_more_workers_than_databases(guestbook: Javascript) -> None:
    done = guestbook.run("run", "--", "playwright", "test", "--project=api", "--workers=3")
    assert done.returncode == 1
    assert "has no database: this run has 1, numbered from 1" in done.stdout
    assert "fewer workers (workers in playwright.config)" in done.stdout


@pytest.mark.parametrize("single", [False, True], ids=["package", "file"])
def test_the_page(javascript: Callable[..., Javascript], single: bool) -> None:
    project = javascript("page", "@playwright/test", "pg")
    written = files("playwright.md")
    if single:
        project.ok("init", "playwright")
        written = {
            name: text.replace("'pg-harness/playwright'", "'../pg-harness.playwright.mjs'")
            for name, text in written.items()
        }
    project.write({**written, "package.json": '{"private": true, "type": "module"}'})
    (words,) = runs("playwright.md")
    done = project.run(*words[:-3], "playwright", "test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
